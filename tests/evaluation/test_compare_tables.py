"""Joining folds and models, and choices that must not see the fold they are used on."""

import dataclasses

import numpy as np
import pytest
from compare_tables import model, probabilities, truth

from cspine_jax.errors import DataError
from cspine_jax.evaluation.compare import (
    OF_TRUTH,
    Settings,
    align,
    compare,
    join_folds,
    merge_labels,
    outside_model,
    read_tta,
    write_comparison,
)
from cspine_jax.evaluation.compare.ensembles import ensembles, mean_known, metric_a_weights, share_below
from cspine_jax.evaluation.compare.nested import calibrate, cross_fit, fill_hidden, prevalence, thresholds
from cspine_jax.evaluation.compare.report import write_report
from cspine_jax.evaluation.compare.uncertainty import sets_across_folds
from cspine_jax.metrics import best_f1_threshold, fit_platt, rsna_log_loss
from cspine_jax.metrics.calibration import expit, logit


def test_a_study_predicted_by_two_folds_is_refused_by_name():
    row = np.full((1, 8), 0.5)
    with pytest.raises(DataError, match=r"m: study 1\.2\.3 was predicted by fold 0 and by fold 2"):
        join_folds("m", {0: (["1.2.3"], row), 2: (["1.2.3"], row)})


def test_it_is_said_who_shows_a_model_the_vertebrae():
    uids, labels, fold = truth(10)
    a, b, c = (model(name, uids, fold, probabilities(labels)) for name in "abc")
    told = [dataclasses.replace(a, by_masks=OF_TRUTH), dataclasses.replace(b, by_masks="the masks in seg"), c]
    said = align(told, dict(zip(uids, labels, strict=True)), 5).notes
    assert any("a is shown" in line and "by true masks" in line and "a new study has only" in line for line in said)
    assert any(
        "b is shown" in line and line.endswith("by the masks in seg, in the tested studies, too.") for line in said
    )
    assert not any("c is shown" in line for line in said)


def test_only_common_studies_are_compared_and_that_is_said():
    uids, labels, fold = truth(40)
    p = probabilities(labels)
    some = fold != 2
    a = model("a", uids, fold, p)
    b = model("b", [u for u, keep in zip(uids, some, strict=True) if keep], fold[some], p[some])
    found = align([a, b], dict(zip(uids[1:], labels[1:], strict=True)), 5)
    assert len(found.uids) == 31 and uids[0] not in found.uids and set(found.fold) == {0, 1, 3, 4}
    said = " ".join(found.notes)
    assert "same 31 studies" in said and "b has no prediction of 8 studies" in said and uids[2] in said
    assert f"1 predicted studies have no labels and were left out: {uids[0]}" in said
    for k, uid in enumerate(found.uids):
        np.testing.assert_array_equal(found.p["a"][k], p[uids.index(uid)])
        np.testing.assert_array_equal(found.labels[k], labels[uids.index(uid)])


def test_what_does_not_belong_together_is_refused():
    uids, labels, fold = truth(20)
    p, known = probabilities(labels), dict(zip(uids, labels, strict=True))
    with pytest.raises(DataError, match=r"study 1\.2\.0000 is tested in fold 0 of a but in fold 1 of b"):
        align([model("a", uids, fold, p), model("b", uids, (fold + 1) % 5, p)], known, 5)
    with pytest.raises(DataError, match="no study is in all tables"):
        align([model("a", uids, fold, p), outside_model("x", (["9"], p[:1]))], known, 5)
    with pytest.raises(DataError, match="no model to compare"):
        align([], known, 5)
    with pytest.raises(DataError, match=r"study 1\.2\.0003 has other labels in b"):
        merge_labels({"a": (uids, labels), "b": (uids[3:4], 1 - labels[3:4])})


def test_tables_from_elsewhere_take_the_folds_of_the_runs_or_are_dealt_into_some():
    uids, labels, fold = truth(40)
    p, known = probabilities(labels), dict(zip(uids, labels, strict=True))
    found = align([outside_model("x", (uids[::-1], p[::-1])), model("a", uids, fold, p)], known, 5)
    np.testing.assert_array_equal(found.fold, fold)
    np.testing.assert_array_equal(found.p["x"], found.p["a"])
    assert any("x is a table from elsewhere" in note for note in found.notes)
    assert set(align([outside_model("x", (uids, p))], known, 4).fold) == {0, 1, 2, 3}


@pytest.mark.parametrize("k", range(5))
def test_no_choice_for_a_fold_depends_on_its_labels(k):
    _, labels, fold = truth(100)
    p, q = probabilities(labels), probabilities(labels, 2.5, 2)
    p[::7, 3] = np.nan
    own = fold == k
    other = labels.copy()
    rng = np.random.default_rng(k)
    other[own] = (rng.random((own.sum(), 8)) < 0.5).astype(float)
    full = fill_hidden(labels, p, fold)
    np.testing.assert_array_equal(prevalence(labels, fold)[own], prevalence(other, fold)[own])
    np.testing.assert_array_equal(fill_hidden(labels, p, fold)[own], fill_hidden(other, p, fold)[own])
    a, b = (thresholds(y[:, 1:], full[:, 1:], fold) for y in (labels, other))
    assert a.value[k] == b.value[k] and (a.yes[own] == b.yes[own]).all()
    assert any(a.value[j] != b.value[j] for j in range(5) if j != k)  # the change is one that choices notice
    a, b = (calibrate(y[:, 1:], p[:, 1:], fold) for y in (labels, other))
    assert a.chosen[k] == b.chosen[k]
    np.testing.assert_array_equal(a.best[own], b.best[own])
    for name, table in a.by.items():
        np.testing.assert_array_equal(table[own], b.by[name][own])
        assert not np.allclose(table[~own], b.by[name][~own], equal_nan=True)
    a, b = (ensembles({"p": p, "q": q}, y, fold) for y in (labels, other))
    assert a.weights[k] == b.weights[k] and a.weights != b.weights
    for name, table in a.p.items():
        np.testing.assert_array_equal(table[own], b.p[name][own])
    for mondrian in (True, False):
        a, b = (sets_across_folds(y[:, 1:], p[:, 1:], fold, 0.1, mondrian=mondrian) for y in (labels, other))
        np.testing.assert_array_equal(a[own], b[own])


def test_thresholds_and_calibrators_are_those_of_the_other_folds():
    _, labels, fold = truth()
    p = probabilities(labels)
    found = thresholds(labels[:, :1], p[:, :1], fold)
    for k in range(5):
        others = fold != k
        assert found.value[k] == best_f1_threshold(labels[others, 0], p[others, 0])[0]
        fit = fit_platt(labels[others, 1:].ravel(), p[others, 1:].ravel())
        np.testing.assert_allclose(cross_fit(fit_platt, labels[:, 1:], p[:, 1:], fold)[~others], fit(p[~others, 1:]))


def test_one_fold_alone_chooses_nothing():
    _, labels, _ = truth(30)
    p, fold = probabilities(labels), np.zeros(30, int)
    assert (thresholds(labels, p, fold).value, thresholds(labels, p, fold).sources()) == ({0: 0.5}, "default")
    np.testing.assert_allclose(calibrate(labels, p, fold).best, p)
    np.testing.assert_array_equal(prevalence(labels, fold), np.full((30, 8), 0.5))
    assert (sets_across_folds(labels[:, 1:], p[:, 1:], fold, 0.1, mondrian=True) == 3).all()
    found = ensembles({"a": p, "b": p}, labels, fold).p
    assert list(found) == ["ensemble-mean", "ensemble-logit", "ensemble-weighted"]  # no ranks without others
    assert all(np.isfinite(table).all() for table in found.values())


def test_where_thresholds_come_from_is_said_fold_by_fold():
    labels, p = np.zeros((40, 1)), np.linspace(0, 1, 40)[:, None]
    labels[[1, 3]] = 1  # both in fold 1: for that one the others have one class
    found = thresholds(labels, p, np.arange(40) % 2)
    assert found.source == {0: "other folds", 1: "default"} and found.value[1] == 0.5
    assert found.sources() == "other folds: fold 0, default: fold 1"
    inner = -1 - np.arange(40) % 2  # only chosen by, and 20 tested ones
    both = thresholds(np.r_[labels, labels], np.r_[p, p], np.r_[np.zeros(40, int), inner])
    assert both.source == {-2: "default", -1: "validation studies", 0: "validation studies"}
    assert both.of(np.arange(80) < 40).sources() == "validation studies"


def test_means_of_members():
    a, b = np.full((4, 8), 0.2), np.full((4, 8), 0.6)
    a[0, 1] = b[0, 1] = np.nan
    a[1, 2] = np.nan
    found = ensembles({"a": a, "b": b}, np.eye(4, 8), np.array([0, 0, 1, 1])).p
    mean, odds = found["ensemble-mean"], found["ensemble-logit"]
    assert np.isnan(mean[0, 1]) and mean[1, 2] == 0.6 and mean[2, 2] == pytest.approx(0.4)
    assert odds[2, 2] == pytest.approx(expit((logit(0.2) + logit(0.6)) / 2))
    assert all(np.isnan(table).sum() == 1 for table in found.values())
    np.testing.assert_array_equal(mean_known(np.array([[1, np.nan], [3, np.nan]])), [2, np.nan])


def test_ranks_count_ties_half_and_stay_inside():
    np.testing.assert_allclose(
        share_below(np.array([0.1, 0.2, 0.2, 0.4]), np.array([0.0, 0.2, 0.3, 0.9, np.nan])),
        [0.125, 0.5, 0.75, 0.875, np.nan],
    )


def test_weights_are_the_best_on_a_grid_and_the_better_member_gets_more():
    _, labels, _ = truth(200)
    good, bad = probabilities(labels, 0.5), probabilities(labels, 3, 2)
    stack = np.stack([good, bad])
    assert metric_a_weights(np.stack([labels * 0.9 + 0.05, np.full_like(labels, 0.5)]), labels, slice(0, 8))[0] > 0.99
    whole = metric_a_weights(stack, labels, slice(0, 8))
    grid = np.linspace(0, 1, 101)
    losses = [rsna_log_loss(labels, w * good + (1 - w) * bad) for w in grid]
    assert whole.sum() == pytest.approx(1) and abs(whole[0] - grid[int(np.argmin(losses))]) < 0.011
    np.testing.assert_allclose(metric_a_weights(np.full((3, 2, 8), np.nan), labels[:2], slice(0, 8)), 1 / 3)


def test_tta_table(tmp_path):
    path = tmp_path / "tta.csv"
    path.write_text("StudyInstanceUID,C1,C2,C3,C4,C5,C6,C7\n1.2,0.1,,0,0,0,0,0\n")
    uids, values = read_tta(path)
    assert uids == ["1.2"] and values[0, 0] == 0.1 and np.isnan(values[0, 1])
    path.write_text("StudyInstanceUID,C1\n1.2,0.1\n")
    with pytest.raises(DataError, match=r"tta\.csv"):
        read_tta(path)


def test_one_fold_alone_chooses_by_its_validation_studies(tmp_path):
    uids, labels, fold = truth(300)
    known = dict(zip(uids, labels, strict=True))
    sharp = expit(3 * logit(probabilities(labels)))  # three times too sure
    held, chosen_by = fold == 0, fold == 1

    def part(which, p):
        return [uid for uid, kept in zip(uids, which, strict=True) if kept], p[which]

    def one_fold(name, p):
        return join_folds(name, {0: part(held, p)}, validation={0: part(chosen_by, p)})

    a, b = one_fold("a", sharp), one_fold("b", np.clip(sharp + 0.01, 0, 1))
    found = compare([a, b], known, num_folds=5, data="phantom", settings=Settings(resamples=20))
    assert found.facts["studies"] == held.sum() and found.facts["folds"] == [0]
    assert any("chosen on its 60 validation studies" in note for note in found.facts["notes"])
    assert found.facts["chosen_on"] == "its validation studies"
    write_report(tmp_path / "page.html", found, "one fold")
    said = (tmp_path / "page.html").read_text()
    assert "Calibrated on its validation studies, measured on the fold itself" in said
    assert "highest F1 on its validation studies" in said and "on the other folds" not in said
    row = found.rows["a"]
    np.testing.assert_array_equal(row.raw, sharp[held])
    y, q = labels[chosen_by, 1:].ravel(), sharp[chosen_by, 1:].ravel()
    threshold = row.facts["thresholds"]["vertebra"]
    assert threshold["source"] == "validation studies" and list(threshold["of_fold"]) == ["0"]
    assert threshold["of_fold"]["0"] == pytest.approx(best_f1_threshold(y, q)[0])
    by_hand = fit_platt(y, q)(sharp[held, 1:])
    np.testing.assert_allclose(row.calibration["vertebra"].by["platt"], by_hand, rtol=1e-6)
    figures = row.facts["calibration"]["vertebra"]
    assert figures["chosen"]["log_loss"]["value"] < 0.8 * figures["before"]["log_loss"]["value"]
    assert row.facts["conformal"]["overall"]["coverage"]["all"]["examples"] == 7 * held.sum()
    assert list(found.facts["ensemble_weights"]) == ["0"] and found.spread.shape == (held.sum(), 7)
    # the tested studies choose nothing: with other labels there, every choice is the same
    other = known | {uid: 1 - known[uid] for uid in part(held, sharp)[0]}
    again = compare([a, b], other, num_folds=5, data="phantom", settings=Settings(resamples=20))
    assert len(found.rows) > 6 and again.facts["ensemble_weights"] == found.facts["ensemble_weights"]
    for name, row in found.rows.items():
        np.testing.assert_array_equal(again.rows[name].raw, row.raw)
        np.testing.assert_array_equal(again.rows[name].calibrated, row.calibrated)
        np.testing.assert_array_equal(again.rows[name].sets, row.sets)
        assert again.rows[name].facts["thresholds"] == row.facts["thresholds"]

    without = join_folds("a", {0: part(held, sharp)})
    alone = compare([without], known, num_folds=5, data="phantom", settings=Settings(resamples=20))
    assert alone.rows["a"].facts["thresholds"]["vertebra"]["source"] == "default"
    mixed = compare([without, b], known, num_folds=5, data="phantom", settings=Settings(resamples=20))
    assert mixed.rows["b"].facts["thresholds"]["vertebra"]["source"] == "default"  # all models are chosen for alike


def test_the_fold_that_all_share_is_chosen_for_by_its_own_validation_studies():
    """One model has all folds, another the first alone, and a third table comes from elsewhere."""
    uids, labels, fold = truth(300)
    p = probabilities(labels)

    def part(which):
        return [uid for uid, kept in zip(uids, which, strict=True) if kept], p[which]

    def of(*folds):
        tables = {k: part(fold == k) for k in folds}
        return join_folds(f"of{len(folds)}", tables, validation={k: part(fold == (k + 1) % 5) for k in folds})

    models = [of(0, 1, 2, 3, 4), of(0), outside_model("elsewhere", (uids, p))]
    known = dict(zip(uids, labels, strict=True))
    found = align(models, known, 5)
    assert found.tested.sum() == (fold == 0).sum()
    assert sorted(found.uids) == sorted([*part(fold == 0)[0], *part(fold == 1)[0]])

    bare = join_folds("bare", {0: part(fold == 0)})
    lone = align([*models, bare], known, 5)
    assert lone.tested.all() and lone.notes[-1] == "Nothing is chosen by validation studies: in fold 0 bare left none."
    facts = compare([*models, bare], known, num_folds=5, data="phantom", settings=Settings(resamples=0)).facts
    assert "ensemble-rank" not in facts["rows"] and "ensemble-mean" in facts["rows"]


def test_nothing_of_an_earlier_comparison_stays(tmp_path):
    uids, labels, _ = truth(60)
    tables = {name: outside_model(name, (uids, probabilities(labels))) for name in "ab"}
    known, settings = dict(zip(uids, labels, strict=True)), Settings(resamples=0)
    for names in ("ab", "a"):
        models = [tables[name] for name in names]
        write_comparison(tmp_path, compare(models, known, num_folds=5, data="this data", settings=settings))
        page = (tmp_path / "comparison.html").read_text()
        both = len(names) == 2
        assert (tmp_path / "uncertainty.csv").exists() == both == ("uncertainty.csv" in page)
        assert sorted(path.name for path in (tmp_path / "tables").iterdir())[0] == "a"
        assert (tmp_path / "tables" / "b").exists() == (tmp_path / "tables" / "ensemble-mean").exists() == both
        assert "of a, b, and of ensembles" in page if both else "of a, and of ensembles" in page
