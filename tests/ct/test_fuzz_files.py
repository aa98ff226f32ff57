"""Mutated single files: pydicom's and pydicom-data's real ones, multi-frame images, NIfTI volumes."""

import nibabel as nib
import numpy as np
import pytest

from cspine_jax.ct import Volume
from tests.ct.dicom_factory import make_volume
from tests.ct.fuzz import COUNTS, REAL_FILES, Fuzz, made_enhanced, mutate, mutate_field, real_secrets, run_series


def test_every_real_test_file_is_read_or_refused():
    assert len(REAL_FILES) > 150
    fuzz = Fuzz(real_secrets())
    for path in REAL_FILES:
        if path.stat().st_size < 3_000_000:
            fuzz.read(path)
    fuzz.report("real files as they are", most_unforeseen=0.02)


@pytest.mark.slow
def test_many_mutated_real_files(tmp_path):
    fuzz, rng = Fuzz(real_secrets()), np.random.default_rng(4)
    files = [path for path in REAL_FILES if path.stat().st_size < 300_000]
    assert len(files) > 100
    for number in range(COUNTS["files"]):
        change = mutate if rng.random() < 0.5 else mutate_field
        (tmp_path / "real.dcm").write_bytes(change(files[number % len(files)].read_bytes(), rng))
        fuzz.read(tmp_path / "real.dcm")
    fuzz.report("real files")
    assert fuzz.seen.total() == COUNTS["files"]


@pytest.mark.slow
def test_many_mutated_multiframe_images(tmp_path):
    fuzz = Fuzz(["secret"])
    run_series(fuzz, made_enhanced(tmp_path), COUNTS["enhanced"], seed=7)
    fuzz.report("multi-frame images")
    assert fuzz.seen.total() == COUNTS["enhanced"] and min(fuzz.seen.values()) > 150, fuzz.seen


def test_mutated_nifti(tmp_path):
    run_nifti(tmp_path, 60, seed=0)


@pytest.mark.slow
def test_many_mutated_nifti(tmp_path):
    fuzz = run_nifti(tmp_path, COUNTS["nifti"], seed=5)
    assert fuzz.seen.total() == COUNTS["nifti"] and min(fuzz.seen.values()) > 100, fuzz.seen


def run_nifti(folder, count: int, seed: int) -> Fuzz:
    """Volumes of several types, plain and gzipped; half of the mutations fall on the 348 bytes of the header."""
    fuzz, rng = Fuzz(), np.random.default_rng(seed)
    affine = np.diag([-0.4, -0.45, 0.625, 1])
    originals = []
    for kind in ("int16", "float32", "int32", "uint8"):
        hu = make_volume((12, 10, 8)).transpose(2, 1, 0)
        data = np.clip(hu // 8 + 128, 0, 255) if kind == "uint8" else hu
        image = nib.Nifti1Image(data.astype(kind), affine)
        image.header.set_slope_inter(8 if kind == "uint8" else 1, -1024 if kind == "uint8" else 0)
        for suffix in (".nii", ".nii.gz"):
            nib.save(image, folder / f"whole{suffix}")
            originals.append((suffix, (folder / f"whole{suffix}").read_bytes()))
    for suffix, data in originals:
        (folder / f"study{suffix}").write_bytes(data)
        assert isinstance(fuzz.read(folder / f"study{suffix}"), Volume)
    fuzz.seen.clear()
    for number in range(count):
        suffix, data = originals[number % len(originals)]
        mutant = bytearray(data)
        if rng.random() < 0.5:
            for _ in range(int(rng.integers(1, 4))):
                at, size = int(rng.integers(0, min(352, len(mutant)))), int(rng.integers(1, 9))
                mutant[at : at + size] = rng.choice([rng.bytes(size), b"\xff" * size, b"\0" * size])[:size].ljust(size)
        else:
            mutant = mutate(data, rng)
        (folder / f"study{suffix}").write_bytes(mutant)
        fuzz.read(folder / f"study{suffix}")
    fuzz.report("NIfTI")
    return fuzz
