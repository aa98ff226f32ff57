"""One volume, written in many ways, reads back the same."""

import itertools
import subprocess
import sys
import zipfile

import numpy as np
import pydicom
import pytest

from cspine_jax.ct import Volume, read_study
from tests.ct.dicom_factory import (
    SERIES_UID,
    STUDY_UID,
    SYNTAXES,
    expected_affine,
    make_volume,
    to_enhanced,
    write_series,
)

SPACING = (0.625, 0.45, 0.4)


def check_plain(volume: Volume, hu: np.ndarray) -> None:
    np.testing.assert_array_equal(volume.hu, hu)
    assert volume.hu.dtype == np.int16 and volume.hu.flags.c_contiguous
    np.testing.assert_allclose(volume.spacing_mm, SPACING, rtol=1e-6)
    np.testing.assert_allclose(volume.affine, expected_affine(), atol=1e-5)
    assert (volume.study_uid, volume.series_uid) == (STUDY_UID, SERIES_UID)
    assert volume.resampling is None and volume.warnings == ()


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("ascending", [False, True])
def test_every_transfer_syntax_and_both_z_directions_give_the_same_volume(tmp_path, syntax, ascending):
    hu = make_volume()
    write_series(tmp_path, hu, syntax=syntax, flips=(ascending, False, False))
    volume = read_study(tmp_path)
    check_plain(volume, hu)
    assert volume.transfer_syntax == SYNTAXES[syntax]
    numbers = np.arange(1, 7)[::-1] if ascending else np.arange(1, 7)
    np.testing.assert_array_equal(volume.slice_numbers, numbers)
    np.testing.assert_allclose(volume.positions_mm[:, 2], 60 - 0.625 * np.arange(6), atol=1e-6)
    np.testing.assert_allclose(volume.positions_mm[:, :2], [[-80, -100]] * 6, atol=1e-6)
    assert volume.thickness_mm == 2.5


ORIENTATIONS = [
    (axes, flips) for axes in itertools.permutations(range(3)) for flips in itertools.product((False, True), repeat=3)
]


@pytest.mark.parametrize(("axes", "flips"), ORIENTATIONS)
def test_left_stays_left_in_all_48_orientations(tmp_path, axes, flips):
    hu = make_volume((5, 7, 9))
    write_series(tmp_path, hu, axes=axes, flips=flips)
    volume = read_study(tmp_path)
    np.testing.assert_array_equal(volume.hu, hu)
    np.testing.assert_allclose(volume.affine, expected_affine(), atol=1e-5)
    np.testing.assert_allclose(volume.spacing_mm, SPACING, rtol=1e-6)
    where = volume.affine @ np.append(np.argwhere(volume.hu == 1200).mean(axis=0), 1)
    centre = volume.affine @ np.append((np.array(volume.shape) - 1) / 2, 1)
    assert where[0] > centre[0] and where[1] < centre[1] and where[2] > centre[2]  # left, front, top in LPS mm
    if axes[0] == 0:
        expected = np.arange(1, 6)[::-1] if flips[0] else np.arange(1, 6)
        np.testing.assert_array_equal(volume.slice_numbers, expected)
        np.testing.assert_allclose(volume.positions_mm, _first_voxels(volume), atol=1e-5)
    else:
        assert (volume.slice_numbers == -1).all() and any("axially" in note for note in volume.warnings)


def _first_voxels(volume: Volume) -> np.ndarray:
    indices = np.stack([np.arange(volume.shape[0]), *[np.zeros(volume.shape[0])] * 2, np.ones(volume.shape[0])])
    return (volume.affine @ indices).T[:, :3]


def test_an_oblique_acquisition_keeps_its_angle_in_the_affine(tmp_path):
    hu = make_volume()
    angle = np.radians(20)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    write_series(tmp_path, hu, rotation=rotation)
    volume = read_study(tmp_path)
    np.testing.assert_array_equal(volume.hu, hu)
    np.testing.assert_allclose(volume.affine[:3], rotation @ expected_affine()[:3], atol=1e-4)
    assert any("20 degrees oblique" in note for note in volume.warnings)


@pytest.mark.parametrize(
    ("signed", "intercept", "bits"),
    [
        (True, -1024, (16, 16)),
        (True, 0, (16, 16)),
        (False, -1024, (16, 16)),
        (True, 0, (16, 13)),
        (False, -8192, (16, 14)),
    ],
)
@pytest.mark.parametrize("syntax", ["explicit", "implicit", "rle", "jpeg_lossless_sv1", "jpeg_ls", "jpeg_2000"])
def test_signed_and_unsigned_pixels(tmp_path, signed, intercept, bits, syntax):
    hu = make_volume((3, 34, 36))
    write_series(tmp_path, hu, signed=signed, intercept=intercept, bits=bits, syntax=syntax)
    np.testing.assert_array_equal(read_study(tmp_path).hu, hu)


def test_integral_rescale_is_exact_and_fractional_rescale_rounds(tmp_path):
    hu = make_volume()
    hu -= hu % 2
    write_series(tmp_path / "two", hu, slope=2)
    np.testing.assert_array_equal(read_study(tmp_path / "two").hu, hu)
    write_series(tmp_path / "half", hu, slope=0.5, intercept=-1024.5, bits=(16, 14))
    stored = np.rint((hu + 1024.5) / 0.5)
    np.testing.assert_array_equal(read_study(tmp_path / "half").hu, np.rint(stored * 0.5 - 1024.5))


def test_negative_slope(tmp_path):
    hu = make_volume()
    write_series(tmp_path, hu, slope=-1, intercept=3071)
    np.testing.assert_array_equal(read_study(tmp_path).hu, hu)


def test_rescale_may_differ_from_slice_to_slice(tmp_path):
    hu = make_volume()
    write_series(tmp_path / "a", hu[:3], numbers=(1, 2, 3))
    moved = (-80.0, -100.0, 60.0 - 3 * 0.625)
    write_series(tmp_path / "a", hu[3:], origin=moved, intercept=-1100, slope=1, numbers=(4, 5, 6))
    check_plain(read_study(tmp_path / "a"), hu)


@pytest.mark.parametrize("syntax", ["explicit", "rle", "jpeg_lossless_sv1", "jpeg_ls", "jpeg_2000"])
def test_8_bit_pixels(tmp_path, syntax):
    shape = (3, 34, 36) if syntax == "jpeg_lossless_sv1" else (3, 33, 35)  # odd frames, but gdcm writes only even ones
    hu = make_volume(shape) // 16 * 16
    write_series(tmp_path, hu, slope=16, intercept=-1024, bits=(8, 8), syntax=syntax)
    np.testing.assert_array_equal(read_study(tmp_path).hu, hu)


def test_32_bit_pixels(tmp_path):
    hu = make_volume((3, 34, 36))
    write_series(tmp_path, hu, bits=(32, 32), signed=True, intercept=0)
    np.testing.assert_array_equal(read_study(tmp_path).hu, hu)


def test_512_by_519_images(tmp_path):
    hu = make_volume((2, 512, 519))
    write_series(tmp_path, hu)
    check_plain(read_study(tmp_path), hu)


def test_bits_outside_the_stored_ones_are_dropped(tmp_path):
    hu = make_volume()

    def overlay(dataset, index):
        pixels = np.frombuffer(dataset.PixelData, "<u2") | 0xA000
        dataset.PixelData = pixels.tobytes()

    write_series(tmp_path, hu, edit=overlay)
    check_plain(read_study(tmp_path), hu)


def test_slice_numbers_come_from_the_file_names_else_from_instance_number(tmp_path):
    hu = make_volume()
    names = [f"{k}.dcm" for k in range(41, 47)]
    write_series(tmp_path / "named", hu, names=names)  # does not start at 1, disagrees with InstanceNumber
    np.testing.assert_array_equal(read_study(tmp_path / "named").slice_numbers, range(41, 47))
    write_series(tmp_path / "words", hu, names=[f"IM-{k}" for k in "abcdef"], numbers=range(11, 17))
    np.testing.assert_array_equal(read_study(tmp_path / "words").slice_numbers, range(11, 17))


def test_names_and_numbers_do_not_order_the_slices(tmp_path):
    hu = make_volume()
    write_series(tmp_path / "shuffled", hu, numbers=(3, 1, 6, 2, 5, 4))
    volume = read_study(tmp_path / "shuffled")
    check_plain(volume, hu)
    np.testing.assert_array_equal(volume.slice_numbers, (3, 1, 6, 2, 5, 4))
    write_series(tmp_path / "equal", hu, numbers=[7] * 6, names=[f"{c}.dcm" for c in "fbdaec"])
    check_plain(read_study(tmp_path / "equal"), hu)

    def unnumbered(dataset, index):
        del dataset.InstanceNumber

    write_series(tmp_path / "absent", hu, names=[f"{c}.dcm" for c in "fbdaec"], edit=unnumbered)
    volume = read_study(tmp_path / "absent")
    check_plain(volume, hu)
    np.testing.assert_array_equal(volume.slice_numbers, [-1] * 6)


def test_rounded_positions_are_not_gaps(tmp_path):
    hu = make_volume((40, 8, 8))
    z = np.round(60 - 0.3125 * np.arange(40), 1)
    positions = np.stack((np.full(40, -80.0), np.full(40, -100.0), z), axis=1)
    write_series(tmp_path, hu, positions=positions)
    volume = read_study(tmp_path)
    np.testing.assert_array_equal(volume.hu, hu)
    assert volume.warnings == () and abs(volume.spacing_mm[0] - 0.3125) < 0.002


def test_files_without_preamble_or_file_meta_are_read(tmp_path):
    hu = make_volume()
    for file in write_series(tmp_path, hu, syntax="implicit"):
        data = file.read_bytes()
        start = data.index(b"\x08\x00\x08\x00")  # the first element after the file meta
        file.write_bytes(data[start:])
    check_plain(read_study(tmp_path), hu)


def test_the_folder_may_be_nested_and_hold_foreign_files(tmp_path):
    hu = make_volume()
    files = write_series(tmp_path / "a" / "b", hu)
    (tmp_path / "a" / "c").mkdir()
    files[3].rename(tmp_path / "a" / "c" / "4.dcm")
    (tmp_path / "readme.txt").write_text("hello")
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1")
    volume = read_study(tmp_path)
    np.testing.assert_array_equal(volume.hu, hu)
    assert len(volume.warnings) == 1 and "readme.txt: not DICOM" in volume.warnings[0]


def test_one_worker_reads_what_many_read(tmp_path):
    hu = make_volume((9, 34, 40))
    seen = []
    write_series(tmp_path, hu, syntax="jpeg_ls")
    alone = read_study(tmp_path, workers=1, progress=lambda done, total: seen.append((done, total)))
    np.testing.assert_array_equal(alone.hu, read_study(tmp_path, workers=4).hu)
    assert seen == [(k, 9) for k in range(1, 10)]


def test_lossy_jpeg_is_read_with_a_warning(tmp_path):
    hu = make_volume((3, 34, 36)) // 16 * 16
    hu[hu == 1200] = 400  # no hard edges: the codec rings at them
    write_series(tmp_path, hu, slope=16, intercept=-1024, bits=(8, 8), syntax="jpeg_baseline")
    volume = read_study(tmp_path)
    assert np.abs(volume.hu - hu.astype(int)).max() < 150 and np.abs(volume.hu - hu.astype(int)).mean() < 20
    assert len(volume.warnings) == 1 and "lossy" in volume.warnings[0]
    decoded = pydicom.dcmread(tmp_path / "1.dcm").pixel_array
    np.testing.assert_array_equal(volume.hu[0], decoded.astype(int) * 16 - 1024)


@pytest.mark.parametrize("way", ["plain", "jpeg_ls", "sagittal", "tilted", "multi-frame", "zipped"])
def test_peak_memory_stays_below_two_and_a_half_volumes(tmp_path, way):
    """In a process of its own: what reading adds to the high-water mark of what was imported."""
    hu = np.repeat(make_volume((4, 512, 512)), 16, axis=0)  # 34 MB
    positions = np.array([[-80 + 0.03 * k, -100, 60 - 0.625 * k] for k in range(64)]) if way == "tilted" else None
    if way == "sagittal":
        hu = np.ascontiguousarray(hu[:, :, :64].transpose(2, 1, 0).repeat(8, axis=0))
    files = write_series(tmp_path, hu, syntax="jpeg_ls" if way == "jpeg_ls" else "explicit", positions=positions,
                         axes=(2, 0, 1) if way == "sagittal" else (0, 1, 2))  # fmt: skip
    study = tmp_path
    if way in ("multi-frame", "zipped"):
        study = to_enhanced(files, tmp_path / "multi")[0]
    if way == "zipped":
        with zipfile.ZipFile(tmp_path / "study.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.write(study)
        study = tmp_path / "study.zip"
    code = """
import sys
from cspine_jax.ct import read_study
def peak():
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
before = peak()
volume = read_study(sys.argv[1])
print((peak() - before) / volume.hu.nbytes)
"""
    result = subprocess.run([sys.executable, "-c", code, str(study)], capture_output=True, text=True, check=True)
    assert float(result.stdout) < 2.5
