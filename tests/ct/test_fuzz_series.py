"""Mutated series: of every transfer syntax, and of real files' pixels."""

import pytest

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
