"""Mutated series: of every transfer syntax, of real files' pixels, of the phantom."""

import pytest

from cspine_jax.phantom.dataset import write_dataset
from tests.ct.fuzz import COUNTS, Fuzz, made_series, real_secrets, real_series, run_series


def test_the_slow_tests_read_enough_mutants():
    assert sum(COUNTS.values()) >= 20_000


def test_mutated_series(tmp_path):
    fuzz = Fuzz(["secret"])
    run_series(fuzz, made_series(tmp_path), 180, seed=0)
    fuzz.report("series", most_unforeseen=0.03)
    assert min(fuzz.seen.values()) > 5, fuzz.seen  # both ends were reached


@pytest.mark.slow
def test_many_mutated_series(tmp_path):
    fuzz = Fuzz(["secret"])
    run_series(fuzz, made_series(tmp_path), COUNTS["series"], seed=1)
    fuzz.report("series")
    assert fuzz.seen.total() == COUNTS["series"] and min(fuzz.seen.values()) > 500, fuzz.seen


@pytest.mark.slow
def test_many_mutated_series_of_real_files(tmp_path):
    fuzz, made = Fuzz(real_secrets()), real_series(tmp_path)
    assert len(made) > 40
    run_series(fuzz, made, COUNTS["real_series"], seed=2)
    fuzz.report("series of real files")
    assert fuzz.seen.total() == COUNTS["real_series"] and min(fuzz.seen.values()) > 300, fuzz.seen


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
