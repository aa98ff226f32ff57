"""Scores of masks: collected over studies, written, and never filled in."""

import json

import numpy as np
import pytest

from cspine_jax.evaluation.segmentation import MaskScores


def study(levels, shift=0):
    labels = np.zeros((40, 12, 12), np.uint8)
    for k, level in enumerate(levels):
        labels[2 + 8 * k + shift : 8 + 8 * k + shift, 3:9, 3:9] = level
    return labels


def visible(labels):
    return np.stack([[float((plane == level).any()) for level in range(1, 8)] for plane in labels]).astype(np.float32)


def test_a_perfect_and_a_shifted_study(tmp_path):
    scores = MaskScores()
    truth = study([3, 4, 5])
    scores.add("1.1", truth, truth, visible(truth), (1.0, 1.0, 1.0))
    scores.add("1.2", truth, study([4, 5, 6]), visible(study([4, 5, 6])), (1.0, 1.0, 1.0))
    report = scores.report()
    assert report["studies"] == 2
    assert report["identification_rate"] == pytest.approx(0.5)
    assert report["no_false_level"] == pytest.approx(0.5)  # C6 is not there
    assert report["dice_by_level"]["C1"] is None and report["dice_by_level"]["C4"] == pytest.approx(0.5)
    assert report["document_b"] == {"presence_accuracy": 0.945, "presence_auc": 0.959}
    scores.write(tmp_path)
    assert json.loads((tmp_path / "scores.json").read_text()) == report
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert lines[1].endswith(",3/3,") and lines[2].endswith(",0/3,C6")
    assert "2 studies with truth" in scores.line()
