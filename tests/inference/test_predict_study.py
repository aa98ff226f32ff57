"""New studies and models of whole studies: the same answers as the run's own evaluation gives, and what is said."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from untrained_run import write_run

from cspine_jax.anatomy import TARGETS
from cspine_jax.cli import main
from cspine_jax.config import from_dict
from cspine_jax.ct import read_study
from cspine_jax.errors import ConfigError, DataError
from cspine_jax.experiment import Experiment
from cspine_jax.inference.predict import findings_of, load_run, predict_study
from cspine_jax.inference.run import SliceRun
from cspine_jax.inference.study_run import StudyRun
from cspine_jax.metrics.target_table import read_targets

SEEN = {
    "classifier": {"slices": 5},
    "vit3d": {"every": 2, "with_mask": True},
    "cnn3d": {"every": 3},
    "clips": {"model": "cnn3d", "every": 1, "clip_depth": 4, "clip_size": 24},
}


@pytest.fixture(scope="module", params=SEEN)
def made(request, three, tiny, tmp_path_factory):
    """(workdir of an untrained run, predictions of the folder's records)."""
    config = from_dict(
        {
            "task": "study",
            "data": {"manual_dir": str(three), "data_dir": str(tmp_path_factory.getbasetemp() / "slices"),
                     "num_folds": 3, "size": 32, "depth": 3, "eval_batch_size": 2, "workers": 1},
            "model": {"backbone": tiny},
            "study": {"model": request.param, "features": 8, "heads": 2, "depth": 1, "tubelet": 8, "tubelet_depth": 2,
                      "width": 4, "stages": 2, **SEEN[request.param]},
            "augment": {"distortion": 0.0, "blur": 0.0, "mixup": 0.0},
            "eval": {"tta": 1},
        }
    )  # fmt: skip
    workdir = write_run(tmp_path_factory.mktemp(request.param), config)
    return workdir, Experiment(config, workdir).predict()


def test_a_new_study_gets_what_evaluating_its_records_gives(made, three, truth):
    workdir, predictions = made
    run = load_run(workdir)
    assert isinstance(run, StudyRun)
    uids, expected = read_targets(predictions, allow_empty=True)
    assert len(uids)
    with open(predictions.with_name("tta.csv")) as file:
        spread = {row["StudyInstanceUID"]: row for row in csv.DictReader(file)}
    for uid, p in zip(uids, expected, strict=True):
        path = three / "train_images" / uid
        volume = read_study(path)
        answer, _ = run.answer(uid, volume.hu, truth(volume).labels, volume.spacing_mm)
        np.testing.assert_allclose(answer, p, rtol=1e-3, atol=1e-6)
        found = predict_study(run, path, segmenter=truth)
        shown = [bool((truth(volume).labels == j).any()) for j in range(1, 8)]
        np.testing.assert_allclose(found.probabilities()[1:], np.where(shown, p[1:], np.nan), rtol=1e-3, atol=1e-6)
        assert found.patient_probability == pytest.approx(p[0], rel=1e-3)
        for vertebra in found.vertebrae:
            if vertebra.visible:
                np.testing.assert_allclose(vertebra.spread, float(spread[uid][vertebra.name]), rtol=2e-2, atol=1e-6)
        assert found.model["model"] == run.config.study.model
        assert "no evaluation/metrics.json" in found.warnings[-1] and found.note.endswith("mean nothing yet.")


def test_a_level_that_is_not_found_has_no_answer(made, three, truth):
    run, path = load_run(made[0]), next((three / "train_images").iterdir())
    labels = truth(read_study(path)).labels
    found = predict_study(run, path, segmenter=lambda volume: truth(volume, without=(3,)))
    c3 = found.vertebrae[2]
    assert (c3.visible, c3.probability, c3.fractured, c3.slices, c3.spread) == (False, None, None, None, None)
    assert any("C3 not visible" in line for line in found.warnings)
    for j in (0, 1, 3):
        rows = np.flatnonzero((labels == j + 1).any((1, 2)))
        vertebra = found.vertebrae[j]
        assert vertebra.slices == (rows[0], rows[-1]) and vertebra.surest_slice is None
        assert vertebra.fractured == (vertebra.probability >= 0.5)
    for i, on_slice in enumerate(found.slices):
        assert on_slice.fracture_probability is None
        shown = [j for j in range(7) if j != 2 and (labels[i] == j + 1).any()]
        assert on_slice.vertebrae == tuple(TARGETS[1 + j] for j in shown)
    thorax = predict_study(run, path, segmenter=lambda volume: truth(volume, without=range(1, 8)))
    assert (labels > 7).any() and not any(on_slice.vertebrae for on_slice in thorax.slices)
    nothing = predict_study(run, path, segmenter=lambda volume: truth(volume, without=range(1, 20)))
    np.testing.assert_array_equal(thorax.probabilities(), nothing.probabilities())
    assert nothing.patient_probability is None and np.isnan(nothing.probabilities()).all()


@pytest.mark.parametrize("made", ["classifier", "cnn3d"], indirect=True)
def test_whole_studies_without_a_mask_need_no_vertebrae(made, three, truth):
    run, path = load_run(made[0]), next((three / "train_images").iterdir())
    alone, found = predict_study(run, path), predict_study(run, path, segmenter=truth)
    there = ~np.isnan(found.probabilities())
    np.testing.assert_array_equal(alone.probabilities()[there], found.probabilities()[there])
    assert not np.isnan(alone.probabilities()).any()
    assert all(vertebra.visible and vertebra.slices is None for vertebra in alone.vertebrae)
    assert not any(on_slice.vertebrae for on_slice in alone.slices)
    assert any("no vertebrae were looked for" in line for line in alone.warnings)
    assert not any("no vertebrae were looked for" in line for line in found.warnings)


@pytest.mark.parametrize("made", ["vit3d", "clips"], indirect=True)
def test_masks_and_clips_need_them(made, three):
    run, path = load_run(made[0]), next((three / "train_images").iterdir())
    for ask in (predict_study, lambda run, path: findings_of(run, read_study(path))):
        with pytest.raises(ConfigError, match=r"(reads a mask of the|about) vertebrae .*; give a segmenter"):
            ask(run, path)


@pytest.mark.parametrize("made", ["clips"], indirect=True)
def test_a_sliver_of_a_vertebra_is_not_visible(made, three, truth):
    """Two pixels of C4, in a row that is lost when the mask is resized: no clip shows them."""

    def segment(volume):
        found = truth(volume, without=(4,))
        found.labels[-1, 1, :2] = 4
        return found

    found = predict_study(load_run(made[0]), next((three / "train_images").iterdir()), segmenter=segment)
    assert [vertebra.visible for vertebra in found.vertebrae] == [True, True, True, False, True, True, True]
    assert found.vertebrae[3].probability is None and any("C4 not visible" in line for line in found.warnings)


@pytest.mark.parametrize("made", ["cnn3d"], indirect=True)
def test_studies_of_near_lengths_share_what_was_compiled(made, three):
    run = load_run(made[0])
    volume = read_study(next((three / "train_images").iterdir()))
    whole = run.answer("x", volume.hu, None, volume.spacing_mm)
    shorter = run.answer("x", volume.hu[:-4], None, volume.spacing_mm)
    assert len(run._steps) == 1 and (whole[0] != shorter[0]).all()


@pytest.mark.parametrize("made", ["vit3d"], indirect=True)
def test_it_sees_what_it_was_trained_to_see(made, three, truth, tmp_path):
    """A wider picture of the same neck, once the evaluation says how wide those of its records were."""
    run, path = load_run(made[0]), next((three / "train_images").iterdir())
    volume, labels = read_study(path), truth(read_study(path)).labels
    pad = ((0, 0), (40, 40), (40, 40))
    wide = dataclasses.replace(volume, hu=np.pad(volume.hu, pad, constant_values=-1000))
    found = dataclasses.replace(truth(volume), labels=np.pad(labels, pad))
    field = volume.spacing_mm[2] * volume.shape[2]
    assert not any("around the spine" in line for line in findings_of(run, wide, vertebrae=found).warnings)
    run.card = dataclasses.replace(run.card, field_mm=field, evaluated=True)
    seen = findings_of(run, wide, vertebrae=found)
    assert any(f"{field:.0f} mm around the spine" in line for line in seen.warnings)
    assert any("thresholds were chosen on what true masks show" in line for line in seen.warnings)
    assert not any("of the slices only" in line for line in seen.warnings)
    long = dataclasses.replace(wide, hu=np.repeat(wide.hu, 4, axis=0), slice_numbers=np.arange(4 * len(wide.hu)))
    low = np.concatenate([found.labels, np.zeros_like(found.labels).repeat(3, axis=0)])
    lost = findings_of(run, long, vertebrae=dataclasses.replace(found, labels=low))
    assert any("of the slices only" in line for line in lost.warnings)


@pytest.mark.parametrize("made", ["cnn3d"], indirect=True)
def test_it_looks_as_often_as_its_evaluation_did(made, three):
    run, volume = load_run(made[0]), read_study(next((three / "train_images").iterdir()))
    assert run.answer("x", volume.hu, None, volume.spacing_mm)[1] is not None
    run.card = dataclasses.replace(run.card, tta=0)
    assert run.answer("x", volume.hu, None, volume.spacing_mm)[1] is None


@pytest.mark.parametrize("made", ["clips"], indirect=True)
def test_how_many_clips_at_once_changes_nothing(made, three, truth):
    path = next((three / "train_images").iterdir())
    whole, parts = (predict_study(load_run(made[0], batch), path, segmenter=truth) for batch in (0, 3))
    np.testing.assert_allclose(parts.probabilities(), whole.probabilities(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("made", ["classifier"], indirect=True)
def test_cspine_predict_with_a_model_of_whole_studies(made, three, tmp_path, capsys):
    study = str(next((three / "train_images").iterdir()))
    out = tmp_path / "out"
    assert main(["predict", study, "--no_segment", "--checkpoint", str(made[0]), "--out", str(out)]) == 0
    (written,) = out.glob("*/findings.json")
    found = json.loads(written.read_text())
    assert [level["slices"] for level in found["vertebrae"]] == [None] * 7 and not written.with_name(
        "breaks.png"
    ).exists()
    assert "C7 0." in capsys.readouterr().out
    _, p = read_targets(out / "predictions.csv", allow_empty=True)
    assert not np.isnan(p).any()


@pytest.mark.parametrize("made", ["vit3d"], indirect=True)
def test_bad_use_is_one_line(made, three, tmp_path, capsys):
    study = str(next((three / "train_images").iterdir()))
    assert main(["predict", study, "--no_segment", "--checkpoint", str(made[0]), "--out", str(tmp_path)]) == 2
    assert "reads a mask of the vertebrae beside the slices; leave the flag out" in capsys.readouterr().err
    with pytest.raises(DataError, match="task='study' reads whole studies, not slices; give another run"):
        SliceRun(made[0])
