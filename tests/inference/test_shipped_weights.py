"""What a fresh install can do with the weights that come with it. Phantoms of a seed that no training has seen."""

import json

import numpy as np
import pytest

from cspine_jax.cli import main
from cspine_jax.phantom.dataset import write_dataset

SEED = 20261


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("phantom"), 4, seed=SEED, size=192, scale=0.6)


def studies(folder):
    return [str(path) for path in sorted((folder / "train_images").iterdir())]


@pytest.mark.slow
def test_vertebrae_of_unseen_phantoms_are_named_and_outlined(folder, tmp_path, capsys):
    command = ["segment", *studies(folder), "--out", str(tmp_path), "--truth", str(folder / "segmentations"), "--json"]
    assert main(command) == 0
    reports = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all("phantom" in report["note"] and "not for clinical use" in report["note"] for report in reports)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["studies"] == 4
    assert scores["identification_rate"] >= 0.99 and scores["no_false_level"] == 1.0
    assert scores["dice"] >= 0.85
    assert scores["presence_auc"] >= 0.98


@pytest.mark.slow
def test_fractures_of_a_new_study_with_nothing_but_the_package(folder, tmp_path, capsys):
    assert main(["predict", studies(folder)[0], "--out", str(tmp_path), "--masks"]) == 0
    assert "synthetic studies only" in capsys.readouterr().out
    (out,) = (path for path in tmp_path.iterdir() if path.is_dir())
    found = json.loads((out / "findings.json").read_text())
    levels = {level["name"]: level for level in found["vertebrae"]}
    mask = json.loads((out / "vertebrae.json").read_text())
    seen = {v["name"] for v in mask["vertebrae"] if v["state"] != "absent"}
    for name, level in levels.items():
        assert level["visible"] == (name in seen)
        assert (level["probability"] is not None) == level["visible"]
        if level["visible"]:
            assert 0 < level["probability"] < 1
    assert np.isfinite(found["patient_probability"])
    assert {"read", "segment", "predict"} <= found["seconds"].keys()
    assert (out / "vertebrae.nii.gz").is_file() and (out / "preview.png").is_file()
    assert (tmp_path / "submission.csv").read_text().count("\n") == 9
