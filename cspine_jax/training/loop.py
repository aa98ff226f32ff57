"""The one training loop. It knows a task only by its four methods (`task.Task`)."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cspine_jax import progress
from cspine_jax.config import Config, to_dict
from cspine_jax.errors import CspineError
from cspine_jax.training.checkpoint import Checkpoints
from cspine_jax.training.counters import Counters, duration
from cspine_jax.training.evaluate import run_pass
from cspine_jax.training.optim import make_optimizer, make_schedule
from cspine_jax.training.sharding import Placement, agreed, place
from cspine_jax.training.signals import Interrupted, StopSignals
from cspine_jax.training.state import TrainState, abstract_state, init_state
from cspine_jax.training.step import Once, evaluator, trainer
from cspine_jax.training.task import Batch, Loaders, Task
from cspine_jax.training.warm import warm
from cspine_jax.training.writer import Writer


@dataclasses.dataclass(frozen=True)
class Fit:
    """What a call of `fit` came to.

    Attributes:
        step: steps done in all.
        resumed_from: the step this call started at; 0 for a fresh run.
        finished: why the run is over.
        evaluate: the compiled evaluation step, for reuse.
    """

    step: int
    resumed_from: int
    finished: str
    evaluate: Once


def fit(
    task: Task,
    config: Config,
    loaders: Loaders,
    workdir: str | Path,
    *,
    placement: Placement | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Fit:
    """Trains, or goes on training, until the duration is over or early stopping says so.

    Writes `metrics.jsonl`, `tensorboard/` and `checkpoints/` under `workdir`. Called again with the same folder it
    resumes at the newest readable checkpoint and ends with the same curves, to the bit, as an undisturbed run.

    Args:
        task: what is learnt.
        config: `seed`, `optim`, `train`, `model.pretrained` and `data.batch_size` are read here.
        loaders: batches.
        workdir: folder of this run.
        placement: devices; None takes all that divide a batch.
        on_step: called with the number of steps done after each one.

    Returns:
        How it ended. The weights are in the checkpoints.

    Raises:
        Interrupted: ctrl-C or SIGTERM came; a checkpoint is saved.
        CspineError: the loss is not finite, or no checkpoint can be read.
    """
    placement = placement or place(rows=config.data.batch_size)
    train = config.train
    total = duration(train, "total", config.data.batch_size, loaders.train_examples)
    optimizer = make_optimizer(config.optim, total)
    evaluate = evaluator(task, placement)

    def init() -> TrainState:
        return init_state(task, optimizer, config.seed)

    with (
        StopSignals() as signals,
        Checkpoints(Path(workdir) / "checkpoints", train.keep_last, train.keep_best, tidy=True) as checkpoints,
    ):
        restored = checkpoints.restore(abstract_state(init, placement))
        counters = Counters(seed=config.seed)
        if restored is None:
            state = warm(jax.jit(init, out_shardings=placement.replicated)(), task, config, placement)
        else:
            state, saved = restored
            counters = Counters(**{field.name: saved[field.name] for field in dataclasses.fields(Counters)})
        first = counters.step
        if not counters.finished:
            batches = loaders.train()
            if counters.data is not None:
                batches.set_state(counters.data)  # pyright: ignore[reportAttributeAccessIssue]
            with (
                Writer(workdir, first) as writer,
                progress.bar(total=total, initial=first, what="train", unit="step") as bar,
            ):
                run = _Run(task, config, loaders, placement, total, state, counters, batches, checkpoints, writer, bar)
                run.go(trainer(task, optimizer, config.seed, placement), evaluate, signals, on_step)
    return Fit(counters.step, first, counters.finished, evaluate)


class _Run:
    """One call of `fit` under way."""

    def __init__(
        self,
        task: Task,
        config: Config,
        loaders: Loaders,
        placement: Placement,
        total: int,
        state: TrainState,
        counters: Counters,
        batches: Iterator[Batch],
        checkpoints: Checkpoints,
        writer: Writer,
        bar: Any,
    ):
        self.task, self.config, self.loaders, self.placement = task, config, loaders, placement
        self.total, self.state, self.counters, self.batches = total, state, counters, batches
        self.checkpoints, self.writer, self.bar = checkpoints, writer, bar
        self.schedule = make_schedule(config.optim, total)
        self.eval_every = duration(config.train, "eval", config.data.batch_size, loaders.train_examples)
        self.running: Any = None  # figures of the step in flight
        self.clock, self.logged = time.perf_counter(), counters.step
        self.shown: dict[str, str] = {}

    def go(
        self,
        train_step: Once,
        eval_step: Once,
        signals: StopSignals,
        on_step: Callable[[int], None] | None,
    ) -> None:
        """Steps, evaluations, checkpoints and log lines until finished or asked to stop."""
        done, train = self.counters, self.config.train
        first = done.step
        while True:
            due = done.step > 0 and (done.step % self.eval_every == 0 or done.step == self.total)
            if due and done.evaluated != done.step:
                self.evaluate(eval_step, signals)
            elif done.step > first and done.step % train.checkpoint_steps == 0 and done.evaluated != done.step:
                self.save()
            if done.finished:
                self.checkpoints.wait()
                return
            if (caught := agreed(signals.caught)) is not None:
                if done.evaluated != done.step or done.step == 0:
                    self.save()  # an evaluated step is on disk already, and with its loss, which this would drop
                self.checkpoints.wait()
                raise Interrupted(caught, done.step)
            self.step(train_step)
            if on_step is not None:
                on_step(done.step)

    def step(self, train_step: Once) -> None:
        """One training step; its figures are fetched during the next, so the device always has work."""
        done = self.counters
        batch = self.placement.put(next(self.batches))
        with jax.transfer_guard("disallow"):
            self.state, parts = train_step(self.state, batch)
        self.settle()
        self.running = parts
        done.step += 1
        self.bar.update(1)
        if done.step % self.config.train.log_steps == 0 or done.step == self.total:
            self.log()

    def settle(self) -> None:
        """Waits for the step in flight and adds its figures to the window."""
        if self.running is not None:
            self.counters.add(jax.device_get(self.running))
            self.running = None

    def log(self) -> None:
        """One training line: means since the last one."""
        self.settle()
        step, means = self.counters.step, self.counters.means()
        if not np.isfinite(means["loss"]):
            raise CspineError(
                f"optim.lr={self.config.optim.lr:g}: the training loss is {means['loss']} at step {step}; "
                "lower optim.lr or set optim.clip_norm"
            )
        now = time.perf_counter()
        speed = (step - self.logged) * self.config.data.batch_size / max(now - self.clock, 1e-9)
        self.clock, self.logged = now, step
        rate = float(np.asarray(self.schedule(step - 1)))
        self.writer.write(step, "train", {**means, "lr": rate, "examples_per_second": round(speed, 2)})
        self.show("loss", means["loss"])

    def evaluate(self, eval_step: Once, signals: StopSignals) -> None:
        """One pass over the validation examples, a line, a checkpoint, and early stopping's verdict.

        Given up on a signal; the resumed run then does it first.
        """
        self.settle()
        done, started = self.counters, time.perf_counter()
        result = run_pass(
            eval_step,
            self.state.params,
            self.state.stats,
            self.loaders.validation(),
            self.placement,
            stop=lambda: agreed(signals.caught) is not None,
        )
        seconds = time.perf_counter() - started
        self.clock += seconds  # evaluation is not training time
        if result is None:
            return
        means, table = result
        if not np.isfinite(means["loss"]):
            raise CspineError(
                f"optim.lr={self.config.optim.lr:g}: the validation loss is {means['loss']} at step {done.step}, which "
                "is not kept; start anew in another --workdir with a lower optim.lr, or set optim.clip_norm"
            )
        figures = {**means, **self.task.metrics(table), "seconds": round(seconds, 3)}
        self.writer.write(done.step, "validation", figures)
        self.show("validation", means["loss"])
        done.evaluated = done.step
        done.judge(means["loss"], self.config.train)
        if done.step == self.total and not done.finished:
            done.finished = f"all {self.total} steps done"
        by = self.config.train.choose_by
        self.save(figures[by] if by == "loss" else -float(np.nan_to_num(figures[by])))

    def save(self, cost: float | None = None) -> None:
        """A checkpoint of this very step; `cost` as `Checkpoints.save` takes it."""
        self.settle()
        self.counters.data = self.batches.get_state()  # pyright: ignore[reportAttributeAccessIssue]
        self.checkpoints.save(self.state, {**dataclasses.asdict(self.counters), "config": to_dict(self.config)}, cost)

    def show(self, name: str, loss: float) -> None:
        """Puts a loss behind the progress bar."""
        self.shown[name] = f"{loss:.4f}"
        self.bar.set_postfix(self.shown, refresh=False)
