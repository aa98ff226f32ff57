"""A fresh run starts from published weights where the configuration names some; a resumed one does not ask for them."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from cspine_jax import config as cfg
from cspine_jax.errors import ConfigError, DataError
from cspine_jax.models.backbones import resnet
from cspine_jax.models.published import load_pretrained
from cspine_jax.training import loop
from cspine_jax.training.crops_task import study_level_task
from cspine_jax.training.optim import make_optimizer
from cspine_jax.training.segment2d_task import Segment2DTask
from cspine_jax.training.sharding import place
from cspine_jax.training.slice_task import SliceTask
from cspine_jax.training.state import init_state
from cspine_jax.training.vertebra_task import VertebraTask
from cspine_jax.training.warm import _check_folds, check_asked, check_start, warm
from tests.models.published_files import table_of, write
from tests.training import toy_task as toy

TASKS = {
    "fracture": (SliceTask, "backbone", {}),
    "vertebra": (VertebraTask, "backbone", {"type": 1}),
    "encoder": (Segment2DTask, "encoder", {"network": "encoder", "width": 2}),
    "inflated": (Segment2DTask, "encoder", {"network": "inflated", "width": 2}),
}


@pytest.fixture(autouse=True, scope="module")
def tiny_variant():
    resnet.VARIANTS["tiny_warm"] = resnet.Config(blocks=(1, 1), bottleneck=False, width=8)
    yield
    del resnet.VARIANTS["tiny_warm"]


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "w.safetensors", table_of("tiny_warm"))


def settings(kind, file):
    _, _, model = TASKS[kind]
    return cfg.Config(
        task=kind if kind in ("fracture", "vertebra") else "segment2d",
        data=cfg.DataConfig(depth=5, size=32),
        model=cfg.ModelConfig(backbone="tiny_warm", hidden=8, pretrained=str(file), **model),
    )


def flat(tree):
    return {tuple(k.key for k in path): np.asarray(x) for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]}


def test_a_map_beside_the_backbone_stays_as_it_was(file):
    values = {"task": "crops", "crops": {"positions": 2, "radius": 2, "size": 32},
              "study": {"model": "bronze", "where_weight": 1.0},
              "model": {"backbone": "tiny_warm", "pretrained": str(file)}}  # fmt: skip
    config, placement = cfg.from_dict(values), place()
    task, optimizer = study_level_task(config), make_optimizer(config.optim, 10)
    fresh = jax.jit(lambda: init_state(task, optimizer, 0), out_shardings=placement.replicated)()
    before, after = flat(fresh.params), flat(warm(fresh, task, config, placement).params)
    beside = [path for path in before if path[:2] == ("encoder", "where")]
    assert beside
    for path in beside:
        np.testing.assert_array_equal(before[path], after[path])
    assert all((before[path] != after[path]).any() for path in before if path[:2] == ("encoder", "backbone"))


@pytest.mark.parametrize("kind", TASKS)
def test_the_backbone_is_the_files_and_the_rest_is_as_it_was(kind, file):
    build, name, _ = TASKS[kind]
    config, placement = settings(kind, file), place()
    task = build(config)
    optimizer = make_optimizer(config.optim, 10)
    fresh = jax.jit(lambda: init_state(task, optimizer, 0), out_shardings=placement.replicated)()
    state = warm(fresh, task, config, placement)
    arrays = load_pretrained("tiny_warm", file, in_channels=1 if kind == "inflated" else 5, unit_range=True)
    before, after = ({**flat(s.params), **flat(s.stats)} for s in (fresh, state))
    assert {path[1:] for path in after if path[0] == name} == {path for path in arrays if path[0] != "head"}
    for path, got in after.items():
        expected = arrays[path[1:]] if path[0] == name else before[path]
        if expected.ndim + 1 == got.ndim:  # inflated: the sum over the depth is the 2D kernel
            got = got.sum(0)
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves((state.params, state.stats)))
    jax.tree.map(lambda a, b: (a.dtype, a.shape) == (b.dtype, b.shape) or pytest.fail("type"), fresh, state)


def test_another_networks_file_is_refused(tmp_path):
    file = write(tmp_path / "w.npz", {"a": np.zeros(3)})
    config = settings("fracture", file)
    task = SliceTask(config)
    with pytest.raises(DataError, match=r"w\.npz: not weights of tiny_warm, by the names of torchvision: 3"):
        warm(None, task, config, place())  # pyright: ignore[reportArgumentType]


class Warm(toy.ToyTask):
    weights = np.full(4, 3.0)

    def pretrained(self):
        assert self.weights is not None
        return {("w", 0): self.weights}


def test_a_run_starts_from_them_once(tmp_path):
    config = dataclasses.replace(toy.config(), model=cfg.ModelConfig(pretrained="file"))
    first = dataclasses.replace(config, train=dataclasses.replace(config.train, total_steps=1, eval_steps=1))
    task = Warm()
    assert loop.fit(task, first, toy.loaders(), tmp_path).step == 1
    task.weights = None  # the file is gone
    assert loop.fit(task, config, toy.loaders(), tmp_path).resumed_from == 1
    task.weights = np.full(3, 3.0)
    with pytest.raises(DataError, match=r"model\.pretrained: the file has no weights for w\.0"):
        loop.fit(task, first, toy.loaders(), tmp_path / "anew")


def test_what_cannot_start_from_published_weights_says_so():
    with pytest.raises(
        ConfigError, match=r"model\.pretrained='f': and train.init_from='w'; a run starts from one of them"
    ):
        cfg.from_dict({"model": {"pretrained": "f"}, "train": {"init_from": "w"}})
    with pytest.raises(ConfigError, match="task 'spine' has no backbone"):
        cfg.from_dict({"task": "spine", "model": {"pretrained": "f"}})
    with pytest.raises(ConfigError, match="network 'unet2d' has no backbone"):
        cfg.from_dict({"task": "segment2d", "model": {"pretrained": "f"}})
    assert (
        cfg.from_dict({"task": "segment2d", "model": {"pretrained": "f", "network": "encoder"}}).model.pretrained == "f"
    )


@pytest.mark.parametrize(
    ("mine", "theirs", "same"),
    [
        ({"manual_dir": "/data/rsna"}, {"manual_dir": "/data/rsna/"}, True),
        ({"manual_dir": "/data/rsna"}, {"manual_dir": "/data/x/../rsna"}, True),
        ({"manual_dir": "/data/rsna"}, {"manual_dir": "/data/other"}, False),
        ({"manual_dir": "/data/rsna", "data_dir": "/r"}, {"data_dir": "/r/"}, True),
        ({"manual_dir": "/data/rsna"}, {}, False),
        ({}, {"root": "/big"}, True),
        ({}, {"phantom": cfg.PhantomConfig(seed=3)}, False),
    ],
)
def test_a_run_of_another_fold_of_the_same_studies_is_refused(mine, theirs, same):
    """However the folder is written; one of other data may be of any fold."""
    configs = [cfg.Config(data=cfg.DataConfig(fold=fold, **data)) for fold, data in ((0, mine), (1, theirs))]
    if same:
        with pytest.raises(ConfigError, match="run: that run is of fold 1 of 5, this one of 0 of 5"):
            _check_folds("run", *configs)
    else:
        _check_folds("run", *configs)


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ({"phantom": cfg.PhantomConfig(seed=5, studies=30)}, {"phantom": cfg.PhantomConfig(seed=5, studies=40)}),
        ({"phantom": cfg.PhantomConfig(seed=5)}, {"phantom": cfg.PhantomConfig(seed=5, difficulty="hard")}),
        ({"phantom": cfg.PhantomConfig(seed=5)}, {"manual_dir": "{folder}"}),
        ({"manual_dir": "{folder}"}, {"phantom": cfg.PhantomConfig(seed=5)}),
    ],
)
def test_a_run_on_the_same_people_dealt_otherwise_is_refused(tmp_path, mine, theirs):
    """Study 7 of a seed is the same person in every folder, and another number of studies deals other folds."""
    (tmp_path / "phantom.json").write_text('{"seed": 5}')
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    place = {name: str(tmp_path) if x == "{folder}" else x for name, x in theirs.items()}
    other = cfg.Config(data=cfg.DataConfig(**place))
    (run / "config.json").write_text(json.dumps(cfg.to_dict(other)))
    place = {name: str(tmp_path) if x == "{folder}" else x for name, x in mine.items()}
    start = cfg.TrainConfig(init_from=str(run))
    with pytest.raises(ConfigError, match="it has learnt from phantoms of seed 5, which this run tests on"):
        check_start(cfg.Config(data=cfg.DataConfig(**place), train=start))
    check_start(cfg.Config(data=other.data, train=start))  # the same studies, the same fold


@pytest.mark.parametrize(
    ("mine", "words"),
    [
        ({"fold": 3, "num_folds": 10}, ""),
        ({"fold": 0, "num_folds": 10}, r"of fold 3 of 10, asked for is 0 of 10.*--config\.data\.fold=3"),
        ({"fold": 0, "num_folds": 5}, "of fold 3 of 10, asked for is 0 of 5"),
        ({"phantom": cfg.PhantomConfig(seed=5, studies=40)}, "has learnt from phantoms of seed 5"),
        ({"fold": 0, "phantom": cfg.PhantomConfig(seed=5, studies=40)}, "has learnt from phantoms of seed 5"),
        ({"phantom": cfg.PhantomConfig(seed=4)}, "has learnt from phantoms of seed 4"),  # what it started from has
        ({"fold": 0, "phantom": cfg.PhantomConfig(seed=6)}, ""),
        ({"fold": 0, "manual_dir": "/a/hospital"}, ""),
        ({"fold": 0, "data_dir": "/records/of/one"}, ""),
    ],
)
def test_a_run_is_not_asked_about_a_fold_that_it_has_learnt_from(tmp_path, mine, words):
    theirs = cfg.DataConfig(phantom=cfg.PhantomConfig(seed=5), fold=3, num_folds=10)
    (tmp_path / "config.json").write_text(json.dumps(cfg.to_dict(cfg.Config(data=theirs))))
    (tmp_path / "learnt.json").write_text('{"phantom": true, "drawn_odds": 1.0, "phantom_seeds": [4, 5]}')
    asked = cfg.Config(data=dataclasses.replace(theirs, **mine))
    if words:
        with pytest.raises(ConfigError, match=words):
            check_asked(tmp_path, asked)
    else:
        check_asked(tmp_path, asked)
