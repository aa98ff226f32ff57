"""Every score against values worked out by hand, anchors of the real label statistics, and scikit-learn."""

import math

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st

from cspine_jax import metrics
from cspine_jax.anatomy import TARGETS

# A synthetic table with the aggregate counts of the 2,019 real studies: positives and pairwise co-occurrence of each
# vertebra, number of fractured vertebrae a study. Key: bits C1..C7 (C1 = 1); value: studies.
PATTERNS = {
    0: 1058, 1: 62, 2: 174, 3: 38, 4: 19, 5: 1, 6: 9, 7: 3, 8: 34, 9: 1, 10: 6, 12: 8, 14: 1, 16: 38, 17: 6, 19: 2,
    24: 12, 27: 1, 28: 4, 30: 2, 32: 78, 33: 2, 34: 6, 35: 4, 37: 1, 38: 1, 40: 2, 48: 31, 49: 3, 50: 2, 52: 2, 54: 1,
    56: 7, 60: 6, 63: 1, 64: 218, 65: 10, 66: 17, 67: 4, 68: 4, 72: 1, 78: 1, 79: 1, 80: 2, 88: 2, 89: 1, 93: 1, 94: 1,
    96: 83, 97: 2, 98: 3, 99: 1, 100: 1, 102: 1, 104: 2, 112: 20, 114: 2, 115: 1, 118: 1, 120: 10, 124: 2, 126: 1,
}  # fmt: skip


def like_the_real_labels() -> np.ndarray:
    levels = np.array([[key >> j & 1 for j in range(7)] for key, n in PATTERNS.items() for _ in range(n)], float)
    return np.concatenate([levels.any(1, keepdims=True), levels], axis=1)


def test_the_table_has_the_real_aggregate_counts():
    labels = like_the_real_labels()
    assert labels.shape == (2019, 8)
    assert labels.sum(0).tolist() == [961, 146, 285, 73, 108, 162, 277, 393]
    assert np.bincount(labels[:, 1:].sum(1).astype(int)).tolist() == [1058, 623, 239, 64, 26, 7, 2]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda q: np.full(8, 0.5), {"A": 0.6931, "B": 0.6931, "C": 0.6931}),
        (lambda q: q, {"A": 0.5638, "B": 0.6127, "C": 0.5932}),
        (metrics.score_optimal, {"A": 0.5757, "B": 0.5668, "C": 0.5496}),
    ],
    ids=["half", "prevalence", "score-optimal prevalence"],
)
def test_rsna_log_loss_of_constants(answer, expected):
    labels = like_the_real_labels()
    p = np.broadcast_to(answer(labels.mean(0)), labels.shape)
    for kind, value in expected.items():
        assert metrics.rsna_log_loss(labels, p, kind) == pytest.approx(value, abs=5e-5), kind


def two_studies():
    """One healthy, one with C2 fractured; every -log is a multiple of log 2."""
    labels = np.zeros((2, 8))
    labels[1, [0, 2]] = 1
    p = np.full((2, 8), 0.5)
    p[0, 0], p[1, 0], p[1, 2] = 0.75, 0.25, 0.125  # -log2: 2, 2, 3
    return labels, p


def test_rsna_log_loss_by_hand():
    labels, p = two_studies()
    # study 1: (7 * 2 + 7 * 1) / 14; study 2: (14 * 2 + 2 * 3 + 6) / 22
    first, second = 21 / 14, 40 / 22
    log2 = math.log(2)
    assert metrics.rsna_log_loss(labels, p, "A") == pytest.approx(log2 * (first + second) / 2)
    assert metrics.rsna_log_loss(labels, p, "B") == pytest.approx(log2 * (21 + 40) / (14 + 22))
    # columns: patient (14 + 28) / 21 = 2; C2 (1 + 6) / 3; six others 1
    assert metrics.rsna_log_loss(labels, p, "C") == pytest.approx(log2 * (7 * 2 + 7 / 3 + 6) / 14)
    assert metrics.rsna_log_loss(labels, p) == metrics.rsna_log_loss(labels, p, "A")


def test_rsna_log_loss_clips():
    labels = np.zeros((1, 8))
    sure = np.full((1, 8), 1.0)
    assert metrics.rsna_log_loss(labels, sure) == pytest.approx(-math.log(1e-15), rel=1e-2)
    assert metrics.rsna_log_loss(labels, sure, eps=1e-3) == pytest.approx(-math.log(1e-3))
    assert metrics.rsna_log_loss(labels, 1 - sure) == pytest.approx(0, abs=1e-14)


def test_rsna_log_loss_weights_repeat_studies():
    labels, p = two_studies()
    repeated = np.repeat([0, 1], [3, 1])
    for kind in "ABC":
        by_weight = metrics.rsna_log_loss(labels, p, kind, weights=np.array([[1.0, 1.0], [3.0, 1.0]]))
        assert by_weight[0] == pytest.approx(metrics.rsna_log_loss(labels, p, kind))
        assert by_weight[1] == pytest.approx(metrics.rsna_log_loss(labels[repeated], p[repeated], kind))


@pytest.mark.parametrize(
    ("labels", "probabilities", "kind", "message"),
    [
        (np.zeros((2, 8)), np.zeros((3, 8)), "A", r"\(2, 8\).*\(3, 8\)"),
        (np.zeros((2, 7)), np.zeros((2, 7)), "A", "studies, 8"),
        (np.full((2, 8), 0.5), np.zeros((2, 8)), "A", "0 or 1"),
        (np.zeros((2, 8)), np.zeros((2, 8)), "D", "A, B or C"),
    ],
)
def test_rsna_log_loss_refuses(labels, probabilities, kind, message):
    with pytest.raises(ValueError, match=message):
        metrics.rsna_log_loss(labels, probabilities, kind)


def test_score_optimal_is_optimal_and_clinical_inverts_it():
    assert metrics.score_optimal(np.array([0.0, 0.2, 0.5, 1.0])) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    p = np.linspace(0.01, 0.99, 25)
    assert metrics.clinical_probability(metrics.score_optimal(p)) == pytest.approx(p)
    grid = np.linspace(0.001, 0.999, 999)
    expected_loss = -2 * p[:, None] * np.log(grid) - (1 - p[:, None]) * np.log1p(-grid)
    assert grid[expected_loss.argmin(1)] == pytest.approx(metrics.score_optimal(p), abs=1e-3)


Y = np.array([0, 0, 1, 1, 0, 1.0])
S = np.array([0.1, 0.4, 0.4, 0.8, 0.35, 0.2])


def test_p_itself_is_the_better_answer_to_a():
    """Of calibrated probabilities: A divides by each study's weights, so that a positive weighs little more."""
    rng = np.random.default_rng(0)
    levels = rng.beta(0.15, 1.6, (20_000, 7))
    y = (rng.random(levels.shape) < levels).astype(float)
    p = np.concatenate([1 - np.prod(1 - levels, axis=1, keepdims=True), levels], axis=1)
    y = np.concatenate([y.max(1, keepdims=True), y], axis=1)
    of_p, optimal = ({kind: metrics.rsna_log_loss(y, q, kind) for kind in "ABC"} for q in (p, metrics.score_optimal(p)))
    assert of_p["A"] < optimal["A"] and optimal["B"] < of_p["B"] and optimal["C"] < of_p["C"]


def test_roc_auc_by_hand():
    # positives .4 .8 .2 against negatives .1 .4 .35: (2 + 1/2) + 3 + 1 = 6.5 of 9
    assert metrics.roc_auc(Y, S) == pytest.approx(6.5 / 9)


def test_average_precision_by_hand():
    # .8: 1/1 of 1/3; .4: 2/3, another third; .2: 3/5
    assert metrics.average_precision(Y, S) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)


def test_threshold_scores_by_hand():
    # at 0.4: called .4(-) .4(+) .8(+): TP 2, FP 1, FN 1, TN 2
    assert metrics.confusion(Y, S, 0.4) == (2, 1, 1, 2)
    assert metrics.sensitivity(Y, S, 0.4) == pytest.approx(2 / 3)
    assert metrics.specificity(Y, S, 0.4) == pytest.approx(2 / 3)
    assert metrics.precision(Y, S, 0.4) == pytest.approx(2 / 3)
    assert metrics.accuracy(Y, S, 0.4) == pytest.approx(4 / 6)
    assert metrics.f1_score(Y, S, 0.4) == pytest.approx(2 / 3)


def test_best_f1_threshold_by_hand():
    # F1 by number called: .8: 2/4; .4: 4/6; .35: 4/7; .2: 6/8; .1: 6/9
    threshold, f1 = metrics.best_f1_threshold(Y, S)
    assert (threshold, f1) == (pytest.approx(0.15), pytest.approx(0.75))
    assert metrics.f1_score(Y, S, threshold) == pytest.approx(f1)


def test_best_f1_threshold_without_positives():
    threshold, f1 = metrics.best_f1_threshold(np.zeros(3), np.array([0.1, 0.2, 0.3]))
    assert threshold == 0.5
    assert math.isnan(f1)


def test_best_f1_threshold_between_neighbouring_floats():
    low = 0.5
    scores = np.array([low, np.nextafter(low, 1)])
    assert metrics.best_f1_threshold(np.array([0, 1]), scores) == (scores[1], 1.0)


def test_calibration_by_hand():
    y, p = np.array([0, 1, 1, 0]), np.array([0.1, 0.15, 0.9, 1.0])
    assert metrics.brier(y, p) == pytest.approx((0.01 + 0.85**2 + 0.01 + 1) / 4)
    assert metrics.log_loss(y, p, eps=1e-3) == pytest.approx(
        -(math.log(0.9) + math.log(0.15) + math.log(0.9) + math.log(1e-3)) / 4
    )
    # bins of a tenth: {.1, .15}: |1 - .25|; {.9, 1}: |1 - 1.9|
    assert metrics.calibration_error(y, p, bins=10) == pytest.approx((0.75 + 0.9) / 4)
    curve = metrics.reliability_curve(y, p, bins=10)
    assert curve.count.tolist() == [0, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    assert curve.predicted[[1, 9]] == pytest.approx([0.125, 0.95])
    assert curve.observed[[1, 9]] == pytest.approx([0.5, 0.5])
    assert np.isnan(curve.observed[0])


def test_undefined_scores_are_nan():
    ones = np.ones(3)
    p = np.array([0.2, 0.5, 0.9])
    for score in (metrics.roc_auc, metrics.specificity):
        assert math.isnan(score(ones, p))
    for score in (metrics.roc_auc, metrics.sensitivity, metrics.average_precision):
        assert math.isnan(score(1 - ones, p))
    assert math.isnan(metrics.precision(ones, p, 0.95))
    assert math.isnan(metrics.f1_score(1 - ones, p, 0.95))
    assert math.isnan(metrics.roc_auc(np.array([]), np.array([])))
    assert math.isnan(metrics.brier(np.array([]), np.array([])))


SCORES = (
    metrics.roc_auc,
    metrics.average_precision,
    metrics.sensitivity,
    metrics.specificity,
    metrics.precision,
    metrics.accuracy,
    metrics.f1_score,
    metrics.brier,
    metrics.log_loss,
    metrics.calibration_error,
)


@pytest.mark.parametrize("score", SCORES, ids=lambda score: score.__name__)
def test_missing_examples_are_left_out_and_weights_repeat(score):
    rng = np.random.default_rng(1)
    y, p = rng.integers(0, 2, 40).astype(float), np.round(rng.random(40), 1)
    weights = rng.integers(0, 4, (3, 40)).astype(float)
    holes_y, holes_p = y.copy(), p.copy()
    holes_y[3], holes_p[7] = np.nan, np.nan
    assert score(holes_y, holes_p) == pytest.approx(score(np.delete(y, [3, 7]), np.delete(p, [3, 7])))
    by_weight = score(y, p, weights=weights)
    assert by_weight.shape == (3,)
    for row, count in zip(by_weight, weights, strict=True):
        index = np.repeat(np.arange(40), count.astype(int))
        assert row == pytest.approx(score(y[index], p[index]))


def test_refuses_other_labels_and_shapes():
    with pytest.raises(ValueError, match="0 or 1"):
        metrics.roc_auc(np.array([0, 2]), np.array([0.1, 0.2]))
    with pytest.raises(ValueError, match="same length"):
        metrics.brier(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="end in"):
        metrics.brier(np.zeros(2), np.zeros(2), weights=np.ones((4, 3)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), min_size=2, max_size=60))
def test_agrees_with_scikit_learn(examples):
    y = np.array([label for label, _ in examples], float)
    p = np.array([score for _, score in examples]) / 9
    if not 0 < y.sum() < len(y):
        return
    called = p >= 0.5
    assert metrics.roc_auc(y, p) == pytest.approx(sk.roc_auc_score(y, p))
    assert metrics.average_precision(y, p) == pytest.approx(sk.average_precision_score(y, p))
    assert metrics.f1_score(y, p) == pytest.approx(sk.f1_score(y, called))
    assert metrics.sensitivity(y, p) == pytest.approx(sk.recall_score(y, called))
    assert metrics.brier(y, p) == pytest.approx(sk.brier_score_loss(y, p))
    assert metrics.log_loss(y, p, eps=1e-7) == pytest.approx(sk.log_loss(y, np.clip(p, 1e-7, 1 - 1e-7)))
    best, f1 = metrics.best_f1_threshold(y, p)
    assert f1 == pytest.approx(max(sk.f1_score(y, p >= t) for t in np.unique(p)))
    assert metrics.f1_score(y, p, best) == pytest.approx(f1)
    x, tpr, _ = sk.roc_curve(y, p, drop_intermediate=False)
    ours = metrics.roc_curve(y, p)
    assert ours.x == pytest.approx(x)
    assert ours.y == pytest.approx(tpr)
    precisions, recalls, _ = sk.precision_recall_curve(y, p)
    ours = metrics.precision_recall_curve(y, p)
    assert ours.y == pytest.approx(precisions[-2::-1])
    assert ours.x == pytest.approx(recalls[-2::-1])


def brute_force_delong(y, *scores):
    """Covariance of AUCs straight from the definition of the structural components."""
    positives, negatives = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    kernels = [np.array([[(s[i] > s[j]) + 0.5 * (s[i] == s[j]) for j in negatives] for i in positives]) for s in scores]
    v10, v01 = np.array([k.mean(1) for k in kernels]), np.array([k.mean(0) for k in kernels])
    s10, s01 = (np.atleast_2d(np.cov(v)) for v in (v10, v01))
    return [k.mean() for k in kernels], s10 / len(positives) + s01 / len(negatives)


def test_delong_against_its_definition():
    rng = np.random.default_rng(2)
    y = (rng.random(60) < 0.4).astype(float)
    a, b = np.round(rng.normal(size=60) + y, 1), np.round(rng.normal(size=60) + 0.3 * y, 1)
    (auc_a, auc_b), cov = brute_force_delong(y, a, b)
    assert metrics.delong_variance(y, a) == (pytest.approx(auc_a), pytest.approx(cov[0, 0]))
    test = metrics.delong_test(y, a, b)
    z = (auc_a - auc_b) / math.sqrt(cov[0, 0] + cov[1, 1] - 2 * cov[0, 1])
    assert (test.auc_a, test.auc_b, test.z) == (pytest.approx(auc_a), pytest.approx(auc_b), pytest.approx(z))
    assert test.p_value == pytest.approx(math.erfc(abs(z) / math.sqrt(2)))
    auc, low, high = metrics.delong_interval(y, a)
    assert low < auc < high
    centre = math.log(auc / (1 - auc))
    assert math.log(high / (1 - high)) - centre == pytest.approx(centre - math.log(low / (1 - low)))


def test_delong_corner_cases():
    y, s = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9])
    assert metrics.delong_interval(y, s) == (1.0, 1.0, 1.0)
    assert metrics.delong_test(y, s, s * 2) == (1.0, 1.0, 0.0, 1.0)
    assert all(math.isnan(v) for v in metrics.delong_variance(np.ones(4), s))
    assert math.isnan(metrics.delong_variance(np.array([0, 0, 0, 1]), s)[1])


def test_delong_interval_covers():
    rng = np.random.default_rng(3)
    truth = 0.5 * math.erfc(-1.0 / 2)  # N(1, 1) against N(0, 1): Phi(1 / sqrt 2)
    covered = 0
    for _ in range(400):
        y = np.repeat([0.0, 1.0], [40, 30])
        _, low, high = metrics.delong_interval(y, rng.normal(size=70) + y)
        covered += low <= truth <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_bootstrap_resamples_studies_not_slices():
    rng = np.random.default_rng(4)
    study = np.repeat(np.arange(30), 50)
    y = np.repeat(rng.integers(0, 2, 30), 50).astype(float)
    p = np.clip(np.repeat(rng.random(30), 50) + 0.01 * rng.random(1500), 0, 1)  # slices of a study nearly equal
    clustered = metrics.bootstrap(lambda w: metrics.brier(y, p, w), 1500, study=study, resamples=400)
    naive = metrics.bootstrap(lambda w: metrics.brier(y, p, w), 1500, resamples=400)
    assert clustered.value == naive.value == pytest.approx(metrics.brier(y, p))
    assert clustered.low < clustered.value < clustered.high
    assert clustered.high - clustered.low > 4 * (naive.high - naive.low)  # sqrt(50) = 7


def test_bootstrap_matches_the_standard_error_of_a_mean_and_is_seeded():
    rng = np.random.default_rng(5)
    values = rng.normal(size=400)

    def mean(w):
        return w @ values / w.sum(-1)

    estimate = metrics.bootstrap(mean, 400, resamples=4000, seed=1)
    half = 1.96 * values.std() / 20
    assert (estimate.low, estimate.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.006)
    assert estimate == metrics.bootstrap(mean, 400, resamples=4000, seed=1)
    assert estimate != metrics.bootstrap(mean, 400, resamples=4000, seed=2)
    assert math.isnan(metrics.bootstrap(mean, 400, resamples=0).low)


def test_bootstrap_leaves_out_undefined_resamples():
    y, p = np.array([0, 0, 0, 1.0]), np.array([0.1, 0.2, 0.3, 0.25])
    estimate = metrics.bootstrap(lambda w: metrics.roc_auc(y, p, w), 4, resamples=300)
    assert estimate.value == pytest.approx(2 / 3)
    assert 0 <= estimate.low <= estimate.high <= 1


def test_resample_counts():
    counts = metrics.resample_counts(20, 50, seed=3)
    assert counts.shape == (50, 20)
    assert (counts.sum(1) == 20).all()
    assert len(TARGETS) == 8
