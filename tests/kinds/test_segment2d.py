"""Segmentation of slices from records to Dice and NIfTI; every network takes training steps."""

import csv
import json

import jax
import nibabel
import numpy as np
import pytest

from cspine_jax.experiment import Experiment
from cspine_jax.kinds import kind_of
from cspine_jax.kinds.segment2d import write_record_mask
from cspine_jax.models.backbones import resnet
from cspine_jax.training.optim import make_optimizer
from cspine_jax.training.segment2d_task import CLASSES, Segment2DTask, study_dice
from cspine_jax.training.sharding import place
from cspine_jax.training.state import init_state
from cspine_jax.training.step import trainer

resnet.VARIANTS["resnet_tiny"] = resnet.Config(blocks=(1,), bottleneck=False, width=4)


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """(experiment, its metrics, folder of its masks)."""
    config = tiny("segment_unet2d")
    assert (config.task, config.model.network) == ("segment2d", "unet2d")
    experiment = Experiment(config, tmp_path_factory.mktemp("unet"))
    experiment.train()
    return experiment, experiment.evaluate(), experiment.predict()


def test_a_run_writes_dice_of_every_level(run):
    experiment, metrics, _ = run
    folder = experiment.workdir / "evaluation"
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert metrics["dice_each"]["C4"]["studies"] == metrics["studies"] == len(experiment.kind.data.masked("test"))
    assert 0 <= metrics["dice"]["value"] < 1 and metrics["phantom"]
    with (folder / "dice.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["StudyInstanceUID"] for row in rows] == [
        str(uid) for uid in experiment.kind.data.table.uids[experiment.kind.data.masked("test")]
    ]
    mean = np.mean([np.mean([float(row[f"C{j}"]) for row in rows]) for j in range(1, 8)])
    assert metrics["dice"]["value"] == pytest.approx(mean, abs=1e-6)
    assert "phantom data" in (folder / "report.html").read_text()
    lines = [json.loads(line) for line in (experiment.workdir / "metrics.jsonl").read_text().splitlines()]
    (line,) = [line for line in lines if line["split"] == "validation"]
    assert {"loss", "dice", "cross_entropy", "mean_dice", "dice_C1", "dice_C7"} <= set(line)


def test_predicted_masks_agree_with_the_figures_and_lie_where_the_records_do(run):
    experiment, _, folder = run
    data = experiment.kind.data
    table = data.table
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{uid}.nii.gz" for uid in table.uids)
    with (experiment.workdir / "evaluation" / "dice.csv").open() as file:
        by_study = {row["StudyInstanceUID"]: row for row in csv.DictReader(file)}
    for study in data.masked("test"):
        uid = str(table.uids[study])
        image = nibabel.load(folder / f"{uid}.nii.gz")
        answer, truth = np.asarray(image.dataobj).transpose(2, 1, 0), table.read_study_masks(study)
        for j in range(1, 8):
            one, other = answer == j, truth == j
            dice = 2 * (one & other).sum() / max((one | other).sum() + (one & other).sum(), 1)
            assert float(by_study[uid][f"C{j}"]) == pytest.approx(dice, abs=1e-5)
        corner = image.affine @ (3, 5, 2, 1)
        step = table.spacing_mm[study]
        at = table.position_mm[table.first[study] + 2] + np.array([3 * step[2], 5 * step[1], 0])
        np.testing.assert_allclose(corner[:3] * [-1, -1, 1], at, atol=1e-3)


@pytest.mark.parametrize("model", [
    {"width": 4},
    {"network": "inflated", "backbone": "resnet_tiny"},
])  # fmt: skip
def test_other_networks_learn_on_batches_of_records(tiny, model):
    plain = {"data": {"positive_fraction": 0.0}, "train": {"bf16": False}, "augment": {"noise": 0.0}}
    kind = kind_of(tiny("segment_encoder", model=model, optim={"lr": 3e-2}, **plain))
    placement = place(jax.devices()[:1])
    optimizer = make_optimizer(kind.config.optim, 20)
    state = jax.jit(lambda: init_state(kind.task, optimizer, 0), out_shardings=placement.replicated)()
    step = trainer(kind.task, optimizer, 0, placement)
    (batch, *_), losses = [next(kind.loaders().train())], []
    assert batch["mask"].shape == (8, 3 if "network" in model else 1, 32, 32)
    for _ in range(20):
        state, parts = step(state, placement.put(batch))
        losses.append(float(parts["loss"][0] / parts["loss"][1]))
    assert losses[-1] < 0.9 * losses[0]


def test_slices_without_a_mask_and_padding_count_nothing(tiny):
    task = Segment2DTask(tiny(task="segment2d", model={"levels": 1, "width": 2}, data={"size": 16}))
    rng = np.random.default_rng(1)
    params, stats = jax.tree.map(
        lambda x: np.abs(0.1 * rng.normal(size=x.shape)).astype(np.float32),
        jax.eval_shape(task.init, jax.random.key(0)),
    )
    batch = {
        "image": rng.integers(-1000, 1000, (4, 3, 16, 16)).astype(np.int16),
        "mask": rng.integers(0, 20, (4, 1, 16, 16)).astype(np.uint8),
        "mask_known": np.array([1, 0, 1, 1], np.float32),
        "valid": np.array([True, True, True, False]),
    }
    predict = jax.jit(task.predict)
    total, weight, _, counts = predict(params, stats, batch)
    first, _, _, _ = predict(params, stats, {**batch, "valid": np.array([True, False, False, False])})
    third, _, _, _ = predict(params, stats, {**batch, "mask_known": np.array([0, 0, 1, 0], np.float32)})
    assert float(weight) == 2 and float(total) == pytest.approx(float(first + third), rel=1e-5)
    assert counts["truth"].shape == (4, CLASSES)
    np.testing.assert_array_equal(counts["truth"].sum(1), 256)
    np.testing.assert_array_equal(counts["truth"][0], np.bincount(batch["mask"][0].ravel(), minlength=20))


def test_dice_of_studies_by_hand():
    """Study 4: C1 half right over two slices; T1 only in the answer. Study 7 has no mask."""
    counts = {name: np.zeros((3, CLASSES), np.float32) for name in ("overlap", "truth", "answer")}
    counts["overlap"][:2, 1], counts["truth"][:2, 1], counts["answer"][:2, 1] = (3, 1), (4, 4), (5, 3)
    counts["answer"][1, 8] = 2
    table = {**counts, "study": np.array([4, 4, 7]), "mask_known": np.array([1.0, 1.0, 0.0])}
    studies, dice = study_dice(table)
    assert studies.tolist() == [4]
    assert dice[0, 0] == pytest.approx(2 * 4 / (8 + 8)) and dice[0, 7] == 0
    assert np.isnan(np.delete(dice[0], [0, 7])).all()
    figures = Segment2DTask.metrics(None, table)  # type: ignore[arg-type]
    assert figures == {"mean_dice": 0.5, "dice_C1": 0.5, "dice_T1": 0.0}


def test_one_slice_studies_have_a_geometry_too(tiny, tmp_path):
    table = kind_of(tiny(task="segment2d")).data.table
    write_record_mask(tmp_path / "m.nii.gz", table, 0, np.zeros((int(table.count[0]), 32, 32), np.uint8))
    affine = nibabel.load(tmp_path / "m.nii.gz").affine
    assert affine[2, 2] < 0 and np.abs(affine[2, 2]) == pytest.approx(table.spacing_mm[0, 0], rel=1e-3)
