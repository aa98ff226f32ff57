"""The state of a run on the device: one pytree, donated from step to step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cspine_jax.training.sharding import Placement
from cspine_jax.training.task import Task


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """Everything that a training step changes.

    Attributes:
        step: int32 scalar, steps done.
        params: trained arrays (plain nested dict).
        stats: running statistics (plain nested dict; empty without batch norm).
        opt_state: the optimizer's.
    """

    step: jax.Array
    params: Any
    stats: Any
    opt_state: optax.OptState


def init_state(task: Task, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """A fresh state; traced by jax (eager initialisation of a deep network takes many seconds)."""
    params, stats = task.init(jax.random.key(seed))
    return TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params))


def abstract_state(make: Callable[[], Any], placement: Placement) -> Any:
    """Shapes, dtypes and shardings of what `make` would return, without computing it."""
    shapes = jax.eval_shape(make)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement.replicated), shapes)
