"""Archives made to harm, foreign files and real pixels: a StudyError or the right volume."""

import gc
import gzip
import io
import logging
import os
import struct
import zipfile
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from cspine_jax.ct import Volume, read_study
from tests.ct.dicom_factory import SYNTAXES, make_volume, write_series
from tests.ct.fuzz import REAL_FILES, Fuzz

outcome = Fuzz(["secret"]).read


REAL_CODECS = """CT_small 693_J2KI 693_J2KR J2K_pixelrep_mismatch JPEGLSNearLossless_08 MR_small_RLE MR_small_bigendian
    MR_small_jp2klossless MR_small_jpeg_ls_lossless image_dfl""".split()


@pytest.mark.parametrize("name", REAL_CODECS)
def test_real_pixels_agree_with_pydicom(tmp_path, name):
    """Three copies of a real file, moved apart, as a series."""
    dataset = pydicom.dcmread(next(path for path in REAL_FILES if path.name == f"{name}.dcm"))
    for k in range(3):
        dataset.Modality, dataset.SOPClassUID = "CT", "1.2.840.10008.5.1.4.1.1.2"
        dataset.ImageType, dataset.ImageOrientationPatient = ["ORIGINAL", "PRIMARY", "AXIAL"], [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient, dataset.PixelSpacing = [0, 0, -2 * k], [1, 1]
        dataset.save_as(tmp_path / f"{k + 1}.dcm")
    expected = dataset.pixel_array * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))
    expected = np.where(expected < -1500, -1024, np.rint(expected))
    for plane in read_study(tmp_path).hu:
        np.testing.assert_array_equal(plane, expected)


def zip_of(folder: Path, **kwargs) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, **kwargs) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return buffer.getvalue()


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_zip_reads_as_its_folder(tmp_path, syntax):
    hu = make_volume()
    write_series(tmp_path / "study" / "a" / "b", hu, syntax=syntax)
    (tmp_path / "study" / "__MACOSX").mkdir()
    (tmp_path / "study" / "__MACOSX" / "._1.dcm").write_bytes(b"\0" * 100)
    (tmp_path / "study.zip").write_bytes(zip_of(tmp_path / "study"))
    volume = read_study(tmp_path / "study.zip")
    np.testing.assert_array_equal(volume.hu, hu)
    np.testing.assert_array_equal(volume.slice_numbers, range(1, 7))
    assert volume.warnings == ()


def test_zip_bombs_and_encrypted_zips_are_refused(tmp_path):
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.dcm", b"\0" * (64 << 20))
    assert "bytes packed in" in outcome(bomb)
    crowd = tmp_path / "crowd.zip"
    with zipfile.ZipFile(crowd, "w") as archive:
        for k in range(20_001):
            archive.writestr(f"{k}", b"")
    assert "20,001 files" in outcome(crowd)
    write_series(tmp_path / "study", make_volume())
    locked = bytearray(zip_of(tmp_path / "study"))
    at = locked.index(b"PK\x01\x02")
    locked[at + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    assert "encrypted" in outcome(tmp_path / "locked.zip")


def test_names_in_an_archive_go_nowhere(tmp_path):
    write_series(tmp_path / "study", make_volume())
    path = tmp_path / "in" / "evil.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for file in (tmp_path / "study").iterdir():
            archive.writestr(f"../../{file.name}", file.read_bytes())
        archive.writestr("/etc/\nnewline\x1b[31m", b"x")
    before = sorted(tmp_path.rglob("*"))
    volume = read_study(path)
    assert volume.shape == (6, 34, 40) and sorted(tmp_path.rglob("*")) == before
    assert all(note.isprintable() for note in volume.warnings)


def test_links_and_pipes_in_a_folder_are_not_followed_into_a_trap(tmp_path):
    write_series(tmp_path / "study", make_volume())
    (tmp_path / "study" / "loop").symlink_to(tmp_path / "study")
    os.mkfifo(tmp_path / "study" / "pipe.dcm")
    assert isinstance(outcome(tmp_path / "study"), Volume)


def test_a_nifti_header_claims_no_memory_that_its_file_cannot_fill(tmp_path):
    image = nib.Nifti1Image(make_volume((12, 10, 8)), np.diag([0.4, 0.45, 0.625, 1]))
    for suffix in (".nii", ".nii.gz"):
        image.to_filename(tmp_path / f"a{suffix}")
        packing = gzip if suffix == ".nii.gz" else None
        data = (tmp_path / f"a{suffix}").read_bytes()
        data = bytearray(packing.decompress(data) if packing else data)
        data[42:48] = struct.pack("<3h", 1000, 1000, 1000)
        (tmp_path / f"a{suffix}").write_bytes(packing.compress(data) if packing else data)
        assert "cannot hold (1000, 1000, 1000) voxels" in outcome(tmp_path / f"a{suffix}")


def test_no_log_quotes_a_damaged_header(tmp_path, caplog):
    """pydicom warns, and logs, what it finds odd: here a UID into which the patient's name ran."""
    for file in write_series(tmp_path, make_volume()):
        data = file.read_bytes()
        at = data.index(b"\x02\x00\x10\x00UI") + 8
        file.write_bytes(data[:at] + b"SECRET^NAME" + data[at + 11 :])
    level = logging.getLogger("pydicom").level
    with caplog.at_level(logging.DEBUG):
        assert "TransferSyntaxUID is damaged" in outcome(tmp_path)
    assert not caplog.records
    assert logging.getLogger("pydicom").level == level


@pytest.mark.parametrize("syntax", ["explicit", "jpeg_lossless_sv1"])
def test_a_failure_keeps_neither_the_archive_nor_the_volume(tmp_path, syntax):
    files = write_series(tmp_path / "study", make_volume(), syntax=syntax)
    data = files[3].read_bytes()
    files[3].write_bytes(data[:-600] + b"\0" * 600 if syntax != "explicit" else data[:-600])
    (tmp_path / "study.zip").write_bytes(zip_of(tmp_path / "study"))
    gc.collect()
    gc.disable()
    try:
        assert isinstance(outcome(tmp_path / "study.zip"), str)
        opened = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
        assert not any("study.zip" in name for name in opened)
        assert "cspine-volume" not in Path("/proc/self/maps").read_text()
    finally:
        gc.enable()


def test_a_deflate_bomb_is_refused(tmp_path):
    files = write_series(tmp_path, make_volume(), syntax="deflated")
    data = files[0].read_bytes()
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    meta_end = 132 + 12 + int.from_bytes(data[140:144], "little")
    bomb = stream.compress(b"\0" * (100 << 20)) + stream.flush()
    files[0].write_bytes(data[:meta_end] + bomb)
    assert "inflates to more than" in outcome(tmp_path)
