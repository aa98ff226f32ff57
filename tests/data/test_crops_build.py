"""Crop records: what they hold, builds that are stopped, repeated or fed broken studies, and how they are read."""

import concurrent.futures
import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from cspine_jax.cli import main
from cspine_jax.config import CropsConfig
from cspine_jax.ct import Identity
from cspine_jax.data import build as build_module
from cspine_jax.data import features as features_module
from cspine_jax.data.crops import CropLayout, CropTable, build_crops, check_cut, crops_path
from cspine_jax.data.crops import build as crops_build
from cspine_jax.data.crops.cut import boxed, look, plan, sample
from cspine_jax.data.crops.layout import COLUMNS
from cspine_jax.data.index import Columns
from cspine_jax.data.metadata import METADATA_FILE, is_phantom
from cspine_jax.data.source import SliceTable
from cspine_jax.errors import DataError
from cspine_jax.phantom.dataset import make_study, write_dataset
from tests.data.rsna_folder import SPACING, make, write_dicom, write_folder, write_mask, write_tables
from tests.data.test_build import digests

CROPS = CropsConfig(positions=3, radius=1, size=16)


@pytest.fixture(scope="module")
def crops(folder, tmp_path_factory):
    """Path of an undisturbed build."""
    return build_crops(folder[0], tmp_path_factory.mktemp("crops"), CROPS, workers=1).path


@pytest.fixture
def table(crops):
    return CropTable.open(crops)


def test_a_crop_is_what_the_mask_says(folder, table, records):
    _, made = folder
    slices = SliceTable.open(records)
    assert table.layout == CropLayout(positions=3, radius=1, size=16) and not table.phantom
    masked = slices.has_mask
    assert table.uids.tolist() == slices.uids[masked].tolist() and len(table.uids) == 8
    for name in ("labels", "has_labels", "has_boxes", "folds"):
        np.testing.assert_array_equal(getattr(table, name), getattr(slices, name)[masked])
        assert getattr(table, name).dtype == getattr(slices, name).dtype
    assert table.record.dtype == np.int64 and table.record.shape == (8, 7)
    image, inside = table.read(np.arange(len(table)))
    assert (image.shape, image.dtype) == ((len(table), 3, 16, 16, 3), np.int16)
    assert (inside.shape, inside.dtype) == ((len(table), 3, 16, 16), np.uint8)
    for study, uid in enumerate(table.uids):
        hu, mask = made[uid].hu, made[uid].mask
        seen = look(mask)
        for level in range(1, 8):
            record = table.record[study, level - 1]
            if level not in seen:
                assert record == -1
                continue
            assert (table.study[record], table.level[record]) == (study, level)
            where = plan(mask, np.array(SPACING, np.float32), level, table.layout, seen)
            expected, expected_mask = sample(hu, mask, where, table.layout)
            np.testing.assert_array_equal(image[record], expected)
            np.testing.assert_array_equal(inside[record], expected_mask)
            rows = np.flatnonzero((mask == level).any((1, 2)))
            assert table.slice_index[record][[0, -1]].tolist() == [rows[0], rows[-1]]
            assert table.complete[record] == (rows[0] > 0 and rows[-1] < len(mask) - 1)
            np.testing.assert_allclose(table.origin[record], where.origin, rtol=1e-5)
            np.testing.assert_allclose(table.axes[record], where.axes, rtol=1e-5)
            np.testing.assert_allclose(table.spacing_mm[record], where.spacing_mm, rtol=1e-5)
    assert len(table) == (table.record >= 0).sum() and not table.complete.all()


def test_boxes_are_on_the_vertebra_and_the_slices_that_they_are_drawn_on(folder, table, records):
    """The folder's boxes enclose the upper of the two blocks on their slices; the lower one is the next vertebra."""
    slices = SliceTable.open(records)
    assert table.has_boxes.any() and not table.has_boxes.all() and table.boxed.shape == (len(table), 3)
    beside = 0
    for study in np.flatnonzero(table.has_boxes):
        (fractured,) = np.flatnonzero(table.labels[study, 1:]) + 1
        assert table.boxed[table.record[study, fractured - 1]].any()
        boxes = slices.num_boxes[slices.study == np.flatnonzero(slices.uids == table.uids[study])[0]] > 0
        mask = folder[1][str(table.uids[study])].mask
        for record in table.record[study][table.record[study] >= 0]:
            level, at = table.level[record], table.slice_index[record]
            there = boxes & (mask[:, 4:11, 5:12] == level).any((1, 2))
            near = [
                [k for k in range(len(mask)) if abs(k - p) <= 1 and abs(k - p) == np.abs(k - at).min()] for p in at
            ]  # CROPS.radius is 1
            np.testing.assert_array_equal(table.boxed[record], [there[rows].any() for rows in near])
            beside += (boxes & (mask == level).any((1, 2)) & ~there)[np.concatenate(near)].sum()
    assert beside and not table.boxed[~table.has_boxes[table.study]].any()


@pytest.mark.parametrize(("box", "expected"), [
    ((2, 2, 3, 3), [1, 1]),
    ((0, 0, 2.5, 2.5), [1, 1]),  # half a pixel of it
    ((0, 0, 2, 9), [0, 0]),  # its edge is the box's
    ((5, 2, 9, 9), [0, 0]),
    ((-3, -3, 40, 40), [1, 1]),
])  # fmt: skip
def test_what_a_box_overlaps(box, expected):
    """A vertebra in pixels 2..4 of slices 2..5; both ends are boxed, and slices without it are of no account."""
    mask = np.zeros((8, 8, 8), np.uint8)
    mask[2:6, 2:5, 2:5] = 3
    layout = CropLayout(positions=2, radius=0, size=16)
    where = plan(mask, np.ones(3), 3, layout, look(mask))
    assert boxed(mask, [np.array([box], np.float32)] * 8, where, 0).any(1).tolist() == expected
    only = [np.array([box] * (row == 5), np.float32).reshape(-1, 4) for row in range(8)]
    assert boxed(mask, only, where, 0).any(1).tolist() == [0, expected[1]]
    off = [np.array([box] * (row in (0, 1, 3, 4, 6, 7)), np.float32).reshape(-1, 4) for row in range(8)]
    assert not boxed(mask, off, where, 0).any()


@pytest.mark.parametrize(("radius", "positions"), [
    (2, {2: [0], 3: [0], 4: [0, 1], 5: [1], 6: [1], 7: [1], 8: [1, 2], 9: [2], 10: [2], 1: [], 11: []}),
    (1, {2: [0], 3: [0], 4: [], 5: [1], 7: [1], 8: []}),
    (0, {2: [0], 3: [], 5: [], 6: [1], 10: [2]}),
])  # fmt: skip
def test_a_break_between_positions_is_seen_by_the_nearest_that_show_it(radius, positions):
    """Slices 2..10 of a vertebra, positions on 2, 6 and 10."""
    mask = np.zeros((14, 8, 8), np.uint8)
    mask[2:11, 2:5, 2:5] = 3
    layout = CropLayout(positions=3, radius=radius, size=16)
    where = plan(mask, np.ones(3), 3, layout, look(mask))
    for row, expected in positions.items():
        only = [np.array([(2, 2, 3, 3)] * (k == row), np.float32).reshape(-1, 4) for k in range(14)]
        assert np.flatnonzero(boxed(mask, only, where, radius).any(1)).tolist() == expected, row


def test_boxes_of_several_slices_are_enclosed():
    """Each slice's box alone is smaller than what both take; planes between slices have the nearest in any case."""
    mask = np.zeros((6, 16, 16), np.uint8)
    mask[1:3, 2:14, 2:14] = 3
    boxes = [np.zeros((0, 4), np.float32), np.array([(3, 4, 2, 2)], np.float32), np.array([(8, 5, 3, 6)], np.float32)]
    boxes += [np.zeros((0, 4), np.float32)] * 3
    for positions, sides in ((1, [(4, 3, 11, 11)]), (4, [(4, 3, 6, 5)] * 2 + [(5, 8, 11, 11)] * 2)):
        layout = CropLayout(positions=positions, radius=2, size=16, margin=0.0)
        where = plan(mask, np.ones(3), 3, layout, look(mask))
        scale = 16 / 12
        expected = (np.array(sides) - 2) * scale
        np.testing.assert_allclose(boxed(mask, boxes, where, 2), expected, atol=1e-4)


def test_on_a_tilted_spine_a_box_is_on_the_plane_through_it():
    """A break at the back of a vertebra that leans by 27 degrees lies slices away from where its plane's centre is."""
    mask = np.zeros((60, 64, 40), np.uint8)
    for row in range(60):  # C3, C4 and C5 lean forward as they go down
        start = 36 - row // 2
        mask[row, start : start + 24, 8:32] = 3 + row // 20
    layout = CropLayout(positions=9, radius=0, size=24, oriented=True)
    where = plan(mask, np.ones(3), 4, layout, look(mask))
    assert where.axes[0, 1] < -0.3  # it is tilted
    to_crop = np.linalg.inv(where.axes)
    for row in (24, 30, 36):
        left = 36 - row // 2
        box = (18.0, float(left + 20), 4.0, 3.0)
        only = [np.array([box] * (k == row), np.float32).reshape(-1, 4) for k in range(60)]
        apart = ((np.array([row, left + 21, 19.5]) - where.origin) @ to_crop)[:, 0]
        found = np.flatnonzero(boxed(mask, only, where, 0).any(1))
        assert found.tolist() == np.flatnonzero(abs(apart) <= abs(to_crop[0, 0]) / 2).tolist()
        wide = np.flatnonzero(boxed(mask, only, where, 3).any(1))
        assert abs(apart).argmin() in wide and (abs(apart[wide]) <= 1).all()


@pytest.mark.parametrize(
    ("missing", "words"), [("boxes", "which gave boxes to other positions"), ("strays", "whose planes stray voxels .*")]
)
def test_crops_of_an_older_version_that_cut_otherwise_are_refused(folder, tmp_path, missing, words):
    path = build_crops(folder[0], tmp_path, CROPS, workers=1).path / "metadata.json"
    there = json.loads(path.read_text())
    del there[missing]
    path.write_text(json.dumps(there))
    for again in (lambda: build_crops(folder[0], tmp_path, CROPS, workers=1), lambda: check_cut(path.parent)):
        with pytest.raises(DataError, match=f"older version, {words}; .*--overwrite"):
            again()


@pytest.mark.parametrize("oriented", [False, True])
def test_boxes_are_where_the_crop_shows_them(oriented):
    """What a box encloses is drawn as a label, too, and sampled: the rectangle is about exactly its pixels."""
    mask = np.zeros((12, 40, 48), np.uint8)
    mask[2:10, 8:32, 10:40] = 4
    x, y, width, height = 14, 11, 9, 6
    drawn = np.zeros_like(mask)
    drawn[:, y : y + height, x : x + width] = 4
    layout = CropLayout(positions=3, radius=0, size=60, oriented=oriented)
    where = plan(mask, np.array([2.0, 0.5, 0.5]), 4, layout, look(mask))
    both = [(x, y, 5, height), (x + 3, y, width - 3, 4)]
    boxes = [np.array([*both, (0, 0, 5, 5)], np.float32)] * 12  # the last is beside it
    inside = sample(np.zeros(mask.shape, np.int16), drawn, where, layout)[1]
    found = boxed(mask, boxes, where, 0)
    assert found.dtype == np.float32 and found.shape == (3, 4)
    for rectangle, shown in zip(found, inside, strict=True):
        rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
        expected = [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
        np.testing.assert_allclose(rectangle, expected, atol=0.5 + 1e-4)
    np.testing.assert_array_equal(boxed(mask, [np.zeros((0, 4), np.float32)] * 12, where, 0), 0)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """(folder, {uid: study as it was drawn})."""
    out, drawn = tmp_path_factory.mktemp("phantoms"), (make_study(9, k, size=48, scale=0.15) for k in range(4))
    return write_dataset(out, 4, seed=9, size=48, scale=0.15, workers=1), {study.plan.uid: study for study in drawn}


@pytest.mark.parametrize("oriented", [False, True])
def test_boxed_positions_of_phantoms_are_those_that_show_the_break(phantoms, tmp_path, oriented):
    folder, drawn = phantoms
    crops = CropsConfig(positions=5, radius=0, size=16, oriented=oriented)
    table = CropTable.open(build_crops(folder, tmp_path, crops, workers=1).path)
    assert (table.has_boxes == (table.labels[:, 0] > 0)).all() and table.has_boxes.any()
    np.testing.assert_array_equal(table.box.any(2), table.boxed)
    alone = 0
    for record, study in enumerate(table.study):
        level, truth = table.level[record], drawn[str(table.uids[study])]
        single = table.labels[study, 1:].sum() == table.labels[study, level] == 1
        if oriented:  # a plane is told by the box's middle; the break is no further from it than a slice
            to_crop = np.linalg.inv(table.axes[record])
            voxels = np.argwhere((truth.fractures == level) & (truth.labels == level))
            for position in np.flatnonzero(table.boxed[record] if single else []):
                apart = ((voxels - table.origin[record, position]) @ to_crop)[:, 0]
                assert apart.min() < 1 and apart.max() > -1
                alone += 1
            continue
        near = np.rint(table.slice_index[record]).astype(int)
        shown = (truth.fractures[near] == level).any((1, 2)) & (truth.labels[near] == level).any((1, 2))
        assert (table.boxed[record] >= shown).all()
        if single:
            np.testing.assert_array_equal(table.boxed[record], shown)
            alone += 0 < shown.sum() < len(shown)
    assert alone  # there was something to see


@pytest.mark.parametrize("index", [True, False])
def test_crops_of_an_older_version_are_refused(folder, tmp_path, monkeypatch, index):
    """Such as know nothing of boxes; with an index or, from TFDS, still without one."""
    features, new = CropLayout.features, ("boxed", "box", "has_boxes")
    old = Columns(*({k: v for k, v in kinds.items() if k not in new} for kinds in (
        COLUMNS.per_study, COLUMNS.per_record)))  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(CropLayout, "features", lambda self: tfds.features.FeaturesDict(
            {name: kind for name, kind in features(self).items() if name not in new}))  # fmt: skip
        examples = crops_build.Crops._examples
        patch.setattr(crops_build.Crops, "_examples", lambda self, *args: (
            {name: value for name, value in example.items() if name not in new} for example in examples(self, *args)
        ))  # fmt: skip
        patch.setattr(crops_build.Crops, "columns", old)
        parameters = crops_build.Crops.parameters
        patch.setattr(
            crops_build.Crops, "parameters", lambda self, tables: {"masks": parameters(self, tables)["masks"]}
        )
        features_module._serializer.cache_clear()
        path = build_crops(folder[0], tmp_path, CROPS, workers=1).path
    features_module._serializer.cache_clear()
    if not index:
        (path / "index.npz").unlink()
    with pytest.raises(DataError, match=r"without box, boxed, has_boxes, made by an older version; .*--overwrite"):
        CropTable.open(path)
    with pytest.raises(DataError, match=r"by an older version, without boxed, box, has_boxes; .*--overwrite"):
        build_crops(folder[0], tmp_path, CROPS, workers=1)
    assert CropTable.open(build_crops(folder[0], tmp_path, CROPS, workers=1, overwrite=True).path).boxed.any()


def test_any_crops_in_any_order_from_many_threads_with_and_without_a_cache(crops, table):
    image, inside = table.read(np.arange(len(table)))
    for cache_mb in (0, 1):  # a megabyte holds some of them
        again = CropTable.open(crops, cache_mb)
        wanted = [np.random.default_rng(i).integers(0, len(table), 9) for i in range(40)]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for records, (hu, mask) in zip(wanted, pool.map(again.read, wanted), strict=True):
                np.testing.assert_array_equal(hu, image[records])
                np.testing.assert_array_equal(mask, inside[records])
        assert bool(again.pixels._pairs) == bool(cache_mb)
    assert table.read(np.array([], int))[0].shape == (0, 3, 16, 16, 3)


def test_building_again_does_nothing_and_oriented_crops_are_others(folder, tmp_path):
    first = build_crops(folder[0], tmp_path, CROPS, workers=1)
    assert (first.studies, first.new, len(first.skipped)) == (8, 8, 2)
    assert {note.what for note in first.skipped} == {"mask"}
    assert build_crops(folder[0], tmp_path, CROPS, workers=1) == dataclasses.replace(first, new=0)
    assert build_crops(folder[0], tmp_path, CROPS, workers=1, overwrite=True).new == 8
    turned = dataclasses.replace(CROPS, oriented=True, stride=1.0)
    path = build_crops(folder[0], tmp_path, turned, workers=1).path
    assert path == crops_path(tmp_path, turned) and path.parent.name == "crops3r1_size16_stride1mm_oriented"
    assert len(CropTable.open(path)) == len(CropTable.open(first.path))
    with pytest.raises(DataError, match=r"num_folds=5 and not 3.*--overwrite"):
        build_crops(folder[0], tmp_path, CROPS, workers=1, num_folds=3)


@pytest.mark.parametrize("step", ["serialize", "save", "shard", "write_metadata", "_write_notes"])
def test_a_build_that_stops_anywhere_is_completed(folder, crops, tmp_path, monkeypatch, step):
    """With Ctrl-C; the bytes are those of an undisturbed build."""
    target, name = {"save": (build_module.index, "save"), "shard": (build_module, "shard_name")}.get(
        step, (build_module, step)
    )
    whole, calls = getattr(target, name), iter(range({"serialize": 30, "save": 4, "shard": 3}.get(step, 0)))

    def breaking(*args, **kwargs):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(target, name, breaking)
        with pytest.raises(KeyboardInterrupt):
            build_crops(folder[0], tmp_path, CROPS, workers=1)
    assert not crops_path(tmp_path, CROPS).exists()
    result = build_crops(folder[0], tmp_path, CROPS, workers=1)
    assert result.new == {"serialize": 4, "save": 4}.get(step, 0)
    assert digests(result.path) == digests(crops)
    assert (result.path / "metadata.json").read_bytes() == (crops / "metadata.json").read_bytes()


_SCRIPT = """
import sys, time
from cspine_jax.config import CropsConfig
from cspine_jax.data.crops import build
load = build.load_study
def slowly(*args):
    time.sleep(0.15)
    return load(*args)
build.load_study = slowly
if __name__ == "__main__":
    build.build_crops(sys.argv[1], sys.argv[2], CropsConfig(positions=3, radius=1, size=16), workers=2)
"""


def test_a_build_that_is_killed_goes_on(folder, crops, tmp_path):
    (tmp_path / "script.py").write_text(_SCRIPT)
    command = [sys.executable, tmp_path / "script.py", folder[0], tmp_path]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    studies = crops_path(tmp_path, CROPS).with_name(".1.0.0.building") / "studies"
    deadline = time.monotonic() + 120
    while len(list(studies.glob("*.array_record"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    children = os.path.join("/proc", str(process.pid), "task", str(process.pid), "children")
    with open(children) as file:
        workers = file.read().split()
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    while any(os.path.exists(f"/proc/{worker}") for worker in workers):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.01)
    done = len(list(studies.glob("*.array_record")))
    result = build_crops(folder[0], tmp_path, CROPS, workers=1)
    assert 2 <= done < 8 and result.new <= 8 - done
    assert digests(result.path) == digests(crops)


def test_a_full_disk_is_one_line(folder, tmp_path, monkeypatch):
    class Full:
        def __init__(self, *args):
            pass

        def write(self, data):
            pass

        def close(self):
            raise RuntimeError("write() failed: No space left on device; writing x\nmore")

    monkeypatch.setattr(build_module, "ArrayRecordWriter", Full)
    with pytest.raises(DataError, match=r"cannot write study 1\.2\.100: .*No space left.*make room") as caught:
        build_crops(folder[0], tmp_path, CROPS, workers=1)
    assert "\n" not in str(caught.value)


def test_studies_without_crops_are_named(tmp_path):
    root = tmp_path / "rsna"
    made = write_folder(root, studies=7)
    images, masks = root / "train_images", root / "segmentations"
    (images / "1.2.100" / "3.dcm").write_bytes(b"nothing")
    shutil.rmtree(images / "1.2.101")
    write_mask(masks / "1.2.102.nii.gz", made["1.2.102"].mask[:, :, :-1])
    write_mask(masks / "1.2.103.nii.gz", np.where(made["1.2.103"].mask == 8, 8, 0).astype(np.uint8))
    lone = made["1.2.105"].mask
    write_mask(masks / "1.2.105.nii.gz", np.where(np.isin(lone, (2, 5, 8)), lone, 0).astype(np.uint8))
    write_dicom(images / "1.2.50", make("1.2.50"))
    write_mask(masks / "1.2.50.nii.gz", make("1.2.50").mask)
    result = build_crops(root, tmp_path / "out", CROPS, workers=1)
    table = CropTable.open(result.path)
    assert table.uids.tolist() == ["1.2.105", "1.2.106", "1.2.50"]
    assert table.has_labels.tolist() == [True, True, False] and table.folds[2] == -1
    assert np.flatnonzero(table.record[0] >= 0).tolist() == [1, 4]
    assert table.level[table.study == 0].tolist() == [2, 5]
    with (result.path / "skipped.csv").open() as file:
        said = {row["StudyInstanceUID"]: (row["what"], row["reason"]) for row in csv.DictReader(file)}
    expected = {
        "1.2.100": ("study", "3.dcm"),
        "1.2.101": ("study", "there is no folder"),
        "1.2.102": ("mask", "voxels along axis"),
        "1.2.103": ("mask", "no vertebra of C1..C7"),
        "1.2.104": ("mask", "no mask of this study in segmentations/"),
    }
    assert set(said) == set(expected)
    for uid, (what, part) in expected.items():
        assert said[uid][0] == what and part in said[uid][1], said[uid]
    shutil.rmtree(images / "1.2.100")
    write_dicom(images / "1.2.100", made["1.2.100"])
    assert build_crops(root, tmp_path / "out", CROPS, workers=1).new == 0
    assert build_crops(root, tmp_path / "out", CROPS, workers=1, retry=True).new == 1
    write_mask(masks / "1.2.103.nii.gz", made["1.2.103"].mask)
    with pytest.raises(DataError, match=r"other masks than those now in 'true' \(built from 'true'\).*--overwrite"):
        build_crops(root, tmp_path / "out", CROPS, workers=1)
    shutil.rmtree(masks)
    with pytest.raises(DataError, match=r"none of 7 studies has a usable mask; first: 1\.2\.100: no mask"):
        build_crops(root, tmp_path / "out", CROPS, workers=1)


def test_tfds_reads_what_was_built_and_builds_the_same(folder, table, builder_class, tmp_path):
    source = tfds.builder_from_directory(str(table.path)).as_data_source("train")
    assert len(source) == len(table)
    for record in (0, 7, len(table) - 1):
        example, (image, mask) = source[record], table.read(np.array([record]))
        assert example["study_uid"].decode() == table.uids[table.study[record]]
        np.testing.assert_array_equal(example["image"], image[0])
        np.testing.assert_array_equal(example["mask"], mask[0])
        np.testing.assert_array_equal(example["origin"], table.origin[record])
        np.testing.assert_array_equal(example["boxed"], table.boxed[record])
        np.testing.assert_array_equal(example["box"], table.box[record])
        assert example["has_boxes"] == table.has_boxes[table.study[record]]
        assert (example["level"], example["complete"]) == (table.level[record], table.complete[record])

    assert {"crops15r2_size224", "crops15r2_size224_oriented"} <= set(builder_class.builder_configs)
    config = type(next(iter(builder_class.builder_configs.values())))(table.layout)
    builder = builder_class(data_dir=tmp_path, config=config, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=folder[0]))
    info = tfds.builder_from_directory(str(table.path)).info
    assert builder.info.features.to_json() == info.features.to_json()
    assert (builder.info.full_name, builder.info.description) == (info.full_name, info.description)
    theirs = CropTable.open(builder.data_dir)
    assert (theirs.path / "index.npz").is_file()
    for field in dataclasses.fields(table):
        if field.name not in ("path", "pixels"):
            one, other = getattr(table, field.name), getattr(theirs, field.name)
            np.testing.assert_array_equal(one, other, err_msg=field.name)
    for one, other in zip(table.read(np.arange(9)), theirs.read(np.arange(9)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_slices_and_crops_are_not_taken_for_each_other(records, crops, tmp_path):
    with pytest.raises(DataError, match="no such layout of crops"):
        CropTable.open(records)
    with pytest.raises(DataError, match="no such layout"):
        SliceTable.open(crops)
    with pytest.raises(DataError, match="cspine build"):
        CropTable.open(tmp_path)


def test_phantoms_are_known(folder, tmp_path):
    root = tmp_path / "rsna"
    shutil.copytree(folder[0], root)
    (root / "phantom.json").write_text('{"size": 24, "version": "1"}')
    path = build_crops(root, tmp_path, CROPS, workers=1).path
    slices = build_module.build(root, tmp_path, size=16, workers=1).path
    shutil.rmtree(root)  # the records still know
    assert CropTable.open(path).phantom and is_phantom(slices)
    made = json.loads((slices / METADATA_FILE).read_text())
    assert made.pop("phantom")
    (slices / METADATA_FILE).write_text(json.dumps(made))  # as older versions wrote it
    assert not is_phantom(slices)
    root.mkdir()
    (root / "phantom.json").write_text("{}")
    assert is_phantom(slices)


def test_hashed_uids(tmp_path):
    uids = [f"1.2.826.0.1.3680043.8.498.77.{number}" for number in range(2)]
    for uid in uids:
        write_dicom(tmp_path / "rsna" / "train_images" / uid, make(uid))
    write_mask(tmp_path / "rsna" / "segmentations" / f"{uids[0]}.nii.gz", make(uids[0]).mask)
    write_tables(tmp_path / "rsna", {uid: (3,) for uid in uids}, [])
    result = build_crops(tmp_path / "rsna", tmp_path, CROPS, workers=1, hash_uids="s")
    assert CropTable.open(result.path).uids.tolist() == [Identity("s").uid(uids[0])]
    assert [note.uid for note in result.skipped] == [Identity("s").uid(uids[1])]
    for file in result.path.iterdir():
        assert uids[0].encode() not in file.read_bytes() and uids[1].encode() not in file.read_bytes()


def test_command_line(folder, tmp_path, capsys):
    base = ["build", f"--manual_dir={folder[0]}", f"--data_dir={tmp_path}", "--workers=1"]
    flags = [*base, "--crops", "--positions=3", "--radius=1", "--size=16", "--oriented"]
    assert main(flags) == 0
    said = capsys.readouterr().out
    assert "crops3r1_size16_oriented/1.0.0: 8 studies, " in said and " crops\n  skipped mask 1.2.104: " in said
    for again in (["--crops=crops3r1_size16_oriented"], ["--config=crops3r1_size16_oriented"]):
        assert main([*base, *again]) == 0
        assert "nothing to do" in capsys.readouterr().out
    for wrong, message in (
        (["--oriented"], "--oriented is about vertebra crops; add --crops"),
        (["--crops", "--config=size16"], "slices or crops"),
        (["--crops=crops3r1_size16", "--positions=4"], "the two differ"),
        (["--crops=crops3r1_size16_segmented"], "say in which folder the masks are"),
        (["--crops=crops3r1_size16", "--masks=segmented"], "call it crops3r1_size16_segmented"),
        (["--crops=size16"], "no such layout of crops"),
        (["--crops", "--size=3"], "crops.size"),
        (["--crops", "--masks=/nowhere"], "/nowhere: no such folder"),
    ):
        assert main([*base, *wrong]) == 2, wrong
        assert message in capsys.readouterr().err


def test_a_study_whose_crops_cannot_be_cut_is_left_out_by_name(folder, crops, tmp_path, monkeypatch):
    bad, cut_out = [], crops_build.cut.sample

    def sample_or_fail(hu, mask, where, layout):
        if not bad:
            bad.append(where.level)
            raise MemoryError("no room for it")
        return cut_out(hu, mask, where, layout)

    monkeypatch.setattr(crops_build.cut, "sample", sample_or_fail)
    built = build_crops(folder[0], tmp_path, CROPS, workers=1)
    whole = CropTable.open(crops)
    (note,) = [note for note in built.skipped if note.what == "study" and "no room" in note.reason]
    assert "MemoryError" in note.reason
    assert set(CropTable.open(built.path).uids) == set(whole.uids) - {note.uid}
