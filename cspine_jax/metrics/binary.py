"""Scores of one binary target, all with example weights `[..., S]` so that a bootstrap needs no loop.

Labels are 0 / 1, scores higher for positives; an example whose label or score is NaN is left out. A score without a
defined value (ROC AUC of a single class, sensitivity without positives) is NaN. Without weights the results are floats.
"""

from typing import NamedTuple

import numpy as np


class _Data(NamedTuple):
    labels: np.ndarray  # bool [S]
    scores: np.ndarray  # [S]
    weights: np.ndarray  # [..., S]


def _prepare(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None) -> _Data:
    labels, scores = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    if labels.shape != scores.shape or labels.ndim != 1:
        raise ValueError(f"labels {labels.shape} and scores {scores.shape} must be the same length, one dimension")
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    if weights.shape[-1:] != labels.shape:
        raise ValueError(f"weights {weights.shape} must end in the number of examples, {len(labels)}")
    keep = ~(np.isnan(labels) | np.isnan(scores))
    labels, scores, weights = labels[keep], scores[keep], weights[..., keep]
    if not np.isin(labels, (0.0, 1.0)).all():
        raise ValueError("labels must be 0 or 1 (or NaN to leave an example out)")
    return _Data(labels == 1, scores, weights)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray | float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    result = np.divide(a, b, out=np.full(np.broadcast_shapes(a.shape, b.shape), np.nan), where=b > 0)
    return float(result) if result.ndim == 0 else result


class _Steps(NamedTuple):
    thresholds: np.ndarray  # [G] distinct scores, highest first
    positives: np.ndarray  # [..., G] weight of positives with exactly that score
    negatives: np.ndarray


def _steps(data: _Data) -> _Steps:
    order = np.argsort(-data.scores, kind="stable")
    scores = data.scores[order]
    first = np.flatnonzero(np.r_[True, scores[1:] != scores[:-1]]) if len(scores) else np.zeros(0, np.int64)
    weights = data.weights[..., order]
    positive = weights * data.labels[order]
    if not len(first):
        empty = np.zeros((*weights.shape[:-1], 0))
        return _Steps(scores, empty, empty)
    total = np.add.reduceat(weights, first, axis=-1)
    positives = np.add.reduceat(positive, first, axis=-1)
    return _Steps(scores[first], positives, total - positives)


def roc_auc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float | np.ndarray:
    """Area under the ROC curve: P(score of a positive > of a negative) + P(equal) / 2."""
    _, positives, negatives = _steps(_prepare(labels, scores, weights))
    above = np.cumsum(positives, -1) - positives
    area = (negatives * (above + 0.5 * positives)).sum(-1)
    return _ratio(area, positives.sum(-1) * negatives.sum(-1))


def average_precision(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float | np.ndarray:
    """sum_n (recall_n - recall_{n-1}) precision_n over the distinct scores, highest first."""
    _, positives, negatives = _steps(_prepare(labels, scores, weights))
    true, false = np.cumsum(positives, -1), np.cumsum(negatives, -1)
    with np.errstate(invalid="ignore"):
        precisions = np.where(true + false > 0, true / np.maximum(true + false, 1e-300), 0.0)
    return _ratio((positives * precisions).sum(-1), positives.sum(-1))


class Confusion(NamedTuple):
    """Weights of true and false positives and negatives, each `[...]`."""

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    tn: np.ndarray


def confusion(
    labels: np.ndarray, scores: np.ndarray, threshold: float = 0.5, weights: np.ndarray | None = None
) -> Confusion:
    """Counts at a threshold; score >= threshold is positive."""
    y, s, w = _prepare(labels, scores, weights)
    called = s >= threshold
    return Confusion(*((w * which).sum(-1) for which in (called & y, called & ~y, ~called & y, ~called & ~y)))


def sensitivity(labels, scores, threshold: float = 0.5, weights=None) -> float | np.ndarray:
    """TP / (TP + FN), also called recall; NaN without positives."""
    c = confusion(labels, scores, threshold, weights)
    return _ratio(c.tp, c.tp + c.fn)


def specificity(labels, scores, threshold: float = 0.5, weights=None) -> float | np.ndarray:
    """TN / (TN + FP); NaN without negatives."""
    c = confusion(labels, scores, threshold, weights)
    return _ratio(c.tn, c.tn + c.fp)


def precision(labels, scores, threshold: float = 0.5, weights=None) -> float | np.ndarray:
    """TP / (TP + FP); NaN where nothing is called positive."""
    c = confusion(labels, scores, threshold, weights)
    return _ratio(c.tp, c.tp + c.fp)


def accuracy(labels, scores, threshold: float = 0.5, weights=None) -> float | np.ndarray:
    """(TP + TN) / all."""
    c = confusion(labels, scores, threshold, weights)
    return _ratio(c.tp + c.tn, c.tp + c.fp + c.fn + c.tn)


def f1_score(labels, scores, threshold: float = 0.5, weights=None) -> float | np.ndarray:
    """2 TP / (2 TP + FP + FN); NaN where there is no positive, neither true nor called."""
    c = confusion(labels, scores, threshold, weights)
    return _ratio(2 * c.tp, 2 * c.tp + c.fp + c.fn)


def best_f1_threshold(labels: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """The threshold (score >= threshold is positive) with the highest F1, to be chosen on validation data.

    The middle between two neighbouring scores, so that it carries over better than a training score itself; the
    higher threshold where two are equal in F1.

    Returns:
        (threshold, F1 there); (0.5, NaN) where there is no positive to find.
    """
    steps = _steps(_prepare(labels, scores, None))
    total = steps.positives.sum()
    if total == 0:
        return 0.5, float("nan")
    true, false = np.cumsum(steps.positives), np.cumsum(steps.negatives)
    f1 = 2 * true / (true + false + total)
    k = int(np.argmax(f1))
    below = steps.thresholds[k + 1] if k + 1 < len(steps.thresholds) else steps.thresholds[k]
    middle = 0.5 * (steps.thresholds[k] + below)
    return float(middle if below < middle <= steps.thresholds[k] else steps.thresholds[k]), float(f1[k])


def brier(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None) -> float | np.ndarray:
    """Mean squared error of the probability (Brier 1950)."""
    y, p, w = _prepare(labels, probabilities, weights)
    return _ratio(w @ (p - y) ** 2, w.sum(-1))


def log_loss(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None, eps: float = 1e-15
) -> float | np.ndarray:
    """Mean binary cross-entropy, unweighted by class; probabilities clipped to eps..1 - eps."""
    y, p, w = _prepare(labels, probabilities, weights)
    p = np.clip(p, eps, 1 - eps)
    return _ratio(w @ -np.where(y, np.log(p), np.log1p(-p)), w.sum(-1))


def bin_of(probabilities: np.ndarray, bins: int) -> np.ndarray:
    """Index of the equal-width bin of 0..1 each probability falls in; 1.0 falls in the last."""
    return np.clip((np.asarray(probabilities) * bins).astype(np.int64), 0, bins - 1)


def calibration_error(
    labels: np.ndarray, probabilities: np.ndarray, bins: int = 10, weights: np.ndarray | None = None
) -> float | np.ndarray:
    """Expected calibration error: sum over equal-width bins of share * |mean label - mean probability|.

    Naeini et al. 2015. It is biased upwards in small samples: read it beside its interval.
    """
    y, p, w = _prepare(labels, probabilities, weights)
    member = bin_of(p, bins)[:, None] == np.arange(bins)
    gap = np.abs((w * (y - p)) @ member)
    return _ratio(gap.sum(-1), w.sum(-1))
