import dataclasses
import json
import re
import time

import numpy as np
import pytest
from made_up import make_split, read_rows

from cspine_jax import metrics as scores
from cspine_jax.config import EvalConfig
from cspine_jax.errors import DataError
from cspine_jax.evaluation import evaluate, format_table
from cspine_jax.evaluation.predictions import aggregate

QUICK = EvalConfig(bootstrap=50)
HISTORY = [
    {"step": 10, "split": "train", "loss": 0.9, "fracture": 0.5, "lr": 1e-4, "examples_per_second": 9.0},
    {"step": 20, "split": "train", "loss": 0.7, "fracture": 0.4, "lr": 2e-4},
    {"step": 20, "split": "validation", "loss": 0.8, "fracture": 0.5, "presence_auc": 0.9, "slice_auc": None},
]


def picture(uid, index):
    return np.random.default_rng(index).integers(-1000, 1500, (32, 40)).astype(np.int16)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation")
    parts = {"validation": make_split(10, seed=1), "test": make_split(12, seed=2)}
    result = evaluate(parts, QUICK, out, phantom=True, history=HISTORY, read_slice=picture, title="<trial>")
    return out, parts, result


def test_files_and_returned_figures_agree(run):
    out, parts, result = run
    files = {"predictions.csv", "validation.csv", "slices.csv", "metrics.json", "report.html"}
    assert {p.name for p in out.iterdir()} == files
    assert json.loads((out / "metrics.json").read_text()) == json.loads(json.dumps(result))
    rows = read_rows(out / "predictions.csv")
    assert [row["StudyInstanceUID"] for row in rows] == parts["test"].uids
    rows = read_rows(out / "validation.csv")
    assert [row["StudyInstanceUID"] for row in rows] == parts["validation"].uids
    table = aggregate(parts["validation"], result["thresholds"]["presence"]["value"]).targets
    np.testing.assert_allclose([float(row["C3"]) for row in rows], table[:, 3], atol=1e-5)
    assert len((out / "slices.csv").read_text().splitlines()) == 1 + 12 * 64


def test_figures_are_those_of_the_metrics_room(run):
    _, parts, result = run
    test = parts["test"]
    table = aggregate(test, result["thresholds"]["presence"]["value"]).targets
    assert not np.isnan(table).any()
    threshold = result["thresholds"]["patient"]["value"]
    labels = test.labels
    assert result["patient"]["auc"]["value"] == pytest.approx(scores.roc_auc(labels[:, 0], table[:, 0]))
    assert result["patient"]["sensitivity"]["value"] == pytest.approx(
        scores.sensitivity(labels[:, 0], table[:, 0], threshold)
    )
    assert result["vertebra"]["auc"]["value"] == pytest.approx(
        scores.roc_auc(labels[:, 1:].ravel(), table[:, 1:].ravel())
    )
    each = [scores.roc_auc(test.presence[:, j].astype(float), test.vertebra[:, j]) for j in range(7)]
    assert result["presence"]["mean_auc"]["value"] == pytest.approx(np.mean(each))
    losses = result["rsna_log_loss"]
    for kind in "ABC":
        assert losses["p"][kind]["value"] == pytest.approx(scores.rsna_log_loss(labels, table, kind))
        optimal = scores.rsna_log_loss(labels, scores.score_optimal(table), kind)
        assert losses["score_optimal"][kind]["value"] == pytest.approx(optimal)
    for level in ("presence", "slice", "slice_level", "vertebra", "patient"):
        entry = result[level]["auc"]
        assert entry["low"] <= entry["value"] <= entry["high"]


def test_thresholds_come_from_validation_alone(run, tmp_path):
    _, parts, result = run
    other = evaluate(
        {"validation": parts["validation"], "test": make_split(5, seed=9, noise=3)}, QUICK, tmp_path, phantom=True
    )
    assert other["thresholds"] == result["thresholds"]
    table = aggregate(parts["validation"], result["thresholds"]["presence"]["value"]).targets
    best, f1 = scores.best_f1_threshold(parts["validation"].labels[:, 0], table[:, 0])
    assert result["thresholds"]["patient"] == {"value": best, "f1": f1, "source": "validation"}


def test_confusions_count_everything(run):
    _, parts, result = run
    for name, counts in result["vertebra"]["confusion"].items():
        assert sum(counts.values()) == 12
        assert counts["tp"] + counts["fn"] == parts["test"].labels[:, int(name[1])].sum()
    table = np.array(result["presence"]["level_confusion"])
    assert table.sum() == (parts["test"].presence.sum(axis=1) <= 1).sum()
    assert np.trace(table) > 0.6 * table.sum()


def test_the_table_is_aligned_and_says_whose_figures_are_whose(run):
    _, _, result = run
    text = format_table(result)
    lines = text.splitlines()
    assert "ours (phantom) [95% CI]" in lines[0] and "document B (RSNA, theirs)" in lines[0]
    column = lines[0].index("document B")
    for figure in ("0.945", "0.959", "0.980", "0.946", "0.835", "0.748", "0.996", "0.747"):
        assert any(line[column:].startswith(figure) for line in lines), figure
    assert max(map(len, lines)) <= 120
    assert "say nothing of clinical accuracy" in text
    assert f"{result['patient']['auc']['value']:.3f}" in text


def test_the_page_is_self_contained_and_escaped(run):
    out, _, result = run
    page = (out / "report.html").read_text()
    assert not re.search(r"(?:src|href)=(?!\"data:)", page) and "http" not in page and "url(" not in page
    assert "<trial>" not in page and "&lt;trial&gt;" in page
    assert page.count("data:image/png;base64,") == 12
    for phrase in ("phantom data", "Phantom figures say nothing of clinical accuracy", "Research only", "Reliability"):
        assert phrase in page
    assert page.count("<svg") == 3 + 4  # ROC, PR, reliability; loss, its parts, learning rate, validation
    assert f"{result['slice']['auc']['value']:.3f}" in page


def test_the_page_is_well_formed(run):
    from html.parser import HTMLParser

    out, _, _ = run
    stack, void = [], {"meta", "img", "br", "circle", "path"}

    class Check(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in void:
                stack.append(tag)

        def handle_endtag(self, tag):
            if tag not in void:
                assert stack.pop() == tag

    Check().feed((out / "report.html").read_text())
    assert stack == []


def test_examples_are_what_they_claim(run):
    from cspine_jax.evaluation.examples import pick_examples

    _, parts, result = run
    test, threshold = parts["test"], result["thresholds"]["slice"]["value"]
    aggregated = aggregate(test, 0.5)
    right, wrong = pick_examples(test, aggregated, threshold, 6)
    assert len(right) == 6
    for example in right + wrong:
        row = np.flatnonzero((np.array(test.uids)[test.study] == example.uid) & (test.index == example.index))[0]
        truth = bool(test.slice_fracture[row])
        assert (
            example.kind
            == {(1, 1): "TP", (1, 0): "FN", (0, 1): "FP", (0, 0): "TN"}[truth, example.probability >= threshold]
        )
        assert example.right == (truth == (example.probability >= threshold))
    assert {e.kind for e in right} == {"TP", "TN"} and len({e.uid for e in right if e.kind == "TP"}) == 3
    best = max(p for p, y in zip(np.nan_to_num(aggregated.slices), test.slice_fracture, strict=True) if y)
    assert max(e.probability for e in right) == pytest.approx(best)


@pytest.mark.parametrize("model_type", [1, 2])
def test_given_vertebrae_are_not_reported_as_the_models_own(model_type, tmp_path):
    parts = {name: make_split(6, seed=seed, model_type=model_type) for name, seed in (("validation", 1), ("test", 2))}
    result = evaluate(parts, QUICK, tmp_path, phantom=True, model_type=model_type)
    assert "presence" not in result and result["vertebra"]["auc"]["value"] > 0.8
    assert f"Type {model_type}: vertebra probabilities are an input" in format_table(result)
    assert "Vertebra presence AUC" not in (tmp_path / "report.html").read_text()


def test_empty_validation_and_one_class(tmp_path):
    test = make_split(4, seed=3, positive=0.0)
    none = make_split(0, seed=1)
    for validation in ({}, {"validation": none}):
        result = evaluate({"test": test, **validation}, QUICK, tmp_path, phantom=False)
        assert {entry["source"] for entry in result["thresholds"].values()} == {"default"}
        assert result["patient"]["auc"]["value"] is None and result["patient"]["specificity"]["value"] is not None
        text = format_table(result)
        assert "n/a" in text and "Threshold 0.5 for" in text and "ours (this data)" in text
        assert "phantom" not in (tmp_path / "report.html").read_text().split("</style>")[1].lower()


def test_without_masks_and_boxes_the_unknown_is_left_out_and_counted(tmp_path):
    test = make_split(6, seed=4, masked=0.0, boxed=0.0)
    result = evaluate({"validation": make_split(6, seed=5), "test": test}, QUICK, tmp_path, phantom=True)
    assert result["presence"]["questions"] == 0 and result["presence"]["unknown"] == 6 * 64 * 7
    fractured = int(test.labels[:, 0].sum())
    assert 0 < fractured < 6 and result["slice"]["unknown"] == fractured * 64
    assert result["patient"]["auc"]["value"] is not None
    assert f"{fractured * 64} unknown left out" in format_table(result)


def test_unknown_labels_are_left_out(tmp_path):
    test = make_split(8, seed=6)
    labels = test.labels.copy()
    labels[0] = np.nan
    result = evaluate({"test": dataclasses.replace(test, labels=labels)}, QUICK, tmp_path, phantom=True)
    assert result["patient"]["questions"] == 7 and result["patient"]["unknown"] == 1
    assert result["counts"]["test"]["studies_labelled"] == 7
    assert result["rsna_log_loss"]["p"]["A"]["value"] is not None


def test_a_level_that_is_never_seen_is_named_and_not_zero(tmp_path):
    test = make_split(6, seed=7)
    vertebra = test.vertebra.copy()
    vertebra[test.study == 2, 6] *= 1e-4
    result = evaluate(
        {"validation": make_split(8, seed=8), "test": dataclasses.replace(test, vertebra=vertebra)},
        QUICK,
        tmp_path,
        phantom=True,
    )
    assert result["not_visible"] == {test.uids[2]: ["C7"]}
    rows = read_rows(tmp_path / "predictions.csv")
    assert rows[2]["C7"] == "" and float(rows[2]["C1"]) > 0 and float(rows[1]["C7"]) > 0
    assert "1 vertebrae in 1 studies not visible" in format_table(result)
    assert "Not visible to the model" in (tmp_path / "report.html").read_text()


def test_nothing_to_report_is_an_error(tmp_path):
    with pytest.raises(DataError, match="test"):
        evaluate({"validation": make_split(2)}, QUICK, tmp_path, phantom=True)


def test_the_level_target_shows_one_slice_truth(tmp_path):
    result = evaluate({"test": make_split(4)}, QUICK, tmp_path, phantom=True, fracture_target="level")
    assert "B's truth" not in format_table(result) and "Slice shows a fracture" in format_table(result)


def test_forty_studies_take_seconds(tmp_path):
    parts = {"validation": make_split(40, 80, seed=1), "test": make_split(40, 80, seed=2)}
    start = time.process_time()
    evaluate(parts, EvalConfig(), tmp_path, phantom=True, history=HISTORY, read_slice=picture)
    assert time.process_time() - start < 8


def test_no_prevalence_is_0_and_no_validation_table_is_an_old_one(tmp_path):
    """What stands in for a hidden level must not say that a fracture is impossible."""
    validation = make_split(6, seed=5)
    labels = validation.labels.copy()
    labels[:, 3] = 0
    validation = dataclasses.replace(validation, labels=labels)
    parts = {"validation": validation, "test": make_split(4)}
    result = evaluate(parts, QUICK, tmp_path, phantom=True)
    assert result["prevalence"]["C3"] == pytest.approx(0.5 / 7)
    assert result["prevalence"]["C1"] == pytest.approx((labels[:, 1].sum() + 0.5) / 7)
    evaluate({"test": parts["test"]}, QUICK, tmp_path, phantom=True)
    assert not (tmp_path / "validation.csv").exists()
