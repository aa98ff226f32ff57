"""Ensembles of the models' out-of-fold tables: means of probabilities, of log odds, of ranks, and a weighted mean."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import optimize

from cspine_jax.anatomy import NUM_VERTEBRAE, PATIENT_WEIGHTS, TARGETS, VERTEBRA_WEIGHTS
from cspine_jax.evaluation.compare.nested import GROUPS, each_fold
from cspine_jax.metrics import fit_platt
from cspine_jax.metrics.calibration import expit, logit

PREFIX = "ensemble-"

_TINY = 1e-12


class Ensembles(NamedTuple):
    """Tables by name, and the weights that the weighted one took.

    Attributes:
        p: name -> `[S, 8]`; NaN where no member has a probability.
        weights: fold -> group -> member -> weight.
    """

    p: dict[str, np.ndarray]
    weights: dict[int, dict[str, dict[str, float]]]


def ensembles(members: Mapping[str, np.ndarray], labels: np.ndarray, fold: np.ndarray) -> Ensembles:
    """All four. A member that has no probability of a level is left out of that level's mean.

    Where a fold has no others to rank among there are three: without `ensemble-rank`.

    Args:
        members: name -> `[S, 8]` clinical probabilities, NaN where not visible; at least two.
        labels: `[S, 8]` 0 / 1; read by the rank mean (to make it a probability) and the weighted mean, of other folds
            only.
        fold: `[S]`.
    """
    stack = np.stack(list(members.values()))
    weighted, weights = _weighted(stack, list(members), labels, fold)
    tables = {PREFIX + "mean": mean_known(stack), PREFIX + "logit": expit(mean_known(logit(stack)))}
    if all(others.any() for k, _, others in each_fold(fold) if k >= 0):
        tables[PREFIX + "rank"] = _rank_mean(stack, labels, fold)
    return Ensembles({**tables, PREFIX + "weighted": weighted}, weights)


def mean_known(stack: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is not NaN; NaN where all are."""
    known = ~np.isnan(stack)
    count = known.sum(0)
    total = np.where(known, stack, 0).sum(0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def share_below(reference: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Rank of values among `reference` `[N]` as a share within 0..1, ends excluded; ties count half, NaN stays."""
    ordered = np.sort(reference[~np.isnan(reference)])
    if not len(ordered):
        return np.where(np.isnan(values), np.nan, 0.5)
    below = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    share = np.clip(below / 2, 0.5, len(ordered) - 0.5) / len(ordered)
    return np.where(np.isnan(values), np.nan, share)


def _rank_mean(stack: np.ndarray, labels: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Ranks among the other folds, their mean, made a probability by Platt scaling fitted on the other folds."""
    result = np.empty(stack.shape[1:])
    for columns in GROUPS.values():
        for _, own, others in each_fold(fold):
            reference = stack[:, others, columns]

            def ranks(part: np.ndarray, reference: np.ndarray = reference) -> np.ndarray:
                return mean_known(
                    np.stack([share_below(ref.ravel(), p) for ref, p in zip(reference, part, strict=True)])
                )

            calibrator = fit_platt(labels[others, columns].ravel(), ranks(reference).ravel())
            result[own, columns] = calibrator(ranks(stack[:, own, columns]))
    return result


def _weighted(
    stack: np.ndarray, names: list[str], labels: np.ndarray, fold: np.ndarray
) -> tuple[np.ndarray, dict[int, dict[str, dict[str, float]]]]:
    instead = mean_known(stack)
    full = np.where(np.isnan(stack), instead, stack)  # NaN only where nobody knows
    result, weights = np.empty(instead.shape), {}
    for k, own, others in each_fold(fold):
        weights[k] = {}
        for group, columns in GROUPS.items():
            w = metric_a_weights(full[:, others], labels[others], columns)
            weights[k][group] = dict(zip(names, map(float, w), strict=True))
            result[own, columns] = np.tensordot(w, full[:, own, columns], 1)
    return result, weights


def metric_a_weights(stack: np.ndarray, labels: np.ndarray, columns: slice) -> np.ndarray:
    """The weights, none below 0 and 1 in sum, of least RSNA metric A of p in some columns.

    Metric A is a sum over columns, so the patient's and the vertebrae's weights can be found apart; it is convex in
    the weights, so what is found is the least.

    Args:
        stack: `[M, S, 8]`; cells with a NaN are left out.
        labels: `[S, 8]` 0 / 1.
        columns: of the eight.

    Returns:
        `[M]`; equal weights where there is nothing to choose by.
    """
    count = len(stack)
    equal = np.full(count, 1 / count)
    positive, negative = (
        np.array([p, *[v] * NUM_VERTEBRAE]) for p, v in zip(PATIENT_WEIGHTS[::-1], VERTEBRA_WEIGHTS[::-1], strict=True)
    )
    w = np.where(labels == 1, positive, negative)
    w = w / w.sum(1, keepdims=True)
    assert w.shape[1] == len(TARGETS)
    y, w, p = labels[:, columns].ravel(), w[:, columns].ravel(), stack[:, :, columns].reshape(count, -1)
    keep = ~np.isnan(p).any(0)
    y, w, p = y[keep], w[keep], p[:, keep]
    if not len(y):
        return equal

    def loss(a: np.ndarray) -> tuple[float, np.ndarray]:
        q = np.clip(a @ p, _TINY, 1 - _TINY)
        value = -(w * np.where(y == 1, np.log(q), np.log1p(-q))).sum() / w.sum()
        slope = np.where(y == 1, -1 / q, 1 / (1 - q))
        return float(value), p @ (w * slope) / w.sum()

    found = optimize.minimize(
        loss,
        equal,
        jac=True,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * count,
        constraints={"type": "eq", "fun": lambda a: a.sum() - 1, "jac": lambda a: np.ones(count)},
        options={"ftol": 1e-12, "maxiter": 300},
    )
    best = np.clip(found.x, 0, None)
    if not np.isfinite(best).all() or best.sum() <= 0:
        return equal
    best /= best.sum()
    return best if loss(best)[0] <= loss(equal)[0] else equal
