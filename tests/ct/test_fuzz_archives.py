"""Mutated archives and DICOMDIR: the container damaged, or whole around damaged files."""

import gc
import io
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.fileset import FileSet

from tests.ct.dicom_factory import make_volume, write_series
from tests.ct.fuzz import COUNTS, Fuzz, made_series, mutate, mutate_field

METHODS = (*[zipfile.ZIP_DEFLATED] * 4, *[zipfile.ZIP_STORED] * 3, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


def test_mutated_archives(tmp_path):
    run_archives(tmp_path, 120, seed=0)


@pytest.mark.slow
def test_many_mutated_archives(tmp_path):
    fuzz = run_archives(tmp_path, COUNTS["archives"], seed=6)
    assert fuzz.seen.total() == COUNTS["archives"] and min(fuzz.seen.values()) > 300, fuzz.seen


def run_archives(folder: Path, count: int, seed: int) -> Fuzz:
    fuzz, rng = Fuzz(["secret"]), np.random.default_rng(seed)
    series = [sorted(path.iterdir()) for path in made_series(folder / "series")]
    contents = [{f"a/{path.name}": path.read_bytes() for path in files} for files in series]
    disc = dicomdir(folder)
    for number in range(count):
        kind = number % 4
        if kind == 0:
            fuzz.read(mutated_disc(disc, rng))
            for file, data in disc.items():
                file.write_bytes(data)
            continue
        members = dict(contents[number // 4 % len(contents)])
        if kind == 1:  # whole around a damaged file
            victim = rng.choice(list(members))
            members[victim] = (mutate if rng.random() < 0.5 else mutate_field)(members[victim], rng)
        archive = packed(members, METHODS[number // 4 % len(METHODS)])
        if kind == 2:  # anywhere
            archive = mutate(archive, rng)
        elif kind == 3:  # in the directory at the archive's end
            start = archive.rindex(b"PK\x01\x02", 0, archive.rindex(b"PK\x05\x06"))
            start = archive.index(b"PK\x01\x02") if rng.random() < 0.5 else start
            archive = archive[:start] + mutate(archive[start:], rng)
        (folder / "study.zip").write_bytes(archive)
        fuzz.read(folder / "study.zip")
    fuzz.report("archives and DICOMDIR")
    return fuzz


def packed(members: dict[str, bytes], method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def dicomdir(folder: Path) -> dict[Path, bytes]:
    """A disc with one series: its files with their content, the DICOMDIR first."""
    files = write_series(folder / "loose", make_volume((3, 34, 36)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # a FileSet leaves the removal of its scratch folder to chance
        _write_disc(files, folder / "disc")
        gc.collect()
    files = sorted((folder / "disc").rglob("*"), key=lambda path: path.name != "DICOMDIR")
    return {path: path.read_bytes() for path in files if path.is_file()}


def _write_disc(files: list[Path], folder: Path) -> None:
    disc = FileSet()
    for path in files:
        dataset = pydicom.dcmread(path)
        dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20260101", "120000", "1"
        disc.add(dataset)
    disc.write(folder)


def mutated_disc(disc: dict[Path, bytes], rng: np.random.Generator) -> Path:
    directory, *images = disc
    victim = directory if rng.random() < 0.6 else images[int(rng.integers(0, len(images)))]
    victim.write_bytes(mutate(disc[victim], rng))
    return directory
