import numpy as np
import pytest

from cspine_jax import metrics
from cspine_jax.evaluation import levels, resample


@pytest.fixture(scope="module")
def questions():
    rng = np.random.default_rng(3)
    group = np.repeat(np.arange(9), 30)
    truth = rng.random(270) < 0.3 + 0.3 * (group % 3 == 0)
    score = np.clip(np.round(0.5 * rng.random(270) + 0.3 * truth, 2), 0, 1)  # rounded: many ties
    return levels.Decision(truth, score, group, np.zeros(270, int), 270)


def test_every_figure_agrees_with_the_metrics_room_in_every_resample(questions):
    drawn = resample.weights(9, 40, seed=5)
    spread = drawn[:, questions.group]
    truth, score, cut = questions.truth.astype(float), questions.score, 0.4
    figures = levels.binary_figures(questions, cut, drawn, bins=10)
    expected = {
        "accuracy": metrics.accuracy(truth, score, cut, spread),
        "auc": metrics.roc_auc(truth, score, spread),
        "sensitivity": metrics.sensitivity(truth, score, cut, spread),
        "specificity": metrics.specificity(truth, score, cut, spread),
        "precision": metrics.precision(truth, score, cut, spread),
        "f1": metrics.f1_score(truth, score, cut, spread),
        "brier": metrics.brier(truth, score, spread),
        "ece": metrics.calibration_error(truth, score, 10, spread),
    }
    assert figures.keys() == expected.keys()
    for name, values in expected.items():
        low, high = metrics.percentile_interval(np.asarray(values)[1:])
        wanted = [float(np.asarray(values)[0]), low, high]
        got = [figures[name][key] for key in ("value", "low", "high")]
        np.testing.assert_allclose(got, wanted, rtol=1e-12, err_msg=name)


def test_auc_of_every_resample_is_exact(questions):
    drawn = resample.weights(9, 25, seed=1)
    got = resample.auc(drawn, questions.truth, questions.score, questions.group)
    expected = metrics.roc_auc(questions.truth.astype(float), questions.score, drawn[:, questions.group])
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_intervals_resample_studies_and_not_slices():
    # Each study's slices are all alike: only studies carry information, so 20 copies of a slice must not narrow it.
    rng = np.random.default_rng(0)
    truth, score = rng.random(30) < 0.5, rng.random(30)
    drawn = resample.weights(30, 300)

    def width(copies):
        decision = levels.Decision(
            np.repeat(truth, copies),
            np.repeat(score, copies),
            np.repeat(np.arange(30), copies),
            np.zeros(30 * copies),
            0,
        )
        entry = levels.binary_figures(decision, 0.5, drawn, 10)["accuracy"]
        return entry["high"] - entry["low"]

    assert width(20) == pytest.approx(width(1))


def test_one_class_has_no_auc_and_no_interval():
    decision = levels.Decision(np.zeros(5, bool), np.linspace(0, 1, 5), np.arange(5), np.zeros(5, int), 5)
    figures = levels.binary_figures(decision, 0.5, resample.weights(5, 20), 10)
    assert figures["auc"] == {"value": None, "low": None, "high": None}
    assert figures["sensitivity"]["value"] is None
    assert figures["specificity"]["value"] == pytest.approx(0.4)


def test_an_interval_needs_half_of_the_resamples():
    values = np.array([0.7, 0.6, np.nan, np.nan, np.nan])
    assert resample.estimate(values) == {"value": 0.7, "low": None, "high": None}
    assert resample.estimate(np.array([0.7, 0.6, 0.6, np.nan]))["low"] == pytest.approx(0.6)


def test_no_bootstrap_gives_the_value_alone(questions):
    figures = levels.binary_figures(questions, 0.5, resample.weights(9, 0), 10)
    assert figures["auc"]["low"] is None and figures["auc"]["value"] > 0.5
