"""The evaluation of one trained model: thresholds from validation, figures from test, and the files of both."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cspine_jax.anatomy import TARGETS, VERTEBRAE
from cspine_jax.config import EvalConfig
from cspine_jax.errors import DataError
from cspine_jax.evaluation import levels, resample
from cspine_jax.evaluation.examples import pick_examples
from cspine_jax.evaluation.predictions import (
    Aggregated,
    SplitPredictions,
    aggregate,
    clinical,
    write_predictions,
    write_slices,
)
from cspine_jax.evaluation.report import write_report
from cspine_jax.evaluation.tables import DOCUMENT_B, about
from cspine_jax.metrics import score_optimal

ReadSlice = Callable[[str, int], np.ndarray]
"""`(StudyInstanceUID, index) -> int16 [H, W]` HU of one slice, for the pictures of the report."""


def evaluate(
    predictions: Mapping[str, SplitPredictions],
    config: EvalConfig,
    outdir: str | Path,
    *,
    phantom: bool,
    history: Sequence[Mapping[str, Any]] = (),
    read_slice: ReadSlice | None = None,
    model_type: int = 3,
    fracture_target: str = "box",
    positive_weight: float = 1.0,
    window: tuple[float, float] = (400.0, 1800.0),
    facts: Mapping[str, Any] | None = None,
    seen: Mapping[str, Any] | None = None,
    title: str = "cspine_jax",
) -> dict[str, Any]:
    """Evaluates a model; writes `predictions.csv`, `validation.csv`, `slices.csv`, `metrics.json`, `report.html`.

    Args:
        predictions: "validation" chooses each level's threshold by best F1 (missing or empty: 0.5); "test" is reported.
        config: bootstrap resamples, calibration bins, examples shown.
        outdir: folder of the files; made if missing.
        phantom: the data are synthetic; every figure is labelled so.
        history: parsed lines of the run's `metrics.jsonl`, for the training curves.
        read_slice: fetches one slice's HU for the pictures; None leaves them out.
        model_type: document B's Type 1, 2 or 3. Only Type 3 predicts vertebra presence itself.
        fracture_target: "box" or "level", what `slice_fracture` means.
        positive_weight: weight of positives in the loss of the fracture outputs; undone before aggregation, so that
            `predictions.csv` holds clinical probabilities p and not the score-optimal 2p/(1+p).
        window: bone window of the pictures, (level, width) in HU.
        facts: what to print about data and model (name -> value).
        seen: what whoever asks the model about new studies has to know of its records, goes to `metrics.json` as it is.
        title: name of the experiment.

    Returns:
        The content of `metrics.json`.

    Raises:
        DataError: there is no test prediction.
    """
    started = time.perf_counter()
    outdir = Path(outdir)
    test, validation = predictions.get("test"), predictions.get("validation")
    if test is None or len(test.uids) == 0 or len(test.study) == 0:
        raise DataError(
            "predictions['test'] is empty: there is nothing to report; check data.fold and the number of studies"
        )
    own_vertebra = model_type == 3
    test = clinical(test, positive_weight, vertebra=own_vertebra)
    if validation is not None:
        usable = len(validation.uids) > 0 and len(validation.study) > 0
        validation = clinical(validation, positive_weight, vertebra=own_vertebra) if usable else None
    chosen, prevalence, of_validation = _choose(validation, own_vertebra)
    aggregated = aggregate(test, chosen["presence"]["value"])
    found = levels.decisions(test, aggregated, prevalence)
    if not own_vertebra:  # v is an input, its accuracy says nothing about this model
        del found["presence"]
    metrics: dict[str, Any] = {
        **about(title, phantom, config.bootstrap),
        "model_type": model_type,
        "fracture_target": fracture_target,
        "positive_weight": positive_weight,
        "counts": {name: _counts(split) for name, split in predictions.items()},
        "not_visible": _not_visible(test, aggregated),
        "seen": dict(seen or {}),
        "thresholds": chosen,
        "prevalence": dict(zip(TARGETS, prevalence.tolist(), strict=True)),
        "document_b": DOCUMENT_B,
    }
    metrics |= _figures(test, aggregated, found, prevalence, chosen, config)
    outdir.mkdir(parents=True, exist_ok=True)
    write_predictions(outdir / "predictions.csv", test, aggregated)
    write_slices(outdir / "slices.csv", test, aggregated)
    (outdir / "validation.csv").unlink(missing_ok=True)
    if validation is not None and of_validation is not None:
        write_predictions(outdir / "validation.csv", validation, of_validation)
    examples = pick_examples(
        test, aggregated, chosen["slice"]["value"], config.examples_shown, chosen["presence"]["value"]
    )
    write_report(
        outdir / "report.html",
        metrics,
        found,
        config=config,
        history=history,
        examples=examples,
        read_slice=read_slice,
        window=window,
        facts=facts or {},
    )
    metrics["seconds"] = round(time.perf_counter() - started, 2)
    text = json.dumps(metrics, indent=1, allow_nan=False)
    (outdir / "metrics.json").write_text(text + "\n", encoding="utf-8")
    return metrics


def _choose(
    validation: SplitPredictions | None, own_vertebra: bool
) -> tuple[dict[str, dict], np.ndarray, Aggregated | None]:
    """Thresholds of every level, and of the validation studies the prevalence `[8]` (0.5 where nobody knows) and p."""
    default = {"value": 0.5, "f1": None, "source": "default"}
    prevalence = np.full(len(TARGETS), 0.5)
    if validation is None:
        return {name: dict(default) for name in levels.LEVELS}, prevalence, None
    known = ~np.isnan(validation.labels)
    count = known.sum(axis=0)
    positives = np.where(known, validation.labels, 0).sum(axis=0)
    prevalence = (positives + 0.5) / (count + 1)  # never 0: one hidden fracture would cost -log(1e-15)
    # Presence first: its threshold decides what is visible, and with that what is aggregated.
    chosen = {"presence": default}
    if own_vertebra:
        chosen = levels.thresholds({"presence": levels.presence_decision(validation)})
    aggregated = aggregate(validation, chosen["presence"]["value"])
    found = levels.decisions(validation, aggregated, prevalence)
    del found["presence"]
    return chosen | levels.thresholds(found), prevalence, aggregated


def _figures(
    test: SplitPredictions,
    aggregated: Aggregated,
    found: Mapping[str, levels.Decision],
    prevalence: np.ndarray,
    chosen: Mapping[str, dict],
    config: EvalConfig,
) -> dict[str, Any]:
    drawn = resample.weights(len(test.uids), config.bootstrap)
    figures: dict[str, Any] = {}
    for name, decision in found.items():
        figures[name] = {
            "questions": len(decision.truth),
            "unknown": decision.unknown,
            "positives": int(decision.truth.sum()),
            **levels.binary_figures(decision, chosen[name]["value"], drawn, config.ece_bins),
        }
        if name in ("presence", "vertebra"):
            mean, each = levels.mean_auc(decision, drawn)
            figures[name] |= {
                "mean_auc": mean,
                "auc_each": each,
                "confusion": levels.confusion(decision, chosen[name]["value"]),
            }
    if "presence" in found:
        table = levels.level_confusion(test, chosen["presence"]["value"])
        figures["presence"]["level_confusion"] = table.tolist()
    p = aggregated.filled(prevalence)
    labels = test.labels
    figures["rsna_log_loss"] = {
        "p": levels.rsna_figures(labels, p, drawn),
        "score_optimal": levels.rsna_figures(labels, score_optimal(p), drawn),
    }
    return figures


def _counts(split: SplitPredictions) -> dict[str, int]:
    labels = split.labels
    return {
        "studies": len(split.uids),
        "slices": len(split.study),
        "studies_labelled": int((~np.isnan(labels).any(axis=1)).sum()),
        "patients_fractured": int((labels[:, 0] == 1).sum()),
        "vertebrae_fractured": int((labels[:, 1:] == 1).sum()),
        "slices_presence_known": int((np.asarray(split.presence_known) > 0).sum()),
        "slices_fracture_known": int((np.asarray(split.slice_known) > 0).sum()),
    }


def _not_visible(split: SplitPredictions, aggregated: Aggregated) -> dict[str, list[str]]:
    """StudyInstanceUID -> levels the model found on no slice (no probability is given for them)."""
    hidden = np.isnan(aggregated.targets[:, 1:])
    return {
        uid: [VERTEBRAE[j] for j in np.flatnonzero(row)]
        for uid, row in zip(split.uids, hidden, strict=True)
        if row.any()
    }
