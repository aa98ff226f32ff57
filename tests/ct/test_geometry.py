"""Duplicates, gaps, tilt and missing positions: brought onto a regular grid against a known truth, and named."""

import numpy as np
import pytest

from cspine_jax.ct import read_study
from cspine_jax.ct.geometry import to_axial, turn, turned_affine
from cspine_jax.errors import StudyError
from tests.ct.dicom_factory import expected_affine, make_volume, write_series

SPACING = (0.625, 0.45, 0.4)


def regular_positions(n: int) -> np.ndarray:
    return np.stack((np.full(n, -80.0), np.full(n, -100.0), 60 - 0.625 * np.arange(n)), axis=1)


def smooth(shape=(40, 48, 44)) -> np.ndarray:
    """A function of the place in mm that linear interpolation follows well: second derivatives below 2 HU/mm2."""
    z, y, x = (np.arange(n) * mm for n, mm in zip(shape, SPACING, strict=True))
    z, y, x = np.meshgrid(z, y, x, indexing="ij")
    return np.rint(truth(z, y, x)).astype(np.int16)


def truth(z, y, x):
    return 200 + 90 * np.sin(z / 9) + 80 * np.cos(y / 8) + 70 * np.sin(x / 7 + z / 20)


def test_identical_duplicates_are_dropped_and_listed(tmp_path):
    hu = make_volume()
    write_series(tmp_path, hu)
    write_series(tmp_path, hu[2:4], origin=(-80, -100, 60 - 2 * 0.625), names=["copy-a.dcm", "copy-b.dcm"])
    volume = read_study(tmp_path)
    np.testing.assert_array_equal(volume.hu, hu)
    np.testing.assert_array_equal(volume.slice_numbers, range(1, 7))
    assert len(volume.warnings) == 1
    assert "2 repeated" in volume.warnings[0] and "copy-a.dcm" in volume.warnings[0]


def test_a_duplicate_in_another_codec_is_still_a_duplicate(tmp_path):
    hu = make_volume()
    write_series(tmp_path, hu)
    write_series(
        tmp_path, hu[5:], origin=(-80, -100, 60 - 5 * 0.625), names=["7.dcm"], syntax="jpeg_ls", intercept=-1100
    )
    np.testing.assert_array_equal(read_study(tmp_path).hu, hu)


def test_different_images_at_one_place_are_named(tmp_path):
    hu = make_volume()
    write_series(tmp_path, hu)
    other = write_series(tmp_path, hu[2:3] + 1, origin=(-80, -100, 60 - 2 * 0.625), names=["9.dcm"])
    with pytest.raises(StudyError, match="other pixels") as caught:
        read_study(tmp_path)
    assert str(other[0]) in str(caught.value) and "3.dcm" in str(caught.value)


def test_a_missing_slice_is_interpolated_and_listed(tmp_path):
    hu = smooth()
    files = write_series(tmp_path, hu)
    files[11].unlink()
    files[12].unlink()
    volume = read_study(tmp_path)
    kept = [z for z in range(40) if z not in (11, 12)]
    np.testing.assert_array_equal(volume.hu[kept], hu[kept])  # what was stored stays as it was
    assert np.abs(volume.hu[11:13] - hu[11:13].astype(int)).max() <= 3  # (3 x 0.625)^2 / 8 x 2 HU/mm2, and rounding
    np.testing.assert_allclose(volume.affine, expected_affine(), atol=1e-4)
    np.testing.assert_allclose(volume.spacing_mm, SPACING, rtol=1e-4)
    np.testing.assert_array_equal(volume.slice_numbers, [-1 if z in (11, 12) else z + 1 for z in range(40)])
    np.testing.assert_allclose(volume.positions_mm, regular_positions(40), atol=1e-4)
    gaps = [note for note in volume.warnings if note.startswith("uneven spacing")]
    assert len(gaps) == 1 and "11.dcm" in gaps[0] and "14.dcm" in gaps[0] and "1.875 mm" in gaps[0]
    assert volume.resampling is not None and len(volume.resampling.gaps) == 1


def test_regular_false_keeps_what_is_stored_and_names_the_gap(tmp_path):
    hu = make_volume((20, 34, 40))
    write_series(tmp_path, hu)[5].unlink()
    volume = read_study(tmp_path, regular=False)
    np.testing.assert_array_equal(volume.hu, np.delete(hu, 5, axis=0))
    assert volume.resampling is None and any("uneven" in note for note in volume.warnings)


def test_uneven_gaps_are_resampled_to_the_truth(tmp_path):
    z = np.concatenate((np.arange(20) * 0.625, 20 * 0.625 + 0.3 + np.arange(20) * 0.625))  # one gap of 0.925 mm
    y, x = np.arange(48) * 0.45, np.arange(44) * 0.4
    stored = np.rint(truth(z[:, None, None], y[None, :, None], x[None, None, :])).astype(np.int16)
    positions = regular_positions(40)
    positions[:, 2] = 60 - z
    write_series(tmp_path, stored, positions=positions)
    volume = read_study(tmp_path)
    assert volume.shape[0] == 40  # the last grid place, at 40 x 0.625, would lie past the last slice
    expected = truth(np.arange(volume.shape[0])[:, None, None] * 0.625, y[None, :, None], x[None, None, :])
    assert np.abs(volume.hu - expected).max() < 2
    np.testing.assert_array_equal(volume.slice_numbers[:20], np.arange(1, 21))
    assert set(volume.slice_numbers[20:]) <= set(range(21, 41))


@pytest.mark.parametrize("degrees", [-18.0, 12.0])
def test_gantry_tilt_is_taken_out_to_the_truth(tmp_path, degrees):
    """Slices tilted about x, the table moving along z: HU must be right at the place the affine says."""
    angle = np.radians(degrees)
    down = np.array([0, np.cos(angle), np.sin(angle)])  # row direction
    n, rows, columns = 30, 48, 44
    positions = np.array([[-80, -100, 60 - 0.8 * k] for k in range(n)])
    grid_r, grid_c = np.meshgrid(np.arange(rows) * 0.45, np.arange(columns) * 0.4, indexing="ij")
    places = positions[:, None, None] + grid_r[..., None] * down + grid_c[..., None] * np.array([1, 0, 0])

    def field(place):
        return truth(60 - place[..., 2], place[..., 1] + 100, place[..., 0] + 80)

    stored = np.rint(field(places)).astype(np.int16)

    def tilt(dataset, index):
        dataset.ImageOrientationPatient = ["1", "0", "0", *(f"{value:.9f}" for value in down)]

    write_series(tmp_path, stored, positions=positions, edit=tilt)
    volume = read_study(tmp_path)
    np.testing.assert_allclose(volume.spacing_mm, (0.8 * np.cos(angle), 0.45, 0.4), rtol=1e-4)
    unit = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    np.testing.assert_allclose(unit.T @ unit, np.eye(3), atol=1e-6)  # orthogonal
    index = np.stack(np.meshgrid(*(np.arange(s) for s in volume.shape), indexing="ij"), axis=-1)
    place = index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    inside = volume.hu > -200
    error = np.abs(volume.hu - field(place))
    core = np.zeros_like(inside)
    core[:, 1:-1] = inside[:, :-2] & inside[:, 1:-1] & inside[:, 2:]
    assert error[core].max() < 1.5 and error[inside].max() < 6  # the rim repeats the pixel next to it
    assert inside.sum() >= stored.size  # nothing is cut off
    assert any(f"gantry tilt {abs(degrees):.1f} degrees" in note for note in volume.warnings)
    kept = read_study(tmp_path, regular=False)
    np.testing.assert_array_equal(kept.hu, stored)
    place = np.array([7, 3, 5, 1]) @ kept.affine.T  # the shear is in the affine
    np.testing.assert_allclose(place[:3], places[7, 3, 5], atol=1e-4)


def test_a_table_that_rose_is_taken_out_too(tmp_path):
    hu = smooth()
    positions = regular_positions(40)
    positions[:, 0] += 0.4 * np.arange(40)  # one pixel to the left a slice
    write_series(tmp_path, hu, positions=positions)
    volume = read_study(tmp_path)
    assert volume.shape == (40, 48, 44 + 39)
    for z in (0, 17, 39):
        np.testing.assert_array_equal(volume.hu[z, :, z : z + 44], hu[z])


def test_missing_positions_fall_back_to_slice_location(tmp_path):
    hu = make_volume()

    def edit(dataset, index):
        del dataset.ImagePositionPatient
        dataset.SliceLocation = f"{12.5 - 0.625 * index:.4f}"

    write_series(tmp_path, hu, edit=edit, numbers=(3, 1, 6, 2, 5, 4))
    volume = read_study(tmp_path)
    np.testing.assert_array_equal(volume.hu, hu)
    assert abs(volume.spacing_mm[0] - 0.625) < 1e-6 and any("SliceLocation" in note for note in volume.warnings)


def test_missing_positions_and_locations_fall_back_to_instance_number(tmp_path):
    hu = make_volume()

    def edit(dataset, index):
        del dataset.ImagePositionPatient

    write_series(tmp_path, hu, edit=edit, names=[f"{c}.dcm" for c in "fbdaec"])
    volume = read_study(tmp_path)
    np.testing.assert_array_equal(volume.hu, hu)
    assert volume.spacing_mm[0] == 2.5 and any("InstanceNumber" in note for note in volume.warnings)


def test_one_missing_position_is_filled_from_the_others(tmp_path):
    hu = make_volume()

    def edit(dataset, index):
        if index == 2:
            del dataset.ImagePositionPatient

    write_series(tmp_path, hu, edit=edit)
    volume = read_study(tmp_path)
    np.testing.assert_array_equal(volume.hu, hu)
    np.testing.assert_allclose(volume.affine, expected_affine(), atol=1e-5)
    assert any("missing in 1 slice" in note for note in volume.warnings)


def test_no_order_at_all_is_refused(tmp_path):
    def edit(dataset, index):
        del dataset.ImagePositionPatient
        dataset.InstanceNumber = 1

    write_series(tmp_path, make_volume(), edit=edit)
    with pytest.raises(StudyError, match="neither SliceLocation nor InstanceNumber"):
        read_study(tmp_path)


def test_missing_orientation_is_taken_as_axial_with_a_warning(tmp_path):
    hu = make_volume()

    def edit(dataset, index):
        del dataset.ImageOrientationPatient

    write_series(tmp_path, hu, edit=edit)
    volume = read_study(tmp_path)
    np.testing.assert_array_equal(volume.hu, hu)
    assert any("left and right cannot be verified" in note for note in volume.warnings)


@pytest.mark.parametrize("tagged", [False, True])
def test_padding_outside_the_field_of_view_becomes_air(tmp_path, tagged):
    hu = make_volume()
    y, x = np.ogrid[:34, :40]
    outside = ((y - 17) ** 2 + (x - 20) ** 2) > 15**2
    stored = hu.copy()
    value = -1023 if tagged else -2000
    stored[:, outside] = value

    def edit(dataset, index):
        if tagged:
            dataset.add_new("PixelPaddingValue", "US", value & 0xFFFF)  # US for signed pixels, as many scanners write

    write_series(tmp_path, stored, signed=True, intercept=0, bits=(16, 16), edit=edit)
    volume = read_study(tmp_path)
    assert (volume.hu[:, outside] == -1024).all()
    np.testing.assert_array_equal(volume.hu[:, ~outside], hu[:, ~outside])
    assert any("field of view" in note for note in volume.warnings)


def test_a_padding_value_within_tissue_is_ignored(tmp_path):
    hu = make_volume()

    def edit(dataset, index):
        dataset.add_new("PixelPaddingValue", "SS", 0)

    write_series(tmp_path, hu, signed=True, intercept=0, bits=(16, 16), edit=edit)
    volume = read_study(tmp_path)
    np.testing.assert_array_equal(volume.hu, hu)
    assert any("ignored" in note for note in volume.warnings)


def test_signed_pixels_declared_unsigned_are_read_as_signed(tmp_path):
    hu = make_volume()

    def edit(dataset, index):
        dataset.PixelRepresentation = 0

    write_series(tmp_path, hu, signed=True, intercept=0, bits=(16, 16), edit=edit)
    volume = read_study(tmp_path)
    np.testing.assert_array_equal(volume.hu, hu)
    assert any("read as signed" in note for note in volume.warnings)


def test_hu_beyond_int16_are_clipped_and_said(tmp_path):
    hu = make_volume()

    def edit(dataset, index):
        if index == 1:
            pixels = np.frombuffer(dataset.PixelData, "<u2").copy()
            pixels[0] = 50_000
            dataset.PixelData = pixels.tobytes()

    write_series(tmp_path, hu, bits=(16, 16), edit=edit)
    volume = read_study(tmp_path)
    assert volume.hu[1, 0, 0] == 32767
    assert any("clipped" in note for note in volume.warnings)


def test_turning_an_array_keeps_every_voxel_at_its_place():
    rng = np.random.default_rng(3)
    array = rng.integers(0, 100, (3, 4, 5))
    for _ in range(50):
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = (
            np.linalg.qr(rng.normal(size=(3, 3)))[0] * rng.uniform(0.3, 3, 3),
            rng.normal(size=3),
        )
        axes, flips = to_axial(affine)
        turned, new = turn(array, axes, flips), turned_affine(affine, array.shape, axes, flips)
        for index in ((0, 0, 0), (2, 3, 4), (1, 2, 3)):
            place = affine @ [*index, 1]
            back = np.rint(np.linalg.inv(new) @ place)[:3].astype(int)
            assert turned[tuple(back)] == array[index]
        assert to_axial(new) == ((0, 1, 2), (False, False, False))


@pytest.mark.parametrize(("signed", "intercept"), [(False, -1024), (True, 0)])
def test_monochrome1_keeps_hu_and_inverted_pixels_are_turned_round(tmp_path, signed, intercept):
    hu = make_volume((4, 64, 64))
    hu[:, :6, :], hu[:, -6:, :], hu[:, :, :6], hu[:, :, -6:] = -1000, -1000, -1000, -1000

    def relabel(dataset, index):
        dataset.PhotometricInterpretation = "MONOCHROME1"

    def invert(dataset, index):
        relabel(dataset, index)
        pixels = np.frombuffer(dataset.PixelData, "<i2" if signed else "<u2")
        dataset.PixelData = (~pixels if signed else 4095 - pixels).astype(pixels.dtype).tobytes()

    kind = {"signed": signed, "intercept": intercept, "bits": (16, 16) if signed else (16, 12)}
    write_series(tmp_path / "label", hu, edit=relabel, **kind)
    volume = read_study(tmp_path / "label")
    np.testing.assert_array_equal(volume.hu, hu)
    assert volume.warnings == ()
    write_series(tmp_path / "pixels", hu, edit=invert, **kind)
    volume = read_study(tmp_path / "pixels")
    np.testing.assert_array_equal(volume.hu, hu)
    assert any("MONOCHROME1" in note for note in volume.warnings)
