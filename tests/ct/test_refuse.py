"""What cannot be read right is refused with one line that names the file, or named in the warnings."""

import shutil

import numpy as np
import pytest
from pydicom.uid import MRImageStorage

from cspine_jax.ct import read_study
from cspine_jax.errors import StudyError
from tests.ct.dicom_factory import SYNTAXES, make_volume, write_series


def refusal(folder, **kwargs) -> str:
    with pytest.raises(StudyError) as caught:
        read_study(folder, **kwargs)
    message = str(caught.value)
    assert "\n" not in message and "SECRET" not in message and "Secret" not in message
    return message


def test_nothing_there(tmp_path):
    assert "no such file or folder" in refusal(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no files" in refusal(tmp_path / "empty")
    (tmp_path / "empty" / "notes.txt").write_text("x")
    assert "no CT slices" in refusal(tmp_path / "empty")


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("keep", [0.0, 0.05, 0.6, 0.97])
def test_a_truncated_file_is_named(tmp_path, syntax, keep):
    files = write_series(tmp_path, make_volume(), syntax=syntax)
    data = files[2].read_bytes()
    files[2].write_bytes(data[: int(len(data) * keep)])
    assert str(files[2]) in refusal(tmp_path)


def test_a_file_of_zeros_or_noise_is_named(tmp_path):
    files = write_series(tmp_path, make_volume())
    for content in (bytes(4096), np.random.default_rng(0).bytes(4096)):
        files[4].write_bytes(content)
        assert str(files[4]) in refusal(tmp_path)


@pytest.mark.parametrize("syntax", ["rle", "jpeg_lossless_sv1", "jpeg_ls", "jpeg_2000"])
def test_a_stream_of_noise_is_named_and_the_next_study_is_read(tmp_path, syntax):
    hu = make_volume()
    files = write_series(tmp_path / "bad", hu, syntax=syntax)
    data = bytearray(files[1].read_bytes())
    start = data.index(b"\xe0\x7f\x10\x00") + 28
    data[start:-8] = np.random.default_rng(1).bytes(len(data) - start - 8)
    files[1].write_bytes(data)
    assert str(files[1]) in refusal(tmp_path / "bad")
    write_series(tmp_path / "good", hu, syntax=syntax)
    np.testing.assert_array_equal(read_study(tmp_path / "good").hu, hu)


def test_a_slice_of_another_size_in_the_stack_is_named(tmp_path):
    write_series(tmp_path, make_volume((5, 34, 40)))[2].unlink()
    odd = write_series(tmp_path, make_volume((1, 34, 41)), names=["9.dcm"], origin=(-80, -100, 60 - 2 * 0.625))
    message = refusal(tmp_path)
    assert str(odd[0]) in message and "34 x 41" in message and "34 x 40" in message


def test_one_slice_is_no_study(tmp_path):
    write_series(tmp_path, make_volume((1, 34, 40)))
    assert "only 1 CT slice" in refusal(tmp_path)


def test_one_position_is_no_study(tmp_path):
    hu = np.repeat(make_volume((1, 34, 40)), 3, axis=0)
    write_series(tmp_path, hu, positions=np.array([[-80.0, -100, 60]] * 3))
    assert "one position" in refusal(tmp_path)


def test_other_modalities_are_refused_alone_and_left_out_beside_ct(tmp_path):
    def magnetic(dataset, index):
        dataset.Modality = "MR"
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = MRImageStorage

    hu = make_volume()
    write_series(tmp_path / "mr", hu, edit=magnetic, series_uid="1.2.9", names=[f"mr{k}.dcm" for k in range(6)])
    assert "modality MR" in refusal(tmp_path / "mr")
    write_series(tmp_path / "both", hu)
    shutil.copytree(tmp_path / "mr", tmp_path / "both", dirs_exist_ok=True)
    volume = read_study(tmp_path / "both")
    np.testing.assert_array_equal(volume.hu, hu)
    assert len(volume.warnings) == 1 and "left out 6 file(s)" in volume.warnings[0]


def test_localizers_are_left_out(tmp_path):
    def scout(dataset, index):
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    hu = make_volume()
    write_series(tmp_path, hu)
    write_series(tmp_path, make_volume((1, 60, 60)), edit=scout, names=["0.dcm"])
    volume = read_study(tmp_path)
    np.testing.assert_array_equal(volume.hu, hu)
    assert "localizer" in volume.warnings[0] and "0.dcm" in volume.warnings[0]


def test_of_several_series_the_thin_sharp_axial_one_is_read_and_the_choice_is_said(tmp_path):
    hu = make_volume()

    def kernel(name, number):
        def edit(dataset, index):
            dataset.ConvolutionKernel, dataset.SeriesNumber = name, number

        return edit

    write_series(tmp_path / "thick", hu[::2], spacing_mm=(1.25, 0.45, 0.4), series_uid="1.2.1", edit=kernel("B80f", 3))
    write_series(tmp_path / "soft", hu - 5, series_uid="1.2.2", edit=kernel("B31f", 4))
    write_series(tmp_path / "sharp", hu, series_uid="1.2.3", edit=kernel("B70f", 5))
    write_series(tmp_path / "sagittal", hu, axes=(2, 0, 1), series_uid="1.2.4", edit=kernel("B70f", 6))
    volume = read_study(tmp_path)
    np.testing.assert_array_equal(volume.hu, hu)
    assert volume.series_uid == "1.2.3"
    assert "4 series" in volume.warnings[0] and "kernel B31f" in volume.warnings[0]
    np.testing.assert_array_equal(read_study(tmp_path, series="1.2.2").hu, hu - 5)
    assert read_study(tmp_path, series="3").series_uid == "1.2.1"
    assert "no series 77" in refusal(tmp_path, series="77")


def test_two_studies_in_one_folder_are_refused(tmp_path):
    write_series(tmp_path / "a", make_volume())
    write_series(tmp_path / "b", make_volume(), study_uid="1.2.7", series_uid="1.2.7.1")
    assert "2 studies" in refusal(tmp_path)
    assert read_study(tmp_path, series="1.2.7.1").study_uid == "1.2.7"


@pytest.mark.parametrize(
    ("element", "value", "wanted"),
    [
        ("Rows", None, "Rows is missing"),
        ("Rows", 60_000, "Rows 60000"),
        ("Columns", 0, "Columns 0"),
        ("BitsStored", 30, "BitsStored 30"),
        ("PixelSpacing", None, "PixelSpacing is missing"),
        ("PixelSpacing", ["0", "0.4"], "PixelSpacing"),
        ("PixelSpacing", ["0.4", "0.5"], "PixelSpacing"),
        ("ImageOrientationPatient", None, "ImageOrientationPatient is missing"),
        ("ImageOrientationPatient", ["1", "0", "0", "0", "0", "1"], "ImageOrientationPatient"),
        ("ImagePositionPatient", ["-80", "-100"], "ImagePositionPatient"),
        ("ImagePositionPatient", ["-80", "-100", "1e9"], "ImagePositionPatient"),
        ("RescaleSlope", "0", "RescaleSlope 0"),
        ("RescaleSlope", "nan", "RescaleSlope"),
        ("PixelData", b"\0" * 10, "Pixel Data holds 10 bytes"),
        ("PixelData", None, "no integer Pixel Data"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of pydicom, while it writes the broken value
def test_an_impossible_value_is_named(tmp_path, element, value, wanted):
    def edit(dataset, index):
        if index == 3:
            if value is None:
                del dataset[element]
            else:
                setattr(dataset, element, value)

    if element == "PixelData" and value is None:
        files = write_series(tmp_path, make_volume())
        data = files[3].read_bytes()
        files[3].write_bytes(data[: data.index(b"\xe0\x7f\x10\x00")] + b"\xe0\x7f\x08\x00OF\0\0\4\0\0\0\0\0\0\0")
        name = files[3]
    else:
        name = tmp_path / "4.dcm"
        write_series(tmp_path, make_volume(), edit=edit)
    message = refusal(tmp_path)
    assert str(name) in message and wanted in message


def test_an_unknown_transfer_syntax_is_named(tmp_path):
    files = write_series(tmp_path, make_volume())
    data = files[0].read_bytes()
    files[0].write_bytes(data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0", 1))
    assert "transfer syntax 1.2.840.10008.1.2.9" in refusal(tmp_path)


def test_what_pydicom_forgives_becomes_a_warning_of_the_volume(tmp_path):
    hu = make_volume()
    files = write_series(tmp_path, hu, syntax="implicit")
    data = files[0].read_bytes()
    position = data.index(b"1.2.840.10008.1.2\0")
    renamed = data[:position] + b"1.2.840.10008.1.2.1\0" + data[position + 18 :]
    renamed = bytearray(renamed)
    renamed[position - 2] += 2  # length of the element
    files[0].write_bytes(renamed)
    volume = read_study(tmp_path)
    np.testing.assert_array_equal(volume.hu, hu)
    assert any("1.dcm" in note and "implicit" in note.lower() for note in volume.warnings)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of pydicom, while it writes the broken value
def test_broken_values_nobody_needs_are_left_out_and_noted(tmp_path):
    hu = make_volume()

    def edit(dataset, index):
        if index == 1:
            dataset.InstanceNumber = 99_999_999_999

    files = write_series(tmp_path, hu, edit=edit, names=[f"{c}.dcm" for c in "abcdef"])
    files[1].write_bytes(files[1].read_bytes().replace(b"DS\4\0" + b"2.5 ", b"DS\4\0" + b"thin"))
    volume = read_study(tmp_path)
    np.testing.assert_array_equal(volume.hu, hu)
    np.testing.assert_array_equal(volume.slice_numbers, [1, -1, 3, 4, 5, 6])
    assert len(volume.warnings) == 1 and "SliceThickness is damaged" in volume.warnings[0]
