"""Records that were built with another number of folds: used as they are, dealt as a build would have."""

import shutil

import numpy as np
import pytest

from cspine_jax.config import from_dict
from cspine_jax.data.build import build
from cspine_jax.data.tables import read_tables
from cspine_jax.kinds import kind_of
from cspine_jax.phantom.dataset import write_dataset

CROPS = {"positions": 2, "radius": 0, "size": 16}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """RSNA-layout folder of 9 studies, one of which has no images."""
    root = write_dataset(tmp_path_factory.mktemp("phantom"), 9, seed=5, size=32, scale=0.06, workers=1)
    shutil.rmtree(next((root / "train_images").iterdir()))
    return root


def parts(root, data_dir, task, num_folds, fold):
    model = {"task": task, **({"crops": CROPS} if task == "crops" else {})}
    data = {"manual_dir": str(root), "data_dir": str(data_dir), "size": 32, "num_folds": num_folds, "fold": fold,
            "workers": 1}  # fmt: skip
    kind = kind_of(from_dict({**model, "data": data}))
    found = kind.parts if task == "crops" else kind.data.parts
    uids = kind.roster.uids if task == "crops" else kind.data.table.uids
    return {part: set(np.asarray(uids)[studies].tolist()) for part, studies in found.items()}


def test_slices_and_crops_have_the_folds_of_the_whole_table(root, tmp_path):
    build(root, tmp_path, size=32, num_folds=5, workers=1)
    wanted = {entry.uid: entry.fold for entry in read_tables(root, 4).studies}
    other = {entry.uid: entry.fold for entry in read_tables(root, 5).studies}
    assert len(wanted) == 8 and wanted != other
    for fold in (0, 2):
        slices, crops = (parts(root, tmp_path, task, 4, fold) for task in ("fracture", "crops"))
        assert slices == crops
        assert slices["test"] == {uid for uid, k in wanted.items() if k == fold}
        assert slices["validation"] == {uid for uid, k in wanted.items() if k == (fold + 1) % 4}
    # the crops were first built for four
    assert parts(root, tmp_path, "crops", 5, 1) == parts(root, tmp_path, "fracture", 5, 1)
    assert parts(root, tmp_path, "fracture", 5, 1)["test"] == {uid for uid, k in other.items() if k == 1}
