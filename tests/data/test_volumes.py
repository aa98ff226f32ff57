"""Studies as volumes on one spacing, and crops of them."""

import json

import numpy as np
import pytest

from cspine_jax.config import DataConfig, VolumeConfig
from cspine_jax.data.volumes import AIR_HU, Crops, Volumes, crop, eval_crops, spine_box, train_crops
from cspine_jax.errors import DataError

CONFIG = VolumeConfig(spacing_mm=2.0, depth=16, height=16, width_px=16, margin=2, levels=2)


class Table:
    """Three studies of other spacings: a bright block with labels in soft tissue."""

    def __init__(self, path):
        self.path = path
        self.uids = np.array(["1.1", "1.2", "1.3"])
        self.has_mask = np.array([True, True, True])
        self.spacing_mm = np.array([[1.0, 0.5, 0.5], [3.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
        self.read = 0

    def read_study(self, study):
        self.read += 1
        hu, _ = self._make(study)
        return hu

    def read_study_masks(self, study):
        return self._make(study)[1]

    def _make(self, study):
        spacing = self.spacing_mm[study]
        shape = np.rint(np.array([60.0, 50.0, 50.0]) / spacing).astype(int)
        at = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
        z, y, x = np.meshgrid(*at, indexing="ij")
        inside = (np.abs(z) < 18) & (np.abs(y) < 8) & (np.abs(x) < 8)
        labels = np.where(inside, np.where(z < 0, 3, 4), 0).astype(np.uint8)
        return np.where(inside, 700, 40).astype(np.int16), labels


@pytest.fixture
def table(tmp_path):
    return Table(tmp_path)


def test_every_study_comes_on_the_same_spacing_and_is_made_once(table):
    volumes = Volumes(table, 2.0)
    volumes.prepare([0, 1, 2], workers=2)
    volumes.prepare([0, 1, 2])
    assert table.read == 3
    for study in range(3):
        hu, labels = volumes.read(study)
        assert hu.shape == (30, 25, 25)
        bone, mask = hu > 370, labels > 0
        assert 2 * (bone & mask).sum() / (bone.sum() + mask.sum()) > 0.85
        assert set(np.unique(labels)) == {0, 3, 4}


def test_half_written_files_are_made_again(table):
    volumes = Volumes(table, 2.0)
    volumes.prepare([0])
    (file,) = (table.path / ".volumes" / "2mm").glob("*.npy")
    file.rename(file.with_suffix(".partial"))
    volumes.prepare([0])
    assert table.read == 2 and volumes.read(0).shape[0] == 2


def test_only_the_spine_is_kept_where_that_is_asked(table):
    volumes = Volumes(table, 1.0, spine_only=True)
    volumes.prepare([2])
    labels = np.asarray(volumes.read(2)[1])
    assert labels.shape[0] <= 60 and (labels > 0).any()
    rows = np.flatnonzero(labels.any(axis=(1, 2)))
    assert rows[0] == pytest.approx(12, abs=13)


def test_studies_without_a_mask_are_named(table):
    table.has_mask = np.array([True, False, True])
    with pytest.raises(DataError, match=r"1 studies have no segmentation, e.g. 1\.2"):
        Volumes(table, 2.0).prepare([0, 1])


def test_a_crop_beyond_the_volume_is_air_and_background():
    volume = np.ones((2, 4, 4, 4), np.int16)
    out = crop(volume, np.array([0, 2, 2]), (6, 4, 4))
    assert out.shape == (2, 6, 4, 4)
    assert (out[0, :3] == AIR_HU).all() and (out[1, :3] == 0).all()
    assert (out[:, 3:] == 1).all()
    assert (crop(volume, np.array([90, 2, 2]), (6, 4, 4))[0] == AIR_HU).all()


def test_spine_box_has_its_margin_inside_the_volume():
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[8:12, 2, 15:18] = 5
    assert spine_box(labels, 3) == (slice(5, 15), slice(0, 6), slice(12, 20))
    assert spine_box(labels * 0, 3) == (slice(None),) * 3


def test_batches_depend_on_seed_and_number_only_and_an_epoch_shows_all(table):
    volumes = Volumes(table, 2.0)
    volumes.prepare([0, 1, 2])
    crops = Crops(volumes, np.array([0, 1, 2]), CONFIG)
    one, again = crops.random(7, 4, 2), Crops(volumes, np.array([0, 1, 2]), CONFIG).random(7, 4, 2)
    np.testing.assert_array_equal(one["image"], again["image"])
    assert one["image"].shape == (2, 2, 20, 20, 20)
    assert np.abs(one["image"] - crops.random(8, 4, 2)["image"]).max() > 0
    assert all((crops.random(7, k, 3)["image"][:, 1] > 0).any((1, 2, 3)).all() for k in range(5))


def test_the_iterator_resumes_where_it_was_saved(table):
    data = DataConfig(batch_size=2, workers=1)
    batches = train_crops(table, np.arange(3), data, CONFIG, 0, spine_only=False)
    next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    wanted = next(batches)["image"]
    again = train_crops(table, np.arange(3), data, CONFIG, 0, spine_only=False)
    again.set_state(state)
    np.testing.assert_array_equal(next(again)["image"], wanted)


def test_evaluation_shows_each_study_once_and_marks_padding(table):
    batches = list(eval_crops(table, np.arange(3), DataConfig(batch_size=2), CONFIG, spine_only=False))
    assert [b["valid"].tolist() for b in batches] == [[True, True], [True, False]]
    for batch in batches:
        rows = np.flatnonzero((batch["image"][0, 1] > 0).any((1, 2)))
        assert abs(rows.mean() - 7.5) <= 1.5  # about the middle of the vertebrae
    assert batches[0]["image"].shape == (2, 2, 16, 16, 16)
