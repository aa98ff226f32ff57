"""A few phantom studies and their records, on which every kind of slice task can run in seconds."""

import importlib.util
from pathlib import Path

import pytest

from cspine_jax.config import from_dict
from cspine_jax.data.build import build
from cspine_jax.models.backbones import basic_cnn
from cspine_jax.phantom.dataset import write_dataset

CONFIGS = Path(__file__).parents[2] / "configs"

basic_cnn.VARIANTS["tiny"] = basic_cnn.Config(widths=(8, 16), blocks=(0, 0))


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """RSNA-layout folder of 6 studies with masks; the last has none."""
    path = write_dataset(tmp_path_factory.mktemp("phantom"), 6, seed=5, size=48, scale=0.06, workers=1)
    sorted(path.glob("segmentations/*.nii.gz"))[-1].unlink()
    return path


@pytest.fixture(scope="session")
def data_dir(folder, tmp_path_factory):
    """Folder of its records (32 px, 3 folds)."""
    path = tmp_path_factory.mktemp("records")
    build(folder, path, size=32, num_folds=3, workers=1)
    return path


@pytest.fixture(scope="session")
def tiny(data_dir):
    """Makes a configuration from nested changes to a tiny one, which may be laid over a recipe."""

    def make(recipe="", **changes):
        values = {}
        if recipe:
            spec = importlib.util.spec_from_file_location(recipe, CONFIGS / f"{recipe}.py")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            values = module.get_config().to_dict()
        small = {
            "data": {
                "data_dir": str(data_dir), "manual_dir": "", "size": 32, "depth": 3, "num_folds": 3, "batch_size": 8,
                "eval_batch_size": 16, "workers": 1,
            },
            "model": {"backbone": "tiny", "hidden": 8, "width": 2, "levels": 1},
            "train": {
                "total_steps": 2, "total_epochs": 0.0, "eval_steps": 2, "eval_epochs": 0.0, "log_steps": 2,
                "patience": 0,
            },
            "eval": {"bootstrap": 10, "examples_shown": 1},
        }  # fmt: skip
        for name, value in (*small.items(), *changes.items()):
            values[name] = {**values.get(name, {}), **value} if isinstance(value, dict) else value
        return from_dict(values)

    return make
