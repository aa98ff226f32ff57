"""Runs every recipe on every fold, each run in its own process, and goes on where it was stopped.

`cspine compare` is the command line of this module. A run is `DIR/<name>/fold<k>`, an ordinary work folder (so
`launch.py` can be called on it, too) with `cost.json`, `labels.csv` (of the studies it predicted) and `log.txt` beside
what `experiment` writes. Each run has a process of its own (`run_fold`): its memory can be measured, and what it
compiled is gone after it. This process imports no network and takes no accelerator.
"""

import ast
import dataclasses
import difflib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from cspine_jax.config import Config, flatten, from_dict, to_dict
from cspine_jax.config.study import FINDS_FRACTURES, STUDY_LEVEL
from cspine_jax.errors import ConfigError
from cspine_jax.recipes import load_recipe
from cspine_jax.run_fold import COST, LABELS, METRICS, PREDICTIONS, VALIDATION, read_or_none
from cspine_jax.training.signals import Interrupted, StopSignals

LOG = "log.txt"
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
    before = read_or_none(job.workdir / "config.json")
    if before is None:
        return False
    from cspine_jax.experiment import harmless

    was, now = flatten(to_dict(Config())) | flatten(before), flatten(to_dict(job.config))
    ignored = harmless(job.config)
    differing = [
        f"{field}={now.get(field)!r} (there {was.get(field)!r})"
        for field in sorted({*was, *now})
        if not field.startswith(ignored) and was.get(field) != now.get(field)
    ]
    if differing:
        raise ConfigError(
            f"{job.workdir}: this run was started with other settings: {', '.join(differing)}; give those back or "
            "another --workdir"
        )
    cost = read_or_none(job.workdir / COST) or {}
    there = all((job.workdir / name).is_file() for name in (PREDICTIONS, LABELS))
    return bool(cost.get("finished")) and there and not evaluated_otherwise(job)


def evaluated_otherwise(job: Job) -> bool:
    """Whether what is there is of other views (`eval.tta`), or of an older version and so on another scale.

    That left in the probabilities what is drawn more often in training, and of slice models no validation table.
    """
    metrics = read_or_none(job.workdir / METRICS) or {}
    if job.config.task not in STUDY_LEVEL:
        validated = metrics.get("counts", {}).get("validation", {}).get("slices", 0)
        return bool(validated) and not (job.workdir / VALIDATION).is_file()
    seen = metrics.get("seen", {})
    if seen.get("tta", 0) != job.config.eval.tta:
        return True
    return bool(job.config.study.fractured_fraction) and "drawn_odds" not in seen


def cost_of(jobs: Sequence[Job]) -> dict[str, Any]:
    """What the runs of one recipe took: seconds summed, seconds a study averaged, the largest peak of memory."""
    costs = [cost for job in jobs if (cost := read_or_none(job.workdir / COST))]

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
    return [sys.executable, "-m", "cspine_jax.run_fold", str(job.workdir)]


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
