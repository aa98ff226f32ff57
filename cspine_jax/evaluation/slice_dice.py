"""The evaluation of segmented slices: Dice of each vertebra, study by study."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cspine_jax.anatomy import LABEL_NAMES, NUM_VERTEBRAE
from cspine_jax.config import EvalConfig
from cspine_jax.errors import DataError
from cspine_jax.evaluation import page, resample
from cspine_jax.evaluation.tables import about, value_text

PUBLISHED = (0.92, 0.96)
"""Dice of vertebra segmentation on the RSNA 2022 masks, as its winners' write-ups and later papers report it."""


def evaluate_dice(
    uids: Sequence[str],
    dice: np.ndarray,
    config: EvalConfig,
    outdir: str | Path,
    *,
    phantom: bool,
    history: Sequence[Mapping[str, Any]] = (),
    facts: Mapping[str, Any] | None = None,
    title: str = "cspine_jax",
) -> dict[str, Any]:
    """Writes `dice.csv`, `metrics.json` and `report.html`.

    Args:
        uids: `[S]` test studies.
        dice: `[S, 19]` of C1..C7, T1..T12; NaN where a vertebra is neither in the truth nor in the answer.
        config: bootstrap resamples.
        outdir: folder of the files; made if missing.
        phantom: the data are synthetic; every figure is labelled so.
        history: parsed lines of the run's `metrics.jsonl`.
        facts: what to print about data and model.
        title: name of the experiment.

    Returns:
        The content of `metrics.json`.

    Raises:
        DataError: there is no study.
    """
    if not len(uids):
        raise DataError("no test study has a mask, so there is nothing to compare with; check data.fold")
    outdir = Path(outdir)
    drawn = resample.weights(len(uids), config.bootstrap)
    each = np.stack([_mean(dice[:, j], drawn) for j in range(dice.shape[1])])
    metrics: dict[str, Any] = {
        **about(title, phantom, config.bootstrap),
        "studies": len(uids),
        "dice": resample.estimate(_over_levels(each[:NUM_VERTEBRAE])),
        "dice_each": {
            LABEL_NAMES[j + 1]: {**resample.estimate(each[j]), "studies": int(np.isfinite(dice[:, j]).sum())}
            for j in range(len(each))
        },
        "published": list(PUBLISHED),
    }
    outdir.mkdir(parents=True, exist_ok=True)
    with (outdir / "dice.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["StudyInstanceUID", *LABEL_NAMES.values()])
        for uid, row in zip(uids, dice, strict=True):
            writer.writerow([uid, *("" if np.isnan(x) else f"{x:.6g}" for x in row)])
    _write_report(outdir / "report.html", metrics, history, facts or {})
    text = json.dumps(metrics, indent=1, allow_nan=False)
    (outdir / "metrics.json").write_text(text + "\n", encoding="utf-8")
    return metrics


def format_dice(metrics: Mapping[str, Any]) -> str:
    """The printed table: each vertebra's Dice with its interval."""
    head = ("Dice", f"ours ({metrics['data']}) [95% CI]", "studies")
    rows = [head, *((name, f"{value} {interval}".strip(), n) for name, value, interval, n in _rows(metrics))]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "-" * (sum(widths) + 4))
    low, high = metrics["published"]
    lines.append(f"published on the RSNA masks: {low:.2f} to {high:.2f}")
    if metrics["phantom"]:
        lines.append("Our figures are on phantom (synthetic) studies: they say nothing of clinical accuracy.")
    return "\n".join(lines)


def _rows(metrics: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Name, value, interval, studies; vertebrae that no study shows are left out."""
    rows = [("mean of C1-C7", *value_text(metrics["dice"]), str(metrics["studies"]))]
    for name, entry in metrics["dice_each"].items():
        if entry["studies"]:
            rows.append((name, *value_text(entry), str(entry["studies"])))
    return rows


def _mean(values: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """`[1 + R]` means over the drawn studies in which the value is defined."""
    defined = np.isfinite(values)
    return resample.ratio(drawn @ np.where(defined, values, 0.0), drawn @ defined.astype(float))


def _over_levels(each: np.ndarray) -> np.ndarray:
    """Mean of `[levels, 1 + R]` over the levels that are defined."""
    defined = np.isfinite(each)
    return resample.ratio(np.where(defined, each, 0.0).sum(0), defined.sum(0))


def _write_report(
    path: Path, metrics: Mapping[str, Any], history: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> None:
    low, high = metrics["published"]
    what = (
        f"Segmentation of slices. Dice over all slices of each of {metrics['studies']} test studies, none of them "
        f"trained on, then the mean over studies; 0 where a vertebra is in the truth or in the answer only. Intervals: "
        f"{metrics['interval']}. Published on the RSNA masks: {low:.2f} to {high:.2f}."
    )
    head = ["vertebra", f"Dice, ours ({metrics['data']})", "95% interval", "studies"]
    page.write_page(
        path,
        metrics["title"],
        [
            page.header(metrics["title"], what, metrics["phantom"]),
            page.section("Dice", page.plain_table(head, _rows(metrics))),
            page.section("Training", page.training(history)),
            page.section("Data and model", page.facts_list(facts)),
            page.section("Limits", page.limits(metrics["phantom"])),
        ],
    )
