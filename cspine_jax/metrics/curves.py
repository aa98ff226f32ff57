"""Points of the ROC, precision-recall and reliability curves."""

from typing import NamedTuple

import numpy as np

from cspine_jax.metrics.binary import _prepare, _steps, bin_of


class Curve(NamedTuple):
    """Points of a curve; `thresholds[k]` gives point k (score >= threshold is positive)."""

    x: np.ndarray
    y: np.ndarray
    thresholds: np.ndarray


def roc_curve(labels: np.ndarray, scores: np.ndarray) -> Curve:
    """X = 1 - specificity, y = sensitivity, from (0, 0) at threshold infinity to (1, 1); NaN for a missing class."""
    steps = _steps(_prepare(labels, scores, None))
    true, false = (np.r_[0.0, np.cumsum(part)] for part in (steps.positives, steps.negatives))
    x, y = (part / part[-1] if part[-1] > 0 else np.full(len(part), np.nan) for part in (false, true))
    return Curve(x, y, np.r_[np.inf, steps.thresholds])


def precision_recall_curve(labels: np.ndarray, scores: np.ndarray) -> Curve:
    """X = recall, y = precision at each distinct score, highest first; recall NaN without positives."""
    steps = _steps(_prepare(labels, scores, None))
    true, false = np.cumsum(steps.positives), np.cumsum(steps.negatives)
    total = true[-1] if len(true) and true[-1] > 0 else np.nan
    return Curve(true / total, true / (true + false), steps.thresholds)


class Reliability(NamedTuple):
    """Per bin: mean probability, share of positives (both NaN in an empty bin), number of examples."""

    predicted: np.ndarray
    observed: np.ndarray
    count: np.ndarray


def reliability_curve(labels: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> Reliability:
    """The points of a reliability diagram in `bins` equal-width bins, each array `[bins]`."""
    y, p, _ = _prepare(labels, probabilities, None)
    member = bin_of(p, bins)
    count, positives, mass = (np.bincount(member, part, bins) for part in (np.ones(len(p)), y.astype(np.float64), p))
    safe = np.where(count > 0, count, np.nan)
    return Reliability(mass / safe, positives / safe, count.astype(np.int64))
