"""The two 3D recipes as whole experiments, shrunk: trained, evaluated, predicted, exported, used."""

import csv
import json

import numpy as np
import pytest

from cspine_jax.anatomy import VERTEBRAE
from cspine_jax.cli import main
from cspine_jax.config import to_dict
from cspine_jax.data.probabilities import vertebra_probabilities
from cspine_jax.errors import DataError
from cspine_jax.experiment import Experiment
from cspine_jax.inference import weights

SMALL = {"depth": 32, "height": 16, "width_px": 16, "margin": 2, "width": 4, "levels": 2}


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("runs"), {}
    for kind, recipe in (("spine", "segment_unet3d"), ("refine", "segment_refine3d")):
        config = tiny(recipe, volume={**SMALL, "spacing_mm": 4.0 if kind == "spine" else 2.0}, data={"batch_size": 2})
        assert config.task == kind
        experiment = Experiment(config, folder / kind)
        experiment.train()
        found[kind] = experiment, experiment.evaluate()
    return found


def test_both_are_evaluated_on_their_test_crops(runs):
    for kind, (experiment, metrics) in runs.items():
        there = json.loads((experiment.workdir / "evaluation" / "metrics.json").read_text())
        assert there == metrics and metrics["data"] == "phantom" and metrics["studies"] >= 1
        assert all(0 <= value <= 1 for value in metrics["dice"].values()), kind
        assert json.loads((experiment.workdir / "config.json").read_text()) == to_dict(experiment.config)


def test_the_coarse_one_predicts_every_slice_ready_for_fracture_models(runs):
    experiment, _ = runs["spine"]
    path = experiment.predict()
    table = experiment.kind.data.table
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(table)
    values = np.array([[float(row[name]) for name in VERTEBRAE] for row in rows])
    assert ((values >= 0) & (values <= 1)).all()
    probabilities = vertebra_probabilities(table, str(path), in_sample=True)
    assert np.isfinite(probabilities.values).any(axis=1).all()


def test_the_fine_one_alone_predicts_nothing_and_says_what_to_do(runs):
    with pytest.raises(DataError, match="cspine weights export"):
        runs["refine"][0].predict()


def test_exported_together_they_load(runs, tmp_path, capsys):
    spine, refine = (str(runs[kind][0].workdir) for kind in ("spine", "refine"))
    out = tmp_path / "w.npz"
    assert main(["weights", "export", "--spine", spine, "--refine", refine, "--out", str(out)]) == 0
    assert "phantoms" in capsys.readouterr().out
    assert spine not in out.with_suffix(".json").read_text()  # no folder of this machine
    one, two, card = weights.load(out)
    assert card.phantom and card.networks["spine"]["step"] == 2
    assert one(np.zeros((1, 4, 4, 4, 8), np.float32))["logits"].shape == (1, 4, 4, 4, 20)
    assert two(np.zeros((1, 4, 4, 4, 11), np.float32))["logits"].shape == (1, 8, 8, 8, 4)
    assert main(["weights", "export", "--spine", refine, "--refine", spine, "--out", str(out)]) == 2
    assert "a run of task 'refine', not 'spine'" in capsys.readouterr().err
