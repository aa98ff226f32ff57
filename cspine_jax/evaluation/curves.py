"""Points of the curves in the report, thinned to what a screen can show, and the series of a training log."""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from cspine_jax import metrics

MOST_POINTS = 300
CHARTS = ("loss", "parts of the loss", "learning rate", "validation")


class RocPr(NamedTuple):
    """Curves of one level: `roc` (false, true positive rate), `pr` (recall, precision), and two summaries."""

    roc: tuple[np.ndarray, np.ndarray]
    pr: tuple[np.ndarray, np.ndarray]
    average_precision: float
    prevalence: float


def roc_pr(truth: np.ndarray, score: np.ndarray) -> RocPr | None:
    """ROC and precision-recall points of one level.

    Args:
        truth: `[M]` bool.
        score: `[M]`.

    Returns:
        The points, or None with one class only.
    """
    if len(truth) == 0 or truth.all() or not truth.any():
        return None
    roc, pr = metrics.roc_curve(truth, score), metrics.precision_recall_curve(truth, score)
    of_roc, of_pr = _thin(len(roc.x)), _thin(len(pr.x))
    return RocPr(
        (roc.x[of_roc], roc.y[of_roc]),
        (pr.x[of_pr], pr.y[of_pr]),
        float(metrics.average_precision(truth, score)),
        float(truth.mean()),
    )


def training_series(history: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Sorts the numbers of a training log by chart.

    Args:
        history: parsed lines of `metrics.jsonl`: `{"step", "split", name: value, ...}`; others are left out.

    Returns:
        `{chart: {series: (steps, values)}}` with the charts "loss", "parts of the loss" (logged in training and
        validation), "validation" (only there, within 0..1) and "learning rate"; a chart without numbers is missing. A
        step that was logged twice counts once, with its last value.
    """
    series: dict[tuple[str, str], dict[int, float]] = {}
    for line in history:
        if not isinstance(line.get("step"), Real):
            continue
        for name, value in line.items():
            if name != "step" and isinstance(value, Real) and not isinstance(value, bool) and np.isfinite(float(value)):
                series.setdefault((str(line.get("split", "train")), name), {})[int(line["step"])] = float(value)
    charts: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for (split, name), points in series.items():
        both = ("train", name) in series and ("validation", name) in series
        if name == "loss":
            chart = "loss"
        elif name in ("lr", "learning_rate"):
            chart = "learning rate"
        elif "second" in name:
            continue
        elif both:
            chart = "parts of the loss"
        elif split == "validation" and all(0 <= value <= 1 for value in points.values()):
            chart = "validation"
        else:
            continue
        steps = np.array(sorted(points))
        values = np.array([points[step] for step in steps])
        keep = _thin(len(steps))
        charts.setdefault(chart, {})[f"{split} {name}".replace("_", " ")] = (steps[keep], values[keep])
    return {name: charts[name] for name in CHARTS if name in charts}


def _thin(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, MOST_POINTS)).round().astype(int))
