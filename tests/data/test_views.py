"""Views of records for study-level models: what is in a batch, what is known of it, exact resume, shares, sampling."""

import dataclasses
import itertools
import json
import types

import numpy as np
import pytest

from cspine_jax.config import DataConfig, StudyConfig
from cspine_jax.data.views import ClipView, LevelsView, SlicesView, VertebraView, ordered_batches, shuffled_batches
from cspine_jax.data.views.levels import known_targets
from cspine_jax.errors import ConfigError, DataError

DATA = DataConfig(size=0, depth=3, batch_size=4, eval_batch_size=4, num_folds=5, prefetch=2, workers=1)


def fake_crops(studies=6, P=3, size=8, radius=1):
    """As a `CropTable`: C_j of study s has the HU 10 s + j everywhere; study 1 has no C3, study 2 no labels."""
    present = np.ones((studies, 7), bool)
    present[1, 2] = False
    record = np.full((studies, 7), -1, np.int64)
    record[present] = np.arange(present.sum())
    study, level = np.nonzero(present)
    labels = np.zeros((studies, 8), np.uint8)
    labels[1, [0, 3]] = 1  # only the vertebra without a crop is fractured
    labels[3, [0, 1, 6]] = labels[4, [0, 7]] = 1
    has_labels = np.arange(studies) != 2
    has_boxes = np.arange(studies) == 3
    boxed = np.zeros((len(study), P), np.uint8)
    boxed[record[3, 0], 1:] = boxed[record[3, 3], 0] = 1  # C1 of study 3, and by the way its intact C4, but not C6

    def read(records):
        value = 10 * study[records] + level[records] + 1
        shape = (len(records), P, size, size)
        image = np.broadcast_to(value[:, None, None, None, None], (*shape, 2 * radius + 1)).astype(np.int16)
        return image, np.ones(shape, np.uint8)

    return types.SimpleNamespace(
        uids=np.array([f"s{k}" for k in range(studies)]), labels=labels, has_labels=has_labels, record=record,
        has_boxes=has_boxes, boxed=boxed, box=boxed[..., None] * np.array([1, 2, 5, 6], np.float32),
        study=study.astype(np.int32), level=(level + 1).astype(np.int32), read=read,
    )  # fmt: skip


def take(batches, count):
    return list(itertools.islice(batches, count))


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def views(table):
    crops = fake_crops()
    clips = StudyConfig(model="cnn3d", clip_depth=4, clip_size=10, with_mask=True)
    return {
        "vertebrae": (VertebraView(crops), np.arange(6)),
        "levels": (LevelsView(crops), np.arange(6)),
        "slices": (SlicesView(table, DATA, StudyConfig(model="vit3d", every=3, with_mask=True)), np.arange(10)),
        "clips": (ClipView(table, DATA, clips), np.arange(10)),
    }


@pytest.mark.parametrize("name", ["vertebrae", "levels", "slices", "clips"])
def test_batches_resume_exactly_and_processes_share_them(table, name):
    view, studies = views(table)[name]
    make = lambda **share: shuffled_batches(view, studies, DATA, 5, **share)  # noqa: E731
    reference = take(make(), 8)
    iterator = make()
    take(iterator, 3)
    state = json.dumps(iterator.get_state())
    take(iterator, 2)
    iterator.set_state(json.loads(state))
    assert_same(take(iterator, 5), reference[3:])
    halves = [take(make(shard_index=k, shard_count=2), 3) for k in range(2)]
    joined = [{n: np.concatenate([a[n], b[n]]) for n in a} for a, b in zip(*halves, strict=True)]
    assert_same(joined, reference[:3])
    with pytest.raises(ConfigError, match="batch_size=4: must be a multiple of the 3 processes"):
        make(shard_count=3)
    other = take(shuffled_batches(view, studies, DATA, 6), 3)
    assert any((a["study"] != b["study"]).any() for a, b in zip(other, reference, strict=False))


@pytest.mark.parametrize("name", ["vertebrae", "levels", "slices", "clips"])
def test_evaluation_goes_through_everything_once_and_pads(table, name):
    view, studies = views(table)[name]
    items = view.items(studies, False)
    batches = list(ordered_batches(view, studies, dataclasses.replace(DATA, eval_batch_size=5)))
    assert len(batches) == -(-len(items) // 5)
    assert all(len(batch["valid"]) == 5 for batch in batches)
    assert sum(batch["valid"].sum() for batch in batches) == len(items)
    seen = np.concatenate([batch["study"][batch["valid"]] for batch in batches])
    assert (np.diff(seen) >= 0).all()


def test_an_epoch_of_vertebrae_has_every_labelled_one_once():
    table = fake_crops()
    view = VertebraView(table)
    items = view.items(np.arange(6), True)
    assert len(items) == 7 * 6 - 1 - 7  # C3 of study 1, study 2 without labels
    config = dataclasses.replace(DATA, batch_size=len(items))
    one, two = take(shuffled_batches(view, np.arange(6), config, 0), 2)
    pairs = [list(zip(b["study"].tolist(), b["level"].tolist(), strict=True)) for b in (one, two)]
    assert sorted(pairs[0]) == sorted(pairs[1]) and pairs[0] != pairs[1]
    for k, (s, j) in enumerate(pairs[0]):
        assert (one["image"][k] == 10 * s + j).all() and one["targets"][k] == table.labels[s, j]
    assert one["image"].shape[1:] == (3, 8, 8, 3) and one["mask"].shape[1:] == (3, 8, 8)


def test_the_share_of_fractured_ones():
    view = VertebraView(fake_crops())
    batches = take(shuffled_batches(view, np.arange(6), DATA, 0, fraction=0.5), 40)
    assert np.mean([b["targets"].mean() for b in batches]) == pytest.approx(0.5, abs=0.02)
    pairs = {tuple(b["targets"][:2]) for b in batches}  # that mixup blends
    assert pairs == set(itertools.product((0.0, 1.0), repeat=2))
    with pytest.raises(DataError, match=r"0 of 7 training examples show a fractured vertebra.*set it to 0"):
        shuffled_batches(view, np.array([0]), DATA, 0, fraction=0.5)
    with pytest.raises(DataError, match="none of 1 training studies has anything to learn from"):
        shuffled_batches(view, np.array([2]), DATA, 0)


def test_slices_are_labelled_by_boxes_where_there_are_any():
    table = fake_crops()
    items = table.record[[3, 4]].ravel()
    expected = np.zeros((2, 7, 3), np.float32)
    expected[0, [0, 5]] = expected[1, 6] = 1
    for labels in ("copy", "box"):
        vertebrae = VertebraView(table, labels).read(items, np.ones(14, bool))["slice_targets"]
        patients = LevelsView(table, labels).read(np.array([3, 4]), np.ones(2, bool))["slice_targets"]
        np.testing.assert_array_equal(patients, expected)
        np.testing.assert_array_equal(vertebrae, expected.reshape(14, 3))
        assert vertebrae.dtype == patients.dtype == np.float32
        expected[0, 0, 0] = 0
    np.testing.assert_array_equal(LevelsView(table).read(np.array([3]), np.ones(1, bool))["slice_targets"][0, 0], 1)
    assert not LevelsView(table, "box").read(np.array([1]), np.ones(1, bool))["slice_targets"].any()


def test_where_breaks_are_is_known_of_intact_vertebrae_and_of_those_with_boxes():
    """An intact vertebra has none, whatever box overlaps it; a fractured one without a box is not known."""
    table = fake_crops()
    known = np.ones((3, 7), np.float32)
    known[0, 2] = known[1, 5] = known[2] = 0  # no crop; no box; no labels
    batch = LevelsView(table).read(np.array([1, 3, 2]), np.ones(3, bool))
    np.testing.assert_array_equal(batch["where_known"], known)
    expected = np.zeros((3, 7, 3, 4), np.float32)
    expected[1, 0, 1:] = 1, 2, 5, 6
    np.testing.assert_array_equal(batch["box"], expected)
    batch = VertebraView(table).read(table.record[3], np.ones(7, bool))
    np.testing.assert_array_equal(batch["where_known"], known[1])
    np.testing.assert_array_equal(batch["box"], expected[1])


def test_training_shows_some_positions_in_order_and_evaluation_all():
    """What is shown of a position, its label and its box stay together; each is shown as often as the others."""
    table = fake_crops(P=8)
    where = np.arange(8, dtype=np.int16)
    boxed = table.boxed[table.record[3, 0]]
    read = table.read
    table.read = lambda records: (np.broadcast_to(where[:, None, None, None], (len(records), 8, 8, 8, 3)),
                                  read(records)[1])  # fmt: skip
    jitter = np.random.default_rng(0).random((4000, 3))
    seen = np.zeros(8)
    for shown in (1, 3, 4, 7):
        view = VertebraView(table, "box", shown)
        batch = view.read(np.full(4000, table.record[3, 0]), np.ones(4000, bool), jitter)
        at = batch["image"][:, :, 0, 0, 0]
        assert at.shape == (4000, shown) and batch["mask"].shape[1] == shown
        assert (np.diff(at, axis=1) >= 8 // shown).all() and (np.diff(at, axis=1) <= -(-8 // shown)).all()
        np.testing.assert_array_equal(batch["slice_targets"], boxed[at])
        np.testing.assert_array_equal(batch["box"], table.box[table.record[3, 0]][at])
        seen = np.bincount(at.ravel(), minlength=8) / 4000
        np.testing.assert_allclose(seen, shown / 8, atol=0.03)
        assert view.read(np.array([0]), np.ones(1, bool))["image"].shape[1] == 8


def test_absent_levels_are_air_and_unknown():
    batch = LevelsView(fake_crops()).read(np.array([1, 4]), np.ones(2, bool))
    assert batch["there"].sum(1).tolist() == [6, 7] and not batch["there"][0, 2]
    assert (batch["image"][0, 2] == -1000).all() and not batch["mask"][0, 2].any()
    assert (batch["image"][1, 6] == 47).all()
    np.testing.assert_array_equal(batch["targets_known"][0], [0, 1, 1, 0, 1, 1, 1, 1])  # its fracture is not in view
    np.testing.assert_array_equal(batch["targets_known"][1], np.ones(8))
    np.testing.assert_array_equal(batch["targets"][1], [1, 0, 0, 0, 0, 0, 0, 1])


def test_known_targets_by_hand():
    labels = np.array([[0] * 8, [1, 1, 0, 0, 0, 0, 0, 0], [0] * 8], float)
    there = np.ones((3, 7), bool)
    there[2] = False
    known = known_targets(labels, there, np.array([True, False, True]))
    np.testing.assert_array_equal(known, [[1] * 8, [0] * 8, [0] * 8])


@pytest.mark.parametrize(("settings", "expected"), [
    ({"slices": 5}, [0, 2, 4, 5, 7]),
    ({"every": 2}, [0, 2, 4, 6]),
    ({"every": 2, "max_slices": 3}, [0, 4, 6]),
    ({"every": 1}, list(range(8))),
])  # fmt: skip
def test_which_slices_are_seen(table, settings, expected):
    view = SlicesView(table, DATA, StudyConfig(model="vit3d", **settings))
    assert view.positions(8).tolist() == expected


def test_short_studies_are_padded_and_stacks_are_those_of_the_study(folder, table):
    _, made = folder
    table = dataclasses.replace(table, count=np.where(np.arange(10) == 3, 4, table.count).astype(np.int32))
    view = SlicesView(table, DATA, StudyConfig(model="vit3d", every=2, with_mask=True))
    batch = view.read(np.array([3, 5]), np.ones(2, bool))
    hu = made[str(table.uids[5])].hu
    seen = range(0, len(hu), 2)
    T = -(-int(table.count.max()) // 2)
    assert view.length == T and batch["there"].sum(1).tolist() == [2, len(seen)] and batch["there"][0, :2].all()
    assert batch["image"].shape == (2, T, 24, 20, 3)
    for k, at in enumerate(seen):
        near = np.clip([at - 1, at, at + 1], 0, len(hu) - 1)
        np.testing.assert_array_equal(np.moveaxis(batch["image"][1, k], -1, 0), hu[near])
    found = table.read_study_masks(5)[::2]
    np.testing.assert_array_equal(batch["mask"][1, : len(seen)], np.where(found <= 7, found, 0))


def test_clips_have_the_labels_of_what_is_inside(table):
    masked = np.flatnonzero(table.has_mask)
    labels = np.zeros_like(table.labels)
    labels[:] = 1
    table = dataclasses.replace(table, labels=labels)
    study = StudyConfig(model="cnn3d", clip_depth=3, clip_visible=0.5, with_mask=True)
    view = ClipView(table, DATA, study)
    items = view.items(masked, True)
    assert set((items // 7).tolist()) <= set(masked.tolist()) and len(items)
    batch = view.read(items, np.ones(len(items), bool))
    for k, (s, j) in enumerate(zip(*np.divmod(items, 7), strict=True)):
        whole = (table.read_study_masks(int(s)) == j + 1).sum()
        got = (batch["mask"][k][batch["there"][k]] == j + 1).sum()
        assert batch["inside"][k, j] == pytest.approx(got / whole, abs=0.02)
    enough = batch["inside"] >= 0.5
    np.testing.assert_array_equal(batch["targets_known"][:, 1:] > 0, enough)
    np.testing.assert_array_equal(batch["targets"][:, 1:], enough)
    negative = ClipView(table, DATA, dataclasses.replace(study, clip_labels="negative")).read(items, batch["valid"])
    assert negative["targets_known"].all()
    np.testing.assert_array_equal(negative["targets"], batch["targets"])


@pytest.mark.parametrize(("share", "known", "positive"), [(0.0, 1, 0), (0.25, 0, 0), (0.75, 1, 1)])
def test_the_patient_of_a_clip_that_cuts_a_fractured_vertebra_is_unknown(table, share, known, positive):
    view = ClipView(table, DATA, StudyConfig(model="cnn3d", clip_depth=3, clip_visible=0.5, with_mask=True))
    labels = np.array([[1, 1, 0, 0, 0, 0, 0, 0]], np.uint8)  # C1 is broken, C2 whole and in the clip
    view.table = types.SimpleNamespace(labels=labels, has_labels=np.array([True]))
    targets, seen = view._targets(np.array([0]), np.array([[share, 1.0, 0, 0, 0, 0, 0]]))
    assert (seen[0, 0], targets[0, 0]) == (known, positive)
    assert (seen[0, 2], targets[0, 2]) == (1, 0)


def test_jitter_moves_a_clip_and_windows_stay_inside(table):
    study = StudyConfig(model="cnn3d", clip_depth=3, clip_size=10, with_mask=True)
    view = ClipView(table, DATA, study)
    items = view.items(np.flatnonzero(table.has_mask), True)[:3]
    still = view.read(items, np.ones(3, bool))
    middle = view.read(items, np.ones(3, bool), np.full((3, 3), 0.5))
    moved = view.read(items, np.ones(3, bool), np.tile([[0.99, 0.0, 0.99]], (3, 1)))
    assert still["image"].shape == moved["image"].shape == (3, 3, 10, 10, 3)
    np.testing.assert_array_equal(still["image"], middle["image"])
    assert (still["image"] != moved["image"]).any()
