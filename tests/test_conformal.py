"""Conformal sets: the quantile by hand, exact finite-sample coverage by simulation, the classes kept apart."""

import math

import numpy as np
import pytest
from scipy import stats

from cspine_jax.metrics.conformal import SETS, ConformalSets, conformal_quantile, coverage, covers, fit_sets, set_size


def test_the_quantile_is_the_n_plus_1_one():
    scores = np.arange(1, 10) / 10  # n = 9: (9 + 1) .9 = the 9th
    assert conformal_quantile(scores, 0.1) == 0.9
    assert conformal_quantile(scores[:8], 0.1) == math.inf  # ceil(9 x .9) = 9 > 8
    assert conformal_quantile(scores, 0.2) == 0.8
    assert conformal_quantile(scores, 0.5) == 0.5
    assert conformal_quantile(np.zeros(0), 0.1) == math.inf
    for miss in (0.0, 1.0, -1):
        with pytest.raises(ValueError, match="miss"):
            conformal_quantile(scores, miss)


def exchangeable(rng, shape, positive=0.3):
    y = rng.random(shape) < positive
    return y.astype(float), 1 / (1 + np.exp(-(2 * y - 1 + rng.normal(size=shape))))


@pytest.mark.parametrize(("n", "miss"), [(9, 0.1), (20, 0.1), (37, 0.25)])
def test_marginal_coverage_is_exactly_what_the_theorem_says(n, miss):
    rng = np.random.default_rng(0)
    repeats, hits = 20000, 0
    labels, p = exchangeable(rng, (repeats, n + 1))
    for y, q in zip(labels, p, strict=True):
        sets = fit_sets(y[:n], q[:n], miss, mondrian=False)
        hits += bool(covers(y[n:], sets(q[n:]))[0])
    exact = min(math.ceil((n + 1) * (1 - miss) - 1e-9), n + 1) / (n + 1)
    assert abs(hits / repeats - exact) < 4 * math.sqrt(exact * (1 - exact) / repeats)
    assert exact >= 1 - miss


def test_each_class_is_covered_exactly_under_mondrian_and_the_rare_one_is_not_otherwise():
    rng = np.random.default_rng(1)
    repeats, intact, fractured, miss = 8000, 40, 19, 0.1
    hits = {True: np.zeros(2), False: np.zeros(2)}
    for _ in range(repeats):
        y = np.r_[np.zeros(intact), np.ones(fractured)]
        p = 1 / (1 + np.exp(-(1.2 * y - 2 + rng.normal(size=len(y)))))  # fractures are mostly called intact
        new = 1 / (1 + np.exp(-(np.array([-2, -0.8]) + rng.normal(size=2))))
        for mondrian, count in hits.items():
            count += covers(np.array([0, 1]), fit_sets(y, p, miss, mondrian=mondrian)(new))
    for k, n in ((0, intact), (1, fractured)):
        exact = math.ceil((n + 1) * (1 - miss) - 1e-9) / (n + 1)
        assert abs(hits[True][k] / repeats - exact) < 4 * math.sqrt(exact * (1 - exact) / repeats)
    assert hits[False][1] / repeats < 0.85


def test_ties_only_ever_widen_the_sets():
    rng = np.random.default_rng(2)
    labels, p = exchangeable(rng, (4000, 21))
    p = np.round(p, 1)
    hits = [
        covers(y[20:], fit_sets(y[:20], q[:20], 0.1, mondrian=False)(q[20:]))[0] for y, q in zip(labels, p, strict=True)
    ]
    assert np.mean(hits) > 0.9


def test_the_four_sets_have_their_names():
    sets = ConformalSets(intact=0.6, fractured=0.7)(np.array([0.1, 0.5, 0.9, np.nan]))
    assert [SETS[k] for k in sets[:3]] == ["intact", "unsure", "fractured"]
    assert sets[3] == -1
    none = ConformalSets(intact=0.2, fractured=0.2)(np.array([0.5]))
    assert SETS[none[0]] == "none"
    assert set_size(np.array([0, 1, 2, 3])).tolist() == [0, 1, 1, 2]
    nothing_known = fit_sets(np.zeros(0), np.zeros(0), 0.1)
    assert SETS[nothing_known(np.array([0.3]))[0]] == "unsure"


def test_coverage_counts_and_its_interval_is_clopper_pearson():
    labels, sets = np.array([0, 0, 1, 1, 1]), np.array([1, 2, 3, 0, -1])
    found = coverage(labels, sets)
    assert (found.examples, found.covered, found.share) == (4, 2, 0.5)
    theirs = stats.binomtest(2, 4).proportion_ci(0.95, "exact")
    assert (found.low, found.high) == (pytest.approx(theirs.low), pytest.approx(theirs.high))
    assert coverage(np.zeros(3), np.ones(3, int))[2:] == (1.0, pytest.approx(0.025 ** (1 / 3)), 1.0)
    assert math.isnan(coverage(np.zeros(0), np.zeros(0, int)).share)
