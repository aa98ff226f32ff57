"""What real scanners, archives and converters write: read right, or refused by name."""

import struct
import time

import nibabel
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import PositronEmissionTomographyImageStorage

from cspine_jax.ct import read_study
from cspine_jax.errors import StudyError
from tests.ct.dicom_factory import SYNTAXES, expected_affine, make_volume, to_enhanced, write_series

HU = make_volume((20, 34, 40))


def refusal(path, **kwargs) -> str:
    with pytest.raises(StudyError) as caught:
        read_study(path, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check(path, warned="") -> None:
    volume = read_study(path)
    np.testing.assert_array_equal(volume.hu, HU)
    np.testing.assert_allclose(volume.affine, expected_affine(), atol=1e-3)
    assert len(volume.warnings) == (1 if warned else 0), volume.warnings
    assert not warned or warned in volume.warnings[0]


def uneven_positions() -> np.ndarray:
    z = 60 - 0.625 * np.arange(20.0)
    z[10:] -= 2.5
    return np.stack((np.full(20, -80.0), np.full(20, -100.0), z), axis=1)


def test_missing_positions_are_not_guessed_where_the_others_do_not_follow_the_numbers(tmp_path):
    def edit(dataset, index):
        if index % 4 == 1:
            del dataset.ImagePositionPatient

    write_series(tmp_path, HU, positions=uneven_positions(), edit=edit)
    assert "0.dcm: ImagePositionPatient is missing, and" in refusal(tmp_path)


def test_a_single_position_places_no_other(tmp_path):
    def edit(dataset, index):
        if index:
            del dataset.ImagePositionPatient

    write_series(tmp_path, HU, edit=edit)
    assert "0.dcm: ImagePositionPatient is missing, and" in refusal(tmp_path)


@pytest.mark.parametrize("enhanced", [False, True])
@pytest.mark.parametrize("charset", ["ISO 2022 IR 87", "GB18030", "ISO_IR 999", "latin\\\\utf"])
def test_odd_character_sets(tmp_path, enhanced, charset):
    files = write_series(tmp_path / "a", HU)
    if enhanced:
        files = to_enhanced(files, tmp_path / "b")
    value = charset.encode().ljust(16)
    for file in files:
        data = file.read_bytes()
        at = (
            data.index(b"\x08\x00\x16\x00UI")
            if b"\x08\x00\x08\x00CS" not in data
            else data.index(b"\x08\x00\x08\x00CS")
        )
        file.write_bytes(data[:at] + b"\x08\x00\x05\x00CS\x10\x00" + value + data[at:])
    volume = read_study(files[0].parent)
    np.testing.assert_array_equal(volume.hu, HU)


@pytest.mark.parametrize("syntax", ["explicit", "implicit"])
def test_private_elements_of_any_size_and_depth_are_passed_over(tmp_path, syntax):
    def edit(dataset, index):
        dataset.add_new(0x00290010, "LO", "SIEMENS CSA HEADER")
        dataset.add_new(0x00291010, "OB", bytes(2_000_000 if index == 3 else 10))
        inner = Dataset()
        inner.add_new(0x20050010, "LO", "Philips Imaging DD 001")
        inner.ImagePositionPatient = ["1", "2", "3"]  # of something else
        inner.PixelSpacing = ["9", "9"]
        for _ in range(12):
            outer = Dataset()
            outer.add_new(0x20050010, "LO", "Philips Imaging DD 001")
            outer.add_new(0x2005140F, "SQ", Sequence([inner]))
            outer[0x2005140F].is_undefined_length = True
            inner = outer
        dataset.add_new(0x20050010, "LO", "Philips Imaging DD 001")
        dataset.add_new(0x2005140F, "SQ", Sequence([inner]))

    write_series(tmp_path, HU, syntax=syntax, edit=edit)
    started = time.perf_counter()
    check(tmp_path)
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize("undefined", [False, True])
def test_an_icon_before_the_pixels_is_not_taken_for_them(tmp_path, undefined):
    def edit(dataset, index):
        icon = Dataset()
        icon.SamplesPerPixel, icon.PhotometricInterpretation = 1, "MONOCHROME2"
        icon.Rows = icon.Columns = 4
        icon.BitsAllocated = icon.BitsStored = 8
        icon.HighBit, icon.PixelRepresentation = 7, 0
        icon.add_new(0x7FE00010, "OB", bytes(16))
        dataset.IconImageSequence = Sequence([icon])
        dataset["IconImageSequence"].is_undefined_length = undefined

    write_series(tmp_path, HU, edit=edit)
    check(tmp_path)


def test_a_pet_beside_the_ct_is_left_out(tmp_path):
    def pet(dataset, index):
        dataset.Modality = "PT"
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = PositronEmissionTomographyImageStorage

    write_series(tmp_path, HU)
    write_series(tmp_path, HU, names=[f"p{k}.dcm" for k in range(20)], edit=pet)
    check(tmp_path, warned="modality PT")


@pytest.mark.parametrize("syntax", ["jpeg_ls", "rle"])
def test_compressed_pixels_that_claim_to_be_raw_are_refused(tmp_path, syntax):
    files = write_series(tmp_path, HU, syntax=syntax)
    for file in files:
        data = file.read_bytes()
        uid = SYNTAXES[syntax].encode()
        at = data.index(uid)
        raw = b"1.2.840.10008.1.2.1".ljust(len(uid) + len(uid) % 2, b"\0")
        file.write_bytes(data[:at] + raw + data[at + len(raw) :] + bytes(10_000))
    assert "compressed but its transfer syntax" in refusal(tmp_path)


def without_rescale(dataset, index):
    del dataset.RescaleIntercept, dataset.RescaleSlope


def test_without_a_rescale_stored_hu_are_read_and_others_are_not_usable(tmp_path):
    write_series(tmp_path / "hu", HU, signed=True, intercept=0, bits=(16, 16), edit=without_rescale)
    check(tmp_path / "hu", warned="RescaleIntercept is missing in 20 image(s)")
    write_series(tmp_path / "shifted", HU, edit=without_rescale)
    volume = read_study(tmp_path / "shifted")
    assert "so they are not" in volume.warnings[0]
    assert not volume.quality.usable and any("no air in it" in error for error in volume.quality.errors)


def test_a_tilt_that_only_the_header_knows_is_named(tmp_path):
    def edit(dataset, index):
        dataset.GantryDetectorTilt = "-15.0"

    write_series(tmp_path, HU, edit=edit)
    check(tmp_path, warned="GantryDetectorTilt 15.0 degrees")


def test_trailing_padding_and_overlays_after_the_pixels(tmp_path):
    for file in write_series(tmp_path, HU):
        with file.open("ab") as end:
            end.write(struct.pack("<HH2sHI", 0xFFFC, 0xFFFC, b"OB", 0, 4000) + bytes(4000))
    check(tmp_path)


def test_a_number_with_a_nul_or_blanks_in_it(tmp_path):
    for file in write_series(tmp_path, HU):
        data = file.read_bytes()
        assert data.count(b"DS\x08\x000.45\\0.4") == 1
        file.write_bytes(data.replace(b"DS\x08\x000.45\\0.4", b"DS\x0a\x00 .45\0\\.4 \0\0"[:14]))
    check(tmp_path)


def test_a_thousands_comma_is_no_decimal_point(tmp_path):
    file = write_series(tmp_path, HU)[2]
    data = file.read_bytes()
    assert data.count(b"DS\x06\x00-1024 ") == 1
    file.write_bytes(data.replace(b"DS\x06\x00-1024 ", b"DS\x06\x00-1,024"))
    assert "3.dcm: RescaleIntercept '-1,024'" in refusal(tmp_path)


def test_a_toshiba_volume_and_a_modified_hu_type_are_read(tmp_path):
    def edit(dataset, index):
        dataset.ImageType, dataset.RescaleType = ["ORIGINAL", "PRIMARY", "VOLUME"], "US"
        dataset.ConvolutionKernel = "FC30"

    write_series(tmp_path, HU, edit=edit)
    check(tmp_path)


def nifti(path, affine=None, sform=1, qform=1, edit=None):
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ (expected_affine() if affine is None else affine)
    image = nibabel.Nifti1Image(HU, ras)
    image.set_sform(ras, sform)
    image.set_qform(ras, qform)
    if edit:
        edit(image)
    nibabel.save(image, path)
    return path


def test_an_oblique_nifti_keeps_its_angle(tmp_path):
    angle = np.radians(15)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = expected_affine()
    affine[:3] = turn @ affine[:3]
    volume = read_study(nifti(tmp_path / "a.nii", affine))
    np.testing.assert_array_equal(volume.hu, HU)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-4)


def test_a_nifti_with_one_form_two_or_none(tmp_path):
    for sform, qform in ((1, 0), (0, 1), (1, 1), (2, 1)):
        check(nifti(tmp_path / f"{sform}{qform}.nii", sform=sform, qform=qform))
    assert "neither sform nor qform" in refusal(nifti(tmp_path / "none.nii", sform=0, qform=0))

    def move(image):
        moved = image.get_sform()
        moved[:3, 3] += 20
        image.set_qform(moved, 1)

    check(nifti(tmp_path / "moved.nii", edit=move), warned="place it 34.6 mm apart")


def test_a_sheared_nifti_is_refused(tmp_path):
    affine = expected_affine()
    affine[1, 0] = 0.15
    assert "sheared by 13.5 degrees" in refusal(nifti(tmp_path / "a.nii", affine, qform=0))


def test_a_nifti_in_metres_is_refused(tmp_path):
    message = refusal(nifti(tmp_path / "a.nii", edit=lambda image: image.header.set_xyzt_units("meter")))
    assert "lengths are in meter" in message


def test_gated_phases_named_by_trigger_time(tmp_path):
    for phase in (0, 300, 600):

        def edit(dataset, index, phase=phase):
            dataset.TriggerTime, dataset.InstanceNumber = str(phase), index + phase

        write_series(
            tmp_path, HU if not phase else HU[::-1].copy(), names=[f"{phase}-{k}" for k in range(20)], edit=edit
        )
    volume = read_study(tmp_path)
    np.testing.assert_array_equal(volume.hu, HU)
    assert len(volume.warnings) == 1 and "3 stacks in 1 series" in volume.warnings[0]


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (["DERIVED", "SECONDARY", "AXIAL", "MIP"], "projection"),
        (["DERIVED", "PRIMARY", "AXIAL", "EFF_ATOMIC_NUM"], "other quantities"),
        (["ORIGINAL", "PRIMARY", "TOPOGRAM"], "localizer"),
    ],
)
def test_a_thin_series_of_something_else_does_not_win(tmp_path, kind, word):
    def edit(dataset, index):
        dataset.ImageType = kind

    write_series(tmp_path / "ct", HU)
    write_series(tmp_path / "other", HU, spacing_mm=(0.3, 0.45, 0.4), series_uid="1.2.9", edit=edit)
    check(tmp_path, warned=word)


@pytest.mark.parametrize("signed", [False, True])
def test_pixels_in_the_upper_bits_and_pixels_only_said_to_be(tmp_path, signed):
    kind = {"signed": signed, "intercept": 0 if signed else -1024, "bits": (16, 12)}

    def above(dataset, index):
        dataset.HighBit = 15
        dataset.PixelData = (np.frombuffer(dataset.PixelData, "<u2") << 4).astype("<u2").tobytes()

    def only_said(dataset, index):
        dataset.HighBit = 15

    write_series(tmp_path / "above", HU, edit=above, **kind)
    check(tmp_path / "above")
    write_series(tmp_path / "said", HU, edit=only_said, **kind)
    check(tmp_path / "said", warned="HighBit")


@pytest.mark.parametrize("bits", [12, 13])
def test_twelve_bits_that_wrap_are_signed_after_all(tmp_path, bits):
    """As some series of RSNA's head CTs: unsigned, intercept 1, and air as large numbers."""
    hu = make_volume()
    hu[:, :4] = -1000

    def wrap(dataset, index):
        stored = np.frombuffer(dataset.PixelData, np.uint16).astype(int) - 1024 - 1
        dataset.PixelData = (stored % (1 << bits)).astype(np.uint16).tobytes()
        dataset.BitsStored, dataset.HighBit, dataset.RescaleIntercept = bits, bits - 1, 1

    hu = np.clip(hu, -1024, 2000)
    write_series(tmp_path, hu, edit=wrap)
    volume = read_study(tmp_path)
    np.testing.assert_array_equal(volume.hu, hu)
    assert any("read as signed" in note for note in volume.warnings)


def test_a_study_without_a_uid_is_named_by_its_content(tmp_path):
    hu = make_volume()
    volumes = []
    for name, shown in (("a", hu), ("b", hu), ("c", hu + 1)):
        write_series(tmp_path / name, shown, edit=lambda dataset, index: dataset.pop("StudyInstanceUID"))
        volumes.append(read_study(tmp_path / name))
    a, b, c = (volume.study_uid for volume in volumes)
    assert a == b != c and a.startswith("2.25.") and a[5:].isdigit()
    assert "StudyInstanceUID is missing: the study is named by its content" in volumes[0].warnings
