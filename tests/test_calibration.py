"""Calibrators: what they must find, agreement with scikit-learn, and every edge without a NaN."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from cspine_jax.metrics import fit_isotonic, fit_platt, fit_temperature, log_loss
from cspine_jax.metrics.calibration import FITS, Isotonic, Logistic, expit, logit
from cspine_jax.metrics.clinical import drawn_odds, undrawn, unweighted


def drawn(n=20000, slope=1.0, bias=0.0, seed=0):
    """Labels whose true log odds are slope x + bias where the model says x."""
    rng = np.random.default_rng(seed)
    x = rng.normal(scale=2, size=n)
    return (rng.random(n) < expit(slope * x + bias)).astype(float), expit(x)


def test_temperature_and_platt_find_what_the_labels_were_drawn_from():
    labels, p = drawn(slope=0.5)
    assert fit_temperature(labels, p).slope == pytest.approx(0.5, abs=0.03)
    labels, p = drawn(slope=2.0, bias=-1.0)
    found = fit_platt(labels, p)
    assert (found.slope, found.bias) == (pytest.approx(2, abs=0.1), pytest.approx(-1, abs=0.08))
    assert fit_temperature(labels, p).bias == 0


def test_platt_is_logistic_regression_on_the_log_odds():
    labels, p = drawn(slope=0.7, bias=0.5)
    theirs = LogisticRegression(C=np.inf).fit(logit(p)[:, None], labels)
    found = fit_platt(labels, p)
    assert (found.slope, found.bias) == (
        pytest.approx(theirs.coef_[0, 0], abs=2e-3),
        pytest.approx(theirs.intercept_[0], abs=2e-3),
    )


def test_isotonic_agrees_with_scikit_learn_inside():
    labels, p = drawn(500)
    p = np.round(p, 2)  # ties
    ours = fit_isotonic(labels, p)(p)
    x, y, w = np.r_[p.min(), p, p.max()], np.r_[1, labels, 0], np.r_[0.5, np.ones(len(p)), 0.5]
    theirs = IsotonicRegression(out_of_bounds="clip").fit(x, y, sample_weight=w).predict(p)
    np.testing.assert_allclose(ours, theirs, atol=1e-7)


@pytest.mark.parametrize("name", FITS)
def test_calibrated_probabilities_cost_less_where_the_model_is_overconfident(name):
    labels, p = drawn(slope=0.4)
    new, q = drawn(slope=0.4, seed=1)
    assert log_loss(new, FITS[name](labels, p)(q)) < log_loss(new, q) - 0.05


def test_drawing_positives_more_often_is_undone_exactly():
    """Eight pictures x with known joint shares of (fractured example, fractured level): both posteriors come back."""
    rng = np.random.default_rng(3)
    joint = rng.random((8, 3))  # nothing broken; another level is; this level is
    joint /= joint.sum()
    prevalence = joint[:, 1:].sum()
    for fraction in (0.05, 0.4, 0.9):
        weights = np.array([(1 - fraction) / (1 - prevalence)] + [fraction / prevalence] * 2)
        seen = joint * weights
        seen /= seen.sum(1, keepdims=True)
        odds, example = drawn_odds(fraction, prevalence), seen[:, 1:].sum(1)
        found = undrawn(np.stack([example, seen[:, 2]], 1), example, odds)
        truth = joint / joint.sum(1, keepdims=True)
        np.testing.assert_allclose(found, np.stack([truth[:, 1:].sum(1), truth[:, 2]], 1))
        np.testing.assert_allclose(undrawn(example, example, odds), unweighted(example, odds))
    assert drawn_odds(0.0, 0.1) == 1.0 and undrawn([0.3], [0.3], 1.0) == pytest.approx([0.3])
    assert undrawn([0.9], [0.1], 0.1) == 1.0  # a network that contradicts itself: no more than sure


EDGES = {
    "one class": ([1, 1, 1], [0.2, 0.5, 0.9]),
    "the other class": ([0, 0, 0, 0], [0.2, 0.5, 0.9, 0.9]),
    "perfect separation": ([0] * 5 + [1] * 5, np.linspace(0.1, 0.9, 10)),
    "perfectly wrong": ([1] * 5 + [0] * 5, np.linspace(0.1, 0.9, 10)),
    "infinite log odds, right": ([0, 0, 1, 1], [0.0, 0.0, 1.0, 1.0]),
    "infinite log odds, wrong": ([1, 0, 1, 0], [0.0, 0.0, 1.0, 1.0]),
    "all equal": ([0, 1, 0], [0.3, 0.3, 0.3]),
    "all one half": ([0, 1, 0], [0.5, 0.5, 0.5]),
    "one": ([1], [0.3]),
    "none": ([], []),
    "NaN": ([0, np.nan, 1, 1], [0.1, 0.5, np.nan, 0.9]),
}


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("edge", EDGES)
def test_edges_give_rising_probabilities_strictly_inside_0_1(name, edge):
    labels, p = (np.asarray(x, float) for x in EDGES[edge])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        q = FITS[name](labels, p)(np.linspace(0, 1, 101))
    assert np.isfinite(q).all() and (q > 0).all() and (q < 1).all()
    assert (np.diff(q) >= -1e-12).all()


@pytest.mark.parametrize("name", FITS)
@given(data=st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), max_size=25))
@settings(max_examples=60, deadline=None)
def test_any_data_give_a_rising_finite_map(name, data):
    labels, p = np.array([row[0] for row in data], float), np.array([row[1] for row in data], float)
    q = FITS[name](labels, p)(np.linspace(0, 1, 33))
    assert np.isfinite(q).all() and (q > 0).all() and (q < 1).all() and (np.diff(q) >= -1e-12).all()


def test_nothing_to_learn_from_changes_nothing_and_nan_stays():
    p = np.array([0.1, np.nan, 0.7])
    for fit in FITS.values():
        np.testing.assert_allclose(fit(np.zeros(0), np.zeros(0))(p), p)
        assert np.isnan(fit(np.array([0.0, 1.0]), np.array([0.2, 0.8]))(p)).tolist() == [False, True, False]


def test_one_study_moves_isotonic_only_as_far_as_its_half_examples_allow():
    one = fit_isotonic(np.array([1.0]), np.array([0.3]))
    assert isinstance(one, Isotonic) and one(np.array([0.3])) == pytest.approx(0.75)  # (1 + .5) / (1 + .5 + .5)


def test_wrong_input_is_refused():
    for fit in FITS.values():
        with pytest.raises(ValueError, match="same length"):
            fit(np.zeros(3), np.zeros(2))
        with pytest.raises(ValueError, match="0 or 1"):
            fit(np.array([0.5]), np.array([0.5]))


def test_logistic_identity():
    p = np.linspace(0.01, 0.99, 9)
    np.testing.assert_allclose(Logistic()(p), p)
