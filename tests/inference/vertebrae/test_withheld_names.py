"""A level that could as well be its neighbour is not named."""

import numpy as np

from cspine_jax.inference.vertebrae.order import Naming
from cspine_jax.inference.vertebrae.segment import _withhold


def naming(first: float) -> Naming:
    marginals = np.zeros((2, 20))
    marginals[0, [3, 4]] = first, 1 - first
    marginals[1, [4, 5]] = 0.95, 0.05
    return Naming(np.array([3, 4]), marginals, first, 0.5, (0.0, 1 - first))


def test_an_unsure_name_is_taken_back_and_said():
    kept, lines = _withhold(naming(0.55))
    np.testing.assert_array_equal(kept.levels, [-1, 4])
    assert lines == ["1 vertebrae seen whose level is unsure, so not named; best guesses: C4 0.55"]


def test_a_sure_one_stays():
    kept, lines = _withhold(naming(0.7))
    np.testing.assert_array_equal(kept.levels, [3, 4])
    assert lines == []
