"""Calibrators of a probability: temperature, Platt and isotonic; each maps p to p, in the same order.

All three stay finite on whatever they are fitted to: one class only, classes that a threshold separates perfectly,
probabilities of exactly 0 or 1, a handful of examples, none at all.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from scipy import optimize

EPS = 1e-7
"""Probabilities are clipped to EPS..1 - EPS before their logit is taken."""

SLOPES, BIASES = (0.01, 100.0), (-30.0, 30.0)
"""Bounds of a fit: the slope stays above 0, so that no calibrator turns the order of two studies round."""

_RIDGE = 1e-8


def logit(p: np.ndarray) -> np.ndarray:
    """Log odds of p clipped to `EPS..1 - EPS`; NaN stays NaN."""
    p = np.clip(np.asarray(p, np.float64), EPS, 1 - EPS)
    return np.log(p) - np.log1p(-p)


def expit(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * np.asarray(x, np.float64)))


@dataclasses.dataclass(frozen=True)
class Logistic:
    """P -> expit(slope logit(p) + bias). With bias 0: temperature scaling, slope = 1 / temperature.

    Attributes:
        slope: above 0.
        bias: of the log odds.
    """

    slope: float = 1.0
    bias: float = 0.0

    def __call__(self, p: np.ndarray) -> np.ndarray:
        """Calibrated probabilities, of the shape of `p`; NaN stays NaN."""
        return np.clip(expit(self.slope * logit(p) + self.bias), EPS, 1 - EPS)


@dataclasses.dataclass(frozen=True, eq=False)
class Isotonic:
    """P -> a non-decreasing piecewise linear function; constant beyond the first and the last knot.

    Attributes:
        knots: `[K]` probabilities, rising.
        values: `[K]` what they become, not falling, strictly inside 0..1.
    """

    knots: np.ndarray
    values: np.ndarray

    def __call__(self, p: np.ndarray) -> np.ndarray:
        """Calibrated probabilities, of the shape of `p`; NaN stays NaN."""
        p = np.asarray(p, np.float64)
        return np.where(np.isnan(p), np.nan, np.interp(np.nan_to_num(p), self.knots, self.values))


Calibrator = Callable[[np.ndarray], np.ndarray]


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> Logistic:
    """One slope of the log odds, by least log loss (temperature scaling: Guo et al., ICML 2017).

    Args:
        labels: `[S]` 0 / 1; examples whose label or probability is NaN are left out.
        probabilities: `[S]` within 0..1.

    Returns:
        The calibrator; the identity where there is no example.

    Raises:
        ValueError: shapes differ, or a label is not 0 or 1.
    """
    return _logistic(labels, probabilities, with_bias=False)


def fit_platt(labels: np.ndarray, probabilities: np.ndarray) -> Logistic:
    """Slope and bias of the log odds, by least log loss (Platt 1999; on log odds, so that the identity is among them).

    Arguments, result and errors are those of `fit_temperature`.
    """
    return _logistic(labels, probabilities, with_bias=True)


def fit_isotonic(labels: np.ndarray, probabilities: np.ndarray) -> Calibrator:
    """Isotonic regression by pool adjacent violators (Zadrozny and Elkan, KDD 2002).

    Half a positive at the lowest probability and half a negative at the highest keep every value off 0 and 1, where one
    wrong study would cost an infinite log loss. Arguments and errors are those of `fit_temperature`.

    Returns:
        The calibrator; the identity where there is no example.
    """
    y, p = _examples(labels, probabilities)
    if not len(y):
        return Logistic()
    y, p = np.r_[1.0, y, 0.0], np.r_[p.min(), p, p.max()]
    weight = np.r_[0.5, np.ones(len(y) - 2), 0.5]
    knots, at = np.unique(p, return_inverse=True)
    mass = np.bincount(at, weight)
    fitted = optimize.isotonic_regression(np.bincount(at, weight * y) / mass, weights=mass)
    return Isotonic(knots, np.clip(fitted.x, EPS, 1 - EPS))


FITS: Mapping[str, Callable[[np.ndarray, np.ndarray], Calibrator]] = {
    "temperature": fit_temperature,
    "platt": fit_platt,
    "isotonic": fit_isotonic,
}
"""Every calibrator by name, the stiffest first."""


def _examples(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y, p = np.asarray(labels, np.float64), np.asarray(probabilities, np.float64)
    if y.shape != p.shape or y.ndim != 1:
        raise ValueError(f"labels {y.shape} and probabilities {p.shape} must be the same length, one dimension")
    keep = ~(np.isnan(y) | np.isnan(p))
    if not np.isin(y[keep], (0.0, 1.0)).all():
        raise ValueError("labels must be 0 or 1 (or NaN to leave an example out)")
    return y[keep], p[keep]


def _logistic(labels: np.ndarray, probabilities: np.ndarray, *, with_bias: bool) -> Logistic:
    y, p = _examples(labels, probabilities)
    if not len(y):
        return Logistic()
    x = logit(p)
    # Platt's targets: what a uniform prior makes of the counts. With 0 and 1, separated classes want slope infinity.
    positives = y.sum()
    target = np.where(y == 1, (positives + 1) / (positives + 2), 1 / (len(y) - positives + 2))

    slope, bias = _newton(x, target, 1.0, 0.0, free=(True, with_bias))
    if not SLOPES[0] <= slope <= SLOPES[1]:  # convex: the best within the bounds is on the bound
        slope = float(np.clip(slope, *SLOPES))
        bias = _newton(x, target, slope, 0.0, free=(False, True))[1] if with_bias else 0.0
    return Logistic(slope, float(np.clip(bias, *BIASES)))


def _newton(
    x: np.ndarray, target: np.ndarray, slope: float, bias: float, *, free: tuple[bool, bool], steps: int = 100
) -> tuple[float, float]:
    """Least mean cross-entropy of expit(slope x + bias) by damped Newton steps from (slope, bias).

    A ridge towards (1, 0), too weak to matter elsewhere, decides where the data say nothing (all log odds equal).
    """
    design = np.stack([x, np.ones(len(x))])[list(free)]
    theta, home = np.array([slope, bias])[list(free)], np.array([1.0, 0.0])[list(free)]
    offset = np.zeros(len(x)) if free[0] else slope * x

    def loss(theta: np.ndarray) -> float:
        z = theta @ design + offset
        return float(np.mean(np.logaddexp(0, z) - target * z) + _RIDGE * ((theta - home) ** 2).sum())

    now = loss(theta)
    for _ in range(steps):
        q = expit(theta @ design + offset)
        gradient = design @ (q - target) / len(x) + 2 * _RIDGE * (theta - home)
        curvature = (design * (q * (1 - q))) @ design.T / len(x) + 2 * _RIDGE * np.eye(len(theta))
        step, size = np.linalg.solve(curvature, gradient), 1.0
        while loss(theta - size * step) > now - 1e-4 * size * (gradient @ step) and size > 1e-12:
            size /= 2
        theta = theta - size * step
        before, now = now, loss(theta)
        if before - now < 1e-14:
            break
    found = iter(theta)
    return (float(next(found)) if free[0] else slope), (float(next(found)) if free[1] else bias)
