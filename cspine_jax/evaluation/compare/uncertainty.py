"""How sure: the spread of the members, whether it points at the errors, and conformal sets across folds."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cspine_jax.evaluation.compare.nested import each_fold
from cspine_jax.evaluation.resample import Estimate, estimate, ratio
from cspine_jax.metrics import roc_auc
from cspine_jax.metrics.calibration import logit
from cspine_jax.metrics.conformal import SETS, coverage, covers, fit_sets, set_size

MOST_UNCERTAIN = (0.1, 0.2)


def spread(stack: np.ndarray) -> np.ndarray:
    """Standard deviation (population) over the members `[M, ...]`; NaN where fewer than two have a probability."""
    known = ~np.isnan(stack)
    count = known.sum(0)
    filled = np.where(known, stack, 0)
    mean = ratio(filled.sum(0), count)
    squares = np.where(known, (stack - np.where(count > 0, mean, 0)) ** 2, 0).sum(0)
    return np.where(count > 1, np.sqrt(ratio(squares, count)), np.nan)


def distance_to_threshold(p: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """`[S, G]`: minus the distance of the log odds from those of the study's threshold `[S]`: higher is less sure."""
    return -np.abs(logit(p) - logit(threshold)[:, None])


def where_errors_lie(uncertainty: np.ndarray, wrong: np.ndarray) -> dict[str, Any]:
    """What share of the errors is among the most uncertain vertebrae.

    Args:
        uncertainty: `[N]`, higher is less sure; NaN is left out.
        wrong: bool `[N]`.

    Returns:
        `{"vertebrae", "errors", "share_of_errors": {"0.1": share, "0.2": share}, "auc": of the errors by uncertainty}`.
        Equal uncertainties at the cut share it; None without errors. By chance the share is 0.1, 0.2 and the AUC 0.5.
    """
    known = ~np.isnan(uncertainty)
    u, e = uncertainty[known], wrong[known].astype(np.float64)
    values, at = np.unique(-u, return_inverse=True)
    count, errors = np.bincount(at, minlength=len(values)), np.bincount(at, e, minlength=len(values))
    shares = {}
    for share in MOST_UNCERTAIN:
        room = np.clip(share * len(u) - (np.cumsum(count) - count), 0, count)  # of each value, how many are in the top
        found = (errors * room / np.maximum(count, 1)).sum()
        shares[f"{share:g}"] = float(found / e.sum()) if e.sum() else None
    auc = float(roc_auc(e, u)) if len(u) else np.nan
    return {
        "vertebrae": len(u),
        "errors": int(e.sum()),
        "share_of_errors": shares,
        "auc": auc if np.isfinite(auc) else None,
    }


def sets_across_folds(
    labels: np.ndarray, p: np.ndarray, fold: np.ndarray, miss: float, *, mondrian: bool
) -> np.ndarray:
    """Conformal set of each vertebra, calibrated on the other folds.

    Args:
        labels: `[S, 7]` 0 / 1.
        p: `[S, 7]`, NaN where not visible.
        fold: `[S]`.
        miss: rate.
        mondrian: hold the rate in each class.

    Returns:
        int64 `[S, 7]` index into `metrics.conformal.SETS`; -1 where there is no probability.
    """
    result = np.full(p.shape, -1)
    for _, own, others in each_fold(fold):
        result[own] = fit_sets(labels[others].ravel(), p[others].ravel(), miss, mondrian=mondrian)(p[own])
    return result


def describe_sets(labels: np.ndarray, sets: np.ndarray, drawn: np.ndarray) -> dict[str, Any]:
    """Coverage overall and by class, the mean size, and how many sets of each sort there are.

    Args:
        labels: `[S, 7]` 0 / 1.
        sets: `[S, 7]` of `sets_across_folds`.
        drawn: `[1 + R, S]` study weights: the interval over studies stands beside the binomial one, which takes the
            vertebrae of a study for independent.
    """
    given, right = sets >= 0, covers(labels, sets)
    classes = {"all": given, "intact": given & (labels == 0), "fractured": given & (labels == 1)}
    return {
        "coverage": {name: _coverage(labels, sets, which, right, drawn) for name, which in classes.items()},
        "mean_size": _mean(set_size(np.maximum(sets, 0)), given, drawn),
        "sets": {name: int((sets == k).sum()) for k, name in enumerate(SETS)},
        "no_probability": int((~given).sum()),
    }


def _coverage(labels, sets, which, right, drawn) -> Mapping[str, Any]:
    binomial = coverage(labels[which], sets[which])
    ends = (binomial.low, binomial.high) if binomial.examples else (None, None)
    return {
        "examples": binomial.examples,
        "covered": binomial.covered,
        **_mean(right, which, drawn),
        "binomial_low": ends[0],
        "binomial_high": ends[1],
    }


def _mean(values: np.ndarray, which: np.ndarray, drawn: np.ndarray) -> Estimate:
    return estimate(ratio(drawn @ np.where(which, values, 0).sum(1), drawn @ which.sum(1)))
