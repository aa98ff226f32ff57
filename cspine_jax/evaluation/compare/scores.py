"""Every figure of one table, and the paired differences of two: all from the same resamples of studies."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from cspine_jax import metrics
from cspine_jax.evaluation import resample
from cspine_jax.evaluation.compare.nested import GROUPS, Thresholds, each_fold, thresholds
from cspine_jax.evaluation.resample import Estimate, estimate, ratio

LOWER_IS_BETTER = ("rsna", "brier", "ece", "log_loss")

Sampled = dict[str, np.ndarray]
"""Name of a figure -> `[1 + R]`: its value, then its value in each resample."""


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """A table's figures.

    Attributes:
        p: `[S, 8]` what was scored, without NaN.
        sampled: every figure in every resample: "rsna_p_A", "rsna_optimal_A" (of p'), "rsna_calibrated_A" (of p' after
            calibration), "rsna_calibrated_p_A" (of p after it), "patient_auc", "vertebra_f1", ...
        thresholds: of each group.
        intervals: estimates whose interval is not the bootstrap's: DeLong's of the patient AUC.
    """

    p: np.ndarray
    sampled: Sampled
    thresholds: dict[str, Thresholds]
    intervals: dict[str, Estimate]

    def figure(self, name: str) -> Estimate:
        """One figure with its 95% interval."""
        return self.intervals[name] if name in self.intervals else estimate(self.sampled[name])

    def figures(self) -> dict[str, Estimate]:
        """All of them."""
        return {name: self.figure(name) for name in self.sampled}


def score(
    labels: np.ndarray,
    p: np.ndarray,
    fold: np.ndarray,
    drawn: np.ndarray,
    calibrated: np.ndarray,
    bins: int = 10,
    chosen: dict[str, Thresholds] | None = None,
) -> Scored:
    """Scores a table.

    Args:
        labels: `[S, 8]` 0 / 1.
        p: `[S, 8]` clinical probabilities without NaN.
        fold: `[S]`; thresholds come from the other folds.
        drawn: `[1 + R, S]` study weights of `resample.weights`.
        calibrated: `[S, 8]` p after calibration on the other folds, without NaN.
        bins: of the calibration error.
        chosen: thresholds of each group; None chooses them here.
    """
    sampled: Sampled = {}
    tables = {
        "rsna_p": p,
        "rsna_optimal": metrics.score_optimal(p),
        "rsna_calibrated": metrics.score_optimal(calibrated),
        "rsna_calibrated_p": calibrated,
    }
    for name, table in tables.items():
        for kind in "ABC":
            sampled[f"{name}_{kind}"] = np.asarray(metrics.rsna_log_loss(labels, table, kind, weights=drawn))
    chosen = chosen or choose(labels, p, fold)
    for group, columns in GROUPS.items():
        found = _group(labels[:, columns], p[:, columns], fold, chosen[group].yes, drawn, bins)
        sampled |= {f"{group}_{name}": values for name, values in found.items()}
    auc, low, high = metrics.delong_interval(labels[:, 0], p[:, 0])
    delong = {"patient_auc": Estimate(value=_known(auc), low=_known(low), high=_known(high))}
    return Scored(p, sampled, chosen, delong)


def choose(
    labels: np.ndarray, p: np.ndarray, fold: np.ndarray, known: np.ndarray | None = None
) -> dict[str, Thresholds]:
    """The thresholds of each group, see `nested.thresholds`; tables `[S, 8]`."""
    return {
        group: thresholds(labels[:, columns], p[:, columns], fold, None if known is None else known[:, columns])
        for group, columns in GROUPS.items()
    }


def _group(labels, p, fold, yes, drawn, bins) -> Sampled:
    studies, width = labels.shape
    truth = labels == 1
    group = np.repeat(np.arange(studies), width)

    def total(values: np.ndarray) -> np.ndarray:
        return drawn @ values.reshape(studies, width).sum(1)

    tp, fp, fn, tn = (total(part) for part in (truth & yes, ~truth & yes, truth & ~yes, ~truth & ~yes))
    return {
        "auc": resample.auc(drawn, truth.ravel(), p.ravel(), group),
        "auc_within_folds": _auc_within_folds(truth, p, fold, drawn),
        "f1": ratio(2 * tp, 2 * tp + fp + fn),
        "sensitivity": ratio(tp, tp + fn),
        "specificity": ratio(tn, tn + fp),
        **calibration_figures(labels, p, drawn, bins),
    }


def calibration_figures(labels: np.ndarray, p: np.ndarray, drawn: np.ndarray, bins: int) -> Sampled:
    """Brier score, calibration error and log loss `[1 + R]` of one group `[S, G]`; NaN cells are left out."""
    studies, width = labels.shape
    given = ~np.isnan(p)
    q, y = np.where(given, p, 0.5), np.where(given, labels, 0)
    count = drawn @ given.sum(1)

    def mean(values: np.ndarray) -> np.ndarray:
        return ratio(drawn @ np.where(given, values, 0).sum(1), count)

    where = np.clip((q * bins).astype(int), 0, bins - 1)
    gap = np.zeros((studies, bins))
    np.add.at(gap, (np.repeat(np.arange(studies), width), where.ravel()), np.where(given, q - y, 0).ravel())
    clipped = np.clip(q, 1e-15, 1 - 1e-15)
    return {
        "brier": mean((q - y) ** 2),
        "ece": ratio(np.abs(drawn @ gap).sum(1), count),
        "log_loss": mean(-np.where(y == 1, np.log(clipped), np.log1p(-clipped))),
    }


def _auc_within_folds(truth: np.ndarray, p: np.ndarray, fold: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Mean over folds of each fold's own AUC: no comparison of two folds' models, whose scales may differ."""
    found = []
    for _, own, _ in each_fold(fold):
        group = np.repeat(np.arange(own.sum()), truth.shape[1])
        found.append(resample.auc(drawn[:, own], truth[own].ravel(), p[own].ravel(), group))
    stacked = np.stack(found)
    known = np.isfinite(stacked)
    return ratio(np.where(known, stacked, 0).sum(0), known.sum(0))


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


COMPARED = ("rsna_p_A", "rsna_calibrated_p_A", "patient_auc", "vertebra_auc")
"""The figures that two tables are tested on; A of p, since p is about its best answer (`metrics.score_optimal`)."""


def difference(labels: np.ndarray, a: Scored, b: Scored, name: str) -> dict[str, Any]:
    """A paired test of one figure of two tables on the same studies.

    The patient AUC is tested by DeLong (one score a study). Whatever pools the vertebrae of a study, or is no AUC, is
    tested by its paired bootstrap over studies: difference / standard deviation of the resampled differences, against
    a normal distribution, so that p has no floor at 1 / resamples.

    Args:
        labels: `[S, 8]` 0 / 1.
        a: one table.
        b: the other, scored with the same `drawn`.
        name: of the figure.

    Returns:
        `{"figure", "difference" (a - b, an Estimate), "p", "test", "ahead": "a" | "b" | None}`; ahead says which value
        is better, not that the test decided it. p is None where it is not defined.
    """
    gap = a.sampled[name] - b.sampled[name]
    found = estimate(gap)
    if name == "patient_auc":
        tested, p = "DeLong, paired", _delong_p(labels[:, 0], a.p[:, 0], b.p[:, 0])
    else:
        tested, p = "paired bootstrap of studies", _bootstrap_p(gap)
    ahead = None
    if found["value"]:
        ahead = "a" if (found["value"] < 0) == name.startswith(LOWER_IS_BETTER) else "b"
    return {"figure": name, "difference": found, "p": _known(p), "test": tested, "ahead": ahead}


def _delong_p(labels: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """NaN where two AUCs differ without any variance: one that is perfect and one of a constant, of however few."""
    test = metrics.delong_test(labels, a, b)
    gap = abs(test.auc_a - test.auc_b)
    return float("nan") if gap and not gap > 1e-12 * abs(test.z) else test.p_value


def _bootstrap_p(gap: np.ndarray) -> float:
    drawn = gap[1:][np.isfinite(gap[1:])]
    if len(drawn) < 2 or not np.isfinite(gap[0]):
        return float("nan")
    spread = drawn.std(ddof=1)
    if spread < 1e-12:  # the same in every resample: two tables that are one
        return 1.0 if abs(gap[0]) < 1e-12 else float("nan")
    return float(2 * stats.norm.sf(abs(gap[0]) / spread))


def decide(tests: Sequence[dict[str, Any]]) -> None:
    """Adds "p_holm" and "better" ("a", "b", or None where the adjusted p is not below 0.05) to a family of tests."""
    for entry, p in zip(tests, holm([entry["p"] for entry in tests]), strict=True):
        entry["p_holm"] = p
        entry["better"] = entry["ahead"] if p is not None and p < 0.05 else None


def holm(p_values: list[float | None]) -> list[float | None]:
    """P-values adjusted for how many there are (Holm, Scandinavian Journal of Statistics 1979); None stays None."""
    known = sorted((p, k) for k, p in enumerate(p_values) if p is not None)
    result: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, k) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        result[k] = highest
    return result


def best_of(scored: Mapping[str, Scored], name: str) -> str | None:
    """The table with the best value of a figure; None where it is not defined."""
    sign = 1 if name.startswith(LOWER_IS_BETTER) else -1
    values = {key: sign * float(table.sampled[name][0]) for key, table in scored.items()}
    values = {key: value for key, value in values.items() if np.isfinite(value)}
    return min(values, key=values.__getitem__, default=None)
