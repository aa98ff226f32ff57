"""The evaluation of a model that answers for whole studies: thresholds from validation, figures from test."""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cspine_jax.anatomy import TARGETS, VERTEBRAE
from cspine_jax.config import EvalConfig
from cspine_jax.errors import DataError
from cspine_jax.evaluation.tables import about
from cspine_jax.evaluation.targets_report import write_targets_report
from cspine_jax.metrics import score_optimal
from cspine_jax.metrics.intervals import plain
from cspine_jax.metrics.scorecard import best_f1_thresholds, scorecard
from cspine_jax.metrics.target_table import SPREAD_FILE, write_spread, write_targets


@dataclasses.dataclass(frozen=True)
class TargetTable:
    """What a model says of S studies, and the truth.

    Attributes:
        uids: `[S]` StudyInstanceUIDs.
        labels: float `[S, 8]` 0/1, in the order of `anatomy.TARGETS`; NaN where unknown.
        probabilities: float `[S, 8]` clinical probabilities; NaN where the model has none ("not visible").
        spread: float `[S, 7]` standard deviation of those of the vertebrae over test-time augmentations; None without.

    Raises:
        DataError: shapes do not agree, or a probability is not in 0..1.
    """

    uids: Sequence[str]
    labels: np.ndarray
    probabilities: np.ndarray
    spread: np.ndarray | None = None

    def __post_init__(self):
        shape = (len(self.uids), len(TARGETS))
        for name in ("labels", "probabilities"):
            value = np.asarray(getattr(self, name), np.float64)
            if value.shape != shape:
                raise DataError(f"targets.{name} has shape {value.shape}, expected {shape}")
            object.__setattr__(self, name, value)
        p = self.probabilities[~np.isnan(self.probabilities)]
        if ((p < 0) | (p > 1)).any():
            raise DataError("targets.probabilities holds values outside 0..1; pass probabilities, not logits")

    @property
    def not_visible(self) -> dict[str, list[str]]:
        """StudyInstanceUID -> levels without a probability."""
        hidden = np.isnan(self.probabilities[:, 1:])
        return {
            str(uid): [VERTEBRAE[j] for j in np.flatnonzero(row)]
            for uid, row in zip(self.uids, hidden, strict=True)
            if row.any()
        }


def evaluate_targets(
    tables: Mapping[str, TargetTable],
    config: EvalConfig,
    outdir: str | Path,
    *,
    phantom: bool,
    history: Sequence[Mapping[str, Any]] = (),
    facts: Mapping[str, Any] | None = None,
    left_out: Mapping[str, Sequence[str]] | None = None,
    seen: Mapping[str, Any] | None = None,
    title: str = "cspine_jax",
) -> dict[str, Any]:
    """Evaluates a model and writes its files.

    `predictions.csv` (test) and `validation.csv` hold clinical probabilities, an empty cell where a level is not
    visible; `tta.csv` their spread over test-time augmentations (test), where there is one; `score_optimal.csv` (test)
    what to submit to the metric, 2p / (1 + p), with the prevalence of the validation studies for what is not visible;
    `metrics.json` and `report.html` the figures.

    Args:
        tables: "validation" chooses each target's threshold by best F1, and the prevalence; "test" is reported.
        config: bootstrap resamples, calibration bins.
        outdir: folder of the files; made if missing.
        phantom: the data are synthetic; every figure is labelled so.
        history: parsed lines of the run's `metrics.jsonl`, for the training curves.
        facts: what to print about data and model (name -> value).
        left_out: reason -> StudyInstanceUIDs of studies that the model was not asked about.
        seen: what whoever asks the model about new studies has to know of its records, goes to `metrics.json` as it is.
        title: name of the experiment.

    Returns:
        The content of `metrics.json`.

    Raises:
        DataError: there is no test study with a probability.
    """
    started = time.perf_counter()
    outdir = Path(outdir)
    test, validation = tables["test"], tables["validation"]
    if np.isnan(test.probabilities).all():
        raise DataError(f"none of {len(test.uids)} test studies has a probability; check data.fold and the crops")
    thresholds = best_f1_thresholds(validation.labels, validation.probabilities)
    known = ~np.isnan(validation.labels)
    positives = np.where(known, validation.labels, 0.0).sum(0)
    prevalence = (positives + 0.5) / (known.sum(0) + 1)  # never 0: one hidden fracture would cost -log(1e-15)
    card = scorecard(
        test.labels,
        test.probabilities,
        thresholds=thresholds,
        fill=prevalence,
        resamples=config.bootstrap,
        bins=config.ece_bins,
    )
    del card["not_visible"]  # a bare count; the levels are named below
    metrics: dict[str, Any] = {
        **about(title, phantom, config.bootstrap),
        "counts": {name: _counts(table) for name, table in tables.items()},
        "not_visible": {name: table.not_visible for name, table in tables.items()},
        "left_out": {reason: list(uids) for reason, uids in (left_out or {}).items()},
        "seen": dict(seen or {}),
        "thresholds": thresholds,
        "prevalence": dict(zip(TARGETS, prevalence.tolist(), strict=True)),
        **plain(card),
    }
    outdir.mkdir(parents=True, exist_ok=True)
    write_targets(outdir / "predictions.csv", test.uids, test.probabilities)
    (outdir / SPREAD_FILE).unlink(missing_ok=True)  # of an evaluation before, with other settings
    if test.spread is not None:
        write_spread(outdir / SPREAD_FILE, test.uids, test.spread)
    write_targets(outdir / "validation.csv", validation.uids, validation.probabilities)
    filled = np.where(np.isnan(test.probabilities), prevalence[None, :], test.probabilities)
    write_targets(outdir / "score_optimal.csv", test.uids, score_optimal(filled))
    write_targets_report(
        outdir / "report.html",
        metrics,
        test.labels,
        test.probabilities,
        history=history,
        bins=config.ece_bins,
        facts=facts or {},
    )
    metrics["seconds"] = round(time.perf_counter() - started, 2)
    (outdir / "metrics.json").write_text(json.dumps(metrics, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return metrics


def _counts(table: TargetTable) -> dict[str, int]:
    return {
        "studies": len(table.uids),
        "patients_fractured": int((table.labels[:, 0] == 1).sum()),
        "vertebrae_fractured": int((table.labels[:, 1:] == 1).sum()),
        "vertebrae_not_visible": int(np.isnan(table.probabilities[:, 1:]).sum()),
        "studies_not_visible": int(np.isnan(table.probabilities).all(1).sum()),
    }
