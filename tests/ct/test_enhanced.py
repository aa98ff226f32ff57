"""A multi-frame CT reads to the same volume as the single images it was made from, or is refused by name."""

import zipfile

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from cspine_jax.ct import read_study
from cspine_jax.errors import StudyError
from tests.ct.dicom_factory import SYNTAXES, expected_affine, make_volume, to_enhanced, write_series


def both(tmp_path, series=None, **kwargs):
    """The volume of the single images and of the multi-frame ones."""
    files = write_series(tmp_path / "single", make_volume((12, 34, 40)), **(series or {}))
    to_enhanced(files, tmp_path / "multi", **kwargs)
    return read_study(tmp_path / "single"), read_study(tmp_path / "multi")


def check_same(single, multi) -> None:
    np.testing.assert_array_equal(multi.hu, single.hu)
    np.testing.assert_allclose(multi.affine, single.affine, atol=1e-9)
    np.testing.assert_allclose(multi.positions_mm, single.positions_mm, atol=1e-9)
    np.testing.assert_array_equal(multi.slice_numbers, single.slice_numbers)
    for name in ("spacing_mm", "study_uid", "series_uid", "thickness_mm", "kernel"):
        assert getattr(multi, name) == getattr(single, name)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("legacy", [False, True])
def test_every_codec(tmp_path, syntax, legacy):
    single, multi = both(tmp_path, {"syntax": syntax}, legacy=legacy)
    check_same(single, multi)
    assert multi.warnings == ()


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big_endian", "deflated", "jpeg_ls"])
def test_signed_pixels(tmp_path, syntax):
    """As scanners write them; pydicom converts PixelRepresentation by itself where there are sequences."""
    single, multi = both(tmp_path, {"syntax": syntax, "signed": True, "intercept": 0, "bits": (16, 16)})
    check_same(single, multi)


@pytest.mark.parametrize("syntax", ["jpeg_lossless_sv1", "jpeg_ls", "jpeg_2000"])
@pytest.mark.parametrize(("table", "fragments"), [("none", 1), ("extended", 1), ("basic", 3), ("none", 3)])
def test_frames_in_fragments_with_and_without_offset_tables(tmp_path, syntax, table, fragments):
    check_same(*both(tmp_path, {"syntax": syntax}, table=table, fragments=fragments))


def test_rle_in_fragments_needs_a_table(tmp_path):
    check_same(*both(tmp_path, {"syntax": "rle"}, fragments=2))
    files = sorted((tmp_path / "single").iterdir())
    (tmp_path / "bare").mkdir()
    bare = to_enhanced(files, tmp_path / "bare", table="none", fragments=2)
    with pytest.raises(StudyError, match=r"24 fragments for 12 frames") as caught:
        read_study(tmp_path / "bare")
    assert str(bare[0]) in str(caught.value)


@pytest.mark.parametrize("syntax", ["explicit", "jpeg_ls"])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("flip", [False, True])
def test_frames_of_any_orientation_and_direction(tmp_path, syntax, axes, flip):
    single, multi = both(tmp_path, {"syntax": syntax, "axes": axes, "flips": (flip, False, True)})
    check_same(single, multi)
    assert multi.warnings == single.warnings


def test_several_files_a_series(tmp_path):
    check_same(*both(tmp_path, parts=3))

    def uncounted(dataset, part):
        del dataset.ConcatenationFrameOffsetNumber

    files = sorted((tmp_path / "single").iterdir(), key=lambda file: int(file.stem))
    to_enhanced(files, tmp_path / "uncounted", parts=3, edit=uncounted)
    volume = read_study(tmp_path / "uncounted")
    np.testing.assert_array_equal(volume.hu, make_volume((12, 34, 40)))
    np.testing.assert_array_equal(volume.slice_numbers, [-1] * 12)  # three files have a frame 1


def test_shuffled_frames_are_numbered_as_stored(tmp_path):
    hu = make_volume((12, 34, 40))
    files = write_series(tmp_path / "single", hu)
    order = np.random.default_rng(0).permutation(12)
    to_enhanced([files[i] for i in order], tmp_path / "multi", names=["7.dcm"])
    volume = read_study(tmp_path / "multi")
    np.testing.assert_array_equal(volume.hu, hu)
    np.testing.assert_array_equal(volume.slice_numbers, np.argsort(order) + 1)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("syntax", ["explicit", "rle"])
def test_in_a_zip(tmp_path, compression, syntax):
    files = write_series(tmp_path / "single", make_volume((12, 34, 40)), syntax=syntax)
    multi = to_enhanced(files, tmp_path / "multi")
    with zipfile.ZipFile(tmp_path / "study.zip", "w", compression) as archive:
        archive.write(multi[0], "A/IM1")
    check_same(read_study(tmp_path / "single"), read_study(tmp_path / "study.zip"))


def test_tilt_gaps_and_duplicates_are_those_of_single_images(tmp_path):
    n = 12
    positions = np.array([[-80.0, -100 + 0.3 * k, 60 - 0.625 * k] for k in range(n)])
    positions[7:, 2] -= 1.25
    hu = make_volume((n, 34, 40))
    files = write_series(tmp_path / "single", hu, positions=positions)
    files += write_series(tmp_path / "single", hu[3:4], positions=positions[3:4], names=["99.dcm"])
    to_enhanced(files, tmp_path / "multi")
    single, multi = read_study(tmp_path / "single"), read_study(tmp_path / "multi")
    np.testing.assert_array_equal(multi.hu, single.hu)
    np.testing.assert_allclose(multi.affine, single.affine)
    assert [note.split(":")[0] for note in multi.warnings] == [note.split(":")[0] for note in single.warnings]
    assert any("frame 13" in note for note in multi.warnings)


def test_rescale_of_each_frame(tmp_path):
    hu = make_volume((6, 34, 40))
    files = write_series(tmp_path / "single", hu[:3])
    files += write_series(tmp_path / "single", hu[3:], origin=(-80, -100, 60 - 3 * 0.625), intercept=-1100, slope=0.5,
                          bits=(16, 14), numbers=(4, 5, 6))  # fmt: skip
    to_enhanced(files, tmp_path / "multi", edit=lambda d, _: d.update(_bits(14)))
    np.testing.assert_array_equal(read_study(tmp_path / "multi").hu, hu)


def _bits(stored):
    dataset = pydicom.Dataset()
    dataset.BitsStored, dataset.HighBit = stored, stored - 1
    return dataset


def test_localizer_frames_are_left_out(tmp_path):
    hu = make_volume((8, 34, 40))
    files = write_series(tmp_path / "single", hu)

    def scout(dataset, part):
        for group in dataset.PerFrameFunctionalGroupsSequence[:2]:
            group.CTImageFrameTypeSequence[0].FrameType = ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]

    to_enhanced(files, tmp_path / "multi", edit=scout)
    volume = read_study(tmp_path / "multi")
    np.testing.assert_array_equal(volume.hu, hu[2:])
    assert any("2 localizer" in note and "frame 1" in note for note in volume.warnings)


def refusal(path) -> str:
    with pytest.raises(StudyError) as caught:
        read_study(path)
    assert "\n" not in str(caught.value) and "SECRET" not in str(caught.value).upper()
    return str(caught.value)


def test_a_multi_frame_image_with_one_geometry_is_refused(tmp_path):
    files = write_series(tmp_path / "single", make_volume())

    def classic(dataset, part):
        del dataset.PerFrameFunctionalGroupsSequence, dataset.SharedFunctionalGroupsSequence
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing = [1, 1]

    multi = to_enhanced(files, tmp_path / "multi", edit=classic)
    message = refusal(tmp_path / "multi")
    assert str(multi[0]) in message and "6 frames but one geometry" in message

    def unplaced(dataset, part):
        for group in dataset.PerFrameFunctionalGroupsSequence:
            del group.PlanePositionSequence

    to_enhanced(files, tmp_path / "unplaced", edit=unplaced)
    assert "without a position" in refusal(tmp_path / "unplaced")

    def together(dataset, part):
        for group in dataset.PerFrameFunctionalGroupsSequence:
            group.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 0]

    to_enhanced(files, tmp_path / "together", edit=together)
    assert "one position" in refusal(tmp_path / "together")


@pytest.mark.parametrize("syntax", ["explicit", "rle", "jpeg_ls"])
def test_damage_is_named(tmp_path, syntax):
    files = write_series(tmp_path / "single", make_volume(), syntax=syntax)

    def more(dataset, part):
        dataset.NumberOfFrames = 9

    named = to_enhanced(files, tmp_path / "more", edit=more)
    assert f"{named[0]}: NumberOfFrames 9" in refusal(tmp_path / "more")
    whole = to_enhanced(files, tmp_path / "cut")[0]
    data = whole.read_bytes()
    for keep in (0.3, 0.8, 0.999):
        whole.write_bytes(data[: int(len(data) * keep)])
        assert str(whole) in refusal(tmp_path / "cut")
    if syntax != "explicit":
        at = data.rindex(b"\xfe\xff\x00\xe0") + 8
        damaged = bytearray(data)
        damaged[at : at + 40] = b"\xa5" * 40
        whole.write_bytes(damaged)
        assert f"{whole} frame 6" in refusal(tmp_path / "cut")


def test_the_affine_is_the_expected_one(tmp_path):
    _, multi = both(tmp_path)
    np.testing.assert_allclose(multi.affine, expected_affine(), atol=1e-5)


def test_a_real_enhanced_ct(tmp_path):
    """A perfusion map, by its frame type: left out as it is, read right once it says that it is an image."""
    source = str(get_testdata_file("eCT_Supplemental.dcm"))
    assert "map(s) of other quantities than HU" in refusal(source)
    dataset = pydicom.dcmread(source)
    frame_type = dataset.SharedFunctionalGroupsSequence[0].CTImageFrameTypeSequence[0]
    frame_type.FrameType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    dataset.save_as(tmp_path / "a.dcm")
    volume = read_study(tmp_path / "a.dcm")
    pixels = dataset.pixel_array.astype(np.int16) - 1024
    np.testing.assert_array_equal(volume.hu, pixels[::-1, :, ::-1])  # feet first, columns towards the right
    np.testing.assert_allclose(volume.spacing_mm, (10, 0.388672, 0.388672))
    np.testing.assert_array_equal(volume.slice_numbers, [2, 1])
    np.testing.assert_allclose(volume.affine[:3, 3], (99.5 - 511 * 0.388672, -301.5, -149))
