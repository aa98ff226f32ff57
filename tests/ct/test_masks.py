"""Masks in every storage order land on the study's voxels, and a mask of something else is refused."""

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest

from cspine_jax.ct import read_mask, read_study
from cspine_jax.errors import StudyError
from tests.ct.dicom_factory import expected_affine, make_volume, write_series

SHAPE = (12, 34, 40)


def make_labels(shape=SHAPE) -> np.ndarray:
    """uint8 [D, H, W]: C1 above C2 above ... C6, off centre on every axis."""
    labels = np.zeros(shape, np.uint8)
    for level in range(6):
        labels[2 * level : 2 * level + 2, 5 : 12 + level, 3 : 9 + 2 * level] = level + 1
    return labels


def save(
    path: Path, labels: np.ndarray, axes=(2, 1, 0), flips=(False, True, True), affine=None, dtype=np.uint8
) -> Path:
    """Stores [D, H, W] labels with array axes `axes`, some reversed; the default is sagittal RAS as in RSNA 2022."""
    affine = expected_affine() if affine is None else affine
    to_volume = np.zeros((4, 4))
    to_volume[3, 3] = 1
    for stored_axis, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        to_volume[axis, stored_axis] = -1 if flip else 1
        if flip:
            to_volume[axis, 3] = labels.shape[axis] - 1
    stored = labels.transpose(axes)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine @ to_volume
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(stored).astype(dtype), ras), path)
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    hu = make_volume(SHAPE)
    hu[make_labels() > 0] = 900
    write_series(folder, hu)
    return read_study(folder)


ORIENTATIONS = [
    (axes, flips) for axes in itertools.permutations(range(3)) for flips in itertools.product((False, True), repeat=3)
]


@pytest.mark.parametrize(("axes", "flips"), ORIENTATIONS)
def test_every_storage_order_gives_the_same_mask(tmp_path, study, axes, flips):
    labels = make_labels()
    mask = read_mask(save(tmp_path / "m.nii", labels, axes, flips), study)
    assert mask.dtype == np.uint8 and mask.flags.c_contiguous
    np.testing.assert_array_equal(mask, labels)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_pixel_types_and_compression(tmp_path, study, dtype, suffix):
    path = save(tmp_path / f"m{suffix}", make_labels(), dtype=dtype)
    np.testing.assert_array_equal(read_mask(path, study), make_labels())


@pytest.mark.parametrize("ascending", [False, True])
def test_the_mask_fits_whichever_way_the_slices_run(tmp_path, ascending):
    write_series(tmp_path, make_volume(SHAPE), flips=(ascending, False, False))
    mask = read_mask(save(tmp_path / "m.nii.gz", make_labels()), read_study(tmp_path))
    np.testing.assert_array_equal(mask, make_labels())


def refusal(path, study, **kwargs) -> str:
    with pytest.raises(StudyError) as caught:
        read_mask(path, study, **kwargs)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


@pytest.mark.parametrize(("axis", "name"), [(0, "axis z"), (1, "axis y"), (2, "axis x")])
def test_a_wrong_shape_spacing_or_place_names_the_axis(tmp_path, study, axis, name):
    short = np.delete(make_labels(), 0, axis=axis)
    assert name in refusal(save(tmp_path / "short.nii", short), study)
    affine = expected_affine()
    affine[:3, axis] *= 1.2
    message = refusal(save(tmp_path / "scaled.nii", make_labels(), affine=affine), study)
    assert name in message and "voxels of" in message
    affine = expected_affine()
    affine[:3, 3] += affine[:3, axis] * 4
    path = save(tmp_path / "moved.nii", make_labels(), affine=affine)
    assert name in refusal(path, study) and "lies" in refusal(path, study)
    np.testing.assert_array_equal(read_mask(path, study, check_place=False), make_labels())


def test_a_turned_mask_is_refused(tmp_path, study):
    angle = np.radians(15)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = expected_affine()
    affine[:3, :3] = turn @ affine[:3, :3]
    assert "15 degrees off" in refusal(save(tmp_path / "m.nii", make_labels(), affine=affine), study)


def test_rounded_affines_are_accepted(tmp_path, study):
    affine = np.round(expected_affine(), 2)
    np.testing.assert_array_equal(
        read_mask(save(tmp_path / "m.nii", make_labels(), affine=affine), study), make_labels()
    )


def test_what_is_no_label_mask_is_refused(tmp_path, study):
    labels = make_labels()
    assert "no such mask" in refusal(tmp_path / "none.nii", study)
    (tmp_path / "text.nii").write_text("hello")
    assert "not a readable NIfTI" in refusal(tmp_path / "text.nii", study)
    whole = save(tmp_path / "m.nii.gz", labels).read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    assert "not a readable NIfTI" in refusal(tmp_path / "cut.nii.gz", study)
    assert "label 40" in refusal(save(tmp_path / "40.nii", np.where(labels == 3, 40, labels)), study)
    assert "no labels" in refusal(save(tmp_path / "half.nii", labels * 0.5, dtype=np.float32), study)
    nibabel.save(nibabel.Nifti1Image(labels[0], np.eye(4)), tmp_path / "flat.nii")
    assert "2 dimensions" in refusal(tmp_path / "flat.nii", study)
    singular = bytearray(save(tmp_path / "m.nii", labels).read_bytes())
    singular[312:328] = bytes(16)  # srow_z
    (tmp_path / "singular.nii").write_bytes(singular)
    assert "not invertible" in refusal(tmp_path / "singular.nii", study)


def test_upside_down_vertebrae_are_named_and_repaired_on_request(tmp_path, study):
    labels = make_labels()
    path = save(tmp_path / "m.nii", labels[::-1])
    assert "upside down along axis z" in refusal(path, study)
    np.testing.assert_array_equal(read_mask(path, study, repair=True), labels)
    reversed_labels = np.where(labels > 0, 7 - labels, 0).astype(np.uint8)  # in place, but named from the feet
    message = refusal(save(tmp_path / "names.nii", reversed_labels), study, repair=True)
    assert "wrong order" in message


def test_a_mask_of_the_stored_slices_follows_the_resampling_of_gaps_and_tilt(tmp_path):
    labels = make_labels()
    hu = make_volume(SHAPE)
    files = write_series(tmp_path / "gap", hu)
    files[5].unlink()
    volume = read_study(tmp_path / "gap")
    affine = read_study(tmp_path / "gap", regular=False).affine
    mask = read_mask(save(tmp_path / "gap.nii", np.delete(labels, 5, axis=0), affine=affine), volume)
    kept = [z for z in range(12) if z != 5]
    np.testing.assert_array_equal(mask[kept], labels[kept])
    assert mask.shape == volume.shape

    positions = np.array([[-80 + 0.4 * k, -100, 60 - 0.625 * k] for k in range(12)])
    write_series(tmp_path / "rise", hu, positions=positions)
    volume = read_study(tmp_path / "rise")
    affine = read_study(tmp_path / "rise", regular=False).affine
    mask = read_mask(save(tmp_path / "rise.nii", labels, affine=affine), volume)
    for z in range(12):
        np.testing.assert_array_equal(mask[z, :, z : z + 40], labels[z])
        assert mask[z].sum() == labels[z].sum()
