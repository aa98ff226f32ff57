"""Masks written for a study land on its images, whichever way those were stored."""

import nibabel
import numpy as np
import pydicom
import pytest

from cspine_jax.ct import read_mask, read_study, resample
from cspine_jax.inference.vertebrae.stored import to_stack, write_mask
from tests.ct.dicom_factory import make_volume, write_series

SHAPE = (16, 34, 40)
TILTED = np.array([[-80 + 0.4 * k, -100 + 0.25 * k, 60 - 0.625 * k] for k in range(16)])

WAYS = {
    "superior first": {},
    "z ascending": {"flips": (True, False, False)},
    "turned in plane": {"flips": (False, True, True)},
    "sagittal": {"axes": (2, 0, 1)},
    "sagittal, from the left": {"axes": (2, 0, 1), "flips": (True, True, False)},
    "coronal": {"axes": (1, 0, 2), "flips": (False, True, False)},
    "oblique": {"rotation": np.array([[np.cos(0.2), -np.sin(0.2), 0], [np.sin(0.2), np.cos(0.2), 0], [0, 0, 1]])},
}


def make_labels(shape) -> np.ndarray:
    """C2 above C3 above ..., off centre on every axis, different in every slice."""
    labels = np.zeros(shape, np.uint8)
    for z in range(shape[0]):
        labels[z, 6 : 14 + z % 3, 8 + z // 4 : 20] = 2 + z * 6 // shape[0]
    return labels


@pytest.mark.parametrize("way", WAYS)
def test_a_mask_reads_back_voxel_for_voxel(tmp_path, way):
    write_series(tmp_path / "study", make_volume(SHAPE), **WAYS[way])
    volume = read_study(tmp_path / "study")
    labels = make_labels(volume.shape)
    assert write_mask(tmp_path / "m.nii.gz", labels, volume)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.nii.gz", volume), labels)


@pytest.mark.parametrize("way", WAYS)
def test_every_voxel_of_the_file_lies_where_the_image_says(tmp_path, way):
    """Against the DICOM headers, not against the reader."""
    files = write_series(tmp_path / "study", make_volume(SHAPE), **WAYS[way])
    volume = read_study(tmp_path / "study")
    write_mask(tmp_path / "m.nii.gz", make_labels(volume.shape), volume)
    image = nibabel.load(tmp_path / "m.nii.gz")
    assert image.header["sform_code"] == image.header["qform_code"] == 1
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    assert image.shape == (headers[0].Columns, headers[0].Rows, len(files))
    where = {}
    for header in headers:
        row, column = np.array(header.ImageOrientationPatient[:3]), np.array(header.ImageOrientationPatient[3:])
        dy, dx = header.PixelSpacing
        place = np.array(header.ImagePositionPatient) + 5 * dx * row + 7 * dy * column
        where[header.InstanceNumber] = place * (-1, -1, 1)
    found = [image.affine @ [5, 7, k, 1] for k in range(image.shape[2])]
    for place in where.values():
        assert min(np.abs(np.array(found)[:, :3] - place).max(axis=1)) < 1e-3


def test_the_stack_holds_the_pixels_of_the_files_in_their_order(tmp_path):
    """Turning the volume itself back must give the stored images."""
    hu = make_volume(SHAPE)
    files = write_series(tmp_path / "study", hu, axes=(2, 0, 1), flips=(True, False, True))
    volume = read_study(tmp_path / "study")
    stack, _ = to_stack(volume.hu, volume)
    planes = [pydicom.dcmread(file).pixel_array.astype(int) - 1024 for file in files]
    assert sorted(p.tobytes() for p in stack.astype(int)) == sorted(p.tobytes() for p in planes)


def test_a_study_with_a_gap_gets_its_own_slices_back(tmp_path):
    files = write_series(tmp_path / "study", make_volume(SHAPE))
    files[5].unlink()
    volume = read_study(tmp_path / "study")
    assert volume.resampling is not None and volume.shape == SHAPE
    labels = make_labels(SHAPE)
    write_mask(tmp_path / "m.nii.gz", labels, volume)
    stored = np.asarray(nibabel.load(tmp_path / "m.nii.gz").dataobj)
    assert stored.shape == (40, 34, 15)
    back = read_mask(tmp_path / "m.nii.gz", volume)
    kept = [z for z in range(16) if z != 5]
    np.testing.assert_array_equal(back[kept], labels[kept])
    # The slice that was made up takes the label of the stored one next to it.
    assert any(np.array_equal(back[5], labels[z]) for z in (4, 6))


def test_a_tilted_study_gets_its_sheared_grid_back(tmp_path):
    write_series(tmp_path / "study", make_volume(SHAPE), positions=TILTED)
    volume = read_study(tmp_path / "study")
    assert volume.resampling is not None and volume.resampling.tilt_degrees > 5
    labels = make_labels(volume.shape)
    assert not write_mask(tmp_path / "m.nii.gz", labels, volume)
    image = nibabel.load(tmp_path / "m.nii.gz")
    assert image.header["sform_code"] == 1 and image.header["qform_code"] == 0
    assert image.shape == (40, 34, 16)
    ends = [image.affine @ [0, 0, k, 1] for k in (0, 15)]  # the axis runs towards the feet
    np.testing.assert_allclose(np.array(ends)[:, :3], TILTED[[0, 15]] * (-1, -1, 1), atol=1e-4)
    back = read_mask(tmp_path / "m.nii.gz", volume)
    inside = resample.apply_nearest(volume.resampling, np.ones(SHAPE, np.uint8))  # no file holds what is outside
    np.testing.assert_array_equal(back, labels * inside)
    assert (labels * inside > 0).sum() > 0.9 * (labels > 0).sum()
