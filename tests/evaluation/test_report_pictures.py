import base64
import io

import matplotlib.image
import numpy as np
import pytest

from cspine_jax.evaluation import curves
from cspine_jax.evaluation.pictures import Chart, label, ticks, window_png


def test_a_png_reads_back_as_the_windowed_slice():
    hu = np.array([[-2000, -500, 400], [1300, 3000, 850]], np.int16)
    uri = window_png(hu, (400.0, 1800.0))
    pixels = matplotlib.image.imread(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    np.testing.assert_allclose(pixels, [[0, 0, 0.5], [1, 1, 0.75]], atol=1 / 255)


def test_large_slices_are_thinned():
    uri = window_png(np.zeros((512, 512), np.int16), (400.0, 1800.0), largest=256)
    assert matplotlib.image.imread(io.BytesIO(base64.b64decode(uri.split(",")[1]))).shape == (256, 256)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0, 800, [0, 200, 400, 600, 800]), (0.63, 1.0, [0.7, 0.8, 0.9, 1.0])],
)
def test_ticks_are_round_numbers(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_labels_are_short():
    assert [label(v) for v in (0, 0.2, 200, 8e-4, 1234567)] == ["0", "0.2", "200", "8e-4", "1.2e6"]


def test_a_line_skips_what_is_not_a_number():
    chart = Chart((0, 1), (0, 1), "x", "y", "what")
    chart.line([0, 0.5, 1], [0, np.nan, 1], "s0")
    path = chart.svg().split('class="line s0" d="M')[1].split('"')[0]
    assert path.count("L") == 1 and "nan" not in path


def test_a_flat_log_still_has_axes():
    chart = Chart((5, 5), (0.3, 0.3), "x", "y", "what")
    chart.line([5], [0.3], "s0")
    assert "nan" not in chart.svg()


def test_training_series_by_chart():
    lines = [
        {"step": 1, "split": "train", "loss": 1.0, "vertebra": 0.5, "lr": 0.1, "examples_per_second": 5.0},
        {"step": 1, "split": "validation", "loss": 2.0, "vertebra": 0.7, "slice_auc": 0.5, "presence_auc": None},
        {"step": 2, "split": "validation", "loss": 1.5, "slice_auc": 0.6},
        {"step": 2, "split": "validation", "loss": 1.4, "slice_auc": 0.7},
        {"split": "run", "devices": 4},
    ]
    charts = curves.training_series(lines)
    assert set(charts) == {"loss", "parts of the loss", "learning rate", "validation"}
    steps, values = charts["validation"]["validation slice auc"]
    assert steps.tolist() == [1, 2] and values.tolist() == [0.5, 0.7]
    assert charts["loss"]["validation loss"][1].tolist() == [2.0, 1.4]
    assert set(charts["parts of the loss"]) == {"train vertebra", "validation vertebra"}
    assert curves.training_series([]) == {}
