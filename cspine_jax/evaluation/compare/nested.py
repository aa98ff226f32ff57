"""Choices that never see the fold they are used on: fill values, thresholds and calibrators, each from the other folds.

Folds below 0 are of studies that are only chosen by: the validation studies of a fold that is alone. Where there are
none either, nothing can be chosen, and the default is taken and named as such.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from cspine_jax import metrics
from cspine_jax.metrics.calibration import FITS, Calibrator, Logistic

GROUPS: dict[str, slice] = {"patient": slice(0, 1), "vertebra": slice(1, None)}
"""Columns of `anatomy.TARGETS` that share a threshold and a calibrator; the vertebrae are pooled."""

STIFFEST = next(iter(FITS))


def each_fold(fold: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(fold, bool `[S]` of its studies, bool `[S]` of those that may choose for it) of every fold.

    Those are of all others; for studies that are only chosen by, of the others of these: what is then chosen on them
    would have seen the tested ones.
    """
    for k in np.unique(fold):
        own = fold == k
        yield int(k), own, ~own & ((fold < 0) | (k >= 0))


def fill_hidden(labels: np.ndarray, p: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """`[S, C]` without NaN: in its place the prevalence in the other folds, which is where a fold's model was trained.

    Args:
        labels: `[S, C]` 0 / 1.
        p: `[S, C]`.
        fold: `[S]`.
    """
    return np.where(np.isnan(p), prevalence(labels, fold), p)


def prevalence(labels: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """`[S, C]` share of positives in the other folds, with half a positive and half a negative; 0.5 without any."""
    result = np.empty(labels.shape)
    for _, own, others in each_fold(fold):
        result[own] = (labels[others].sum(0) + 0.5) / (others.sum() + 1)
    return result


@dataclasses.dataclass(frozen=True, eq=False)
class Thresholds:
    """Of one group.

    Attributes:
        value: fold -> threshold.
        source: fold -> "other folds", "validation studies" or "default".
        yes: bool `[S, G]`, the decisions: at or above the threshold of the study's fold.
        of_study: `[S]` the threshold of its fold.
    """

    value: dict[int, float]
    source: dict[int, str]
    yes: np.ndarray
    of_study: np.ndarray

    def of(self, keep: np.ndarray) -> "Thresholds":
        """Of some studies, bool `[S]`, and the folds at or above 0."""
        value = {k: x for k, x in self.value.items() if k >= 0}
        source = {k: x for k, x in self.source.items() if k >= 0}
        return Thresholds(value, source, self.yes[keep], self.of_study[keep])

    def sources(self) -> str:
        """In one line: where all come from, or the folds of each origin."""
        found: dict[str, list[int]] = {}
        for k, name in self.source.items():
            found.setdefault(name, []).append(k)
        if len(found) == 1:
            return next(iter(found))
        return ", ".join(f"{name}: fold {' '.join(map(str, folds))}" for name, folds in found.items())


def thresholds(labels: np.ndarray, p: np.ndarray, fold: np.ndarray, known: np.ndarray | None = None) -> Thresholds:
    """For each fold the threshold of the highest F1 on the other folds; 0.5 where they have one class only.

    Args:
        labels: `[S, G]` 0 / 1.
        p: `[S, G]` without NaN.
        fold: `[S]`.
        known: bool `[S, G]`, False where p was filled in; such a cell is decided on, but chooses nothing: what it was
            filled with has seen the labels of the fold that the threshold is for. None where all are known.
    """
    value, source, at = {}, {}, np.empty(len(fold))
    others_are = "validation studies" if (fold < 0).any() else "other folds"
    for k, own, others in each_fold(fold):
        y, q = labels[others].ravel(), p[others].ravel()
        if known is not None:
            y, q = y[known[others].ravel()], q[known[others].ravel()]
        value[k], source[k] = 0.5, "default"
        if y.any() and not y.all():
            value[k], source[k] = metrics.best_f1_threshold(y, q)[0], others_are
        at[own] = value[k]
    return Thresholds(value, source, p >= at[:, None], at)


Fit = Callable[[np.ndarray, np.ndarray], Calibrator]


def cross_fit(fit: Fit, labels: np.ndarray, p: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """`[S, G]`: each fold calibrated by what `fit` finds on the others; unchanged where there are none.

    Args:
        fit: one of `metrics.calibration.FITS`.
        labels: `[S, G]` 0 / 1.
        p: `[S, G]`; NaN stays NaN.
        fold: `[S]`.
    """
    result = np.empty(p.shape)
    for _, own, others in each_fold(fold):
        calibrator = fit(labels[others].ravel(), p[others].ravel()) if others.any() else Logistic()
        result[own] = calibrator(p[own])
    return result


@dataclasses.dataclass(frozen=True, eq=False)
class Calibrated:
    """One group after calibration.

    Attributes:
        by: calibrator -> `[S, G]`, each cross-fitted.
        best: `[S, G]`, each fold by the calibrator that did best on the others.
        chosen: fold -> name of that calibrator.
    """

    by: dict[str, np.ndarray]
    best: np.ndarray
    chosen: dict[int, str]

    def of(self, keep: np.ndarray) -> "Calibrated":
        """Of some studies, bool `[S]`, and the folds at or above 0."""
        by = {name: table[keep] for name, table in self.by.items()}
        return Calibrated(by, self.best[keep], {k: name for k, name in self.chosen.items() if k >= 0})


def calibrate(labels: np.ndarray, p: np.ndarray, fold: np.ndarray) -> Calibrated:
    """Cross-fits every calibrator and chooses one a fold.

    The choice for a fold is by the log loss of a cross-fit inside the other folds; with fewer than two others it is the
    stiffest one, for nothing else could be compared out of sample.

    Args:
        labels: `[S, G]` 0 / 1.
        p: `[S, G]`; NaN stays NaN.
        fold: `[S]`.
    """
    by = {name: cross_fit(fit, labels, p, fold) for name, fit in FITS.items()}
    best, chosen = np.empty(p.shape), {}
    for k, own, others in each_fold(fold):
        chosen[k] = STIFFEST
        if len(np.unique(fold[others])) > 1:
            inside = labels[others], p[others], fold[others]
            losses = {
                name: metrics.log_loss(labels[others].ravel(), cross_fit(fit, *inside).ravel())
                for name, fit in FITS.items()
            }
            finite = {name: float(loss) for name, loss in losses.items() if np.isfinite(loss)}
            chosen[k] = min(finite, key=finite.__getitem__, default=STIFFEST)
        best[own] = by[chosen[k]][own]
    return Calibrated(by, best, chosen)
