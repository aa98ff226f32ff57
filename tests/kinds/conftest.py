"""A few phantom studies and their records, on which every kind of slice task can run in seconds."""

import pytest

from cspine_jax.config import from_dict
from cspine_jax.data.build import build
from cspine_jax.models import basic_cnn
from cspine_jax.phantom.dataset import write_dataset

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
    """Makes a configuration from nested changes to a tiny one."""

    def make(**changes):
        values = {
            "data": {
                "data_dir": str(data_dir), "size": 32, "depth": 3, "num_folds": 3, "batch_size": 8,
                "eval_batch_size": 16, "workers": 1,
            },
            "model": {"backbone": "tiny", "hidden": 8, "width": 4, "levels": 2},
            "train": {"total_steps": 4, "eval_steps": 4, "log_steps": 2, "patience": 0},
            "eval": {"bootstrap": 10, "examples_shown": 1},
        }  # fmt: skip
        for name, value in changes.items():
            values[name] = {**values[name], **value} if isinstance(value, dict) and name in values else value
        return from_dict(values)

    return make
