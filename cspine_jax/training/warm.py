"""What a fresh run starts from instead of random weights: another run's best, or published ones of its backbone."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from cspine_jax.config import Config, DataConfig, from_dict
from cspine_jax.config.study import FINDS_FRACTURES, STUDY_LEVEL
from cspine_jax.errors import ConfigError, DataError
from cspine_jax.training.checkpoint import load_best
from cspine_jax.training.crops_task import study_level_task
from cspine_jax.training.learnt import Learnt, learnt_from, phantom_seed
from cspine_jax.training.sharding import Placement
from cspine_jax.training.state import TrainState
from cspine_jax.training.study_models import channels
from cspine_jax.training.study_task import StudyLevelTask
from cspine_jax.training.task import OnBackbone, Task
from cspine_jax.training.weights_file import (
    FRACTURE,
    Card,
    config_of_fracture,
    is_weights_file,
    read_card_alone,
    read_fracture,
)
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


def check_start(config: Config) -> None:
    """Refuses what `train.init_from` names before anything is made; nothing where it is empty.

    Raises:
        ConfigError: it has learnt from this run's test studies.
        DataError: it is not there, or is of networks of another kind.
    """
    if not config.train.init_from:
        return
    given, source, seed = _given(config), _source(config), phantom_seed(config.data)
    if is_weights_file(source):
        if config.task not in FINDS_FRACTURES:
            raise ConfigError(
                f"{given}: weights files are of networks that find fractures; for task={config.task!r} give the "
                "--workdir of a finished run"
            )
        seeds = set(_learnt_by_file(source, read_card_alone(source)).phantom_seeds)
    else:
        folder = Path(source).expanduser()
        if not (folder / "checkpoints").is_dir():
            raise DataError(f"{given}: no checkpoints in {folder}; give the --workdir of a finished run")
        theirs = _config_of_folder(folder, config)
        _check_folds(given, config, theirs)
        seeds = _seeds_seen(folder, theirs, config.data)
    if seed in seeds:
        raise ConfigError(
            f"{given}: it has learnt from phantoms of seed {seed}, which this run tests on; give phantoms of another "
            "seed (--config.data.phantom.seed)"
        )


def check_asked(workdir: Path, config: Config) -> None:
    """Refuses to ask a run about studies that it has learnt from, as if it had not: those of its data, dealt otherwise.

    Args:
        workdir: of the run.
        config: what it is asked about: `config.data`.

    Raises:
        ConfigError: `data.fold` or `data.num_folds` is another one of the same studies; or they are phantoms of a seed
            that it has learnt from, in another folder or number.
    """
    theirs = _config_of_folder(workdir, config)
    mine, other, seed = config.data, theirs.data, phantom_seed(config.data)
    if seed in _seeds_seen(workdir, theirs, mine):
        raise ConfigError(
            f"{workdir}: this run (or what it started from) has learnt from phantoms of seed {seed}, from which ones "
            "is not known; ask it about those of another seed (--config.data.phantom.seed)"
        )
    if _seen_otherwise(mine, other):
        raise ConfigError(
            f"{workdir}: this run is of fold {other.fold} of {other.num_folds}, asked for is {mine.fold} of "
            f"{mine.num_folds}, whose test studies it has learnt from; give --config.data.fold={other.fold} "
            f"--config.data.num_folds={other.num_folds}"
        )


def learnt_by_start(config: Config) -> Learnt:
    """What the run or file that `train.init_from` names has learnt from."""
    source = _source(config)
    if is_weights_file(source):
        return _learnt_by_file(source, read_card_alone(source))
    folder = Path(source).expanduser()
    return learnt_from(folder, _config_of_folder(folder, config))


def _learnt_by_file(source: str, card: Card) -> Learnt:
    config = config_of_fracture(card)
    seeds = card.networks[FRACTURE].get("phantom_seeds")
    if seeds is None:  # an older file's network was trained in one go
        seeds = [config.data.phantom.seed] if card.phantom else []
    try:
        return Learnt(card.phantom, phantom_seeds=tuple(int(seed) for seed in seeds))
    except (TypeError, ValueError) as error:
        raise DataError(f"{source}: phantom_seeds={seeds!r} in its card; export it again") from error


def _config_of_folder(folder: Path, config: Config) -> Config:
    """Of the run in a folder; `config` where it has none."""
    file = folder / "config.json"
    return from_dict(read_json(file, "give the --workdir of a finished run")) if file.is_file() else config


def _given(config: Config) -> str:
    return f"train.init_from={config.train.init_from!r}"


def _source(config: Config) -> str:
    """What `train.init_from` names."""
    return config.train.init_from.replace("{fold}", str(config.data.fold))


@dataclasses.dataclass(frozen=True)
class _Start:
    """Another network: whose it is, its configuration, and its two trees of arrays."""

    name: str
    config: Config
    params: Any
    stats: Any


def _from_run(state: TrainState, task: Task, config: Config, placement: Placement) -> TrainState:
    """The state with another run's best weights: all of the same network, what two study-level ones have in common."""
    check_start(config)
    given, source = _given(config), _source(config)
    start = (_stored if is_weights_file(source) else _trained)(given, source, task, config, placement)
    if not _in_parts(task, start.config):
        return dataclasses.replace(state, params=start.params, stats=start.stats)
    params, stats, theirs = start.params, start.stats, start.config
    mine, other = _modules(state.params, state.stats), _modules(params, stats)
    shared = [name for name, arrays in mine.items() if _shapes(arrays) == _shapes(other.get(name, {}))]
    if not shared or (config.train.freeze_encoder and "encoder" not in shared):
        part = "encoder" if shared else "part"  # one that nothing fits would stay random
        raise DataError(
            f"{given}: no {part} of its {_described(theirs)} fits this {_described(config)}; both need the same "
            "backbone and as many slices as channels"
        )
    fresh = [name for name in mine if name not in shared]
    say(f"train: {', '.join(shared)} from {start.name}" + (f"; {', '.join(fresh)} fresh" if fresh else ""))

    def taken(tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda keys, leaf: other[keys[0].key][keys] if keys[0].key in shared else leaf, tree
        )

    return dataclasses.replace(state, params=taken(state.params), stats=taken(state.stats))


def _in_parts(task: Task, theirs: Config) -> bool:
    """Whether two networks need not be the same, but have parts in common."""
    return isinstance(task, StudyLevelTask) and theirs.task in STUDY_LEVEL


def _trained(given: str, source: str, task: Task, config: Config, placement: Placement) -> _Start:
    """The best checkpoint of the run in a folder."""
    folder = Path(source).expanduser()
    theirs = _config_of_folder(folder, config)
    params, stats, _ = load_best(study_level_task(theirs) if _in_parts(task, theirs) else task, folder, placement)
    return _Start(str(folder), theirs, params, stats)


def _stored(given: str, source: str, task: Task, config: Config, placement: Placement) -> _Start:
    """The network of a weights file."""
    stored = read_fracture(source)
    seen, seed = _learnt_by_file(source, stored.card), phantom_seed(config.data)
    alone = bool(config.data.data_dir) and not config.data.manual_dir  # records do not say of which phantoms they are
    if alone or (not seen.phantom if seed is None else seen.phantom and not seen.phantom_seeds):
        say(f"train: which studies {source} has learnt from is not known: see to it that this run tests on others")
    mine = jax.eval_shape(lambda: task.init(jax.random.key(0)))
    if not _in_parts(task, stored.config) and _all_shapes(mine) != _all_shapes((stored.params, stored.stats)):
        raise DataError(
            f"{given}: weights of another network ({stored.config.name}); give a file of the recipe that is trained"
        )
    params, stats = jax.device_put((stored.params, stored.stats), placement.replicated)
    return _Start(source, stored.config, params, stats)


def _check_folds(given: str, config: Config, theirs: Config) -> None:
    """What is tested on must not have been learnt from, by whatever way."""
    mine, other = config.data, theirs.data
    if _seen_otherwise(mine, other):
        raise ConfigError(
            f"{given}: that run is of fold {other.fold} of {other.num_folds}, this one of {mine.fold} of "
            f"{mine.num_folds}: it has learnt from studies that this one tests on; give the run of the same fold "
            "({fold} in the path stands for it)"
        )


def _seeds_seen(folder: Path, theirs: Config, mine: DataConfig) -> set[int | None]:
    """Seeds of phantoms a run has learnt from; where it may be of the same data, but for its own: folds tell there."""
    seeds: set[int | None] = {*learnt_from(folder, theirs).phantom_seeds}
    return seeds - {phantom_seed(theirs.data)} if _may_be_same(mine, theirs.data) else seeds


def _seen_otherwise(mine: DataConfig, other: DataConfig) -> bool:
    """Whether the studies may be the same, and are dealt, or used, otherwise."""
    return _may_be_same(mine, other) and (mine.fold, mine.num_folds) != (other.fold, other.num_folds)


def _may_be_same(mine: DataConfig, other: DataConfig) -> bool:
    """Whether two runs may have seen the same studies: those of one folder, however it is written, or one phantom."""
    for a, b in ((mine.manual_dir, other.manual_dir), (mine.data_dir, other.data_dir)):
        if a and b and Path(a).expanduser().resolve() == Path(b).expanduser().resolve():
            return True
    made = [not data.manual_dir and not data.data_dir for data in (mine, other)]  # on the spot
    return all(made) and mine.phantom == other.phantom


def _modules(*trees: Any) -> dict[Any, dict[Any, jax.Array]]:
    """Arrays by path, by the part of the network that they are of; frozen parts are among the statistics."""
    found: dict[Any, dict[Any, jax.Array]] = {}
    for tree in trees:
        for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            found.setdefault(keys[0].key, {})[keys] = leaf
    return found


def _all_shapes(trees: Any) -> dict[Any, tuple[int, ...]]:
    return _shapes(dict(jax.tree_util.tree_flatten_with_path(trees)[0]))


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
