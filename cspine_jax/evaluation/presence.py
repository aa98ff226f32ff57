"""The evaluation of vertebra detection on slices, beside document B's figures."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cspine_jax.anatomy import VERTEBRAE
from cspine_jax.config import EvalConfig
from cspine_jax.errors import DataError
from cspine_jax.evaluation import levels, page, resample, tables
from cspine_jax.evaluation.predictions import SplitPredictions


def evaluate_presence(
    predictions: Mapping[str, SplitPredictions],
    config: EvalConfig,
    outdir: str | Path,
    *,
    phantom: bool,
    model_type: int,
    history: Sequence[Mapping[str, Any]] = (),
    facts: Mapping[str, Any] | None = None,
    title: str = "cspine_jax",
) -> dict[str, Any]:
    """Evaluates vertebra probabilities and writes `slices.csv`, `metrics.json` and `report.html`.

    Args:
        predictions: "validation" chooses the threshold by best F1 (0.5 where it cannot), "test" is reported. Only
            `vertebra`, `presence` and `presence_known` are read; probabilities are clinical ones.
        config: bootstrap resamples, calibration bins.
        outdir: folder of the files; made if missing.
        phantom: the data are synthetic; every figure is labelled so.
        model_type: document B's Type 1 or 2.
        history: parsed lines of the run's `metrics.jsonl`.
        facts: what to print about data and model.
        title: name of the experiment.

    Returns:
        The content of `metrics.json`.

    Raises:
        DataError: no test slice has a known truth.
    """
    outdir = Path(outdir)
    test = predictions["test"]
    if not test.presence_known.any():
        raise DataError("no test study has a mask, so there is no presence to compare with; check data.fold")
    chosen = levels.thresholds({"presence": levels.presence_decision(predictions["validation"])})
    cut = chosen["presence"]["value"]
    decision = levels.presence_decision(test)
    drawn = resample.weights(len(test.uids), config.bootstrap)
    mean, each = levels.mean_auc(decision, drawn)
    metrics: dict[str, Any] = {
        **tables.about(title, phantom, config.bootstrap),
        "model_type": model_type,
        "counts": {name: _counts(split) for name, split in predictions.items()},
        "thresholds": chosen,
        "document_b": {"presence": tables.DOCUMENT_B["presence"]},
        "presence": {
            "questions": len(decision.truth),
            "unknown": decision.unknown,
            "positives": int(decision.truth.sum()),
            **levels.binary_figures(decision, cut, drawn, config.ece_bins),
            "mean_auc": mean,
            "auc_each": each,
            "confusion": levels.confusion(decision, cut),
            "level_confusion": levels.level_confusion(test, cut).tolist(),
        },
    }
    outdir.mkdir(parents=True, exist_ok=True)
    _write_slices(outdir / "slices.csv", test)
    _write_report(outdir / "report.html", metrics, history, facts or {})
    text = json.dumps(metrics, indent=1, allow_nan=False)
    (outdir / "metrics.json").write_text(text + "\n", encoding="utf-8")
    return metrics


def _counts(split: SplitPredictions) -> dict[str, int]:
    known = int(split.presence_known.sum())
    return {"studies": len(split.uids), "slices": len(split.study), "slices_presence_known": known}


def _write_slices(path: Path, split: SplitPredictions) -> None:
    """One row a slice: uid, index, C1..C7, and the truth (empty where unknown)."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["StudyInstanceUID", "slice_index", *VERTEBRAE, *(f"true_{name}" for name in VERTEBRAE)])
        for row, study in enumerate(split.study):
            truth = split.presence[row].astype(int) if split.presence_known[row] else [""] * len(VERTEBRAE)
            writer.writerow([split.uids[study], split.index[row], *(f"{v:.6g}" for v in split.vertebra[row]), *truth])


def _write_report(
    path: Path, metrics: Mapping[str, Any], history: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> None:
    presence, counts = metrics["presence"], metrics["counts"]["test"]
    ours = f"ours ({metrics['data']})"
    rows = [
        [heading if i == 0 else "", name, value, interval, theirs]
        for heading, _, lines in tables.sections(metrics)
        for i, (name, value, interval, theirs) in enumerate(lines)
    ]
    each = [
        [name, *tables.value_text(presence["auc_each"][name]), *(str(n) for n in presence["confusion"][name].values())]
        for name in VERTEBRAE
    ]
    cut = metrics["thresholds"]["presence"]["value"]
    what = (
        f"Document B's vertebra detection, Type {metrics['model_type']}. Figures of {counts['studies']} test studies "
        f"and {counts['slices_presence_known']} slices with a mask, none of them trained on. The threshold {cut:.3f} "
        f"comes from the validation studies. Intervals: {metrics['interval']}."
    )
    page.write_page(
        path,
        metrics["title"],
        [
            page.header(metrics["title"], what, metrics["phantom"]),
            page.section(
                "Results", page.plain_table(["", "", ours, "95% interval", "document B (RSNA, theirs)"], rows)
            ),
            page.section(
                "Each vertebra",
                page.plain_table(["vertebra", "AUC", "95% interval", "TP", "FP", "FN", "TN"], each)
                + page.level_confusion(np.array(presence["level_confusion"]), cut),
            ),
            page.section("Training", page.training(history)),
            page.section("Data and model", page.facts_list(facts)),
            page.section("Limits", page.limits(metrics["phantom"])),
        ],
    )
