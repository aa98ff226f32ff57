"""Every score of a table of predictions: per target, all levels pooled, and the RSNA metric, each with its interval."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cspine_jax.anatomy import TARGETS, VERTEBRAE
from cspine_jax.metrics import binary
from cspine_jax.metrics.intervals import Estimate, bootstrap
from cspine_jax.metrics.rsna import clinical_probability, rsna_log_loss, score_optimal

POOLED = "C1-C7"
"""Name of the row in which every vertebra of every study is one example (intervals still resample studies)."""

_CURVE = {"auc": "AUC", "average_precision": "AP", "brier": "Brier", "ece": "ECE"}
_POINT = {"f1": "F1", "sensitivity": "sensitivity", "specificity": "specificity", "accuracy": "accuracy"}


def scorecard(
    labels: np.ndarray,
    probabilities: np.ndarray,
    *,
    thresholds: Mapping[str, float],
    fill: np.ndarray | None = None,
    are_score_optimal: bool = False,
    resamples: int = 1000,
    seed: int = 0,
    bins: int = 10,
) -> dict[str, Any]:
    """Scores a table.

    Args:
        labels: `[S, 8]` 0 / 1, in the order of `anatomy.TARGETS`.
        probabilities: `[S, 8]`; NaN where the model gave none (left out everywhere but in the RSNA metric).
        thresholds: for each target and for `POOLED`; a probability as given >= its threshold is a positive call.
        fill: `[8]` what the RSNA metric takes in place of NaN.
        are_score_optimal: the probabilities are p' = 2 p / (1 + p); Brier and ECE are then of p.
        resamples: bootstrap resamples of studies.
        seed: of the bootstrap.
        bins: of the ECE.

    Returns:
        `{"studies", "targets": {name: {"positives", "examples", "threshold", "auc": Estimate, ...}}, "rsna_log_loss":
        {"as given" | "score-optimal": {"A": Estimate, ...}}}`.
    """
    options = {"resamples": resamples, "seed": seed}
    studies = np.arange(len(labels))
    targets = {}
    for name in (*TARGETS, POOLED):
        columns = list(range(1, len(TARGETS))) if name == POOLED else [TARGETS.index(name)]
        y, p = labels[:, columns].ravel(), probabilities[:, columns].ravel()
        group = np.repeat(studies, len(columns))
        clinical = clinical_probability(p) if are_score_optimal else p
        t = thresholds[name]
        scores = {
            "auc": lambda w, y=y, p=p: binary.roc_auc(y, p, w),
            "average_precision": lambda w, y=y, p=p: binary.average_precision(y, p, w),
            "brier": lambda w, y=y, p=clinical: binary.brier(y, p, w),
            "ece": lambda w, y=y, p=clinical: binary.calibration_error(y, p, bins, w),
            "f1": lambda w, y=y, p=p, t=t: binary.f1_score(y, p, t, w),
            "sensitivity": lambda w, y=y, p=p, t=t: binary.sensitivity(y, p, t, w),
            "specificity": lambda w, y=y, p=p, t=t: binary.specificity(y, p, t, w),
            "accuracy": lambda w, y=y, p=p, t=t: binary.accuracy(y, p, t, w),
        }
        given = ~np.isnan(p)
        targets[name] = {
            "positives": int(y[given].sum()),
            "examples": int(given.sum()),
            "threshold": float(t),
            **{key: bootstrap(score, len(y), study=group, **options) for key, score in scores.items()},
        }
    return {
        "studies": len(labels),
        "not_visible": int(np.isnan(probabilities).sum()),
        "targets": targets,
        "rsna_log_loss": _rsna(labels, probabilities, fill, are_score_optimal, options),
    }


def _rsna(labels, probabilities, fill, are_score_optimal, options) -> dict[str, dict[str, Estimate]]:
    p = probabilities
    if np.isnan(p).any():
        if fill is None:
            raise ValueError("probabilities hold NaN: the RSNA metric needs `fill`")
        p = np.where(np.isnan(p), fill, p)
    tables = {"as given": p} if are_score_optimal else {"as given": p, "score-optimal": score_optimal(p)}
    return {
        name: {
            kind: bootstrap(lambda w, k=kind, q=table: rsna_log_loss(labels, q, k, weights=w), len(labels), **options)
            for kind in "ABC"
        }
        for name, table in tables.items()
    }


def best_f1_thresholds(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """The threshold of the highest F1 for every target and for `POOLED`, chosen on the data given."""
    columns = {name: slice(j, j + 1) for j, name in enumerate(TARGETS)} | {POOLED: slice(1, None)}
    return {
        name: binary.best_f1_threshold(labels[:, part].ravel(), probabilities[:, part].ravel())[0]
        for name, part in columns.items()
    }


def format_scorecard(card: Mapping[str, Any]) -> str:
    """The scorecard as aligned text: discrimination and calibration, then what a threshold gives, then the metric."""
    names = (*TARGETS[:1], *VERTEBRAE, POOLED)
    targets = card["targets"]
    lines = [f"{'':<16}{'positive':>12}" + "".join(f"{title:>22}" for title in _CURVE.values())]
    for name in names:
        row = targets[name]
        share = f"{row['positives']}/{row['examples']}"
        lines.append(f"{name:<16}{share:>12}" + "".join(f"{_text(row[key]):>22}" for key in _CURVE))
    lines += ["", f"{'':<16}{'threshold':>12}" + "".join(f"{title:>22}" for title in _POINT.values())]
    for name in names:
        row = targets[name]
        lines.append(f"{name:<16}{row['threshold']:>12.3f}" + "".join(f"{_text(row[key]):>22}" for key in _POINT))
    lines += ["", f"{'RSNA log loss':<28}" + "".join(f"{kind:>22}" for kind in "ABC")]
    lines += [
        f"{name:<28}" + "".join(f"{_text(row[kind]):>22}" for kind in "ABC")
        for name, row in card["rsna_log_loss"].items()
    ]
    return "\n".join(lines)


def _text(estimate: Estimate) -> str:
    if np.isnan(estimate.value):
        return "-"
    if np.isnan(estimate.low):
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f} {estimate.high:.3f}]"
