"""The figures of one split at each level of document B (presence, slice, vertebra, patient), and the RSNA metric."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from cspine_jax import metrics
from cspine_jax.anatomy import NUM_VERTEBRAE, VERTEBRAE
from cspine_jax.evaluation.predictions import Aggregated, SplitPredictions
from cspine_jax.evaluation.resample import Estimate, auc, estimate, ratio, study_sums

LEVELS = ("presence", "slice", "slice_level", "vertebra", "patient")


@dataclasses.dataclass(frozen=True)
class Decision:
    """Yes/no questions of one level with known truth: `truth [M]` bool, `score [M]`, `group [M]` study, `column [M]`.

    `column` is the vertebra 0..6 where the level has one, else 0.
    """

    truth: np.ndarray
    score: np.ndarray
    group: np.ndarray
    column: np.ndarray
    asked: int

    @property
    def unknown(self) -> int:
        """How many were left out because nobody knows the truth."""
        return self.asked - len(self.truth)

    def of(self, column: int) -> "Decision":
        """Only one vertebra's."""
        keep = self.column == column
        return Decision(self.truth[keep], self.score[keep], self.group[keep], self.column[keep], int(keep.sum()))


def decisions(split: SplitPredictions, aggregated: Aggregated, prevalence: np.ndarray) -> dict[str, Decision]:
    """All levels' decisions.

    Args:
        split: predictions and truth.
        aggregated: its study tables.
        prevalence: `[8]` stands in for a probability the model did not give (vertebra not visible).

    Returns:
        `presence` (N x 7), `slice` (training target), `slice_level` (document B's target: a fractured vertebra is on
        the slice), `vertebra` (S x 7), `patient` (S). A slice without any vertebra cannot show a fracture: score 0.
    """
    studies = np.arange(len(split.uids))
    slices = np.nan_to_num(aggregated.slices, nan=0.0)
    table, labels = aggregated.filled(prevalence), split.labels
    level_truth, level_known = split.level_fracture()
    columns = np.arange(NUM_VERTEBRAE)
    return {
        "presence": presence_decision(split),
        "slice": _decision(split.slice_fracture, slices, split.slice_known, split.study, np.zeros(1, int)),
        "slice_level": _decision(level_truth, slices, level_known, split.study, np.zeros(1, int)),
        "vertebra": _decision(
            labels[:, 1:], table[:, 1:], ~np.isnan(labels[:, 1:]), studies[:, None], columns[None, :]
        ),
        "patient": _decision(labels[:, 0], table[:, 0], ~np.isnan(labels[:, 0]), studies, np.zeros(1, int)),
    }


def presence_decision(split: SplitPredictions) -> Decision:
    """Is vertebra j on slice i? Asked N x 7 times."""
    known = np.broadcast_to(split.presence_known[:, None], split.presence.shape)
    return _decision(split.presence, split.vertebra, known, split.study[:, None], np.arange(NUM_VERTEBRAE)[None, :])


def _decision(truth, score, known, group, column) -> Decision:
    spread = [np.broadcast_to(np.asarray(value), known.shape)[known] for value in (truth, score, group, column)]
    return Decision(spread[0] > 0.5, spread[1].astype(np.float64), spread[2], spread[3], known.size)


def binary_figures(decision: Decision, threshold: float, drawn: np.ndarray, bins: int) -> dict[str, Estimate]:
    """Accuracy, AUC, sensitivity, specificity, precision, F1, Brier and ECE, each with its interval over studies.

    Args:
        decision: M questions.
        threshold: yes where the score is at least this.
        drawn: `[1 + R, S]` study weights.
        bins: equal-width bins of the calibration error.
    """
    studies, yes = drawn.shape[1], decision.score >= threshold

    def total(values: np.ndarray) -> np.ndarray:
        return drawn @ study_sums(values, decision.group, studies)

    tp, fp = total(decision.truth & yes), total(~decision.truth & yes)
    fn, tn = total(decision.truth & ~yes), total(~decision.truth & ~yes)
    count = tp + fp + fn + tn
    error = total((decision.score - decision.truth) ** 2)
    return {
        "accuracy": estimate(ratio(tp + tn, count)),
        "auc": estimate(auc(drawn, decision.truth, decision.score, decision.group)),
        "sensitivity": estimate(ratio(tp, tp + fn)),
        "specificity": estimate(ratio(tn, tn + fp)),
        "precision": estimate(ratio(tp, tp + fp)),
        "f1": estimate(ratio(2 * tp, 2 * tp + fp + fn)),
        "brier": estimate(ratio(error, count)),
        "ece": estimate(_ece(decision, drawn, count, bins)),
    }


def _ece(decision: Decision, drawn: np.ndarray, count: np.ndarray, bins: int) -> np.ndarray:
    studies = drawn.shape[1]
    where = np.minimum((decision.score * bins).astype(int), bins - 1)
    gap = np.zeros((studies, bins))
    np.add.at(gap, (decision.group, where), decision.score - decision.truth)
    return ratio(np.abs(drawn @ gap).sum(axis=1), count)


def mean_auc(decision: Decision, drawn: np.ndarray) -> tuple[Estimate, dict[str, Estimate]]:
    """AUC of each vertebra and their mean (over those for which it is defined)."""
    each = {}
    for column, name in enumerate(VERTEBRAE):
        own = decision.of(column)
        each[name] = auc(drawn, own.truth, own.score, own.group)
    stacked = np.stack(list(each.values()))
    defined = np.isfinite(stacked)
    mean = ratio(np.where(defined, stacked, 0).sum(axis=0), defined.sum(axis=0))
    return estimate(mean), {name: estimate(values) for name, values in each.items()}


def rsna_figures(labels: np.ndarray, probabilities: np.ndarray, drawn: np.ndarray) -> dict[str, Estimate]:
    """The RSNA 2022 weighted log loss in its three normalisations, with intervals over studies.

    Args:
        labels: `[S, 8]` 0/1; a study with an unknown label is left out.
        probabilities: `[S, 8]`.
        drawn: `[1 + R, S]`.

    Returns:
        "A", "B" and "C" of `cspine_jax.metrics.rsna_log_loss`.
    """
    known = ~np.isnan(labels).any(axis=1)
    return {
        kind: estimate(
            np.asarray(metrics.rsna_log_loss(labels[known], probabilities[known], kind, weights=drawn[:, known]))
        )
        for kind in ("A", "B", "C")
    }


def confusion(decision: Decision, threshold: float) -> dict[str, dict[str, int]]:
    """TP, FP, FN, TN of each vertebra."""
    yes, result = decision.score >= threshold, {}
    for column, name in enumerate(VERTEBRAE):
        own = decision.column == column
        counts = {
            "tp": decision.truth & yes,
            "fp": ~decision.truth & yes,
            "fn": decision.truth & ~yes,
            "tn": ~decision.truth & ~yes,
        }
        result[name] = {key: int((values & own).sum()) for key, values in counts.items()}
    return result


def level_confusion(split: SplitPredictions, threshold: float) -> np.ndarray:
    """Which level does the model name on slices that truly show exactly one, or none?

    Args:
        split: predictions and truth.
        threshold: the model names no level where all v_ij are below this.

    Returns:
        `[8, 8]` counts, row = truth, column = argmax of v; the eighth of each is "none".
    """
    presence = split.presence
    use = split.presence_known & (presence.sum(axis=1) <= 1)
    truth = np.where(presence.any(axis=1), presence.argmax(axis=1), NUM_VERTEBRAE)[use]
    seen = split.vertebra.max(axis=1) >= threshold
    named = np.where(seen, split.vertebra.argmax(axis=1), NUM_VERTEBRAE)[use]
    table = np.zeros((NUM_VERTEBRAE + 1, NUM_VERTEBRAE + 1), np.int64)
    np.add.at(table, (truth, named), 1)
    return table


def thresholds(found: Mapping[str, Decision]) -> dict[str, dict]:
    """The best-F1 threshold of each level, chosen here (validation) and used elsewhere (test).

    Returns:
        A level's `{"value", "f1", "source"}`; 0.5 with source "default" where there is no positive or no negative.
    """
    chosen = {}
    for level, decision in found.items():
        if decision.truth.any() and not decision.truth.all():
            value, f1 = metrics.best_f1_threshold(decision.truth, decision.score)
            chosen[level] = {"value": value, "f1": f1, "source": "validation"}
        else:
            chosen[level] = {"value": 0.5, "f1": None, "source": "default"}
    return chosen
