"""Study tables to files: clinical probabilities, empty cells, thresholds of validation, intervals, the page."""

import csv
import json

import numpy as np
import pytest

from cspine_jax.anatomy import TARGETS
from cspine_jax.config import EvalConfig
from cspine_jax.errors import DataError
from cspine_jax.evaluation.targets import TargetTable, evaluate_targets, write_targets
from cspine_jax.metrics import roc_auc, rsna_log_loss, score_optimal
from cspine_jax.metrics.target_table import read_targets


def made_up(studies, seed):
    """Half of the patients broken, at one level; probabilities that know it roughly."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((studies, 8))
    broken = np.arange(studies) % 2 == 0
    labels[broken, 1 + rng.integers(0, 7, broken.sum())] = 1
    labels[:, 0] = broken
    p = np.clip(0.15 + 0.5 * labels + rng.normal(0, 0.15, labels.shape), 0.01, 0.99)
    return TargetTable([f"1.2.{seed}.{k}" for k in range(studies)], labels, p)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation")
    tables = {"validation": made_up(30, 1), "test": made_up(24, 2)}
    tables["test"].probabilities[3, 5] = np.nan
    tables["test"].probabilities[4] = np.nan
    metrics = evaluate_targets(
        tables, EvalConfig(bootstrap=50), out, phantom=True, facts={"model": "made up"},
        left_out={"no mask": ["1.9"]}, title="a run",
    )  # fmt: skip
    return out, tables, metrics


def test_the_files(evaluated):
    out, tables, metrics = evaluated
    uids, p = read_targets(out / "predictions.csv", allow_empty=True)
    assert uids == list(tables["test"].uids)
    np.testing.assert_allclose(p, tables["test"].probabilities, atol=1e-5)
    with (out / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[3]["C5"] == "" and set(list(rows[4].values())[1:]) == {""}
    _, validation = read_targets(out / "validation.csv")
    np.testing.assert_allclose(validation, tables["validation"].probabilities, atol=1e-5)
    _, submitted = read_targets(out / "score_optimal.csv")
    prevalence = np.array([metrics["prevalence"][name] for name in TARGETS])
    filled = np.where(np.isnan(p), prevalence[None], p)
    np.testing.assert_allclose(submitted, score_optimal(filled), atol=1e-4)
    assert json.loads((out / "metrics.json").read_text()) == metrics


def test_the_figures(evaluated):
    _, tables, metrics = evaluated
    test = tables["test"]
    seen = ~np.isnan(test.probabilities[:, 0])
    auc = metrics["targets"]["patient_overall"]["auc"]
    assert auc["value"] == pytest.approx(roc_auc(test.labels[seen, 0], test.probabilities[seen, 0]))
    assert auc["low"] <= auc["value"] <= auc["high"]
    assert metrics["targets"]["C1-C7"]["examples"] == 24 * 7 - 8
    known = tables["validation"].labels
    prevalence = (known.sum(0) + 0.5) / (len(known) + 1)
    filled = np.where(np.isnan(test.probabilities), prevalence[None], test.probabilities)
    assert metrics["rsna_log_loss"]["as given"]["A"]["value"] == pytest.approx(rsna_log_loss(test.labels, filled))
    assert metrics["not_visible"] == {
        "validation": {},
        "test": {"1.2.2.3": ["C5"], "1.2.2.4": [f"C{j}" for j in range(1, 8)]},
    }
    assert metrics["left_out"] == {"no mask": ["1.9"]}
    assert metrics["counts"]["test"]["studies_not_visible"] == 1


def test_the_page(evaluated):
    text = (evaluated[0] / "report.html").read_text()
    for part in ("a run: evaluation", "phantom data", "ROC", "Reliability", "patient_overall", "C1-C7", "made up",
                 "Not visible", "1 studies: no mask", "Phantom figures say nothing"):  # fmt: skip
        assert part in text
    assert "nan" not in text.lower().replace("maintenance", "")


def test_nothing_to_report_is_an_error(tmp_path):
    blank = TargetTable(["1"], np.zeros((1, 8)), np.full((1, 8), np.nan))
    with pytest.raises(DataError, match="none of 1 test studies has a probability"):
        evaluate_targets({"validation": blank, "test": blank}, EvalConfig(), tmp_path, phantom=False)


def test_logits_and_odd_shapes_are_refused():
    with pytest.raises(DataError, match=r"outside 0\.\.1"):
        TargetTable(["1"], np.zeros((1, 8)), np.full((1, 8), 1.5))
    with pytest.raises(DataError, match=r"labels has shape \(1, 7\), expected \(1, 8\)"):
        TargetTable(["1"], np.zeros((1, 7)), np.zeros((1, 8)))


def test_parts_are_a_column(tmp_path):
    write_targets(tmp_path / "p.csv", ["a", "b"], np.full((2, 8), 0.25), ["train", "none"])
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["part"] for row in rows] == ["train", "none"] and rows[0]["C7"] == "0.25"
