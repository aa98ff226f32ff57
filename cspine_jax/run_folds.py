"""Runs every recipe on every fold, each run in its own process, and goes on where it was stopped.

`cspine compare` is the command line of this module. A run is `DIR/<name>/fold<k>`, an ordinary work folder (so
`launch.py` can be called on it, too) with `cost.json`, `labels.csv` (of the studies it predicted) and `log.txt` beside
what `experiment` writes. Each run has a process of its own: its memory can be measured, and what it compiled is gone
after it. This process imports no network and takes no accelerator.

    python -m cspine_jax.run_folds W < config.json        one run, what a job starts
"""

import ast
import dataclasses
import difflib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

from cspine_jax.anatomy import TARGETS
from cspine_jax.config import Config, flatten, from_dict, to_dict
from cspine_jax.config.study import FINDS_FRACTURES, STUDY_LEVEL
from cspine_jax.errors import ConfigError, CspineError
from cspine_jax.metrics.target_table import UID, read_targets
from cspine_jax.recipes import load_recipe
from cspine_jax.training.signals import Interrupted, StopSignals, Terminated, terminable

PREDICTIONS, VALIDATION, TTA = (f"evaluation/{name}.csv" for name in ("predictions", "validation", "tta"))
METRICS = "evaluation/metrics.json"
LABELS, COST, LOG = "labels.csv", "cost.json", "log.txt"
LAST_LINES = 5
SECOND_SIGNAL = 300.0
"""Seconds that a run has to save its checkpoint before it is killed."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One recipe on one fold."""

    name: str
    fold: int
    config: Config
    workdir: Path

    def __str__(self) -> str:
        return f"{self.name} fold {self.fold}"


def plan(recipes: Mapping[str, str], folds: int, root: Path, overrides: Sequence[str] = ()) -> dict[str, list[Job]]:
    """The runs of a comparison.

    Args:
        recipes: name -> recipe file, `path.py` or `path.py:variant`.
        folds: how many.
        root: folder of all.
        overrides: `a.b=value`, for all recipes, or `name:a.b=value` for one, which come last.

    Raises:
        ConfigError: a recipe cannot be loaded, a field is unknown, a value does not fit, or there are too few folds.
    """
    if folds < 3:
        raise ConfigError(f"--folds={folds}: must be at least 3: to test on, to validate with, to train on")
    jobs: dict[str, list[Job]] = {}
    own = [_of_recipe(text, recipes) for text in overrides]
    for name, recipe in recipes.items():
        values = to_dict(from_dict(load_recipe(recipe)))
        for wanted in ("", name):
            for whose, text in own:
                if whose == wanted:
                    _override(values, text)
        if values["task"] not in FINDS_FRACTURES:
            raise ConfigError(f"{recipe}: task={values['task']!r} predicts no fractures of studies; leave it out")
        jobs[name] = []
        for fold in range(folds):
            values["data"] |= {"num_folds": folds, "fold": fold}
            jobs[name].append(Job(name, fold, from_dict(values), root / name / f"fold{fold}"))
    return jobs


def _of_recipe(text: str, recipes: Mapping[str, str]) -> tuple[str, str]:
    """(name of the one recipe it is for, or "" for all; the rest)."""
    name, colon, rest = text.partition(":")
    if not colon or "=" in name:
        return "", text
    if name not in recipes:
        raise ConfigError(f"--set {text}: no recipe is called {name!r}; there are {', '.join(recipes)}")
    return name, rest


def _override(values: dict[str, Any], text: str) -> None:
    path, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text}: write a.b=value; recipes stand before --set")
    if path in ("data.fold", "data.num_folds"):
        raise ConfigError(f"--set {text}: the folds are this command's; give --folds")
    known = flatten(values)
    if path not in known:
        near = difflib.get_close_matches(path, known, n=1)
        raise ConfigError(f"--set {text}: no such field" + (f"; did you mean {near[0]}?" if near else ""))
    *groups, name = path.split(".")
    group = values
    for part in groups:
        group = group[part]
    if isinstance(group[name], str):
        group[name] = value
        return
    try:
        group[name] = ast.literal_eval({"true": "True", "false": "False"}.get(value.lower(), value))
    except (ValueError, SyntaxError):
        raise ConfigError(f"--set {text}: must be {type(group[name]).__name__}") from None


def is_finished(job: Job) -> bool:
    """Whether the run was done before, with these settings, and evaluated as it would be today.

    Raises:
        ConfigError: the folder is of a run with other settings.
    """
    before = _json(job.workdir / "config.json")
    if before is None:
        return False
    from cspine_jax.experiment import harmless

    was, now = flatten(to_dict(Config())) | flatten(before), flatten(to_dict(job.config))
    differing = [
        f"{field}={now.get(field)!r} (there {was.get(field)!r})"
        for field in sorted({*was, *now})
        if not field.startswith(harmless(job.config)) and was.get(field) != now.get(field)
    ]
    if differing:
        raise ConfigError(
            f"{job.workdir}: this run was started with other settings: {', '.join(differing)}; give those back or "
            "another --workdir"
        )
    cost = _json(job.workdir / COST) or {}
    there = all((job.workdir / name).is_file() for name in (PREDICTIONS, LABELS))
    return bool(cost.get("finished")) and there and not evaluated_otherwise(job)


def evaluated_otherwise(job: Job) -> bool:
    """Whether what is there is of other views (`eval.tta`), or of an older version and so on another scale.

    That left in the probabilities what is drawn more often in training, and of slice models no validation table.
    """
    metrics = _json(job.workdir / METRICS) or {}
    if job.config.task not in STUDY_LEVEL:
        validated = metrics.get("counts", {}).get("validation", {}).get("slices", 0)
        return bool(validated) and not (job.workdir / VALIDATION).is_file()
    seen = metrics.get("seen", {})
    if seen.get("tta", 0) != job.config.eval.tta:
        return True
    return bool(job.config.study.fractured_fraction) and "drawn_odds" not in seen


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def cost_of(jobs: Sequence[Job]) -> dict[str, Any]:
    """What the runs of one recipe took: seconds summed, seconds a study averaged, the largest peak of memory."""
    costs = [cost for job in jobs if (cost := _json(job.workdir / COST))]

    def known(key: str) -> list[float]:
        return [cost[key] for cost in costs if cost.get(key) is not None]

    def combined(key: str, how: Callable[[list[float]], float]) -> float | None:
        return round(how(values), 4) if (values := known(key)) else None

    return {
        "wall_seconds": combined("wall_seconds", sum),
        "training_seconds": combined("training_seconds", sum),
        "prediction_seconds_a_study": combined("prediction_seconds_a_study", lambda x: sum(x) / len(x)),
        "peak_memory_mb": combined("peak_memory_mb", max),
        "phantom": any(cost.get("phantom") for cost in costs),
    }


def command(job: Job) -> list[str]:
    """What a job starts; the configuration goes to its standard input."""
    return [sys.executable, "-m", "cspine_jax.run_folds", str(job.workdir)]


def run_jobs(jobs: Sequence[Job], start: Callable[[Job], list[str]] = command) -> dict[tuple[str, int], str]:
    """Runs what is not finished, one after another.

    Args:
        jobs: runs.
        start: gives the command of a job.

    Returns:
        (name, fold) -> last lines of each run that failed.

    Raises:
        ConfigError: a folder is of a run with other settings; nothing was started then.
        Interrupted: stopped by Ctrl-C or SIGTERM, the run at work has ended.
    """
    todo = [job for job in jobs if not is_finished(job)]
    if len(jobs) > len(todo):
        print(f"{len(jobs) - len(todo)} of {len(jobs)} runs were finished before", flush=True)
    failed, took = {}, []
    for number, job in enumerate(todo, 1):
        left = f", about {_duration(sum(took) / len(took) * (len(todo) - number + 1))} left" if took else ""
        print(f"[{number}/{len(todo)}] {job}{left}; log: {job.workdir / LOG}", flush=True)
        began = time.monotonic()
        status = _run(job, start(job), f"[{number}/{len(todo)}] {job}")
        took.append(time.monotonic() - began)
        if status == 0 and not is_finished(job):
            status = 1
        if status:
            failed[job.name, job.fold] = f"exit status {status}: {' | '.join(last_lines(job.workdir / LOG))}"
            print(f"[{number}/{len(todo)}] {job} FAILED after {_duration(took[-1])}, {failed[job.name, job.fold]}")
        else:
            print(f"[{number}/{len(todo)}] {job} done in {_duration(took[-1])}", flush=True)
    return failed


def _run(job: Job, arguments: list[str], what: str) -> int:
    """Runs one job to its end; a signal is passed on once, and then raised."""
    job.workdir.mkdir(parents=True, exist_ok=True)
    with StopSignals() as stop, (job.workdir / LOG).open("ab") as log:
        # A session of its own: Ctrl-C on the terminal reaches it through here, once, so that it saves and ends.
        process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _send(process.stdin, json.dumps(to_dict(job.config)))
            show, passed_on = _Status(job.workdir / LOG, what), None
            while process.poll() is None:
                show()
                time.sleep(0.1)
                if stop.caught and passed_on is None:
                    passed_on = time.monotonic()
                    process.send_signal(stop.caught)
                    print(f"\nstopping {job}: it saves a checkpoint first; once more to kill it", flush=True)
                if passed_on and time.monotonic() - passed_on > SECOND_SIGNAL:
                    process.kill()
            show.clear()
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
    if stop.caught:
        raise Interrupted(stop.caught, 0)
    return process.returncode


def _send(pipe: IO[bytes] | None, text: str) -> None:
    assert pipe is not None
    try:
        pipe.write(text.encode())
        pipe.close()
    except BrokenPipeError:  # it ended before it read: its exit status says so
        pass


class _Status:
    """Shows the last line of a log: rewritten each second on a terminal, printed each minute elsewhere."""

    def __init__(self, log: Path, what: str):
        self._log, self._what, self._live = log, what, sys.stdout.isatty()
        self._began = self._last = time.monotonic()

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._last < (1 if self._live else 60):
            return
        self._last = now
        line = f"{self._what} {_duration(now - self._began)}: {' '.join(last_lines(self._log, 1))}"
        print(f"\r\033[K{line[:118]}" if self._live else line, end="" if self._live else "\n", flush=True)

    def clear(self) -> None:
        if self._live:
            print("\r\033[K", end="", flush=True)


def last_lines(path: Path, count: int = LAST_LINES) -> list[str]:
    """The last lines of a log with something on them; a progress bar counts as its last state."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()][-count:]


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600} h {whole % 3600 // 60} min" if whole >= 3600 else f"{whole // 60} min {whole % 60} s"


def main(argv: Sequence[str]) -> int:
    """One run: `W < config.json`. Trains or resumes, evaluates, and writes `cost.json` and `labels.csv`.

    Args:
        argv: the work folder.

    Returns:
        The exit status, as `launch.py`'s.
    """
    started = time.perf_counter()
    workdir = Path(argv[0])
    threading.Thread(target=_die_with_parent, args=(os.getppid(),), daemon=True).start()
    before = _json(workdir / COST) or {}
    cost: dict[str, Any] = {"calls": int(before.get("calls", 0)) + 1, "finished": False}
    seconds: dict[str, float] = {}

    def keep() -> None:
        spent = {"wall_seconds": time.perf_counter() - started, "training_seconds": seconds.get("training", 0.0)}
        more = {key: round(float(before.get(key) or 0) + value, 2) for key, value in spent.items()}
        more["peak_memory_mb"] = round(max(float(before.get("peak_memory_mb") or 0), peak_memory_mb()), 1)
        temporary = workdir / (COST + ".tmp")
        temporary.write_text(json.dumps(cost | more, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, workdir / COST)

    status = 0
    try:
        terminable()
        config = from_dict(json.load(sys.stdin))
        cost |= _train_and_evaluate(config, workdir, seconds, keep)
    except Interrupted as interrupted:
        print(f"{interrupted}, checkpoint saved in {workdir}", file=sys.stderr)
        status = interrupted.exit_status
    except CspineError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except Terminated:
        print("terminated", file=sys.stderr)
        status = 143
    finally:
        keep()
    return status


def _train_and_evaluate(
    config: Config, workdir: Path, seconds: dict[str, float], keep: Callable[[], None]
) -> dict[str, Any]:
    """Returns what belongs in `cost.json`; `seconds` is filled as far as the run gets, and kept after training."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    import jax

    from cspine_jax import xla
    from cspine_jax.experiment import Experiment
    from cspine_jax.training.compiling import CompileClock, enable_cache

    xla.tune_process()
    enable_cache()
    predicting, studies, began = 0.0, 0, time.perf_counter()
    with CompileClock() as clock:

        class Timed(Experiment):
            """Its best model says how long it predicted (compilation left out), and how many studies."""

            def _best(self):
                model = super()._best()

                def timed(function, *args):
                    nonlocal predicting
                    start, compiled = time.perf_counter(), clock.seconds
                    found = function(*args)
                    predicting += time.perf_counter() - start - (clock.seconds - compiled)
                    return found

                def run(batches):
                    nonlocal studies
                    found = timed(model.run, batches)
                    studies += len(set(found["study"].tolist())) if "study" in found else 0
                    return found

                return dataclasses.replace(model, run=run, run_views=partial(timed, model.run_views))

        experiment = Timed(config, workdir)
        try:
            experiment.train()
            seconds |= experiment.seconds
            keep()  # hours, which a kill during the evaluation must not lose
            metrics = experiment.evaluate()
        finally:
            seconds |= experiment.seconds
        experiment.log_costs(time.perf_counter() - began, clock.seconds)
    predictions = workdir / PREDICTIONS
    uids, _ = read_targets(predictions, allow_empty=True)
    chosen_by = read_targets(workdir / VALIDATION, allow_empty=True)[0] if (workdir / VALIDATION).is_file() else []
    _write_labels(workdir / LABELS, [*uids, *chosen_by], _known_labels(experiment.kind, config))
    if not studies:
        predicting, studies = seconds["evaluation"], len(uids)
    memory = jax.devices()[0].memory_stats() or {}
    return {
        "finished": True,
        "phantom": bool(metrics.get("phantom", metrics.get("data") == "phantom")),
        "device": jax.devices()[0].device_kind,
        "device_peak_mb": round(memory["peak_bytes_in_use"] / 1e6, 1) if "peak_bytes_in_use" in memory else None,
        "compile_seconds": round(clock.seconds, 2),
        "prediction_seconds_a_study": round(predicting / max(1, studies), 5),
        "studies_predicted": len(uids),
    }


def _known_labels(kind: Any, config: Config) -> dict[str, Sequence[int]]:
    """Labels of all studies: of the kind's own list of studies or records, else of the folder's `train.csv`."""
    table = getattr(kind, "roster", None) or getattr(getattr(kind, "data", None), "table", None)
    if all(hasattr(table, name) for name in ("uids", "labels", "has_labels")):
        rows = zip(table.uids, table.labels, table.has_labels, strict=True)  # pyright: ignore[reportOptionalMemberAccess]
        return {str(uid): [int(x) for x in row] for uid, row, known in rows if known}
    from cspine_jax.kinds.records import find_folder

    uids, labels = read_targets(find_folder(config.data) / "train.csv", labels=True)
    return {uid: [int(x) for x in row] for uid, row in zip(uids, labels, strict=True)}


def _write_labels(path: Path, uids: Sequence[str], labels: Mapping[str, Sequence[int]]) -> None:
    lines = [",".join([UID, *TARGETS]), *(",".join([uid, *map(str, labels[uid])]) for uid in uids if uid in labels)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def peak_memory_mb() -> float:
    """Most memory this process has held, in MB of 10^6 bytes: VmHWM of Linux, else what the C library says."""
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(text.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    except (OSError, IndexError, ValueError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _die_with_parent(parent: int) -> None:
    """Stops this run (it saves) when the process that started it is gone, so that the next call can go on with it."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
