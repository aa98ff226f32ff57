"""What a fresh run starts from instead of random weights: another run's best, or published ones of its backbone."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from cspine_jax.config import Config, DataConfig, from_dict
from cspine_jax.config.study import STUDY_LEVEL
from cspine_jax.errors import ConfigError, DataError
from cspine_jax.training.checkpoint import load_best
from cspine_jax.training.crops_task import study_level_task
from cspine_jax.training.sharding import Placement
from cspine_jax.training.state import TrainState
from cspine_jax.training.study_models import channels
from cspine_jax.training.study_task import StudyLevelTask
from cspine_jax.training.task import OnBackbone, Task
from cspine_jax.training.workdir import read_json, say


def warm(state: TrainState, task: Task, config: Config, placement: Placement) -> TrainState:
    """The state as `train.init_from` or `model.pretrained` would have it; as it is, where neither is given.

    Weights are read on the host and laid over the initialised ones, so they are no constants of a compiled program.

    Raises:
        ConfigError: there are no such published weights, or the other run has learnt from this one's test studies.
        DataError: they, or the other run's, cannot be read or are of another network.
    """
    if config.train.init_from:
        return _from_run(state, task, config, placement)
    if config.model.pretrained:
        arrays = cast(OnBackbone, task).pretrained()
        params, stats = (_overlaid(tree, arrays, placement) for tree in (state.params, state.stats))
        return dataclasses.replace(state, params=params, stats=stats)
    return state


def start_folder(config: Config) -> Path:
    """Of the run that `train.init_from` names."""
    return Path(config.train.init_from.replace("{fold}", str(config.data.fold))).expanduser()


def start_config(config: Config) -> Config:
    """Of the run that `train.init_from` names; `config` where it has none."""
    file = start_folder(config) / "config.json"
    return from_dict(read_json(file, "give the --workdir of a finished run")) if file.is_file() else config


def _from_run(state: TrainState, task: Task, config: Config, placement: Placement) -> TrainState:
    """The state with another run's best weights: all of the same network, what two study-level ones have in common."""
    given = f"train.init_from={config.train.init_from!r}"
    folder = start_folder(config)
    if not (folder / "checkpoints").is_dir():
        raise DataError(f"{given}: no checkpoints in {folder}; give the --workdir of a finished run")
    theirs = start_config(config)
    _check_folds(given, config, theirs)
    if not isinstance(task, StudyLevelTask) or theirs.task not in STUDY_LEVEL:
        params, stats, _ = load_best(task, folder, placement)
        return dataclasses.replace(state, params=params, stats=stats)
    params, stats, _ = load_best(study_level_task(theirs), folder, placement)
    mine, other = _modules(state.params, state.stats), _modules(params, stats)
    shared = [name for name, arrays in mine.items() if _shapes(arrays) == _shapes(other.get(name, {}))]
    if not shared or (config.train.freeze_encoder and "encoder" not in shared):
        part = "encoder" if shared else "part"  # one that nothing fits would stay random
        raise DataError(
            f"{given}: no {part} of its {_described(theirs)} fits this {_described(config)}; both need the same "
            "backbone and as many slices as channels"
        )
    fresh = [name for name in mine if name not in shared]
    say(f"train: {', '.join(shared)} from {folder}" + (f"; {', '.join(fresh)} fresh" if fresh else ""))

    def taken(tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda keys, leaf: other[keys[0].key][keys] if keys[0].key in shared else leaf, tree
        )

    return dataclasses.replace(state, params=taken(state.params), stats=taken(state.stats))


def _check_folds(given: str, config: Config, theirs: Config) -> None:
    """What is tested on must not have been learnt from, by whatever way."""
    mine, other = config.data, theirs.data
    if _may_be_same(mine, other) and (mine.fold, mine.num_folds) != (other.fold, other.num_folds):
        raise ConfigError(
            f"{given}: that run is of fold {other.fold} of {other.num_folds}, this one of {mine.fold} of "
            f"{mine.num_folds}: it has learnt from studies that this one tests on; give the run of the same fold "
            "({fold} in the path stands for it)"
        )


def _may_be_same(mine: DataConfig, other: DataConfig) -> bool:
    """Whether two runs may have seen the same studies: those of one folder, however it is written, or one phantom."""
    for a, b in ((mine.manual_dir, other.manual_dir), (mine.data_dir, other.data_dir)):
        if a and b and Path(a).expanduser().resolve() == Path(b).expanduser().resolve():
            return True
    return not mine.manual_dir and not other.manual_dir and mine.phantom == other.phantom


def _modules(*trees: Any) -> dict[Any, dict[Any, jax.Array]]:
    """Arrays by path, by the part of the network that they are of; frozen parts are among the statistics."""
    found: dict[Any, dict[Any, jax.Array]] = {}
    for tree in trees:
        for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            found.setdefault(keys[0].key, {})[keys] = leaf
    return found


def _shapes(arrays: dict[Any, jax.Array]) -> dict[Any, tuple[int, ...]]:
    return {keys: jnp.shape(leaf) for keys, leaf in arrays.items()}


def _described(config: Config) -> str:
    return f"{config.study.model} on {config.model.backbone}, {channels(config)} channels"


def _overlaid(tree: Any, arrays: dict[tuple[Any, ...], np.ndarray], placement: Placement) -> Any:
    """The tree with arrays in place; all of the module that they are of has to be there."""
    depth = max(1, sum(1 for _ in itertools.takewhile(lambda keys: len(set(keys)) == 1, zip(*arrays, strict=False))))
    modules = {path[:depth] for path in arrays}

    def put(keys: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        path = tuple(key.key for key in keys)
        if path[:depth] not in modules:
            return leaf
        if path not in arrays or arrays[path].shape != leaf.shape:
            raise DataError(f"model.pretrained: the file has no weights for {'.'.join(map(str, path))}")
        return jax.device_put(jnp.asarray(arrays[path], leaf.dtype), placement.replicated)

    return jax.tree_util.tree_map_with_path(put, tree)
