"""Files of one study: DICOM geometry and codecs, NIfTI orientation, boxes."""

import dataclasses
import filecmp

import nibabel as nib
import numpy as np
import pydicom
import pytest

from cspine_jax.phantom import writer
from cspine_jax.phantom.sample import sample_study

SIZE, DEPTH = 48, 9


def plan_with(index=0, **changes):
    plan = sample_study(2, index, size=SIZE, scale=0.05)
    return dataclasses.replace(plan, acquisition=dataclasses.replace(plan.acquisition, slices=DEPTH, **changes))


@pytest.fixture
def hu():
    return np.random.default_rng(0).integers(-1024, 3072, (DEPTH, SIZE, SIZE)).astype(np.int16)


def read(folder):
    return {int(path.stem): pydicom.dcmread(path) for path in folder.glob("*.dcm")}


def to_hu(ds):
    return ds.pixel_array.astype(int) * int(ds.RescaleSlope) + int(ds.RescaleIntercept)


@pytest.mark.parametrize("ascending", [False, True])
def test_dicom_carries_hu_and_geometry(tmp_path, hu, ascending):
    plan = plan_with(ascending=ascending, first_number=7)
    writer.write_dicom(tmp_path, plan, hu, seed=2)
    files = read(tmp_path)
    assert sorted(files) == list(range(7, 7 + DEPTH))
    z = [float(files[k].ImagePositionPatient[2]) for k in sorted(files)]
    assert (np.diff(z) > 0).all() if ascending else (np.diff(z) < 0).all()
    superior_first = sorted(files.values(), key=lambda ds: -float(ds.ImagePositionPatient[2]))
    np.testing.assert_array_equal(np.stack([to_hu(ds) for ds in superior_first]), hu)
    q, first = plan.acquisition, superior_first[0]
    assert float(first.PixelSpacing[0]) == pytest.approx(q.pixel_mm, abs=1e-6)
    assert float(first.SliceThickness) == pytest.approx(q.thickness_mm, abs=1e-4)
    corner = [c + o - (SIZE - 1) / 2 * q.pixel_mm for c, o in zip(q.centre_mm, q.origin_mm, strict=False)]
    np.testing.assert_allclose([float(v) for v in first.ImagePositionPatient[:2]], corner, atol=1e-3)
    assert float(first.ImagePositionPatient[2]) == pytest.approx(q.top_mm + q.origin_mm[2], abs=1e-3)
    assert len({ds.SOPInstanceUID for ds in superior_first}) == DEPTH
    assert {ds.StudyInstanceUID for ds in superior_first} == {plan.uid}
    for ds in superior_first:
        assert ds.SOPInstanceUID == ds.file_meta.MediaStorageSOPInstanceUID
        assert (ds.Modality, ds.PatientPosition, ds.PatientName) == ("CT", "HFS", "PHANTOM")
        assert [float(v) for v in ds.ImageOrientationPatient] == [1, 0, 0, 0, 1, 0]
        assert all(pydicom.uid.UID(u).is_valid for u in (ds.SOPInstanceUID, ds.SeriesInstanceUID))


def test_jpeg_lossless_studies_hold_the_same_pixels(tmp_path, hu):
    codecs = set()
    for index in range(8):
        plan = plan_with(index)
        for codec in writer.CODECS:
            writer.write_dicom(tmp_path / codec / str(index), plan, hu, seed=2, codec=codec)
        plain, mixed = read(tmp_path / "explicit" / str(index)), read(tmp_path / "mixed" / str(index))
        codecs |= {ds.file_meta.TransferSyntaxUID for ds in mixed.values()}
        assert {ds.file_meta.TransferSyntaxUID for ds in plain.values()} == {pydicom.uid.ExplicitVRLittleEndian}
        for k, ds in mixed.items():
            np.testing.assert_array_equal(to_hu(ds), to_hu(plain[k]))
    assert codecs == {pydicom.uid.ExplicitVRLittleEndian, pydicom.uid.JPEGLosslessSV1}


def test_padding_is_stored_as_minus_2000(tmp_path, hu):
    hu[:, 0, 0] = -3024
    for index in range(4):
        writer.write_dicom(tmp_path / str(index), plan_with(index), hu, seed=2)
        ds = next(iter(read(tmp_path / str(index)).values()))
        assert ds.pixel_array[0, 0] == -2000 == ds.PixelPaddingValue and to_hu(ds)[0, 0] == -3024


def test_both_signs_and_intercepts_occur(tmp_path, hu):
    seen = set()
    for index in range(24):
        writer.write_dicom(tmp_path / str(index), plan_with(index), hu[:1].repeat(DEPTH, 0), seed=2)
        ds = pydicom.dcmread(next((tmp_path / str(index)).iterdir()))
        np.testing.assert_array_equal(to_hu(ds), hu[0])
        seen.add((ds.PixelRepresentation, int(ds.RescaleIntercept)))
    assert seen == {(1, -1024), (0, -1024), (1, 0)}


def test_nifti_lies_on_the_dicom_grid_in_another_order(tmp_path):
    plan = plan_with()
    labels = np.zeros((DEPTH, SIZE, SIZE), np.uint8)
    points = {1: (2, 10, 30), 2: (5, 33, 4), 19: (8, 0, 47)}
    for value, point in points.items():
        labels[point] = value
    path = tmp_path / "deep" / "mask.nii.gz"
    writer.write_nifti(path, plan, labels)
    image = nib.load(path)
    stored = np.asarray(image.dataobj)
    assert stored.dtype == np.uint8 and stored.shape == (SIZE, SIZE, DEPTH)
    assert nib.aff2axcodes(image.affine) == ("L", "A", "S")
    np.testing.assert_array_equal(image.header.get_qform(coded=True)[1], image.header.get_sform(coded=True)[1])
    for value, point in points.items():
        index = np.argwhere(stored == value)[0]
        lps = np.diag([-1, -1, 1, 1]) @ image.affine @ [*index, 1]
        np.testing.assert_allclose(lps, writer.affine_lps(plan) @ [*point, 1], atol=1e-3)
    first = path.read_bytes()
    writer.write_nifti(path, plan, labels)
    assert path.read_bytes() == first


def test_affine_agrees_with_every_position():
    plan = plan_with()
    affine, positions = writer.affine_lps(plan), writer.positions_mm(plan)
    for k in range(DEPTH):
        np.testing.assert_allclose((affine @ [k, 0, 0, 1])[:3], positions[k], atol=2e-3)


def test_boxes_surround_the_fracture_on_every_slice_that_shows_it():
    plan = plan_with(ascending=True, first_number=3)
    fractures = np.zeros((DEPTH, SIZE, SIZE), np.uint8)
    fractures[2:5, 20:23, 15:30] = 4
    fractures[4, 40:48, 44:48] = 5
    boxes = writer.fracture_boxes(plan, fractures, seed=2)
    numbers = writer.slice_numbers(plan)
    assert [box.slice_number for box in boxes] == sorted(int(numbers[k]) for k in (2, 3, 4))
    for box in boxes:
        k = int(np.flatnonzero(numbers == box.slice_number)[0])
        ys, xs = np.nonzero(fractures[k])
        assert box.x < xs.min() and box.x + box.width >= min(xs.max() + 1, SIZE)
        assert box.y < ys.min() and box.y + box.height >= min(ys.max() + 1, SIZE)
        assert box.x >= 0 and box.y >= 0 and box.x + box.width <= SIZE + 1e-4 and box.y + box.height <= SIZE + 1e-4
    assert boxes == writer.fracture_boxes(plan, fractures, seed=2)
    assert writer.fracture_boxes(plan, np.zeros_like(fractures), seed=2) == []


def test_same_study_same_bytes(tmp_path, hu):
    for name in ("a", "b"):
        writer.write_dicom(tmp_path / name, plan_with(), hu, seed=2, codec="mixed")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", names, shallow=False) == (names, [], [])
