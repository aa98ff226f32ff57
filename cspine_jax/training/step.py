"""The two functions that run on the device: a training step and an evaluation step. Each is compiled once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cspine_jax import xla
from cspine_jax.training.sharding import Placement
from cspine_jax.training.state import TrainState
from cspine_jax.training.task import Batch, Parts, Task

TRAIN_STREAM = 1
"""Separates the keys of training steps from the key of initialisation, which is the bare seed."""


Predict = Callable[[Any, Any, Batch], tuple[jax.Array, jax.Array, Parts, dict[str, jax.Array]]]
"""`Task.predict`, or another of a task's functions that answer as it does."""


def train_step(
    task: Task, optimizer: optax.GradientTransformation, seed: int, state: TrainState, batch: Batch
) -> tuple[TrainState, Parts]:
    """One update.

    The loss is divided by the weight of the WHOLE batch, over all devices, and the key depends only on the seed and
    the step: one device and eight take the same step.

    Returns:
        The next state and the parts to log, with "loss" and "grad_norm" among them.
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), TRAIN_STREAM), state.step)

    def mean_loss(params: Any) -> tuple[jax.Array, tuple[Parts, Any]]:
        total, weight, parts, stats = task.loss(params, state.stats, batch, key)
        return total / jnp.maximum(weight, 1e-6), ({**parts, "loss": (total, weight)}, stats)

    grads, (parts, stats) = jax.grad(mean_loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    parts["grad_norm"] = (optax.tree.norm(grads), jnp.ones(()))
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, stats, opt_state), parts


def eval_step(predict: Predict, params: Any, stats: Any, batch: Batch) -> tuple[Parts, dict[str, jax.Array]]:
    """Loss parts of one batch in evaluation mode, and its table: outputs, and batch columns [B] and [B, n].

    The columns go through so that every host gets those of all hosts; pictures and masks stay where they are.
    """
    total, weight, parts, outputs = predict(params, stats, batch)
    columns = {name: x for name, x in batch.items() if name != "image" and x.ndim <= 2}
    return {**parts, "loss": (total, weight)}, {**columns, **outputs}


class Once:
    """A jitted function compiled ahead of time at its first call, for that call's shapes and no others.

    A second shape is a bug in the data path (a ragged batch), so it raises instead of compiling silently again.
    """

    def __init__(self, function: Callable, donate: tuple[int, ...] = (), out_shardings: Any = None):
        self._jitted = xla.jit(function, donate_argnums=donate, out_shardings=out_shardings)
        self._compiled: jax.stages.Compiled | None = None

    def compile(self, *args: Any) -> None:
        """Compiles for these arguments (arrays or `jax.ShapeDtypeStruct`s with a sharding) unless done before."""
        if self._compiled is None:
            self._compiled = self._jitted.lower(*args).compile()

    def __call__(self, *args: Any) -> Any:
        """Runs it, compiling first where that has not been done."""
        self.compile(*args)
        assert self._compiled is not None
        return self._compiled(*args)


def trainer(task: Task, optimizer: optax.GradientTransformation, seed: int, placement: Placement) -> Once:
    """The training step `(state, batch) -> (state, parts)`, which takes over the buffers of its state."""
    return Once(
        lambda state, batch: train_step(task, optimizer, seed, state, batch),
        donate=(0,),
        out_shardings=placement.replicated,
    )


def evaluator(task: Task, placement: Placement, predict: Predict | None = None) -> Once:
    """The evaluation step `(params, stats, batch) -> (parts, outputs)`, outputs whole on every host.

    Args:
        task: whose `predict` it runs.
        placement: the devices.
        predict: runs instead.
    """
    run = task.predict if predict is None else predict
    return Once(lambda params, stats, batch: eval_step(run, params, stats, batch), out_shardings=placement.replicated)
