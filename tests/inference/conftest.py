"""A small phantom folder, its records, and the workdir of an untrained Type 3 run on them; three studies and
their truth.
"""

import numpy as np
import pytest
from untrained_run import write_run

from cspine_jax.config import from_dict
from cspine_jax.data.build import build
from cspine_jax.data.study import load_study
from cspine_jax.data.tables import read_tables
from cspine_jax.inference.vertebrae.result import Vertebrae
from cspine_jax.models.backbones import basic_cnn
from cspine_jax.phantom.dataset import write_dataset

SIZE = 40


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """RSNA-layout folder of 2 studies."""
    return write_dataset(tmp_path_factory.mktemp("phantom"), 2, seed=3, size=48, scale=0.1, workers=1)


@pytest.fixture(scope="session")
def records(folder, tmp_path_factory):
    return build(folder, tmp_path_factory.mktemp("records"), size=SIZE, num_folds=3, workers=1).path


@pytest.fixture(scope="session")
def config():
    return from_dict(
        {
            "name": "untrained",
            "data": {"size": SIZE, "depth": 3, "stride": 2, "eval_batch_size": 16, "workers": 1},
            "model": {"type": 3, "hidden": 16},
        }
    )


@pytest.fixture(scope="session")
def workdir(config, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), config, presence=0.3)


@pytest.fixture(scope="session")
def three(tmp_path_factory):
    """Three studies: one for each part of a run."""
    return write_dataset(tmp_path_factory.mktemp("phantom"), 3, seed=3, size=48, scale=0.1, workers=1)


@pytest.fixture(scope="session")
def truth(three):
    """The true mask in the place of the segmentation; a level less in the study that it is told to."""
    masks = {}
    for entry in read_tables(three, 3).studies:
        study = load_study(entry)
        masks[entry.uid] = study.mask

    def segment(volume, without=()):
        labels = np.where(np.isin(masks[volume.study_uid], without), 0, masks[volume.study_uid]).astype(np.uint8)
        visibility = np.stack([(labels == j).any((1, 2)) for j in range(1, 8)], axis=1).astype(np.float32)
        return Vertebrae(labels, visibility, (), 1.0, 0.0, (0.0, 0.0), (), {"spine": 0.5})

    return segment


@pytest.fixture(scope="module")
def tiny():
    """Name of a backbone that compiles in no time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(basic_cnn.VARIANTS, "tiny", basic_cnn.Config(widths=(4, 8), blocks=(0, 0)))
        yield "tiny"
