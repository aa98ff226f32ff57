"""Document B's three formulas by hand, and what happens where nothing is visible."""

import numpy as np
import pytest

from cspine_jax import aggregation

F = np.zeros((3, 7))
V = np.zeros((3, 7))
F[0, :2], V[0, :2] = (0.5, 0.1), (1.0, 0.5)
F[1, :2], V[1, :2] = (0.2, 0.9), (0.25, 1.0)
F[2] = 0.7  # slice 2 shows nothing


def test_slice_probability_by_hand():
    p = aggregation.slice_probability(F, V)
    assert p[:2] == pytest.approx([(0.5 + 0.05) / 1.5, (0.05 + 0.9) / 1.25])
    assert np.isnan(p[2])


def test_slice_probability_of_type_1_is_the_output():
    f = np.array([0.3, 0.6, 0.9])
    assert aggregation.slice_probability(f, V).tolist() == f.tolist()
    assert aggregation.slice_probability(f[:, None], V).tolist() == f.tolist()


def test_vertebra_probability_by_hand():
    p = aggregation.vertebra_probability(F, V)
    assert p[:2] == pytest.approx([(0.5 + 0.05) / 1.25, (0.05 + 0.9) / 1.5])
    assert np.isnan(p[2:]).all()


def test_vertebra_probability_of_type_1_uses_the_slice_for_every_level():
    p = aggregation.vertebra_probability(np.array([0.3, 0.6, 0.9]), V)
    assert p[:2] == pytest.approx([(0.3 + 0.15) / 1.25, (0.15 + 0.6) / 1.5])


def test_patient_probability_by_hand():
    p = np.array([0.5, 0.2, 0, 0, 0, 0, 0.1])
    assert aggregation.patient_probability(p) == pytest.approx(1 - 0.5 * 0.8 * 0.9)


def test_invisible_levels_are_left_out_never_zero():
    p = np.array([0.5, np.nan, np.nan, 0.2, np.nan, np.nan, np.nan])
    both = aggregation.patient_probability(np.stack([p, np.full(7, np.nan)]))
    assert both[0] == pytest.approx(1 - 0.5 * 0.8)
    assert np.isnan(both[1])


def test_min_visibility_hides_what_no_slice_clearly_shows():
    v = V.copy()
    v[:, 3] = 0.1
    assert aggregation.vertebra_probability(F, v)[3] == pytest.approx(0.7 / 3)
    assert np.isnan(aggregation.vertebra_probability(F, v, min_visibility=0.5)[3])
    assert np.isnan(aggregation.slice_probability(F, v, min_visibility=0.5)[2])
    assert aggregation.slice_probability(F, v)[2] == pytest.approx(0.7)


def test_many_studies_in_any_order_equal_one_at_a_time():
    rng = np.random.default_rng(0)
    study = rng.integers(0, 4, 50)
    f, v = rng.random((50, 7)), rng.random((50, 7)) * (rng.random((50, 7)) < 0.3)
    levels = aggregation.study_probabilities(f, v, study, 5)
    for k in range(4):
        one = aggregation.vertebra_probability(f[study == k], v[study == k])
        np.testing.assert_allclose(levels[k], one, rtol=1e-12)
    assert np.isnan(levels[4]).all()  # a study without slices
    targets = aggregation.study_targets(f, v, study, 5)
    assert targets.shape == (5, 8)
    np.testing.assert_array_equal(targets[:, 1:], levels)
    np.testing.assert_array_equal(targets[:, 0], aggregation.patient_probability(levels))


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"\(3, 6\)"):
        aggregation.slice_probability(F[:, :6], V)
    with pytest.raises(ValueError, match=r"0..1 for each of 3"):
        aggregation.study_probabilities(F, V, np.array([0, 1, 2]), 2)


def test_top_mean_is_of_the_five_largest_of_those_that_are_there():
    f = np.array([0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4])
    assert aggregation.top_mean(f) == pytest.approx((0.9 + 0.8 + 0.7 + 0.4 + 0.3) / 5)
    valid = np.array([[1, 0, 1, 1, 0, 0, 0], [0] * 7, [1] * 7])
    p = aggregation.top_mean(np.where(valid > 0, f, np.nan), valid)
    assert p[0] == pytest.approx((0.1 + 0.2 + 0.8) / 3)
    assert np.isnan(p[1]) and p[2] == aggregation.top_mean(f)


def test_the_gold_patient_by_hand():
    f = np.zeros((7, 3))
    f[0] = 0.5, 0.2, 0.1
    f[4] = 0.3, 0.4, 0.0
    expected = 0.4 * (1 - 0.5 * 0.6) + 0.01 * 0.5 + 0.6 * 0.7
    assert aggregation.gold_patient(f, 0.7) == pytest.approx(expected)
    assert aggregation.gold_patient(np.ones((7, 3)), 1.0) == 1.0  # the weights add up to 1.01


def test_absent_levels_are_left_out_of_the_gold_targets():
    f, valid = np.full((2, 7, 15), 0.25), np.ones((2, 7, 15))
    valid[0, :6] = 0
    valid[1] = 0
    targets = aggregation.gold_targets(np.where(valid > 0, f, np.nan), np.array([0.5, 0.5]), valid)
    assert targets.shape == (2, 8) and np.isnan(targets[0, 1:7]).all() and targets[0, 7] == 0.25
    assert targets[0, 0] == pytest.approx(0.41 * 0.25 + 0.6 * 0.5)
    assert np.isnan(targets[1]).all()
    with pytest.raises(ValueError, match=r"\(7, 15\)"):
        aggregation.top_mean(f, valid[0])
