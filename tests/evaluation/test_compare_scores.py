"""The figures of a comparison against plain computations, its tests, its verdicts and its files."""

import csv
import json
import math
from html.parser import HTMLParser

import numpy as np
import pytest
from compare_tables import model, probabilities, truth
from scipy import stats

from cspine_jax import metrics
from cspine_jax.errors import DataError
from cspine_jax.evaluation import resample
from cspine_jax.evaluation.compare import (
    Settings,
    compare,
    outside_model,
    terminal,
    write_comparison,
    write_markdown,
)
from cspine_jax.evaluation.compare.scores import decide, difference, holm, score
from cspine_jax.evaluation.compare.uncertainty import describe_sets, spread, where_errors_lie
from cspine_jax.metrics.target_table import read_targets

QUICK = Settings(resamples=100)


def brute_delong(labels, a, b):
    """DeLong et al. 1988 with the double loops of their paper."""
    scores = np.stack([a, b])
    x, y = scores[:, labels == 1], scores[:, labels == 0]
    psi = (y[:, None, :] < x[:, :, None]) + 0.5 * (y[:, None, :] == x[:, :, None])
    auc, v10, v01 = psi.mean((1, 2)), psi.mean(2), psi.mean(1)
    s10, s01 = np.cov(v10), np.cov(v01)
    s = s10 / x.shape[1] + s01 / y.shape[1]
    z = (auc[0] - auc[1]) / math.sqrt(s[0, 0] + s[1, 1] - 2 * s[0, 1])
    return auc, s, 2 * stats.norm.sf(abs(z))


def scored(labels, p, fold, drawn):
    return score(labels, p, fold, drawn, p)


def test_delong_is_what_the_paper_says():
    _, labels, fold = truth(60)
    a, b = np.round(probabilities(labels), 1), np.round(probabilities(labels, 2.5, 2), 1)  # with ties
    drawn = resample.weights(60, 50)
    auc, s, p = brute_delong(labels[:, 0], a[:, 0], b[:, 0])
    one, other = scored(labels, a, fold, drawn), scored(labels, b, fold, drawn)
    found = difference(labels, one, other, "patient_auc")
    assert found["p"] == pytest.approx(p) and found["test"] == "DeLong, paired"
    assert found["difference"]["value"] == pytest.approx(auc[0] - auc[1])
    half = 1.959964 * math.sqrt(s[0, 0]) / (auc[0] * (1 - auc[0]))
    odds = math.log(auc[0] / (1 - auc[0]))
    assert one.figure("patient_auc")["low"] == pytest.approx(1 / (1 + math.exp(half - odds)))


def test_every_figure_is_that_of_the_metrics():
    _, labels, fold = truth()
    p = probabilities(labels)
    drawn = resample.weights(len(p), 20)
    found = scored(labels, p, fold, drawn)
    for k in "ABC":
        assert found.figure(f"rsna_p_{k}")["value"] == pytest.approx(metrics.rsna_log_loss(labels, p, k))
        optimal = metrics.rsna_log_loss(labels, metrics.score_optimal(p), k)
        assert found.figure(f"rsna_optimal_{k}")["value"] == pytest.approx(optimal)
    group = np.repeat(np.arange(len(p)), 7)
    y, q = labels[:, 1:].ravel(), p[:, 1:].ravel()
    for name, value in (
        ("auc", metrics.roc_auc(y, q, drawn[:, group])),
        ("brier", metrics.brier(y, q, drawn[:, group])),
        ("ece", metrics.calibration_error(y, q, 10, drawn[:, group])),
        ("log_loss", metrics.log_loss(y, q, drawn[:, group])),
    ):
        np.testing.assert_allclose(found.sampled[f"vertebra_{name}"], value)
    yes = p[:, 1:] >= found.thresholds["vertebra"].of_study[:, None]
    np.testing.assert_allclose(
        found.sampled["vertebra_f1"], metrics.f1_score(y, yes.ravel().astype(float), 0.5, drawn[:, group])
    )
    within = [metrics.roc_auc(labels[fold == k, 0], p[fold == k, 0]) for k in range(5)]
    assert found.figure("patient_auc_within_folds")["value"] == pytest.approx(np.mean(within))


def test_verdicts_follow_the_adjusted_p():
    assert holm([0.01, None, 0.04, 0.03]) == [0.03, None, 0.06, 0.06]
    assert holm([]) == []
    tests = [{"p": 0.01, "ahead": "a"}, {"p": 0.04, "ahead": "b"}, {"p": 0.9, "ahead": "a"}, {"p": None, "ahead": "b"}]
    decide(tests)
    assert [entry["better"] for entry in tests] == ["a", None, None, None]


def test_the_better_model_wins_and_a_copy_does_not():
    _, labels, fold = truth(200)
    good, bad = probabilities(labels, 0.8), probabilities(labels, 3, 2)
    drawn = resample.weights(200, 200)
    a, b = scored(labels, good, fold, drawn), scored(labels, bad, fold, drawn)
    for name in ("rsna_p_A", "patient_auc", "vertebra_auc"):
        assert difference(labels, a, b, name)["ahead"] == "a" and difference(labels, b, a, name)["ahead"] == "b"
        assert difference(labels, a, b, name)["p"] < 1e-4
        same = difference(labels, a, a, name)
        assert (same["p"], same["ahead"], same["difference"]["value"]) == (1, None, 0)


def test_a_difference_without_variance_decides_nothing():
    labels = np.zeros((5, 8))
    labels[:2, :2] = 1
    perfect, constant = np.where(labels == 1, 0.9, 0.1), np.full(labels.shape, 0.5)
    drawn = resample.weights(5, 20)
    one, other = (scored(labels, p, np.arange(5) % 2, drawn) for p in (perfect, constant))
    found = difference(labels, one, other, "patient_auc")
    assert found["difference"]["value"] == 0.5 and found["ahead"] == "a" and found["p"] is None
    assert difference(labels, one, one, "patient_auc")["p"] == 1


def test_what_fills_hidden_cells_brings_no_label_of_a_fold_to_its_own_threshold():
    uids, labels, fold = truth()
    rng = np.random.default_rng(3)
    p = rng.uniform(0.01, 0.03, labels.shape)
    p[(labels == 1) & (rng.random(p.shape) < 0.9)] = np.nan  # so that a filled cell would be at the best threshold

    def threshold(labels):
        found = compare(
            [model("a", uids, fold, p)], dict(zip(uids, labels, strict=True)), num_folds=5, data="phantom",
            settings=Settings(resamples=0),
        )  # fmt: skip
        return [found.rows["a"].scored.thresholds[group].value[2] for group in ("patient", "vertebra")]

    turned = labels.copy()
    turned[fold == 2] = 1 - labels[fold == 2]
    assert threshold(labels) == threshold(turned)


@pytest.fixture(scope="module")
def both():
    uids, labels, fold = truth()
    a, b = probabilities(labels, 1.2), probabilities(labels, 1.2, 2)
    a[3, 4] = a[9, 1] = b[3, 4] = np.nan
    cost = {"wall_seconds": 12.5, "training_seconds": 10.0, "prediction_seconds_a_study": 0.2, "peak_memory_mb": 900.0}
    tta = {k: ([u for u, f in zip(uids, fold, strict=True) if f == k], np.full((24, 7), 0.1)) for k in range(5)}
    found = compare(
        [model("a", uids, fold, a, cost=cost, tta=tta), model("b", uids, fold, b), outside_model("else", (uids, b))],
        dict(zip(uids, labels, strict=True)),
        num_folds=5,
        data="phantom",
        settings=QUICK,
        absent={"broken": "1 of 5 folds are missing: fold 2 (exit status 2: error: <boom>)"},
    )
    return uids, labels, fold, a, found


def test_independent_members_make_an_ensemble_that_beats_them_with_the_test_beside(both):
    *_, found = both
    entry = next(
        e for e in found.facts["ensemble_tests"] if e["ensemble"] == "ensemble-logit" and e["figure"] == "vertebra_auc"
    )
    assert entry["verdict"] == "beats its best member" and entry["p_holm"] < 0.05 and entry["difference"]["value"] > 0
    twins = [e for e in found.facts["pairs"] if (e["a"], e["b"]) == ("b", "else")]
    assert all(e["better"] is None and e["p"] == 1 for e in twins)


def test_hidden_cells_are_named_counted_and_filled_with_the_prevalence_of_training(both):
    uids, labels, fold, _, found = both
    entry = found.facts["rows"]["a"]["not_visible"]
    assert entry == {"count": 2, "cells": {uids[3]: ["C4"], uids[9]: ["C1"]}}
    others = fold != fold[3]
    wanted = (labels[others, 4].sum() + 0.5) / (others.sum() + 1)
    assert found.rows["a"].scored.p[3, 4] == pytest.approx(wanted)
    assert "a: 2 cells in 2 studies have no probability (not visible)" in terminal(found.facts)


def test_files_say_which_is_which_and_hold_it(both, tmp_path):
    uids, _, fold, a, found = both
    write_comparison(tmp_path, found, "a <b>")
    folder = tmp_path / "tables" / "a"
    names, raw = read_targets(folder / "oof.csv", allow_empty=True)
    assert names == uids
    np.testing.assert_allclose(raw, a, rtol=1e-5)
    calibrated = read_targets(folder / "calibrated.csv", allow_empty=True)[1]
    optimal = read_targets(folder / "score_optimal.csv")[1]
    assert np.isnan(calibrated[3, 4]) and not np.isnan(optimal).any()
    known = ~np.isnan(calibrated)
    np.testing.assert_allclose(optimal[known], metrics.score_optimal(calibrated)[known], rtol=1e-4)
    with (folder / "conformal_sets.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[3]["C4"] == "" and {row["C1"] for row in rows} <= {"", "none", "intact", "fractured", "unsure"}
    assert [int(row["fold"]) for row in rows] == fold.tolist()
    with (tmp_path / "comparison.csv").open() as file:
        table = {row["model"]: row for row in csv.DictReader(file)}
    assert table["a"]["data"] == "phantom" and table["a"]["folds"] == "0 1 2 3 4" and table["a"]["studies"] == "120"
    assert float(table["a"]["peak_memory_mb"]) == 900 and table["broken"]["status"].startswith("failed")
    value, low, high = (float(table["a"][f"vertebra_auc{end}"]) for end in ("", "_low", "_high"))
    assert low < value < high
    facts = json.loads((tmp_path / "comparison.json").read_text())
    assert facts["rows"]["a"]["figures"]["patient_auc"]["value"] == pytest.approx(
        found.rows["a"].scored.figure("patient_auc")["value"]
    )
    with (tmp_path / "uncertainty.csv").open() as file:
        first = next(csv.DictReader(file))
    stack = np.stack([found.aligned.p[name][0, 1] for name in ("a", "b", "else")])
    assert float(first["C1"]) == pytest.approx(stack.std(), rel=1e-4)


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.wrong = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append((tag, self.getpos()))


def test_the_page_is_whole_self_contained_and_says_what_cannot_be_compared(both, tmp_path):
    *_, found = both
    write_comparison(tmp_path, found, "a <b>")
    text = (tmp_path / "comparison.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.wrong == [] and tags.open == []
    assert "http:" not in text and "https:" not in text and "a &lt;b&gt;" in text and "&lt;boom&gt;" in text
    for words in (
        "phantom data", "cannot be compared", ".2047", ".8186", ".95-.97", ".5638", "NOT a probability",
        "score_optimal.csv", "calibrated.csv", "oof.csv", "most uncertain", "test-time", "not in the table",
    ):  # fmt: skip
        assert words in text, words
    assert text.count("<svg") == 2 * (3 + 4)


def test_markdown_goes_between_the_marks_and_nowhere_else(both, tmp_path):
    *_, found = both
    path = tmp_path / "docs.md"
    path.write_text("before\n<!-- comparison -->\nstale\n<!-- /comparison -->\nafter\n")
    for _ in range(2):
        write_markdown(path, found.facts)
    text = path.read_text()
    assert text.startswith("before\n<!-- comparison -->\n") and text.endswith("<!-- /comparison -->\nafter\n")
    assert "stale" not in text and text.count("| a | phantom | 5 | 120 |") == 1 and "| broken | - |" in text
    (tmp_path / "none.md").write_text("no marks")
    with pytest.raises(DataError, match="where the table is to go"):
        write_markdown(tmp_path / "none.md", found.facts)
    write_markdown(tmp_path / "new.md", found.facts)
    assert (tmp_path / "new.md").read_text().count("<!-- comparison -->") == 1


@pytest.mark.parametrize("labels", [np.zeros((6, 8)), np.ones((6, 8)), np.eye(6, 8)])
def test_one_class_and_a_handful_of_studies_compare_without_a_number_made_up(labels, tmp_path):
    uids, fold = [str(k) for k in range(6)], np.arange(6) % 3
    p = np.full((6, 8), 0.3)
    found = compare(
        [model("a", uids, fold, p), model("b", uids, fold, 1 - p)],
        dict(zip(uids, labels, strict=True)),
        num_folds=3,
        data="this data",
        settings=Settings(resamples=20),
    )
    write_comparison(tmp_path, found)
    assert "NaN" not in (tmp_path / "comparison.json").read_text()
    assert "nan" not in terminal(found.facts) and ("n/a" in terminal(found.facts)) == (len(np.unique(labels)) == 1)


def test_where_errors_lie_by_hand():
    wrong = np.zeros(20, bool)
    wrong[[0, 1, 10]] = True
    found = where_errors_lie(np.arange(20)[::-1].astype(float), wrong)  # example 0 is the least sure
    assert found["share_of_errors"] == {"0.1": pytest.approx(2 / 3), "0.2": pytest.approx(2 / 3)}
    flat = where_errors_lie(np.zeros(20), wrong)
    assert flat["share_of_errors"] == {"0.1": pytest.approx(0.1), "0.2": pytest.approx(0.2)} and flat["auc"] == 0.5
    none = where_errors_lie(np.r_[np.nan, np.arange(19)], np.zeros(20, bool))
    assert none["vertebrae"] == 19 and none["share_of_errors"]["0.1"] is None and none["auc"] is None


def test_spread_needs_two_members():
    found = spread(np.array([[0.1, np.nan, np.nan], [0.3, 0.5, np.nan]]))
    np.testing.assert_allclose(found, [0.1, np.nan, np.nan])


def test_sets_are_described_by_class():
    labels, sets = np.array([[0.0, 1.0, 1.0]]), np.array([[1, 1, -1]])
    found = describe_sets(labels, sets, np.ones((1, 1)))
    assert found["coverage"]["all"]["value"] == 0.5 and found["coverage"]["fractured"]["examples"] == 1
    assert found["no_probability"] == 1 and found["sets"]["intact"] == 2 and found["mean_size"]["value"] == 1
