"""The printed table: our figures with intervals beside document B's, each labelled with the data it was measured on."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cspine_jax import __version__

DOCUMENT_B: dict[str, dict[str, float]] = {
    "presence": {"accuracy": 0.945, "mean_auc": 0.959},
    "slice": {"accuracy": 0.980, "auc": 0.946},
    "vertebra": {"sensitivity": 0.835, "auc": 0.748},
    "patient": {"sensitivity": 0.996, "auc": 0.747},
}
"""Figures of document B on RSNA 2022, as published; its slice truth is "a fractured vertebra is on the slice"."""


def about(title: str, phantom: bool, resamples: int) -> dict[str, Any]:
    """What every `metrics.json` begins with.

    Args:
        title: name of the experiment.
        phantom: the data are synthetic.
        resamples: of the bootstrap over studies.
    """
    return {
        "title": title,
        "phantom": phantom,
        "data": "phantom" if phantom else "this data",
        "note": "Research only. Phantom figures say nothing of clinical accuracy." if phantom else "Research only.",
        "versions": {"cspine_jax": __version__, "numpy": np.__version__},
        "interval": f"95% percentile bootstrap, {resamples} resamples of studies",
    }


_NAMES = {
    "accuracy": "accuracy",
    "auc": "AUC",
    "mean_auc": "AUC, mean of C1-C7",
    "sensitivity": "recall (sensitivity)",
    "specificity": "specificity",
    "f1": "F1",
}
_REST = ("specificity", "f1")
_LEVELS = {
    "presence": ("Vertebra presence, a slice", ("accuracy", "mean_auc", "sensitivity", *_REST)),
    "slice": ("Slice shows a fracture", ("accuracy", "auc", "sensitivity", *_REST)),
    "slice_level": ("Slice of a fractured vertebra (B's truth)", ("accuracy", "auc", "sensitivity", *_REST)),
    "vertebra": ("Vertebra fractured", ("sensitivity", "auc", "accuracy", *_REST)),
    "patient": ("Patient fractured", ("sensitivity", "auc", "accuracy", *_REST)),
}

Row = tuple[str, str, str, str]


def document_b(level: str) -> dict[str, float]:
    """Document B's figures of a level; both slice truths stand beside its one slice figure."""
    return DOCUMENT_B["slice" if level == "slice_level" else level]


def headings(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """`(level, heading, remark)` of the levels this evaluation has.

    Args:
        metrics: what `evaluate` returns. With the "level" target both slice truths are one, and shown once.
    """
    boxes, result = metrics.get("fracture_target") == "box", []
    for level, (heading, _) in _LEVELS.items():
        if level not in metrics or (level == "slice_level" and not boxes):
            continue
        figures = metrics[level]
        remark = f"{figures['positives']} of {figures['questions']} positive"
        if figures["unknown"]:
            remark += f", {figures['unknown']} unknown left out"
        result.append((level, heading + (" (box)" if level == "slice" and boxes else ""), remark))
    return result


def sections(metrics: Mapping[str, Any]) -> list[tuple[str, str, list[Row]]]:
    """The printed table's content: `[(heading, remark, [(quantity, value, interval, document B), ...]), ...]`.

    Args:
        metrics: what `evaluate` returns.
    """
    result = []
    for level, heading, remark in headings(metrics):
        theirs, rows = document_b(level), []
        for name in _LEVELS[level][1]:
            b = f"{theirs[name]:.3f}" if name in theirs else ""
            rows.append((_NAMES[name], *value_text(metrics[level][name]), b))
        result.append((heading, remark, rows))
    losses = metrics.get("rsna_log_loss")
    if losses is None:  # a model of vertebrae alone
        return result
    rows = [
        (f"metric {kind} of {name}", *value_text(losses[key][kind]), "")
        for key, name in (("p", "p"), ("score_optimal", "p' = 2p/(1+p)"))
        for kind in ("A", "B", "C")
    ]
    result.append(("RSNA weighted log loss", "p is the clinical probability, p' the score-optimal one", rows))
    return result


def format_table(metrics: Mapping[str, Any]) -> str:
    """Aligned plain text: quantity | ours [95% interval] | document B's; calibration is in `report.html`.

    Args:
        metrics: what `evaluate` returns.
    """
    ours = f"ours ({metrics['data']}) [95% CI]"
    theirs = "document B (RSNA, theirs)"
    lines = []
    for heading, remark, rows in sections(metrics):
        lines.append((heading, remark, None))
        lines += [(f"  {name}", f"{value} {interval}".rstrip(), b) for name, value, interval, b in rows]
    left = max(len(line[0]) for line in lines)
    middle = max(len(ours), *(len(line[1]) for line in lines if line[2] is not None))
    rule = "-" * (left + middle + len(theirs) + 4)
    out = [f"{'quantity':<{left}}  {ours:<{middle}}  {theirs}", rule]
    for name, value, b in lines:
        out.append(
            f"{name:<{left}}  {value:<{middle}}  {b or ''}".rstrip() if b is not None else f"{name:<{left}}  {value}"
        )
    counts = metrics["counts"]["test"]
    hidden = metrics.get("not_visible", {})
    out += [rule, f"test: {counts['studies']} studies, {counts['slices']} slices; {metrics['interval']}"]
    if hidden:
        missing = sum(map(len, hidden.values()))
        out.append(f"{missing} vertebrae in {len(hidden)} studies not visible: scored with the prevalence")
    out += [line for line in remarks(metrics)]
    return "\n".join(out)


def remarks(metrics: Mapping[str, Any]) -> list[str]:
    """What must be said beside the figures, one line each."""
    lines = []
    if metrics["phantom"]:
        lines.append("Our figures are on phantom (synthetic) studies: they say nothing of clinical accuracy.")
    if "presence" not in metrics:
        lines.append(
            f"Type {metrics['model_type']}: vertebra probabilities are an input here, not this model's answer."
        )
    default = [name for name, entry in metrics["thresholds"].items() if entry["source"] == "default"]
    if "presence" not in metrics:
        default = [name for name in default if name != "presence"]
    if default:
        lines.append(f"Threshold 0.5 for {', '.join(default)}: validation could not choose one.")
    return lines


def value_text(entry: Mapping[str, float | None]) -> tuple[str, str]:
    """An estimate as `("0.912", "[0.880, 0.941]")`; "n/a" where undefined, an empty interval where there is none."""
    if entry["value"] is None:
        return "n/a", ""
    if entry["low"] is None or entry["high"] is None:
        return f"{entry['value']:.3f}", ""
    return f"{entry['value']:.3f}", f"[{entry['low']:.3f}, {entry['high']:.3f}]"
