"""`cspine compare`: runs (or resumes) every recipe on every fold, and compares all under one metric."""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from cspine_jax.config import Config
from cspine_jax.errors import ConfigError, DataError
from cspine_jax.evaluation import compare as comparing
from cspine_jax.metrics.target_table import read_targets
from cspine_jax.recipes import run_name
from cspine_jax.run_fold import LABELS, PREDICTIONS, TTA, VALIDATION
from cspine_jax.run_folds import Job, command, cost_of, evaluated_otherwise, is_finished, plan, run_jobs
from cspine_jax.training.signals import Interrupted

OUT = "comparison"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

start = command
"""What starts a run."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of this verb."""
    add = parser.add_argument
    add("recipes", nargs="*", metavar="CONFIG", help="recipe, or name=recipe; configs/a.py or configs/a.py:variant")
    add("--workdir", required=True, metavar="DIR", help=f"runs go to DIR/NAME/foldK, the result to DIR/{OUT}")
    add("--folds", type=int, default=5, help="folds (default 5): one tests, the next validates, the others train")
    add("--set", nargs="+", action="extend", default=[], metavar="[NAME:]A.B=V", help="field of all recipes or of one")
    add("--predictions", nargs="+", action="extend", default=[], metavar="NAME=CSV", help="tables from elsewhere")
    add("--labels", metavar="CSV", help="labels (default: those of the data that the recipes use)")
    add("--only", nargs="+", type=int, default=[], metavar="FOLD", help="run these folds only; then as --partial")
    add("--partial", action="store_true", help="compare incomplete recipes, too: ALL on the finished folds they share")
    add("--no-run", action="store_true", help="start nothing, compare what is finished")
    add("--markdown", metavar="FILE", help="put the table between <!-- comparison --> and <!-- /comparison --> there")
    add("--miss", type=float, default=0.1, help="miss rate of the conformal sets (default 0.1)")
    add("--resamples", type=int, default=1000, help="bootstrap resamples of studies (default 1000)")
    add("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    add("--bins", type=int, default=10, help="of the calibration error (default 10)")


def run(args: argparse.Namespace) -> int:
    """Runs, compares, writes, prints; 0 done, 1 a run failed or a recipe is incomplete, 128 + signal stopped."""
    settings = _settings(args)
    root = Path(args.workdir).expanduser()
    recipes = _named(args.recipes, run_name)
    outside = _named(args.predictions, lambda path: Path(path).stem)
    if both := sorted(recipes.keys() & outside.keys()):
        raise ConfigError(f"{both[0]}: a recipe and a table from elsewhere have this name; write name=...")
    if not recipes and not outside:
        raise ConfigError(
            "nothing to compare: give recipes, e.g. configs/quickstart.py, or --predictions name=file.csv"
        )
    for name, path in outside.items():
        if (root / OUT).resolve() in Path(path).expanduser().resolve().parents:
            raise ConfigError(f"--predictions {name}={path}: lies where this call writes its own; copy it elsewhere")
    if args.markdown:
        comparing.check_marks(Path(args.markdown))
    # What can be read now is read now: a mistake should not show after days of training.
    tables = {name: read_targets(path, allow_empty=True) for name, path in outside.items()}
    given = {args.labels: read_targets(args.labels, labels=True)} if args.labels else {}
    if not recipes and not given:
        raise ConfigError("--predictions alone: give their labels, --labels=train.csv")
    jobs = plan(recipes, args.folds, root, args.set)
    if wrong := [fold for fold in args.only if not 0 <= fold < args.folds]:
        raise ConfigError(f"--only {wrong[0]}: there are the folds 0 to {args.folds - 1} (--folds)")
    asked = [job for job in _all(jobs) if not args.only or job.fold in args.only]
    failed: dict[tuple[str, int], str] = {}
    if args.no_run:
        for job in _all(jobs):
            is_finished(job)
    else:
        try:
            failed = run_jobs(asked, start)
        except Interrupted as stopped:
            print("cspine compare: stopped; run the same command again to go on", file=sys.stderr)
            return stopped.exit_status
    finished = {name: [job for job in runs if is_finished(job)] for name, runs in jobs.items()}
    why = {name: _why(jobs[name], done, failed) for name, done in finished.items() if len(done) < args.folds}
    used = {name: done for name, done in finished.items() if done and (args.partial or args.only or name not in why)}
    absent = {name: reason for name, reason in why.items() if name not in used}
    shared = set.intersection(*({job.fold for job in done} for done in used.values())) if used else set()
    models = [_model(name, done, shared) for name, done in used.items()]
    models += [comparing.outside_model(name, table) for name, table in tables.items()]
    if not models:
        raise DataError(f"no recipe is complete: {'; '.join(f'{name}: {reason}' for name, reason in absent.items())}")
    if not given:
        given = {str(job.workdir / LABELS): read_targets(job.workdir / LABELS, labels=True) for job in _all(used)}
    phantom = any(model.cost.get("phantom") for model in models)
    found = comparing.compare(
        models,
        comparing.merge_labels(given),
        num_folds=args.folds,
        data="phantom" if phantom else "this data",
        settings=settings,
        absent=absent,
        incomplete={name: reason for name, reason in why.items() if name in used},
    )
    comparing.write_comparison(root / OUT, found, ", ".join(model.name for model in models))
    if args.markdown:
        comparing.write_markdown(Path(args.markdown), found.facts)
    print(f"\n{comparing.terminal(found.facts)}\n\nreport: {root / OUT / 'comparison.html'}")
    unasked = bool(args.only) and all(job in finished[job.name] for job in asked)
    for name, reason in why.items():
        print(f"cspine compare: {'' if unasked else 'error: '}{name}: {reason}", file=sys.stderr)
    return 1 if why and not unasked else 0


def _settings(args: argparse.Namespace) -> comparing.Settings:
    if args.resamples < 0 or args.bins < 2 or args.seed < 0 or not 0 < args.miss < 1:
        raise ConfigError(
            f"--resamples={args.resamples} --bins={args.bins} --seed={args.seed} --miss={args.miss}: must be at least "
            "0, 2 and 0, and --miss between 0 and 1"
        )
    return comparing.Settings(args.resamples, args.seed, args.bins, args.miss)


def _named(texts: Sequence[str], name_of) -> dict[str, str]:
    """`name=path` or `path`, whose name is derived."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not NAME.fullmatch(name):
            name, path = name_of(text), text
        if not NAME.fullmatch(name) or name == OUT or name.startswith(comparing.PREFIX):
            raise ConfigError(f"{text}: {name!r} cannot be a name here; write name={path} with letters, digits, _ . -")
        if name in found:
            raise ConfigError(f"{text}: {name} is already the name of {found[name]}; write name={path}")
        found[name] = path
    return found


def _all(jobs: Mapping[str, Sequence[Job]]) -> list[Job]:
    return [job for runs in jobs.values() for job in runs]


def _why(runs: Sequence[Job], done: Sequence[Job], failed: Mapping[tuple[str, int], str]) -> str:
    """Which folds are missing, and what each said."""
    missing = [job for job in runs if job not in done]
    said = [f"fold {job.fold} ({failed.get((job.name, job.fold)) or _not_run(job)})" for job in missing]
    return f"{len(missing)} of {len(runs)} folds are missing: {', '.join(said)}"


def _not_run(job: Job) -> str:
    evaluated = (job.workdir / PREDICTIONS).is_file() and evaluated_otherwise(job)
    return "to be evaluated again: by other views, or by an older version" if evaluated else "not run"


def _model(name: str, done: Sequence[Job], shared: Set[int]) -> comparing.Model:
    validation = [job for job in done if (job.workdir / VALIDATION).is_file()]
    return comparing.join_folds(
        name,
        {job.fold: read_targets(job.workdir / PREDICTIONS, allow_empty=True) for job in done},
        {job.fold: comparing.read_tta(job.workdir / TTA) for job in done if (job.workdir / TTA).is_file()},
        cost_of([job for job in done if job.fold in shared]),
        {job.fold: read_targets(job.workdir / VALIDATION, allow_empty=True) for job in validation},
        _by_masks(done[0].config),
    )


def _by_masks(config: Config) -> str:
    """Whose masks say where the vertebrae are."""
    study, given = config.study, ""
    if config.task == "crops":
        given = config.crops.masks
    elif (config.task == "study" and (study.with_mask or study.clip_depth)) or (
        config.task == "fracture" and config.model.type < 3 and config.data.vertebra_probs == "mask"
    ):
        given = "true"
    return comparing.OF_TRUTH if given == "true" else given and f"the masks in {given}"
