"""What a fresh run starts from instead of random weights: another run's best, or published ones of its backbone."""

import dataclasses
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from cspine_jax.config import Config
from cspine_jax.errors import DataError
from cspine_jax.training.checkpoint import load_best
from cspine_jax.training.sharding import Placement
from cspine_jax.training.state import TrainState
from cspine_jax.training.task import OnBackbone, Task


def warm(state: TrainState, task: Task, config: Config, placement: Placement) -> TrainState:
    """The state as `train.init_from` or `model.pretrained` would have it; as it is, where neither is given.

    Weights are read on the host and laid over the initialised ones, so they are no constants of a compiled program.

    Raises:
        ConfigError: there are no such published weights.
        DataError: they, or the other run's, cannot be read or are of another network.
    """
    if config.train.init_from:
        workdir = config.train.init_from
        folder = Path(workdir).expanduser()
        if not (folder / "checkpoints").is_dir():
            raise DataError(f"train.init_from={workdir!r}: no checkpoints there; give the --workdir of a finished run")
        params, stats, _ = load_best(task, folder, placement)
        return dataclasses.replace(state, params=params, stats=stats)
    if config.model.pretrained:
        arrays = cast(OnBackbone, task).pretrained()
        params, stats = (_overlaid(tree, arrays, placement) for tree in (state.params, state.stats))
        return dataclasses.replace(state, params=params, stats=stats)
    return state


def _overlaid(tree: Any, arrays: dict[tuple[Any, ...], np.ndarray], placement: Placement) -> Any:
    """The tree with arrays in place; all of the module that they are of has to be there."""
    modules = {path[0] for path in arrays}

    def put(keys: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        path = tuple(key.key for key in keys)
        if path[0] not in modules:
            return leaf
        if path not in arrays or arrays[path].shape != leaf.shape:
            raise DataError(f"model.pretrained: the file has no weights for {'.'.join(map(str, path))}")
        return jax.device_put(jnp.asarray(arrays[path], leaf.dtype), placement.replicated)

    return jax.tree_util.tree_map_with_path(put, tree)
