"""An experiment from a configuration to a report: find or make the data, train or resume, evaluate, predict.

`launch.py` is the command line of this module; what is particular to a task (`config.task`) is in `kinds`. Everything a
run leaves is under its work folder W: `config.json`, `learnt.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/`,
`evaluation/`, `predictions/`.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cspine_jax.config import Config, to_dict
from cspine_jax.data.lock import BusyError
from cspine_jax.kinds import Trained, kind_of
from cspine_jax.training.checkpoint import load_best
from cspine_jax.training.evaluate import run_pass
from cspine_jax.training.learnt import Learnt, keep_learnt, phantom_seed, read_learnt
from cspine_jax.training.loop import fit
from cspine_jax.training.sharding import Placement, place
from cspine_jax.training.step import Once, evaluator
from cspine_jax.training.task import Batch
from cspine_jax.training.warm import check_asked, check_start, learnt_by_start
from cspine_jax.training.workdir import check_same, only_process, say, write_text
from cspine_jax.training.writer import Writer, read_lines

WAIT = 5.0
"""Seconds between two looks at records that another host builds."""

HARMLESS = (
    "name",
    "data.root",
    "data.data_dir",
    "data.workers",
    "data.prefetch",
    "data.cache_mb",
    "data.eval_batch_size",
    "train.log_steps",
    "train.checkpoint_steps",
    "train.keep_last",
    "train.keep_best",
    "eval.",
)
"""Fields (and groups) that may change between two calls on one work folder: they do not change what is learnt."""


def harmless(config: Config) -> tuple[str, ...]:
    """`HARMLESS` in this configuration: records given alone say which studies are learnt from."""
    return tuple(name for name in HARMLESS if config.data.manual_dir or name != "data.data_dir")


class Experiment:
    """One configuration on one work folder.

    Args:
        config: the configuration.
        workdir: W; made if absent.
    """

    def __init__(self, config: Config, workdir: str | Path):
        self.config = config
        self.workdir = Path(workdir).expanduser()
        self.seconds: dict[str, float] = {}
        self.placement: Placement = place(rows=config.data.batch_size)
        self.kind = kind_of(config)
        self._evaluator: Once | None = None
        self._prepared = False

    def train(self) -> None:
        """Makes the data where needed, then trains or resumes; see `training.loop.fit` for what is written."""
        check_same(self.workdir, self.config, ignore=harmless(self.config))
        if not (self.workdir / "checkpoints").exists():
            check_start(self.config)  # before hours of data, and before this folder is of this configuration
        self._prepare()
        loaders = self.kind.loaders()  # what cannot be trained on is refused before there is a work folder
        self.workdir.mkdir(parents=True, exist_ok=True)
        with only_process(self.workdir):
            write_text(self.workdir / "config.json", json.dumps(to_dict(self.config), indent=1) + "\n")
            if read_learnt(self.workdir) is None:  # a resumed run does not need what it started from any more
                keep_learnt(self.workdir, self._learnt())
            devices = self.placement.mesh.devices.ravel()
            say(f"train: {self.kind.about(loaders)}; {len(devices)} devices ({devices[0].device_kind})")
            if idle := jax.device_count() - len(devices):
                rows = self.config.data.batch_size
                say(f"train: {idle} devices stay idle; data.batch_size={rows} does not divide among all")
            with self._timed("training"):
                done = fit(self.kind.task, self.config, loaders, self.workdir, placement=self.placement)
        self._evaluator = done.evaluate
        if done.resumed_from == done.step:
            say(f"train: finished before ({done.finished}); to train anew, give another --workdir")
        else:
            start = f"resumed at step {done.resumed_from}; " if done.resumed_from else ""
            say(f"train: {start}{done.finished}")

    def _learnt(self) -> Learnt:
        seed = phantom_seed(self.config.data)
        seen = Learnt(self.kind.phantom, self.kind.drawn_odds, () if seed is None else (seed,))
        if not self.config.train.init_from:
            return seen
        before = learnt_by_start(self.config)
        seeds = tuple(dict.fromkeys((*before.phantom_seeds, *seen.phantom_seeds)))
        return dataclasses.replace(seen, phantom=seen.phantom and before.phantom, phantom_seeds=seeds)

    def evaluate(self) -> dict[str, Any]:
        """Evaluates the best checkpoint, writes `W/evaluation/` and prints the table.

        Returns:
            The content of `metrics.json`.
        """
        self._check_asked()
        self._prepare()
        with self._timed("evaluation"):
            model = self._best()
            metrics = self.kind.evaluate(model)
        say(f"checkpoint: {self.workdir / 'checkpoints' / str(model.step)}")
        return metrics

    def predict(self) -> Path:
        """Predicts all of the data with the best checkpoint.

        Returns:
            What was written under `W/predictions/`.
        """
        self._check_asked()
        self._prepare()
        with self._timed("prediction"):
            return self.kind.predict(self._best())

    def log_costs(self, wall: float, compiling: float) -> None:
        """Prints and logs what a call cost.

        Args:
            wall: seconds since the program started.
            compiling: seconds of them spent on tracing and compiling.
        """
        parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.seconds.items())
        say(f"wall time: {wall:.0f} s ({parts}); compilation {compiling:.0f} s, {compiling / wall:.0%} of it")
        step = max((line["step"] for line in read_lines(self.workdir / "metrics.jsonl")), default=0)
        with Writer(self.workdir, None) as writer:
            seconds = {f"{name}_seconds": round(x, 2) for name, x in self.seconds.items()}
            writer.write(step, "run", {"seconds": round(wall, 2), "compile_seconds": round(compiling, 2), **seconds})

    def _check_asked(self) -> None:
        check_same(self.workdir, self.config, only=self.kind.of_the_model, must_exist=True)
        check_asked(self.workdir, self.config)

    def _prepare(self) -> None:
        if not self._prepared:
            with self._timed("data"):
                while not self._prepared:
                    try:
                        self.kind.prepare()
                        self._prepared = True
                    except BusyError:
                        if jax.process_count() == 1:
                            raise
                        time.sleep(WAIT)  # another host of this job builds them

    def _best(self) -> Trained:
        if self._evaluator is None:
            self.placement = place()  # nothing was trained: all devices, whatever a training batch is
            self._evaluator = evaluator(self.kind.task, self.placement)
        params, stats, step = load_best(self.kind.task, self.workdir, self.placement)
        plain, of_view = self._evaluator, evaluator(self.kind.task, self.placement)

        def run(batches: Iterable[Batch], step_of: Once = plain) -> dict[str, np.ndarray]:
            result = run_pass(step_of, params, stats, batches, self.placement)
            assert result is not None  # only a stop gives a pass up, and nothing stops this one
            return result[1]

        def run_views(batches: Iterable[Batch], count: int) -> dict[str, np.ndarray]:
            each = ((batch, np.full(len(batch["valid"]), view, np.int32)) for batch in batches for view in range(count))
            return run(({**batch, "view": view} for batch, view in each), of_view)

        return Trained(self.workdir, step, params, stats, run, run_views, self.placement)

    @contextlib.contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        before = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - before
