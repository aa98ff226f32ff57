"""One recipe on one fold: trains or resumes, evaluates, and keeps what it cost.

    python -m cspine_jax.run_fold W < config.json        what `run_folds` starts

Beside what `experiment` writes in W it leaves `cost.json` and `labels.csv`, of the studies it predicted.
"""

import dataclasses
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cspine_jax.anatomy import TARGETS
from cspine_jax.config import Config, from_dict
from cspine_jax.errors import CspineError
from cspine_jax.metrics.target_table import UID, read_targets
from cspine_jax.training.signals import Interrupted, Terminated, terminable

PREDICTIONS, VALIDATION, TTA = (f"evaluation/{name}.csv" for name in ("predictions", "validation", "tta"))
METRICS = "evaluation/metrics.json"
LABELS, COST = "labels.csv", "cost.json"


def read_or_none(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where it is not there, or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


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
    before = read_or_none(workdir / COST) or {}
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
