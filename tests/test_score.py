"""`cspine score` on small tables: figures, thresholds, notes, and one clear line for every bad table."""

import csv
import json

import numpy as np
import pytest

from cspine_jax import metrics
from cspine_jax.anatomy import TARGETS
from cspine_jax.cli import main

HEADER = ["StudyInstanceUID", *TARGETS]


def tables(studies=40, seed=0):
    rng = np.random.default_rng(seed)
    levels = (rng.random((studies, 7)) < 0.15).astype(int)
    labels = np.concatenate([levels.any(1, keepdims=True), levels], axis=1)
    p = np.round(np.clip(0.25 + 0.3 * labels + 0.15 * rng.normal(size=labels.shape), 0, 1), 4)
    return labels, p


def write(path, values, uids=None, header=HEADER):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for k, row in enumerate(np.asarray(values, object)):
            writer.writerow([uids[k] if uids else f"1.2.{k}", *row])
    return str(path)


@pytest.fixture
def files(tmp_path):
    labels, p = tables()
    return labels, p, write(tmp_path / "train.csv", labels), write(tmp_path / "p.csv", p)


def score(capsys, labels, predictions, *options):
    code = main(["score", "--labels", labels, "--predictions", predictions, "--resamples", "50", *options])
    out = capsys.readouterr()
    return code, out.out, out.err


def refused(capsys, *arguments):
    code, out, err = score(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_json_holds_the_metrics(files, capsys):
    labels, p, label_file, prediction_file = files
    code, out, err = score(capsys, label_file, prediction_file, "--json", "--threshold", "0.4")
    assert (code, err) == (0, "")
    card = json.loads(out)
    for kind in "ABC":
        for name, table in (("as given", p), ("score-optimal", metrics.score_optimal(p))):
            entry = card["rsna_log_loss"][name][kind]
            assert entry["value"] == pytest.approx(metrics.rsna_log_loss(labels, table, kind))
            assert entry["low"] < entry["value"] < entry["high"]
    for name, y, q in (
        ("patient_overall", labels[:, 0], p[:, 0]),
        ("C3", labels[:, 3], p[:, 3]),
        ("C1-C7", labels[:, 1:].ravel(), p[:, 1:].ravel()),
    ):
        row = card["targets"][name]
        assert (row["positives"], row["examples"], row["threshold"]) == (y.sum(), len(y), 0.4)
        assert row["auc"]["value"] == pytest.approx(metrics.roc_auc(y, q))
        assert row["f1"]["value"] == pytest.approx(metrics.f1_score(y, q, 0.4))
        assert row["sensitivity"]["value"] == pytest.approx(metrics.sensitivity(y, q, 0.4))
        assert row["specificity"]["value"] == pytest.approx(metrics.specificity(y, q, 0.4))
        assert row["brier"]["value"] == pytest.approx(metrics.brier(y, q))
        assert row["ece"]["value"] == pytest.approx(metrics.calibration_error(y, q))


def test_table_names_every_target_and_rows_may_come_in_any_order(files, tmp_path, capsys):
    _labels, p, label_file, prediction_file = files
    code, out, _ = score(capsys, label_file, prediction_file)
    assert code == 0
    assert all(f"\n{name}" in out for name in (*TARGETS, "C1-C7", "as given", "score-optimal"))
    back = list(range(len(p)))[::-1]
    reversed_file = write(tmp_path / "reversed.csv", p[back], [f"1.2.{k}" for k in back])
    assert score(capsys, label_file, reversed_file)[1] == out


def test_best_f1_warns(files, capsys):
    labels, p, *paths = files
    code, out, err = score(capsys, *paths, "--json", "--threshold", "best-f1")
    assert code == 0
    assert "warning: thresholds were chosen on the data they are scored on" in err
    card = json.loads(out)
    assert card["targets"]["C1"]["threshold"] == metrics.best_f1_threshold(labels[:, 1], p[:, 1])[0]
    assert any("optimistic" in note for note in card["notes"])


def test_thresholds_from_a_file(files, tmp_path, capsys):
    *_, label_file, prediction_file = files
    wanted = {name: 0.1 * k for k, name in enumerate((*TARGETS, "C1-C7"))}
    path = tmp_path / "thresholds.json"
    path.write_text(json.dumps(wanted))
    card = json.loads(score(capsys, label_file, prediction_file, "--json", "--thresholds", str(path))[1])
    assert {name: row["threshold"] for name, row in card["targets"].items()} == wanted
    path.write_text(json.dumps({"C1": 0.3}))
    assert "no threshold for patient_overall, C2" in refused(
        capsys, label_file, prediction_file, "--thresholds", str(path)
    )


def test_score_optimal_predictions_are_calibrated_back(files, tmp_path, capsys):
    _labels, p, label_file, prediction_file = files
    optimal = write(tmp_path / "optimal.csv", metrics.score_optimal(p))
    plain = json.loads(score(capsys, label_file, prediction_file, "--json")[1])
    card = json.loads(score(capsys, label_file, optimal, "--json", "--score-optimal")[1])
    assert card["targets"]["C5"]["brier"]["value"] == pytest.approx(plain["targets"]["C5"]["brier"]["value"])
    assert card["rsna_log_loss"]["as given"]["A"]["value"] == pytest.approx(
        plain["rsna_log_loss"]["score-optimal"]["A"]["value"]
    )


def test_subset_and_unlabelled_studies(files, tmp_path, capsys):
    _labels, p, label_file, _ = files
    some = write(tmp_path / "some.csv", p[:20], [*(f"1.2.{k}" for k in range(19)), "9.9"])
    err = refused(capsys, label_file, some)
    assert "21 of 40 labelled studies have no prediction, the first is 1.2.19" in err
    card = json.loads(score(capsys, label_file, some, "--json", "--subset")[1])
    assert card["studies"] == 19
    assert any("1 predicted studies without labels" in note and "9.9" in note for note in card["notes"])
    other = write(tmp_path / "other.csv", p, [f"7.{k}" for k in range(40)])
    assert "no study of the labels is in the predictions" in refused(capsys, label_file, other, "--subset")


def test_empty_cells_need_a_fill(files, tmp_path, capsys):
    labels, p, label_file, _ = files
    holes = p.astype(object)
    holes[3, 5] = ""
    path = write(tmp_path / "holes.csv", holes)
    assert "holes.csv line 5, study 1.2.3, column C5: is empty" in refused(capsys, label_file, path)
    card = json.loads(score(capsys, label_file, path, "--json", "--fill", "prevalence")[1])
    filled = p.copy()
    filled[3, 5] = labels[:, 5].mean()
    assert card["not_visible"] == 1
    assert card["targets"]["C5"]["examples"] == 39
    assert card["rsna_log_loss"]["as given"]["A"]["value"] == pytest.approx(metrics.rsna_log_loss(labels, filled))


@pytest.mark.parametrize(
    ("cell", "message"),
    [("nan", "must be within 0..1"), ("1.2", "must be within 0..1"), ("-0.1", "within 0..1"), ("x", "is no number")],
)
def test_a_bad_probability_is_named(files, tmp_path, capsys, cell, message):
    _, p, label_file, _ = files
    bad = p.astype(object)
    bad[2, 0] = cell
    err = refused(capsys, label_file, write(tmp_path / "bad.csv", bad))
    assert f"line 4, study 1.2.2, column patient_overall: {cell!r}".replace("'", "") in err.replace("'", "")
    assert message in err


def test_bad_tables_are_named(files, tmp_path, capsys):
    _labels, p, label_file, prediction_file = files
    short = write(tmp_path / "short.csv", p[:, :7], header=HEADER[:-1])
    assert "column C7 is missing" in refused(capsys, label_file, short)
    twice = write(tmp_path / "twice.csv", p, [*(f"1.2.{k}" for k in range(39)), "1.2.0"])
    assert "study 1.2.0 was already on line 2" in refused(capsys, label_file, twice)
    soft = write(tmp_path / "soft.csv", p)
    assert "must be 0 or 1" in refused(capsys, soft, prediction_file)
    empty = tmp_path / "empty.csv"
    empty.write_text(",".join(HEADER) + "\n")
    assert "holds no study" in refused(capsys, label_file, str(empty))
    assert "cannot be read" in refused(capsys, label_file, str(tmp_path / "none.csv"))
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00\x81")
    assert "no CSV text" in refused(capsys, label_file, str(binary))


@pytest.mark.parametrize(
    "options", [("--threshold", "2"), ("--threshold", "high"), ("--fill", "much"), ("--bins", "1"), ("--seed", "-1")]
)
def test_bad_options_are_named(files, capsys, options):
    *_, label_file, prediction_file = files
    assert options[0] in refused(capsys, label_file, prediction_file, *options)
