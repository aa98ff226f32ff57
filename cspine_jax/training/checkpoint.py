"""Checkpoints: params, optimizer, step, data iterator and config together. The only module that imports orbax.

A checkpoint is written to a temporary name and renamed when complete, so a killed run leaves the last whole one. It
holds `model` (params and stats; all that inference needs), `optimizer`, and the loop's counters as JSON.
"""

import contextlib
import gc
import logging
import shutil
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from cspine_jax.errors import DataError
from cspine_jax.training.sharding import Placement
from cspine_jax.training.state import TrainState, abstract_state
from cspine_jax.training.task import Task

METRIC = "loss"
"""The name in the files of what checkpoints are chosen by, whatever it is: its lowest value is the best."""


UNREADABLE = ".unreadable"


class Checkpoints:
    """The checkpoints of one run; a context manager.

    Args:
        directory: made if absent.
        keep_last: newest ones kept.
        keep_best: best ones kept besides.
        tidy: throw away what a killed run left half written; for the run itself alone, since what is half written may
            be of one that is under way.
    """

    def __init__(self, directory: str | Path, keep_last: int = 1, keep_best: int = 1, *, tidy: bool = False):
        self.directory = Path(directory).absolute()
        # orbax's own policies do not match its own protocols' types: Any
        policies: Any = ocp.training.preservation_policies
        decisions: Any = ocp.training.save_decision_policies
        keep = policies.AnyPreservationPolicy(
            [
                policies.LatestN(keep_last),
                policies.BestN(
                    get_metric_fn=lambda metrics: -metrics[METRIC], n=keep_best, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        logging.getLogger("absl").setLevel(logging.WARNING)
        self._orbax = ocp.training.Checkpointer(
            str(self.directory),
            save_decision_policy=decisions.FixedIntervalPolicy(1),
            preservation_policy=keep,
            cleanup_tmp_directories=tidy,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._orbax.close()

    @property
    def steps(self) -> dict[int, float | None]:
        """Step -> cost, see `save` (None where that step was not evaluated), oldest first."""
        found: list[Any] = list(self._orbax.checkpoints)
        return {c.step: (c.metrics or {}).get(METRIC) for c in found}

    @property
    def best_step(self) -> int | None:
        """The step of the lowest cost, the later of equals; None while nothing was evaluated."""
        costs = [(-cost, step) for step, cost in self.steps.items() if cost is not None]
        return max(costs)[1] if costs else None

    def path(self, step: int) -> Path:
        """Folder of a checkpoint."""
        return self.directory / str(step)

    def save(self, state: TrainState, progress: dict[str, Any], cost: float | None = None) -> None:
        """Writes in the background; the state may be donated as soon as this returns.

        Args:
            state: the state; copied first, as the next step takes over its buffers.
            progress: JSON-ready counters; `progress["step"]` names the checkpoint.
            cost: where this step was just evaluated, what it is chosen by (`train.choose_by`): the validation loss, or
                an AUC with a minus before it.
        """
        state = jax.tree.map(jnp.copy, state)
        step = progress["step"]
        self._orbax.wait()
        self._orbax.save_checkpointables_async(
            step,
            {
                "model": {"params": state.params, "stats": state.stats},
                "optimizer": {"step": state.step, "state": state.opt_state},
            },
            force=True,
            overwrite=step in self.steps,
            metrics=None if cost is None else {METRIC: cost},
            custom_metadata=progress,
        )

    def wait(self) -> None:
        """Blocks until the last `save` is on disk."""
        self._orbax.wait()

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that can be read.

        Unreadable ones newer than it are named in a warning and moved aside as `<step>.unreadable`. Where none can be
        read all stay: what is in the way may be the machine (memory, the file system), and pass.

        Args:
            abstract: `jax.ShapeDtypeStruct`s with shardings in the shape of the state.

        Returns:
            (state, progress), or None where there is no checkpoint at all.

        Raises:
            DataError: there are checkpoints, and none can be read, or they are of another network; or all were moved
                aside.
        """
        wanted = {
            "model": {"params": abstract.params, "stats": abstract.stats},
            "optimizer": {"step": abstract.step, "state": abstract.opt_state},
        }
        found = self._newest_readable(sorted(self.steps, reverse=True), wanted, set_aside=True)
        if found is None:
            if aside := sorted(self.directory.glob(f"*{UNREADABLE}")):
                raise DataError(
                    f"{aside[-1]}: no other checkpoint is left; take the ending away to try it again, or start over in "
                    "another --workdir"
                )
            return None
        loaded, step = found
        model, optimizer = loaded["model"], loaded["optimizer"]
        state = TrainState(optimizer["step"], model["params"], model["stats"], optimizer["state"])
        return state, self.progress(step)

    def load_model(self, params: Any, stats: Any) -> tuple[Any, Any, int]:
        """The best model, that of the lowest cost (the newest where none was evaluated).

        Unreadable ones are named in a warning and left where they are: the run may be another's, of another network.

        Args:
            params: abstract params (with shardings).
            stats: abstract stats.

        Returns:
            (params, stats, step).

        Raises:
            DataError: there is none, none can be read, or they are of another network.
        """
        by_cost = sorted((cost, -step) for step, cost in self.steps.items() if cost is not None)
        order = [-step for _, step in by_cost] + sorted((s for s, x in self.steps.items() if x is None), reverse=True)
        found = self._newest_readable(order, {"model": {"params": params, "stats": stats}})
        if found is None:
            raise DataError(f"{self.directory}: no checkpoint; train first with --mode=train")
        loaded, step = found
        return loaded["model"]["params"], loaded["model"]["stats"], step

    def progress(self, step: int) -> dict[str, Any]:
        """The counters saved with a checkpoint."""
        saved: Any = self._orbax.checkpointables_metadata(step).custom_metadata
        return saved or {}

    def _newest_readable(
        self, order: list[int], wanted: dict[str, Any], *, set_aside: bool = False
    ) -> tuple[dict[str, Any], int] | None:
        reasons, failed = [], []
        for step in order:
            if difference := self._difference(step, wanted["model"]):
                raise DataError(
                    f"{self.path(step)}: holds another network than this configuration makes ({difference}); it is of "
                    "another model, or of another version of this package: train again in another --workdir"
                )
            loaded, reason = self._try(step, wanted)
            if loaded is not None:
                for other in failed if set_aside else ():
                    self._set_aside(other)
                return loaded, step
            failed.append(step)
            reasons.append(f"{self.path(step)} ({reason})")
            warnings.warn(f"checkpoint {reasons[-1]} cannot be read; trying the one before it", stacklevel=3)
        if reasons:
            raise DataError(
                f"{'; '.join(reasons)}: no readable checkpoint is left; to start over, give another --workdir"
            )
        return None

    def _difference(self, step: int, wanted: Any) -> str:
        """How the arrays of a checkpoint's model differ from those wanted; empty where not, or where it is damaged."""
        with _quiet():
            try:
                there = _arrays(self._orbax.checkpointables_metadata(step).metadata["model"])
            except Exception:  # whatever a damaged one raises: reading it says more
                return ""
        mine = _arrays(wanted)
        for name in sorted(there.keys() | mine.keys()) if there else ():
            if mine.get(name) != there.get(name):
                return f"{name}: {there.get(name, 'none')}, wanted {mine.get(name, 'none')}"
        return ""

    def _try(self, step: int, wanted: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
        """(content, "") or (None, why not), without the libraries' own logs and abandoned tasks."""
        loaded, reason = None, ""
        with _quiet():
            try:
                if "step" not in self.progress(step):
                    raise ValueError("its metadata is incomplete")
                loaded = self._orbax.load_checkpointables(step, wanted)
            except Exception as error:  # orbax, tensorstore and the file system each raise their own kinds
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
                traceback.clear_frames(error.__traceback__)
            if loaded is None:
                gc.collect()  # abandoned tasks complain when they are collected: here, not at a random moment later
        return loaded, reason

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            aside = self.directory / f"{step}{UNREADABLE}"
            shutil.rmtree(aside, ignore_errors=True)
            self.path(step).rename(aside)
        self._orbax.reload()


def _arrays(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shapes by dotted name."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {".".join(str(getattr(key, "key", key)) for key in path): tuple(leaf.shape) for path, leaf in leaves}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what the libraries say of a failed read off the screen; our own warning says it in a line."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def load_best(task: Task, workdir: Path, placement: Placement) -> tuple[Any, Any, int]:
    """The best model of a run, on the devices; see `Checkpoints.load_model`.

    Args:
        task: of the run; says the shapes.
        workdir: W, the run's folder.
        placement: the devices.

    Returns:
        (params, stats, step).

    Raises:
        DataError: there is no checkpoint, or none can be read.
    """
    params, stats = abstract_state(lambda: task.init(jax.random.key(0)), placement)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.load_model(params, stats)
