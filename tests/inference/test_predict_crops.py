"""New studies and models of vertebra crops: the same answers as the run's own evaluation gives, and what is said."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
from matplotlib.image import imread
from untrained_run import write_run

from cspine_jax.anatomy import TARGETS
from cspine_jax.cli import main
from cspine_jax.config import from_dict
from cspine_jax.ct import read_study
from cspine_jax.errors import ConfigError, DataError
from cspine_jax.experiment import Experiment
from cspine_jax.inference.breaks import draw_breaks
from cspine_jax.inference.crops_run import CropsRun
from cspine_jax.inference.export import export_fracture
from cspine_jax.inference.findings import slice_name
from cspine_jax.inference.predict import load_run, predict_study
from cspine_jax.metrics.target_table import read_targets

MODELS = ("gold", "bronze", "gold_patient", "levels")


@pytest.fixture(scope="module", params=MODELS)
def made(request, three, tiny, tmp_path_factory):
    """(workdir of an untrained run, its experiment, predictions of the studies' records)."""
    config = from_dict(
        {
            "task": "crops",
            "data": {"manual_dir": str(three), "data_dir": str(tmp_path_factory.getbasetemp() / "crops"),
                     "num_folds": 3, "eval_batch_size": 8, "workers": 1},
            "crops": {"positions": 2, "radius": 1, "size": 24},
            "model": {"backbone": tiny},
            "study": {"model": request.param, "hidden": 4, "layers": 1, "features": 8, "heads": 2, "depth": 1,
                      "highest": 2, "where_weight": 1.0},
            "augment": {"distortion": 0.0, "blur": 0.0, "mixup": 0.0},
            "eval": {"tta": 1},
        }
    )  # fmt: skip
    workdir = write_run(tmp_path_factory.mktemp(request.param), config)
    return workdir, Experiment(config, workdir).predict()


def test_a_new_study_gets_what_evaluating_its_records_gives(made, three, truth):
    workdir, predictions = made
    run = load_run(workdir)
    assert isinstance(run, CropsRun)
    uids, expected = read_targets(predictions, allow_empty=True)
    with open(predictions.with_name("tta.csv")) as file:
        spread = {row["StudyInstanceUID"]: row for row in csv.DictReader(file)}
    for uid, p in zip(uids, expected, strict=True):
        found = predict_study(run, three / "train_images" / uid, segmenter=truth)
        np.testing.assert_allclose(found.probabilities(), p, rtol=1e-3, atol=1e-6)
        for vertebra in found.vertebrae:
            np.testing.assert_allclose(vertebra.spread, float(spread[uid][vertebra.name]), rtol=2e-2, atol=1e-6)
        assert "no evaluation/metrics.json" in found.warnings[-1] and found.note.endswith("mean nothing yet.")
        assert found.model["model"] == run.config.study.model and found.model["crops"].endswith("_segmented")


def test_what_an_older_evaluation_left_in_is_said(made):
    run = load_run(made[0])
    for fraction, odds, evaluated, said in ((0.4, None, True, True), (0.4, 6.0, True, False), (0.0, None, True, False),
                                            (0.4, None, False, False)):  # fmt: skip
        run.config = dataclasses.replace(
            run.config, study=dataclasses.replace(run.config.study, fractured_fraction=fraction)
        )
        run.card = dataclasses.replace(run.card, drawn_odds=odds, evaluated=evaluated)
        assert any("drawn more often" in line for line in run.reservations) == said


def test_slices_and_levels_are_where_the_vertebrae_are(made, three, truth):
    workdir, _ = made
    run = load_run(workdir)
    path = next((three / "train_images").iterdir())
    volume = read_study(path)
    labels = truth(volume).labels
    found = predict_study(run, path, segmenter=lambda volume: truth(volume, without=(3,)))
    c3 = found.vertebrae[2]
    assert (c3.visible, c3.probability, c3.fractured, c3.slices, c3.spread) == (False, None, None, None, None)
    assert any("C3 not visible" in line for line in found.warnings)
    answer = run.answer("x", volume.hu, np.where(labels == 3, 0, labels).astype(np.uint8), volume.spacing_mm)
    table, with_slices = answer.table, run.config.study.model != "levels"
    assert (answer.positions is not None) == with_slices
    for j, vertebra in enumerate(found.vertebrae):
        rows = np.flatnonzero((labels == j + 1).any((1, 2)))
        if j == 2:
            continue
        assert vertebra.slices == (rows[0], rows[-1]) and vertebra.fractured == (vertebra.probability >= 0.5)
        assert (vertebra.surest_slice is not None) == with_slices
        if with_slices:
            best = table.slice_index[table.record[0, j], answer.positions[j].argmax()]
            assert vertebra.surest_slice == np.rint(best) and rows[0] <= vertebra.surest_slice <= rows[-1]
    unseen = 0
    for i, on_slice in enumerate(found.slices):
        shown = [j for j in range(7) if j != 2 and (labels[i] == j + 1).any()]
        assert on_slice.vertebrae == tuple(TARGETS[1 + j] for j in shown)
        if not (shown and with_slices):
            assert on_slice.fracture_probability is None
            continue
        apart = np.array([np.abs(table.slice_index[table.record[0, j]] - i) for j in shown])
        near = [answer.positions[j, each.argmin()] for j, each in zip(shown, apart, strict=True) if each.min() <= 1.5]
        unseen += not near
        if near:
            assert on_slice.fracture_probability == pytest.approx(max(near), rel=1e-4)
        else:  # positions are further apart than what they show
            assert on_slice.fracture_probability is None
    assert bool(unseen) == with_slices
    assert any("do not say where a break is" in line for line in found.warnings) == with_slices
    assert answer.breaks.shape[:2] == (7, 2) and np.isnan(answer.breaks[2]).all()
    for j in (0, 6):
        alone = run.answer("x", volume.hu, np.where(labels == j + 1, labels, 0).astype(np.uint8), volume.spacing_mm)
        assert np.isnan(np.delete(alone.breaks, j, axis=0)).all()
        np.testing.assert_allclose(alone.breaks[j], answer.breaks[j], rtol=1e-3)
        assert ((alone.breaks[j] > 0) & (alone.breaks[j] < 1)).all()


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("made", ["gold"], indirect=True)
def test_the_picture_has_a_place_for_every_level(made, three, truth, tmp_path, mapped):
    def draw(found, answer):
        draw_breaks(tmp_path / "breaks.png", found, answer if mapped else dataclasses.replace(answer, breaks=None))

    run, path = load_run(made[0]), next((three / "train_images").iterdir())
    predict_study(run, path, segmenter=lambda volume: truth(volume, without=(3,)), show=draw)
    picture = imread(tmp_path / "breaks.png")
    assert picture.shape[:2] == ((457, 1470) if mapped else (255, 1470))
    columns = picture[60:-40, :, :3].reshape(-1, 7, 210, 3).std((0, 2, 3))
    assert columns[2] < 0.5 * np.delete(columns, 2).min()  # C3's has only words


def test_without_a_segmenter_it_says_so(made, three):
    with pytest.raises(ConfigError, match="reads crops of vertebrae that have to be found first; give a segmenter"):
        predict_study(load_run(made[0]), next((three / "train_images").iterdir()))


def test_nothing_found_is_no_answer(made, three, truth):
    run = load_run(made[0])
    path = next((three / "train_images").iterdir())
    found = predict_study(run, path, segmenter=lambda volume: truth(volume, without=range(1, 8)))
    assert found.patient_probability is None and np.isnan(found.probabilities()).all()
    assert not any(vertebra.visible for vertebra in found.vertebrae)


@pytest.mark.parametrize("made", ["gold"], indirect=True)
def test_how_many_vertebrae_at_once_changes_nothing(made, three, truth):
    path = next((three / "train_images").iterdir())
    whole, parts = (predict_study(load_run(made[0], batch), path, segmenter=truth) for batch in (64, 3))
    np.testing.assert_allclose(parts.probabilities(), whole.probabilities(), rtol=1e-4, atol=1e-6)


def test_a_weights_file_answers_as_its_run(made, three, truth, tmp_path):
    workdir, _ = made
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    with pytest.raises(DataError, match=r"no evaluation/metrics\.json, so no thresholds"):
        export_fracture(run, tmp_path / "w.npz", name="w", facts={})
    card = {
        "phantom": True,
        "thresholds": {"patient_overall": 0.25, "C1-C7": 0.75},
        "prevalence": dict.fromkeys(TARGETS, 0.125),
        "seen": {"field_mm": 100.0, "slice_mm": 1.5, "tta": 1, "drawn_odds": 3.0},
    }
    (run / "evaluation").mkdir()
    (run / "evaluation" / "metrics.json").write_text(json.dumps(card))
    config = json.loads((run / "config.json").read_text())
    config["data"]["vertebra_probs"] = str(three / "slices.csv")
    (run / "config.json").write_text(json.dumps(config))
    written = export_fracture(run, tmp_path / "w.npz", name="w", facts={})
    assert written.networks["fracture"]["phantom_seeds"] == (3,)
    assert written.phantom and str(three) not in json.dumps(dataclasses.asdict(written))
    of_run, of_file = load_run(run), load_run(tmp_path / "w.npz")
    assert type(of_file) is type(of_run) and of_file.step == of_run.step
    for field in dataclasses.fields(of_run.card):
        np.testing.assert_array_equal(getattr(of_file.card, field.name), getattr(of_run.card, field.name), field.name)
    path = next((three / "train_images").iterdir())
    mine, theirs = (predict_study(each, path, segmenter=truth) for each in (of_file, of_run))
    np.testing.assert_allclose(mine.probabilities(), theirs.probabilities(), rtol=0.02)
    assert not np.isnan(mine.probabilities()).any() and mine.thresholds == {"vertebra": 0.75, "patient": 0.25}


@pytest.mark.parametrize("made", ["gold"], indirect=True)
def test_cspine_predict_with_a_model_of_crops(made, three, truth, tmp_path, capsys, monkeypatch):
    """With the run's own thresholds; the segmentation is replaced, which other tests are about."""
    workdir, study = made[0], str(next((three / "train_images").iterdir()))
    monkeypatch.setattr("cspine_jax.cli.predict._first_stage", lambda args, out, identity: (truth, None))
    card = {
        "phantom": True,
        "thresholds": {"patient_overall": 0.0, "C1-C7": 1.0},
        "prevalence": dict.fromkeys(TARGETS, 0.25),
    }
    (workdir / "evaluation").mkdir()
    (workdir / "evaluation" / "metrics.json").write_text(json.dumps(card))
    try:
        assert main(["predict", study, "--checkpoint", str(workdir), "--out", str(tmp_path / "out")]) == 0
        said = capsys.readouterr()
        assert "patient" in said.out and "*  C1" in said.out and "C1 0." in said.out
        (written,) = (tmp_path / "out").glob("*/findings.json")
        found = json.loads(written.read_text())
        assert found["patient_fractured"] and not any(level["fractured"] for level in found["vertebrae"])
        assert written.with_name("breaks.png").stat().st_size > 0
        assert found["thresholds"] == {"vertebra": 1.0, "patient": 0.0}
        assert main(["predict", study, "--checkpoint", str(workdir), "--out", str(tmp_path), "--no_segment"]) == 2
        assert "reads crops of vertebrae that have to be found first; leave the flag out" in capsys.readouterr().err
        (workdir / "evaluation" / "metrics.json").write_text("{}")
        with pytest.raises(DataError, match=r"metrics.json.*thresholds, prevalence and phantom belong"):
            load_run(workdir)
    finally:
        (workdir / "evaluation" / "metrics.json").unlink()
        (workdir / "evaluation").rmdir()


@pytest.mark.parametrize(("number", "name"), [(41, "image 41"), (0, "image 0"), (-1, "slice 40 from the top")])
def test_pictures_name_slices_as_files_do(number, name):
    assert slice_name(40, number) == name
