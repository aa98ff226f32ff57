"""Study-level recipes from a folder to a report: what is written, what is not visible, every recipe once."""

import csv
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import nibabel
import numpy as np
import pytest
from flax import nnx

from cspine_jax.cli import main
from cspine_jax.config import DataConfig, PhantomConfig, from_dict, to_dict
from cspine_jax.data.tables import read_tables
from cspine_jax.errors import ConfigError, DataError
from cspine_jax.evaluation.compare import read_tta
from cspine_jax.experiment import Experiment
from cspine_jax.inference.predict import load_run
from cspine_jax.kinds import kind_of
from cspine_jax.metrics.calibration import logit
from cspine_jax.metrics.target_table import read_targets
from cspine_jax.recipes import load_recipe
from cspine_jax.training.checkpoint import load_best
from cspine_jax.training.learnt import Learnt
from cspine_jax.training.optim import make_optimizer
from cspine_jax.training.sharding import place
from cspine_jax.training.state import init_state
from cspine_jax.training.warm import check_start, learnt_by_start, warm

ROOT = Path(__file__).parents[2]
RECIPES = ("gold_type1", "gold_type2", "silver", "bronze", "levels", "classifier", "vit3d", "cnn3d")


@pytest.fixture(scope="module")
def odd_folder(folder, tmp_path_factory):
    """(the folder of 6 studies, uid of one whose mask shows no vertebra, uid of one without a mask)."""
    path = tmp_path_factory.mktemp("odd") / "phantom"
    shutil.copytree(folder, path)
    masks = sorted(path.glob("segmentations/*.nii.gz"))
    test = {entry.uid for entry in read_tables(path, 3).studies if entry.fold == 0}
    blind = next(mask for mask in masks if mask.name.removesuffix(".nii.gz") in test)
    image = nibabel.load(blind)
    nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), blind)
    uids = {entry.uid for entry in read_tables(path, 3).studies}
    (bare,) = uids - {mask.name.removesuffix(".nii.gz") for mask in masks}
    return path, blind.name.removesuffix(".nii.gz"), bare


def shrunk(recipe, folder, root, **changes):
    """The smoke variant on a folder, with the tiny backbone and without augmentations that take long to compile."""
    values = load_recipe(str(ROOT / "configs" / f"{recipe}.py:smoke"))
    small = {
        "data": {"manual_dir": str(folder), "data_dir": str(root), "num_folds": 3, "workers": 1},
        "model": {"backbone": "tiny"},
        "augment": {"distortion": 0.0, "blur": 0.0, "mixup": 0.0},
        "study": {"fractured_fraction": 0.0},
    }
    for name, value in (*small.items(), *changes.items()):
        values[name] = {**values.get(name, {}), **value}
    return from_dict(values)


@pytest.fixture(scope="module")
def gold(odd_folder, tmp_path_factory):
    """(trained experiment, its metrics, its predictions)."""
    config = shrunk("gold_type1", odd_folder[0], tmp_path_factory.mktemp("crops"))
    experiment = Experiment(config, tmp_path_factory.mktemp("gold"))
    experiment.train()
    return experiment, experiment.evaluate(), experiment.predict()


def test_gold_writes_its_files_and_names_what_is_not_visible(gold, odd_folder):
    experiment, metrics, _ = gold
    _, blind, bare = odd_folder
    out = experiment.workdir / "evaluation"
    for name in ("predictions.csv", "validation.csv", "score_optimal.csv", "metrics.json", "report.html"):
        assert (out / name).stat().st_size > 0
    assert json.loads((out / "metrics.json").read_text()) == metrics and metrics["phantom"]
    uids, p = read_targets(out / "predictions.csv", allow_empty=True)
    assert blind in uids and np.isnan(p[uids.index(blind)]).all()
    assert metrics["not_visible"]["test"][blind] == [f"C{j}" for j in range(1, 8)]
    assert [bare] in metrics["left_out"].values() and bare not in uids
    others = [k for k, uid in enumerate(uids) if uid != blind]
    assert not np.isnan(p[others]).any()
    levels = p[others][:, 1:]
    np.testing.assert_allclose(p[others][:, 0], 1 - np.prod(1 - levels, axis=1), rtol=1e-4)


def test_gold_predicts_every_study_with_its_part(gold, odd_folder):
    experiment, _, predictions = gold
    with predictions.open() as file:
        rows = list(csv.DictReader(file))
    by_uid = {row["StudyInstanceUID"]: row for row in rows}
    assert len(rows) == 5 and by_uid[odd_folder[1]]["part"] == "test" and by_uid[odd_folder[1]]["C1"] == ""
    assert {row["part"] for row in rows} == {"train", "validation", "test"}
    uids, p = read_targets(experiment.workdir / "evaluation" / "validation.csv")
    for uid, row in zip(uids, p, strict=True):
        assert by_uid[uid]["part"] == "validation"
        np.testing.assert_allclose(float(by_uid[uid]["C3"]), row[3], rtol=1e-4)


def test_views_are_averaged_and_their_spread_is_written(gold, tmp_path):
    experiment, _, _ = gold
    shutil.copytree(experiment.workdir, tmp_path / "w")
    plain = read_targets(tmp_path / "w/evaluation/predictions.csv", allow_empty=True)[1]
    config = dataclasses.replace(experiment.config, eval=dataclasses.replace(experiment.config.eval, tta=1))
    again = Experiment(config, tmp_path / "w")
    again.evaluate()
    uids, p = read_targets(tmp_path / "w/evaluation/predictions.csv", allow_empty=True)
    found, spread = read_tta(tmp_path / "w/evaluation/tta.csv")
    assert found == uids and (np.isnan(spread) == np.isnan(p[:, 1:])).all()
    # of two views: half of their distance; and so far is their mean from the plain one
    np.testing.assert_allclose(spread, abs(p - plain)[:, 1:], rtol=1e-2, atol=1e-6)
    assert np.nanmax(spread) > 0
    assert again.predict().with_name("tta.csv").is_file()
    Experiment(experiment.config, tmp_path / "w").evaluate()
    assert not (tmp_path / "w/evaluation/tta.csv").exists()


def test_what_is_drawn_more_often_in_training_is_undone(gold, tmp_path):
    experiment, metrics, _ = gold
    assert metrics["seen"]["drawn_odds"] == 1.0
    shutil.copytree(experiment.workdir, tmp_path / "w")
    learnt = tmp_path / "w" / "learnt.json"
    assert json.loads(learnt.read_text()) == {"phantom": True, "drawn_odds": 1.0, "phantom_seeds": [5]}

    def asked(fraction):
        # a vertebra as its highest slice: then its odds are divided exactly
        study = dataclasses.replace(experiment.config.study, fractured_fraction=fraction, highest=1)
        again = Experiment(dataclasses.replace(experiment.config, study=study), tmp_path / "w")
        odds = again.evaluate()["seen"]["drawn_odds"]
        assert load_run(tmp_path / "w").card.drawn_odds == odds
        return again.kind, odds, read_targets(tmp_path / "w/evaluation/predictions.csv", allow_empty=True)[1]

    _, _, plain = asked(0.0)
    learnt.write_text('{"phantom": true, "drawn_odds": 6.5}')  # what it was trained with counts, not what is asked now
    _, odds, found = asked(0.0)
    assert odds == 6.5
    np.testing.assert_allclose(logit(found[:, 1:]), logit(plain[:, 1:]) - np.log(6.5), atol=1e-3)
    with pytest.raises(ConfigError, match=r"study\.fractured_fraction=0\.4"):
        asked(0.4)

    learnt.unlink()  # a run of an older version: as its configuration and its data say
    config = json.loads((tmp_path / "w" / "config.json").read_text())
    config["study"]["fractured_fraction"] = 0.4
    (tmp_path / "w" / "config.json").write_text(json.dumps(config))
    kind, odds, found = asked(0.4)
    labels = kind.roster.labels[kind.parts["train"], 1:]  # every training vertebra has a crop
    assert odds == pytest.approx(0.4 / 0.6 * (labels == 0).sum() / (labels == 1).sum()) == kind.drawn_odds
    np.testing.assert_allclose(logit(found[:, 1:]), logit(plain[:, 1:]) - np.log(odds), atol=1e-3)


def test_a_run_that_started_from_real_studies_has_not_seen_phantoms_alone(gold, tmp_path):
    experiment, _, _ = gold
    start = tmp_path / "start"
    shutil.copytree(experiment.workdir, start)
    (start / "learnt.json").write_text('{"phantom": false, "drawn_odds": 1.0}')
    train = dataclasses.replace(experiment.config.train, init_from=str(start), total_steps=1)
    Experiment(dataclasses.replace(experiment.config, train=train), tmp_path / "w").train()
    assert not load_run(tmp_path / "w").card.phantom
    (start / "learnt.json").write_text('{"phantom": true, "drawn_odds": 1.0, "phantom_seeds": [8, 5]}')
    Experiment(dataclasses.replace(experiment.config, train=train), tmp_path / "chain").train()
    assert json.loads((tmp_path / "chain" / "learnt.json").read_text())["phantom_seeds"] == [8, 5]
    with pytest.raises(ConfigError, match="it has learnt from phantoms of seed 8, which this run tests on"):
        check_start(dataclasses.replace(experiment.config, train=train, data=DataConfig(phantom=PhantomConfig(seed=8))))
    (start / "learnt.json").write_text('{"phantom": false, "drawn_odds": 1.0}')
    Experiment(experiment.config, start).evaluate()  # of phantoms: that does not change what it has learnt from
    assert not load_run(start).card.phantom
    (start / "learnt.json").write_text("{}")
    with pytest.raises(DataError, match=r"learnt\.json: KeyError\('phantom'\) where phantom and drawn_odds belong"):
        load_run(start)


def started(config, placement):
    """The state of a fresh run, before and after it is warmed."""
    task, optimizer = kind_of(config).task, make_optimizer(config.optim, 10)
    fresh = jax.jit(lambda: init_state(task, optimizer, 0), out_shardings=placement.replicated)()
    return fresh, warm(fresh, task, config, placement)


def test_a_model_of_levels_starts_from_the_encoder_of_one_of_vertebrae(gold, odd_folder, tmp_path, capsys):
    workdir = gold[0].workdir
    (tmp_path / "fold0").symlink_to(workdir)
    start = {"train": {"init_from": str(tmp_path / "fold{fold}")}}
    config = shrunk("levels", odd_folder[0], tmp_path, **start)
    placement = place(jax.devices()[:1])
    fresh, state = started(config, placement)
    params, stats, _ = load_best(gold[0].kind.task, workdir, placement)
    jax.tree.map(np.testing.assert_array_equal, state.params["encoder"], params["encoder"])
    jax.tree.map(np.testing.assert_array_equal, state.stats["encoder"], stats["encoder"])
    jax.tree.map(np.testing.assert_array_equal, state.params["levels"], fresh.params["levels"])
    assert "encoder from" in (said := capsys.readouterr().out) and "levels" in said.split(";")[1]

    frozen = shrunk("levels", odd_folder[0], tmp_path, train={"init_from": str(workdir), "freeze_encoder": True})
    fresh, state = started(frozen, placement)
    assert "encoder" not in state.params
    jax.tree.map(np.testing.assert_array_equal, state.params, fresh.params)
    merged = nnx.merge(kind_of(frozen).task._graph, state.params, state.stats)
    whole = nnx.to_pure_dict(nnx.state(merged.encoder, nnx.Param))
    jax.tree.map(np.testing.assert_array_equal, whole, params["encoder"])
    assert "encoder from" in capsys.readouterr().out

    wider = {"crops": {"radius": 2}, "train": {"init_from": str(workdir), "freeze_encoder": True}}
    with pytest.raises(DataError, match="no encoder of its gold on tiny, 4 channels fits this gold on tiny, 6 channel"):
        started(shrunk("gold_type1", odd_folder[0], tmp_path, **wider), placement)

    other = Experiment(shrunk("gold_type1", odd_folder[0], tmp_path, data={"fold": 1}), workdir)
    for ask in (other.evaluate, other.predict):
        with pytest.raises(ConfigError, match="this run is of fold 0 of 3, asked for is 1 of 3"):
            ask()
    from_gold = {"train": {"init_from": str(workdir)}}
    other_fold = shrunk("levels", odd_folder[0], tmp_path, data={"fold": 1}, **from_gold)
    with pytest.raises(ConfigError, match=r"is of fold 0 of 3, this one of 1 of 3: it has learnt from studies"):
        started(other_fold, placement)
    vit = shrunk("vit3d", odd_folder[0], tmp_path, **from_gold)
    with pytest.raises(DataError, match="no part of its gold on tiny, 4 channels fits this vit3d on"):
        started(vit, placement)
    assert not list((workdir / "checkpoints").glob("*.unreadable"))


def test_a_weights_file_is_a_start_as_its_run_is(gold, odd_folder, tmp_path, capsys):
    experiment, _, _ = gold
    file = tmp_path / "gold_here.npz"
    assert main(["weights", "export", "--fracture", str(experiment.workdir), "--out", str(file)]) == 0
    assert f"{file}: " in capsys.readouterr().out
    params, stats, _ = load_best(experiment.kind.task, experiment.workdir, place())
    halved = jax.tree.map(lambda x: np.asarray(x, np.float16).astype(np.float32), (params, stats))

    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "phantom.json").write_text('{"seed": 1000}')
    placement, start = place(jax.devices()[:1]), {"init_from": str(file)}
    config = shrunk("gold_type1", tmp_path / "others", tmp_path, train=start)
    jax.tree.map(np.testing.assert_array_equal, (lambda s: (s.params, s.stats))(started(config, placement)[1]), halved)
    said = capsys.readouterr().out
    assert "encoder" in said and "gold_here" in said and "is not known" not in said
    frozen = shrunk("levels", tmp_path / "others", tmp_path, train={**start, "freeze_encoder": True})
    merged = nnx.merge(kind_of(frozen).task._graph, *(lambda s: (s.params, s.stats))(started(frozen, placement)[1]))
    jax.tree.map(
        np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(merged.encoder, nnx.Param)), halved[0]["encoder"]
    )

    same = shrunk("levels", odd_folder[0], tmp_path, train=start)
    with pytest.raises(ConfigError, match=r"gold_here\.npz': it has learnt from phantoms of seed 5, which this run"):
        Experiment(same, tmp_path / "same").train()
    assert not (tmp_path / "same").exists()
    assert learnt_by_start(config) == Learnt(True, 1.0, (5,))
    alone = {"manual_dir": "", "data_dir": str(tmp_path)}  # records do not say which phantoms they are of
    capsys.readouterr()
    started(shrunk("levels", "", tmp_path, data=alone, train=start), placement)
    assert "gold_here.npz has learnt from is not known" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"weights files are of networks that find fractures; for task='spine' give"):
        check_start(from_dict({"task": "spine", "train": start}))
    slices = {"task": "fracture", "data": {"manual_dir": str(tmp_path / "others")}, "train": start}
    with pytest.raises(DataError, match=r"weights of another network .* give a file of the recipe that is trained"):
        started(from_dict(slices), placement)
    shutil.copytree(experiment.workdir, tmp_path / "real")
    (tmp_path / "real" / "learnt.json").write_text('{"phantom": false, "drawn_odds": 1.0}')
    (tmp_path / "real" / "config.json").write_text(json.dumps({**to_dict(experiment.config), "data": {}}))
    assert main(["weights", "export", "--fracture", str(tmp_path / "real"), "--out", str(file)]) == 0
    assert not learnt_by_start(config).phantom and "the data of its run" in capsys.readouterr().out


def test_the_classifier_answers_for_every_study(folder, tmp_path):
    experiment = Experiment(shrunk("classifier", folder, tmp_path / "records"), tmp_path / "run")
    experiment.train()
    metrics = experiment.evaluate()
    uids, p = read_targets(tmp_path / "run" / "evaluation" / "predictions.csv")
    assert sorted(uids) == sorted(str(uid) for uid in experiment.kind.roster.uids[experiment.kind.parts["test"]])
    assert metrics["left_out"] == {} and metrics["not_visible"]["test"] == {} and not np.isnan(p).any()
    records = experiment.kind.data.table
    side = np.median(records.spacing_mm[:, 2]) * records.shapes[0, 1]
    card = load_run(tmp_path / "run").card
    assert (card.field_mm, card.slice_mm, card.tta) == (pytest.approx(side, abs=0.1), metrics["seen"]["slice_mm"], 0)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "vertebra_auc", "patient_auc"} <= set(*(line for line in lines if line["split"] == "validation"))


def test_mask_channels_and_clips_need_masks(folder, tmp_path):
    for change in ({"with_mask": True}, {"clip_depth": 4, "every": 1, "max_slices": 0}):
        kind = kind_of(shrunk("cnn3d", folder, tmp_path / "records", study=change))
        kind.prepare()
        assert len(kind.roster.uids) == 5 and [len(uids) for uids in kind.roster.left_out.values()] == [1]
        batch = next(iter(kind.loaders().validation()))
        assert batch["image"].ndim == 5 and ("mask" in batch) == ("with_mask" in change)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_runs_as_a_command(recipe, tmp_path_factory):
    root = tmp_path_factory.getbasetemp() / "smoke"  # one phantom for all
    root.mkdir(exist_ok=True)
    workdir = tmp_path_factory.mktemp(recipe)
    command = [sys.executable, str(ROOT / "launch.py"), f"--config={ROOT}/configs/{recipe}.py:smoke",
               f"--workdir={workdir}", f"--config.data.root={root}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("predictions.csv", "validation.csv", "score_optimal.csv", "metrics.json", "report.html"):
        assert (workdir / "evaluation" / name).stat().st_size > 0
    assert (workdir / "config.json").is_file() and "RSNA log loss" in done.stdout
    uids, _ = read_targets(workdir / "evaluation" / "predictions.csv", allow_empty=True)
    assert len(uids) == 2
