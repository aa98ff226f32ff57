"""DeLong's variance of the ROC AUC and the paired test of two AUCs on the same examples.

DeLong, DeLong and Clarke-Pearson, Biometrics 1988; midranks after Sun and Xu, IEEE Signal Processing Letters 2014.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats


def _components(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AUC of each row `[K]`, and its structural components for positives `[K, m]` and negatives `[K, n]`."""
    labels, scores = np.asarray(labels, np.float64), np.atleast_2d(np.asarray(scores, np.float64))
    if labels.ndim != 1 or scores.shape[1:] != labels.shape:
        raise ValueError(f"labels {labels.shape} and scores {scores.shape} must have the same length")
    keep = ~(np.isnan(labels) | np.isnan(scores).any(0))
    labels, scores = labels[keep], scores[:, keep]
    positive, negative = scores[:, labels == 1], scores[:, labels == 0]
    m, n = positive.shape[1], negative.shape[1]
    if m == 0 or n == 0:
        return np.full(len(scores), np.nan), positive, negative
    both = stats.rankdata(np.concatenate([positive, negative], 1), axis=1)
    v10 = (both[:, :m] - stats.rankdata(positive, axis=1)) / n
    v01 = 1.0 - (both[:, m:] - stats.rankdata(negative, axis=1)) / m
    return v10.mean(1), v10, v01


def _covariance(v10: np.ndarray, v01: np.ndarray) -> np.ndarray:
    m, n = v10.shape[1], v01.shape[1]
    if m < 2 or n < 2:
        return np.full((len(v10), len(v10)), np.nan)
    return np.atleast_2d(np.cov(v10)) / m + np.atleast_2d(np.cov(v01)) / n


def delong_variance(labels: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """(AUC, its variance); the variance is NaN with fewer than two examples of a class.

    Args:
        labels: `[S]` 0 / 1; examples with a NaN label or score are left out.
        scores: `[S]`.
    """
    auc, v10, v01 = _components(labels, scores)
    return float(auc[0]), float(_covariance(v10, v01)[0, 0])


def delong_interval(labels: np.ndarray, scores: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """(AUC, low, high) on the logit scale, which keeps the interval inside 0..1.

    An AUC of exactly 0 or 1 has variance 0: the interval is that point, which says nothing about its certainty.
    """
    auc, variance = delong_variance(labels, scores)
    if not 0.0 < auc < 1.0 or np.isnan(variance):
        known = not np.isnan(variance)
        return auc, auc if known else np.nan, auc if known else np.nan
    half = stats.norm.ppf(0.5 + level / 2) * np.sqrt(variance) / (auc * (1 - auc))
    logit = np.log(auc / (1 - auc))
    low, high = 1 / (1 + np.exp(-(logit + np.array([-half, half]))))
    return auc, float(low), float(high)


class DeLongTest(NamedTuple):
    """AUCs of two models on the same examples, the z of their difference and its two-sided p."""

    auc_a: float
    auc_b: float
    z: float
    p_value: float


def delong_test(labels: np.ndarray, scores_a: np.ndarray, scores_b: np.ndarray) -> DeLongTest:
    """Tests whether two models that scored the same examples have the same AUC.

    Args:
        labels: `[S]` 0 / 1; examples with a NaN anywhere are left out for both.
        scores_a: `[S]`.
        scores_b: `[S]`.

    Returns:
        z = (AUC a - AUC b) / its standard deviation, and the p-value. A difference without variance (scores in the
        same order) gives z 0 and p 1 when the AUCs are equal.
    """
    auc, v10, v01 = _components(labels, np.stack([scores_a, scores_b]))
    covariance = _covariance(v10, v01)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    difference = auc[0] - auc[1]
    if difference == 0 and not np.isnan(variance):
        return DeLongTest(float(auc[0]), float(auc[1]), 0.0, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = difference / np.sqrt(max(variance, 0.0)) if not np.isnan(variance) else np.nan
    return DeLongTest(float(auc[0]), float(auc[1]), float(z), float(2 * stats.norm.sf(abs(z))))
