"""Mutated series of the phantom; a file of its own, so that the slow suite fills its workers evenly."""

import pytest

from cspine_jax.phantom.dataset import write_dataset
from tests.ct.fuzz import COUNTS, Fuzz, run_series


@pytest.mark.slow
def test_many_mutated_phantoms(tmp_path):
    """Four slices of a phantom study, once uncompressed and once as JPEG-Lossless."""
    folders = []
    for codec, seed in (("explicit", 0), ("mixed", 2)):
        write_dataset(tmp_path / codec, 3, seed=seed, size=48, scale=0.4, codec=codec, workers=1)
        for study in (tmp_path / codec / "train_images").iterdir():
            for file in sorted(study.iterdir(), key=lambda file: int(file.stem))[4:]:
                file.unlink()
            folders.append(study)
    assert any(b"1.2.840.10008.1.2.4.70" in next(folder.iterdir()).read_bytes() for folder in folders)
    fuzz = Fuzz()
    run_series(fuzz, folders, COUNTS["phantom"], seed=3)
    fuzz.report("phantom")
    assert fuzz.seen.total() == COUNTS["phantom"] and min(fuzz.seen.values()) > 200, fuzz.seen
