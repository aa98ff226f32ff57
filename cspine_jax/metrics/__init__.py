"""Scores, numpy float64: the competition's loss, discrimination, thresholds, calibration, intervals.

Every score takes `weights` of shape `[..., S]`: one weight an example, with any number of resamples in front. A
bootstrap is then one call with the resampling counts as weights (`intervals.bootstrap`), with no loop over resamples.
"""

from cspine_jax.metrics.binary import (
    accuracy,
    average_precision,
    best_f1_threshold,
    brier,
    calibration_error,
    confusion,
    f1_score,
    log_loss,
    precision,
    roc_auc,
    sensitivity,
    specificity,
)
from cspine_jax.metrics.calibration import fit_isotonic, fit_platt, fit_temperature
from cspine_jax.metrics.conformal import ConformalSets, conformal_quantile, coverage, fit_sets
from cspine_jax.metrics.curves import precision_recall_curve, reliability_curve, roc_curve
from cspine_jax.metrics.delong import delong_interval, delong_test, delong_variance
from cspine_jax.metrics.intervals import bootstrap, percentile_interval, resample_counts
from cspine_jax.metrics.rsna import clinical_probability, rsna_log_loss, score_optimal
from cspine_jax.metrics.segmentation import SegmentationScores, presence_scores, segmentation_scores

__all__ = [
    "ConformalSets",
    "SegmentationScores",
    "accuracy",
    "average_precision",
    "best_f1_threshold",
    "bootstrap",
    "brier",
    "calibration_error",
    "clinical_probability",
    "conformal_quantile",
    "confusion",
    "coverage",
    "delong_interval",
    "delong_test",
    "delong_variance",
    "f1_score",
    "fit_isotonic",
    "fit_platt",
    "fit_sets",
    "fit_temperature",
    "log_loss",
    "percentile_interval",
    "precision",
    "precision_recall_curve",
    "presence_scores",
    "reliability_curve",
    "resample_counts",
    "roc_auc",
    "roc_curve",
    "rsna_log_loss",
    "score_optimal",
    "segmentation_scores",
    "sensitivity",
    "specificity",
]
