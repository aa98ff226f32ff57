"""Split conformal sets of a binary outcome: which of "intact" and "fractured" cannot be ruled out at a miss rate.

Vovk, Gammerman and Shafer 2005; class-conditional ("Mondrian"): Vovk 2012. If calibration and new examples are
exchangeable, a set leaves the truth out with probability at most the miss rate, whatever the model: with n calibration
scores and no ties exactly 1 - ceil((n + 1)(1 - miss)) / (n + 1). The vertebrae of one neck are not independent of each
other: that widens the spread of the coverage in a sample, not its mean over studies.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from scipy import stats

SETS = ("none", "intact", "fractured", "unsure")
"""Names of the four sets by number: 1 for "intact" in it, 2 for "fractured" in it, added. "unsure" holds both."""


def conformal_quantile(scores: np.ndarray, miss: float) -> float:
    """The ceil((n + 1)(1 - miss))-th smallest of n nonconformity scores.

    Args:
        scores: `[n]`, higher is stranger.
        miss: within 0..1, both excluded.

    Returns:
        The quantile; infinity (nothing is ruled out) where n is too small for that rank.

    Raises:
        ValueError: the miss rate is not within 0..1.
    """
    if not 0.0 < miss < 1.0:
        raise ValueError(f"miss={miss}: must be between 0 and 1, e.g. 0.1")
    scores = np.sort(np.asarray(scores, np.float64))
    rank = math.ceil((len(scores) + 1) * (1 - miss) - 1e-9)  # (n + 1) 0.9 may come out a hair above a whole number
    return float(scores[rank - 1]) if rank <= len(scores) else math.inf


@dataclasses.dataclass(frozen=True)
class ConformalSets:
    """Who is in the set: intact where p <= `intact`, fractured where 1 - p <= `fractured`.

    Attributes:
        intact: quantile of p among (Mondrian: intact) calibration examples.
        fractured: quantile of 1 - p among (Mondrian: fractured) calibration examples.
    """

    intact: float
    fractured: float

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """Number of the set (index into `SETS`) of each probability, int64 of the same shape; -1 where p is NaN."""
        p = np.asarray(probabilities, np.float64)
        return np.where(np.isnan(p), -1, (p <= self.intact).astype(np.int64) + 2 * (1 - p <= self.fractured))


def fit_sets(
    labels: np.ndarray, probabilities: np.ndarray, miss: float = 0.1, *, mondrian: bool = True
) -> ConformalSets:
    """Calibrates the sets on labelled examples that the model was not trained on.

    The nonconformity of a label is 1 - its probability.

    Args:
        labels: `[n]` 0 / 1; examples whose label or probability is NaN are left out.
        probabilities: `[n]` of a fracture.
        miss: share of examples whose set may leave the truth out.
        mondrian: hold the miss rate within each class, so that fractures, the rare class, are not the ones missed;
            otherwise over all.

    Raises:
        ValueError: shapes differ, or the miss rate is not within 0..1.
    """
    y, p = np.asarray(labels, np.float64), np.asarray(probabilities, np.float64)
    if y.shape != p.shape or y.ndim != 1:
        raise ValueError(f"labels {y.shape} and probabilities {p.shape} must be the same length, one dimension")
    keep = ~(np.isnan(y) | np.isnan(p))
    y, p = y[keep], p[keep]
    if mondrian:
        return ConformalSets(conformal_quantile(p[y == 0], miss), conformal_quantile(1 - p[y == 1], miss))
    both = conformal_quantile(np.where(y == 1, 1 - p, p), miss)
    return ConformalSets(both, both)


class Coverage(NamedTuple):
    """Examples, how many sets hold the truth, that share, and its 95% binomial interval (NaN without examples)."""

    examples: int
    covered: int
    share: float
    low: float
    high: float


def covers(labels: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """Bool `[n]`: does the set hold the truth? `sets` are the numbers that `ConformalSets` gives."""
    return (np.asarray(sets) & np.where(np.asarray(labels) == 1, 2, 1)) > 0


def coverage(labels: np.ndarray, sets: np.ndarray, level: float = 0.95) -> Coverage:
    """Share of sets that hold the truth, with the interval of Clopper and Pearson (Biometrika 1934).

    Args:
        labels: `[n]` 0 / 1.
        sets: `[n]` numbers of sets; -1 (no probability) is left out.
        level: of the interval.
    """
    labels, sets = np.asarray(labels), np.asarray(sets)
    given = sets >= 0
    n, k = int(given.sum()), int(covers(labels[given], sets[given]).sum())
    if n == 0:
        return Coverage(0, 0, math.nan, math.nan, math.nan)
    tail = (1 - level) / 2
    low = float(stats.beta.ppf(tail, k, n - k + 1)) if k else 0.0
    high = float(stats.beta.ppf(1 - tail, k + 1, n - k)) if k < n else 1.0
    return Coverage(n, k, k / n, low, high)


def set_size(sets: np.ndarray) -> np.ndarray:
    """How many labels are in each set, 0, 1 or 2."""
    return np.array([0, 1, 1, 2])[np.asarray(sets)]
