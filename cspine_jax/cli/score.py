"""`cspine score`: every score of a predictions table against a label table, each with a 95% interval."""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from cspine_jax.anatomy import TARGETS
from cspine_jax.errors import DataError
from cspine_jax.metrics.intervals import plain
from cspine_jax.metrics.scorecard import POOLED, best_f1_thresholds, format_scorecard, scorecard
from cspine_jax.metrics.target_table import match_studies, read_targets


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of this verb."""
    parser.add_argument("--labels", required=True, help="CSV: StudyInstanceUID,patient_overall,C1..C7 with 0 / 1")
    parser.add_argument("--predictions", required=True, help="CSV with the same columns, probabilities")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--subset", action="store_true", help="score only the studies that have predictions")
    parser.add_argument(
        "--threshold",
        default="0.5",
        help="of a positive call: a number, or best-f1 (chosen on these very data; optimistic)",
    )
    parser.add_argument(
        "--thresholds", metavar="FILE", help=f"JSON object: threshold of each of patient_overall, C1..C7, {POOLED}"
    )
    parser.add_argument(
        "--fill",
        help="empty cells (level not visible): the RSNA metric takes this number, or prevalence (of the labels)",
    )
    parser.add_argument(
        "--score-optimal", action="store_true", help="the predictions are p' = 2p/(1+p), made for the RSNA metric"
    )
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples of studies (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    parser.add_argument("--bins", type=int, default=10, help="of the calibration error (default 10)")


def run(args: argparse.Namespace) -> int:
    """Scores and prints."""
    if args.resamples < 0 or args.bins < 2 or args.seed < 0:
        raise DataError(
            f"--resamples={args.resamples} --bins={args.bins} --seed={args.seed}: must be at least 0, 2 and 0"
        )
    label_uids, labels = read_targets(args.labels, labels=True)
    uids, probabilities = read_targets(args.predictions, allow_empty=args.fill is not None)
    left, right, unlabelled = match_studies(label_uids, uids, subset=args.subset)
    labels, probabilities = labels[left], probabilities[right]
    thresholds, source = _thresholds(args, labels, probabilities)
    card = scorecard(
        labels,
        probabilities,
        thresholds=thresholds,
        fill=_fill(args.fill, labels),
        are_score_optimal=args.score_optimal,
        resamples=args.resamples,
        seed=args.seed,
        bins=args.bins,
    )
    notes = _notes(args, card, source, len(label_uids), unlabelled)
    if args.json:
        print(json.dumps({**plain(card), "thresholds": source, "notes": notes}, indent=2, allow_nan=False))
    else:
        print(format_scorecard(card))
        print("\n".join(["", *notes]))
    if source == "best-f1":
        print("cspine score: warning: thresholds were chosen on the data they are scored on", file=sys.stderr)
    return 0


def _fill(text: str | None, labels: np.ndarray) -> np.ndarray | None:
    if text is None:
        return None
    if text == "prevalence":
        return labels.mean(0)
    return np.full(len(TARGETS), _probability(text, "--fill", "prevalence"))


def _thresholds(
    args: argparse.Namespace, labels: np.ndarray, probabilities: np.ndarray
) -> tuple[dict[str, float], str]:
    names = (*TARGETS, POOLED)
    if args.thresholds:
        path = Path(args.thresholds)
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read as JSON ({error})") from error
        if not isinstance(table, dict) or (missing := [name for name in names if name not in table]):
            absent = ", ".join(missing) if isinstance(table, dict) else "everything"
            raise DataError(f"{path}: no threshold for {absent}; it must map each of {', '.join(names)} to a number")
        return {name: _probability(table[name], f"{path}: {name}") for name in names}, str(path)
    if args.threshold == "best-f1":
        return best_f1_thresholds(labels, probabilities), "best-f1"
    value = _probability(args.threshold, "--threshold", "best-f1")
    return dict.fromkeys(names, value), "fixed"


def _probability(value: Any, where: str, word: str = "") -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0.0 <= number <= 1.0:
        raise DataError(f"{where}={value!r}: must be a number within 0..1{f' or {word}' if word else ''}")
    return number


def _notes(
    args: argparse.Namespace, card: dict[str, Any], source: str, labelled: int, unlabelled: list[str]
) -> list[str]:
    notes = [f"{card['studies']} of {labelled} labelled studies; 95% intervals: {args.resamples} resamples of studies"]
    if unlabelled:
        notes.append(f"{len(unlabelled)} predicted studies without labels were left out, the first is {unlabelled[0]}")
    if card["not_visible"]:
        notes.append(
            f"{card['not_visible']} empty cells: left out, except from the RSNA log loss, which took {args.fill}"
        )
    if source == "best-f1":
        notes.append(
            "thresholds were chosen on the data they are scored on: F1, sensitivity, specificity are optimistic"
        )
    if args.score_optimal:
        notes.append("predictions are score-optimal p'; Brier and ECE are of the clinical p = p'/(2-p')")
    else:
        notes.append(
            "by normalisation B the RSNA log loss favours p' = 2p/(1+p), by A p itself: its second row scores p'"
        )
    return notes
