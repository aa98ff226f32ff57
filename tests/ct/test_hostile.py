"""Damaged, mutated and foreign files: StudyError or a volume, never another exception, never long."""

import io
import time
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest

from cspine_jax.ct import Volume, read_study
from cspine_jax.errors import StudyError
from tests.ct.dicom_factory import SYNTAXES, make_volume, write_series

REAL_FILES = sorted(
    path for path in (Path(pydicom.__file__).parent / "data").rglob("*") if path.is_file() and path.suffix != ".py"
)


def outcome(path) -> Volume | str:
    """The volume or the refusal; anything else fails the test, and so do 5 seconds."""
    start = time.monotonic()
    try:
        result = read_study(path)
        said = " ".join((*result.warnings, result.study_uid, result.series_uid, result.kernel))
    except StudyError as error:
        result = said = str(error)
        assert "\n" not in result and len(result) < 1000
    assert "secret" not in said.lower() and "Lestrade" not in said  # patients of the factory and of pydicom's files
    assert time.monotonic() - start < 5
    return result


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes changed, removed, repeated or inserted; half of the time within the header."""
    mutant = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        end = len(mutant) if rng.random() < 0.5 else min(len(mutant), 1200)
        at, size = int(rng.integers(0, max(end, 1))), int(rng.integers(1, 9))
        kind = rng.integers(0, 6)
        if kind == 0:
            mutant[at : at + size] = rng.bytes(len(mutant[at : at + size]))
        elif kind == 1:
            mutant[at : at + size] = b"\xff" * len(mutant[at : at + size])
        elif kind == 2:
            del mutant[at : at + size]
        elif kind == 3:
            mutant[at:at] = mutant[at : at + 20 * size]
        elif kind == 4:
            mutant[at:at] = rng.bytes(size)
        else:
            del mutant[at + (len(mutant) - at) // 2 :]
    return bytes(mutant)


def test_every_real_test_file_is_read_or_refused(tmp_path):
    assert len(REAL_FILES) > 50
    for path in REAL_FILES:
        outcome(path)


REAL_CODECS = """CT_small 693_J2KI J2K_pixelrep_mismatch JPEGLSNearLossless_08 MR_small_RLE MR_small_bigendian
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


def corpus(folder: Path) -> list[Path]:
    """A three-slice series in every transfer syntax."""
    hu = make_volume((3, 34, 36))
    for syntax in SYNTAXES:
        write_series(folder / syntax, hu, syntax=syntax)
    return [folder / syntax for syntax in SYNTAXES]


def run_mutants(tmp_path: Path, count: int, seed: int) -> dict[str, int]:
    rng = np.random.default_rng(seed)
    series = corpus(tmp_path / "corpus")
    seen = {"volume": 0, "refused": 0}
    for number in range(count):
        folder = series[number % len(series)]
        files = sorted(folder.iterdir())
        victim = files[int(rng.integers(0, 3))]
        whole = victim.read_bytes()
        victim.write_bytes(mutate(whole, rng))
        seen["volume" if isinstance(outcome(folder), Volume) else "refused"] += 1
        victim.write_bytes(whole)
    return seen


def test_mutated_series(tmp_path):
    seen = run_mutants(tmp_path, 180, seed=0)
    assert min(seen.values()) > 5, seen  # both ends were reached


@pytest.mark.slow
def test_many_mutated_series(tmp_path):
    """6,000 mutants."""
    seen = run_mutants(tmp_path, 3_000, seed=1)
    assert min(seen.values()) > 100, seen
    rng = np.random.default_rng(2)
    files = [path for path in REAL_FILES if path.stat().st_size < 300_000]
    for number in range(2_000):
        (tmp_path / "real.dcm").write_bytes(mutate(files[number % len(files)].read_bytes(), rng))
        outcome(tmp_path / "real.dcm")
    archive = zip_of(corpus(tmp_path / "zipped")[1])
    for _ in range(1_000):
        (tmp_path / "study.zip").write_bytes(mutate(archive, rng))
        outcome(tmp_path / "study.zip")


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


def test_mutated_zips(tmp_path):
    rng = np.random.default_rng(0)
    archive = zip_of(corpus(tmp_path)[1])
    for _ in range(60):
        (tmp_path / "study.zip").write_bytes(mutate(archive, rng))
        outcome(tmp_path / "study.zip")


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
    import os

    write_series(tmp_path / "study", make_volume())
    (tmp_path / "study" / "loop").symlink_to(tmp_path / "study")
    os.mkfifo(tmp_path / "study" / "pipe.dcm")
    assert isinstance(outcome(tmp_path / "study"), Volume)


def test_a_deflate_bomb_is_refused(tmp_path):
    import zlib

    files = write_series(tmp_path, make_volume(), syntax="deflated")
    data = files[0].read_bytes()
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    meta_end = 132 + 12 + int.from_bytes(data[140:144], "little")
    bomb = stream.compress(b"\0" * (100 << 20)) + stream.flush()
    files[0].write_bytes(data[:meta_end] + bomb)
    assert "inflates to more than" in outcome(tmp_path)
