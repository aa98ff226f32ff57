"""Batches: right stacks, all slices once an epoch, exact resume, shares of several processes, balanced sampling."""

import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest

from cspine_jax.config import DataConfig
from cspine_jax.data.build import build
from cspine_jax.data.loader import eval_batches, split_studies, train_batches, train_records
from cspine_jax.data.slice_metadata import slice_metadata
from cspine_jax.data.source import SliceTable
from cspine_jax.errors import ConfigError, DataError
from tests.data.rsna_folder import make, write_dicom

CONFIG = DataConfig(size=0, depth=3, batch_size=8, eval_batch_size=16, num_folds=5, prefetch=2)


def take(batches, count):
    return list(itertools.islice(batches, count))


def keys(batches):
    return [(int(s), int(i)) for b in batches for s, i in zip(b["study"], b["index"], strict=True)]


def assert_same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_split_has_every_labelled_study_once(table):
    parts = split_studies(table, CONFIG)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(10))
    assert (table.folds[parts["test"]] == 0).all()
    assert (table.folds[parts["validation"]] == 1).all()
    folds = [split_studies(table, dataclasses.replace(CONFIG, fold=fold))["test"] for fold in range(5)]
    assert sorted(np.concatenate(folds)) == list(range(10))
    dealt_anew = split_studies(table, dataclasses.replace(CONFIG, num_folds=3))
    assert sorted(np.concatenate(list(dealt_anew.values()))) == list(range(10))
    assert {len(part) for part in dealt_anew.values()} <= {3, 4}
    limited = split_studies(table, dataclasses.replace(CONFIG, limit_studies=1))
    assert [len(part) for part in limited.values()] == [1, 1, 1]


def test_a_batch(folder, table):
    _, made = folder
    (batch,) = take(train_batches(table, CONFIG, seed=3), 1)
    shapes = {name: (values.dtype.name, values.shape) for name, values in batch.items()}
    per_level = dict.fromkeys(("presence", "fracture", "fracture_known", "vertebra_probs"), ("float32", (8, 7)))
    flags = dict.fromkeys(("presence_known", "slice_fracture", "slice_known"), ("float32", (8,)))
    assert shapes == per_level | flags | {
        "image": ("int16", (8, 3, 24, 20)),
        "labels": ("float32", (8, 8)),
        "study": ("int32", (8,)),
        "index": ("int32", (8,)),
        "valid": ("bool", (8,)),
    }
    for row, (study, index) in enumerate(keys([batch])):
        hu = made[str(table.uids[study])].hu
        near = np.clip([index - 1, index, index + 1], 0, len(hu) - 1)
        np.testing.assert_array_equal(batch["image"][row], hu[near])
        np.testing.assert_array_equal(batch["labels"][row], table.labels[study])
        np.testing.assert_array_equal(batch["presence"][row], table.presence[table.first[study] + index])


def test_an_epoch_has_every_slice_once_and_the_next_another_order(table):
    records = train_records(table, CONFIG)
    epochs = keys(take(train_batches(table, CONFIG, seed=0), 2 * len(records)))
    expected = sorted(zip(table.study[records].tolist(), table.index[records].tolist(), strict=True))
    first, second = epochs[: len(records)], epochs[len(records) : 2 * len(records)]
    assert sorted(first) == sorted(second) == expected
    assert first != second
    assert first != keys(take(train_batches(table, CONFIG, seed=1), len(records)))[: len(records)]
    train = set(split_studies(table, CONFIG)["train"].tolist())
    assert {study for study, _ in first} <= train


def test_resume_is_exact(table):
    """The state is small, survives JSON, and gives the very batches that were still to come."""
    reference = take(train_batches(table, CONFIG, seed=5), 20)
    iterator = train_batches(table, CONFIG, seed=5)
    take(iterator, 7)
    state = json.dumps(iterator.get_state())
    assert len(state) < 1000
    take(iterator, 4)
    fresh = train_batches(table, CONFIG, seed=5)
    fresh.set_state(json.loads(state))
    assert_same(take(fresh, 13), reference[7:])
    iterator.set_state(json.loads(state))
    assert_same(take(iterator, 3), reference[7:10])


@pytest.mark.parametrize("change", [{"workers": 3, "prefetch": 8}, {"cache_mb": 0}])
def test_threads_and_cache_change_nothing(records, change):
    config = dataclasses.replace(CONFIG, **change)
    reference = take(train_batches(SliceTable.open(records), CONFIG, seed=5), 12)
    table = SliceTable.open(records, cache_mb=1)
    for _ in range(2):  # the second time from the cache
        assert_same(take(train_batches(table, config, seed=5), 12), reference)


def test_processes_share_the_same_global_batches(table):
    whole = take(train_batches(table, CONFIG, seed=2), 4)
    halves = [take(train_batches(table, CONFIG, seed=2, shard_index=i, shard_count=2), 4) for i in range(2)]
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*halves, strict=True)]
    assert_same(joined, whole)
    with pytest.raises(ConfigError, match="batch_size=8: must be a multiple of the 3 processes"):
        train_batches(table, CONFIG, seed=2, shard_count=3)


def test_positive_fraction(table):
    config = dataclasses.replace(CONFIG, positive_fraction=0.5)
    batches = take(train_batches(table, config, seed=0), 30)
    share = np.mean([batch["slice_fracture"].mean() for batch in batches])
    natural = np.mean([batch["slice_fracture"].mean() for batch in take(train_batches(table, CONFIG, seed=0), 30)])
    assert natural < 0.2
    assert abs(share - 0.5) < 0.02
    assert len(set(keys(batches))) == len(train_records(table, config))  # negatives are not starved
    state = train_batches(table, config, seed=0)
    take(state, 3)
    other = train_batches(table, config, seed=0)
    other.set_state(state.get_state())
    assert_same(take(other, 5), batches[3:8])


def test_positive_fraction_without_positives_is_refused(table):
    negative = np.flatnonzero(table.labels[:, 0] == 0)
    with pytest.raises(DataError, match=r"0 of \d+ training slices show a fracture.*set it to 0"):
        train_batches(table, dataclasses.replace(CONFIG, positive_fraction=0.3), seed=0, studies=negative)


def test_evaluation_goes_through_all_slices_once_in_order(table):
    studies = np.array([7, 2])
    batches = eval_batches(table, CONFIG, studies)
    for _ in range(2):
        seen = list(batches)
        assert len(seen) == len(batches) == -(-int(table.count[studies].sum()) // 16)
        assert all(batch["image"].shape == (16, 3, 24, 20) for batch in seen)
        valid = np.concatenate([batch["valid"] for batch in seen])
        expected = [(s, i) for s in (7, 2) for i in range(table.count[s])]
        assert [key for key, ok in zip(keys(seen), valid, strict=True) if ok] == expected
        assert valid.sum() == len(expected) < len(valid)
    halves = [list(eval_batches(table, CONFIG, studies, shard_index=i, shard_count=2)) for i in range(2)]
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*halves, strict=True)]
    assert_same(joined, seen)


def test_training_leaves_out_slices_of_which_nothing_is_known(table):
    """A study without a mask, fractured, without boxes: only its whole levels are known, so it stays; without labels
    nothing is."""
    blank = dataclasses.replace(table, has_labels=np.zeros(10, bool), has_mask=np.zeros(10, bool))
    assert train_records(blank, CONFIG, np.arange(10)).size == 0
    assert train_records(table, CONFIG, np.arange(10)).size == len(table)
    with pytest.raises(DataError, match="no label, mask or box"):
        train_batches(blank, CONFIG, seed=0, studies=np.arange(10))
    with pytest.raises(DataError, match="no study is left for train"):
        split_studies(blank, CONFIG)


def test_stacks_of_a_radius_build_are_not_batched(folder, tmp_path):
    table = SliceTable.open(build(folder[0], tmp_path, radius=1, workers=1).path)
    with pytest.raises(DataError, match="radius 0"):
        train_batches(table, CONFIG, seed=0)


def test_missing_probabilities_are_named(table, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("StudyInstanceUID,slice_index,C1,C2,C3,C4,C5,C6,C7\n")
    with pytest.raises(DataError, match=r"p\.csv: no row for slice_index"):
        eval_batches(table, dataclasses.replace(CONFIG, vertebra_probs=str(path)), np.array([0]))


def test_many_shards_with_few_open_files(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("cspine_jax.data.pixels._OPEN_SHARDS", 2)
    table = SliceTable.open(build(folder[0], tmp_path, workers=1).path)
    _, made = folder
    for batch in take(train_batches(table, dataclasses.replace(CONFIG, workers=4), seed=0), 6):
        for (study, index), stack in zip(keys([batch]), batch["image"], strict=True):
            np.testing.assert_array_equal(stack[1], made[str(table.uids[study])].hu[index])
    assert len(table.pixels._readers) <= 2


def test_mixed_sizes_are_refused_before_training(tmp_path, folder):
    root = tmp_path / "rsna"
    shutil.copytree(folder[0], root)
    study = root / "train_images" / "1.2.102"
    shutil.rmtree(study)
    write_dicom(study, make("1.2.102", width=30))
    shutil.rmtree(root / "segmentations")
    table = SliceTable.open(build(root, tmp_path / "out", workers=1).path)
    with pytest.raises(DataError, match=r"1\.2\.102 is 24x30.*data\.size"):
        train_batches(table, CONFIG, seed=0, studies=np.arange(10))


def test_batches_of_each_task_hold_what_the_records_say(folder, table):
    _, made = folder
    (vertebra,) = take(train_batches(table, CONFIG, seed=3, task="vertebra"), 1)
    assert set(vertebra) == {"image", "presence", "presence_known", "metadata", "study", "index", "valid"}
    assert vertebra["presence_known"].all() and vertebra["metadata"].shape == (8, 6)
    for task, count in (("segment2d", 1), ("segment_stack", 3)):
        (batch,) = take(train_batches(table, CONFIG, seed=3, task=task), 1)
        assert set(batch) == {"image", "mask", "mask_known", "study", "index", "valid"}
        assert batch["mask"].shape == (8, count, 24, 20) and batch["mask"].dtype == np.uint8
        for row, (study, index) in enumerate(keys([batch])):
            mask = made[str(table.uids[study])].mask
            near = np.clip([index - 1, index, index + 1], 0, len(mask) - 1) if count == 3 else [index]
            np.testing.assert_array_equal(batch["mask"][row], mask[near])
    masked = np.flatnonzero(table.has_mask)
    assert len(masked) < len(table.has_mask)
    for task in ("vertebra", "segment2d"):
        rows = train_records(table, CONFIG, np.arange(10), task=task)
        assert set(table.study[rows]) == set(masked)
        with pytest.raises(DataError, match="no mask is known"):
            train_batches(table, CONFIG, seed=0, studies=np.flatnonzero(~table.has_mask), task=task)
    with pytest.raises(ConfigError, match="not a task on slices"):
        eval_batches(table, CONFIG, np.array([0]), task="spine")


def test_metadata_by_hand(table):
    """Spacing 2, 0.5, 0.4 mm, corner (-40, -30, 100), slices 2 mm apart."""
    columns = slice_metadata(table)
    first, count = table.first[3], table.count[3]
    np.testing.assert_allclose(columns[first], [-1, -40 / 250, -30 / 250, 100 / 500, 1, -1], rtol=1e-6)
    np.testing.assert_allclose(columns[first + count - 1][[0, 3]], [1, (100 - 2 * (count - 1)) / 500], rtol=1e-6)
    far = dataclasses.replace(table, position_mm=table.position_mm + np.float32(1e6))
    assert np.abs(slice_metadata(far)).max() == 3
