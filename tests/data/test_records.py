"""DICOM -> record -> stack, exactly; the same bytes whatever way the study was stored."""

import dataclasses

import numpy as np
import pytest
import tensorflow_datasets as tfds

from cspine_jax.data.build import build
from cspine_jax.data.features import RecordConfig, serialize
from cspine_jax.data.source import SliceTable
from cspine_jax.data.study import examples, load_study
from cspine_jax.data.tables import read_tables
from cspine_jax.errors import ConfigError
from tests.data.rsna_folder import CORNER, SPACING, make, write_dicom, write_folder, write_mask, write_tables


def test_round_trip_is_exact_at_native_size(folder, table):
    _, made = folder
    assert table.uids.tolist() == sorted(made)
    for study, uid in enumerate(table.uids):
        np.testing.assert_array_equal(table.read_study(study), made[uid].hu)
        if table.has_mask[study]:
            np.testing.assert_array_equal(table.read_study_masks(study), made[uid].mask)
        records = table.records_of([study])
        depth = len(made[uid].hu)
        np.testing.assert_array_equal(table.read_study(study, slice(2, 7, 2)), made[uid].hu[2:7:2])
        np.testing.assert_array_equal(table.index[records], np.arange(depth))
        np.testing.assert_array_equal(table.slice_number[records], made[uid].numbers)
        stacks = table.read_stacks(records, depth=5, stride=2)
        for row in range(depth):
            near = [min(max(row + step, 0), depth - 1) for step in (-4, -2, 0, 2, 4)]
            np.testing.assert_array_equal(stacks[row], made[uid].hu[near])


def test_columns_are_the_truth(folder, table):
    root, made = folder
    levels = np.arange(1, 8)
    for study, uid in enumerate(table.uids):
        records = table.records_of([study])
        number = int(uid.split(".")[-1]) - 100
        assert table.has_mask[study] == (number % 5 != 4)
        if table.has_mask[study]:
            share = (made[uid].mask[:, :, :, None] == levels).mean((1, 2))
            np.testing.assert_allclose(table.area_fraction[records], share, rtol=1e-6)
            np.testing.assert_array_equal(table.presence[records], share > 0)
        else:
            assert not table.presence[records].any()
        assert table.labels[study].tolist() == [number % 2, *(number % 2 and number % 7 + 1 == lv for lv in levels)]
        assert table.has_boxes[study] == bool(number % 2 and number % 3)
        z = CORNER[2] - SPACING[0] * np.arange(len(records))
        np.testing.assert_allclose(table.position_mm[records], [(*CORNER[:2], value) for value in z])
        np.testing.assert_allclose(table.spacing_mm[study], SPACING)
    boxes = (root / "train_bounding_boxes.csv").read_text().splitlines()[1:]
    assert len(table.boxes) == len(boxes) > 5
    boxed = {(uid, k) for uid, *_, k in (line.split(",") for line in boxes)}
    found = np.flatnonzero(table.num_boxes)
    assert boxed == {(str(table.uids[table.study[r]]), str(table.slice_number[r])) for r in found}
    assert table.first_box[-1] == len(boxes)


def test_tfds_reads_the_records(records, table):
    builder = tfds.builder_from_directory(str(records))
    source = builder.as_data_source("train")
    assert builder.info.config_name == "native"
    assert len(source) == len(table) == builder.info.splits["train"].num_examples
    for record in (0, 17, len(table) - 1):
        example = source[record]
        study = table.study[record]
        assert example["study_uid"].decode() == table.uids[study]
        np.testing.assert_array_equal(example["image"], table.pixels.images([record])[0])
        np.testing.assert_array_equal(example["presence"], table.presence[record])
        np.testing.assert_array_equal(example["boxes"], table.boxes[slice(*table.first_box[record : record + 2])])
        assert (example["fold"], example["index"]) == (table.folds[study], table.index[record])


@pytest.mark.parametrize("other", ["ascending", "jpeg", "axial mask"])
def test_storage_does_not_matter(tmp_path, other):
    """A z-ascending study, a JPEG-Lossless study and a mask stored sagittally give the records of their plain twins."""
    rows = []
    for name in ("plain", other):
        made = make("1.2.3", seed=5, ascending=name == "ascending")
        root = tmp_path / name
        write_dicom(root / "train_images" / made.uid, made, jpeg=name == "jpeg")
        write_mask(root / "segmentations" / f"{made.uid}.nii.gz", made.mask, sagittal=name != "axial mask")
        write_tables(root, {made.uid: (3,)}, [(made.uid, 3, 4, 5, 6.5, made.numbers[3])])
        (entry,) = read_tables(root).studies
        config = RecordConfig()
        rows.append(list(examples(load_study(entry), config)))
    if other == "ascending":  # the file numbers are what differs, and must be all that does
        numbers = [[example["slice_number"] for example in study] for study in rows]
        assert numbers[0] == numbers[1][::-1] == list(range(1, 9))
        rows = [[example | {"slice_number": 0} for example in study] for study in rows]
    plain, twin = ([serialize(example, config) for example in study] for study in rows)
    assert plain == twin
    assert len(set(plain)) == 8


def test_box_follows_the_slice_number_of_an_ascending_study(tmp_path):
    made = make("1.2.3", ascending=True)
    write_dicom(tmp_path / "train_images" / made.uid, made)
    write_tables(tmp_path, {made.uid: (3,)}, [(made.uid, 3, 4, 5, 6.5, 1), (made.uid, 1, 1, 2, 2, 99)])
    study = load_study(read_tables(tmp_path).studies[0])
    assert [len(boxes) for boxes in study.boxes] == [0] * 7 + [1]
    assert [(note.what, "99" in note.reason) for note in study.notes if note.what == "boxes"] == [("boxes", True)]


def test_resized_records(folder, tmp_path):
    root, made = folder
    native = SliceTable.open(build(root, tmp_path, workers=1).path)
    path = build(root, tmp_path, size=10, workers=1).path
    table = SliceTable.open(path)
    assert path.parent.name == "size10"
    np.testing.assert_array_equal(table.shapes, [[10, 10]] * len(made))
    np.testing.assert_array_equal(table.presence, native.presence)
    np.testing.assert_allclose(table.spacing_mm, [[2.0, 0.5 * 24 / 10, 0.4 * 20 / 10]] * len(made), rtol=1e-6)
    np.testing.assert_allclose(table.boxes, native.boxes * np.array([10 / 20, 10 / 24] * 2)[None], rtol=1e-6)
    assert set(np.unique(table.read_study_masks(0))) <= set(np.unique(native.read_study_masks(0)))
    images = table.read_study(0)
    assert images.shape == (8, 10, 10)
    # an average over 4.8 pixels at the least: noise of uniform -1000..1500 loses more than half its spread
    assert 0.1 < images.std() / native.read_study(0).std() < 0.5
    assert abs(images.mean() - native.read_study(0).mean()) < 30


def test_document_c_stacks(folder, tmp_path):
    root, made = folder
    path = build(root, tmp_path, radius=2, stride=2, workers=1).path
    table = SliceTable.open(path)
    assert path.parent.name == "document_c"
    study = 1
    hu, mask = made[str(table.uids[study])].hu, made[str(table.uids[study])].mask
    stacks = table.read_study(study)
    assert stacks.shape == (-(-len(hu) // 2), 24, 20, 6)
    assert table.num_slices[study] == len(hu)
    for stack, row in zip(stacks, range(0, len(hu), 2), strict=True):
        near = np.clip(np.arange(row - 2, row + 3), 0, len(hu) - 1)
        np.testing.assert_array_equal(stack[..., :5], np.moveaxis(hu[near], 0, -1))
        np.testing.assert_array_equal(stack[..., 5], mask[row])


@pytest.mark.parametrize("name", ["native", "size160", "document_c", "document_c_size256", "r1s3", "r0s2_size64"])
def test_config_names(name):
    assert RecordConfig.from_name(name).name == name


@pytest.mark.parametrize("name", ["", "size", "size4", "native_size9", "r0s1", "r2s2", "document_d", "size0160"])
def test_unknown_config_names_are_refused(name):
    with pytest.raises(ConfigError, match="size"):
        RecordConfig.from_name(name)


def test_scan_of_records_without_index_gives_the_same_table(folder, table, tmp_path):
    """Records of `tfds build` have no index file."""
    path = build(folder[0], tmp_path, workers=1).path
    (path / "index.npz").unlink()
    scanned = SliceTable.open(path)
    assert (path / "index.npz").is_file()
    for field in dataclasses.fields(table):
        if field.name not in ("path", "pixels"):
            one, other = getattr(table, field.name), getattr(scanned, field.name)
            assert one.dtype.kind == other.dtype.kind
            np.testing.assert_array_equal(one, other, err_msg=field.name)


def test_a_batch_of_two_sizes_is_refused(tmp_path):
    write_folder(tmp_path / "rsna", studies=2)
    wide = make("1.2.9", width=22)
    write_dicom(tmp_path / "rsna" / "train_images" / wide.uid, wide)
    table = SliceTable.open(build(tmp_path / "rsna", tmp_path / "out", workers=1).path)
    assert table.has_labels.tolist() == [True, True, False]
    assert table.folds[2] == -1
    with pytest.raises(Exception, match=r"1\.2\.100 is 24x20 and 1\.2\.9 is 24x22.*--size"):
        table.read_stacks(np.array([0, len(table) - 1]), depth=3)


@pytest.mark.parametrize("size", [0, 20])
def test_a_new_study_has_the_records_that_a_build_makes_of_it(folder, tmp_path, size):
    """But what only the tables say: labels, boxes, the fold, numbers and places."""
    root, made = folder
    table = SliceTable.open(build(root, tmp_path, size=size, workers=1).path)
    for study in (0, int(np.flatnonzero(~table.has_mask)[0])):
        uid = str(table.uids[study])
        mask = made[uid].mask if table.has_mask[study] else None
        new = SliceTable.of_study(uid, made[uid].hu, mask, SPACING, size)
        np.testing.assert_array_equal(new.read_study(0), table.read_study(study))
        np.testing.assert_array_equal(new.read_study_masks(0), table.read_study_masks(study))
        records = table.records_of([study])
        for name in ("index", "presence", "area_fraction"):
            column, built = getattr(new, name), getattr(table, name)[records]
            assert column.dtype == built.dtype
            np.testing.assert_array_equal(column, built)
        for name in ("uids", "has_mask", "count", "num_slices", "spacing_mm", "shapes"):
            column, built = getattr(new, name), getattr(table, name)[[study]]
            assert column.dtype == built.dtype or name == "uids"
            np.testing.assert_allclose(column, built) if name == "spacing_mm" else np.testing.assert_array_equal(
                column, built
            )
        apart = np.diff(new.position_mm, axis=0) - np.diff(table.position_mm[records], axis=0)
        np.testing.assert_allclose(apart, 0.0, atol=1e-4)
        assert not new.has_labels.any() and new.first_box[-1] == 0 and len(new) == len(records)
