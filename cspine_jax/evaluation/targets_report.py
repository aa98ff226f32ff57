"""`report.html` of a model that answers for whole studies."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from cspine_jax.anatomy import TARGETS
from cspine_jax.evaluation.page import (
    Answers,
    discrimination,
    estimate_cell,
    facts_list,
    header,
    limits,
    plain_table,
    section,
    short,
    training,
    write_page,
)
from cspine_jax.metrics.scorecard import POOLED

_FIGURES = {
    "auc": "AUC",
    "average_precision": "AP",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "f1": "F1",
    "accuracy": "accuracy",
    "brier": "Brier",
    "ece": "ECE",
}


def write_targets_report(
    path: Path,
    metrics: Mapping[str, Any],
    labels: np.ndarray,
    probabilities: np.ndarray,
    *,
    history: Sequence[Mapping[str, Any]],
    bins: int,
    facts: Mapping[str, Any],
) -> None:
    """Writes the page.

    Args:
        path: file to write.
        metrics: what `targets.evaluate_targets` returns.
        labels: `[S, 8]` of the test studies, NaN where unknown.
        probabilities: `[S, 8]`, NaN where not visible.
        history: lines of `metrics.jsonl`.
        bins: of the reliability diagram.
        facts: printed as they are.
    """
    counts = metrics["counts"]["test"]
    what = (
        f"Figures of {counts['studies']} test studies ({counts['patients_fractured']} fractured, "
        f"{counts['vertebrae_fractured']} vertebrae), none of them trained on. Thresholds come from the validation "
        f"studies. Intervals: {metrics['interval']}."
    )
    parts = [
        header(metrics["title"], what, metrics["phantom"]),
        section("Results", _results(metrics)),
        section("Discrimination and calibration", _curves(metrics, labels, probabilities, bins)),
        section("Not visible", _not_visible(metrics)),
        section("Training", training(history)),
        section("Data and model", _facts(metrics, facts)),
        section("Limits", limits(metrics["phantom"])),
    ]
    write_page(path, metrics["title"], parts)


def _results(metrics: Mapping[str, Any]) -> str:
    rows = []
    for name in (TARGETS[0], POOLED, *TARGETS[1:]):
        row = metrics["targets"][name]
        remark = f"{row['positives']} of {row['examples']} positive; called at p &ge; {row['threshold']:.3f}"
        cells = "".join(f"<td>{estimate_cell(row[key])}</td>" for key in _FIGURES)
        rows.append(f'<tr><td><b>{escape(name)}</b><br><span class="soft">{remark}</span></td>{cells}</tr>')
    head = "".join(f"<th>{title}</th>" for title in _FIGURES.values())
    losses = "".join(
        f"<tr><td><b>{escape(name)}</b></td>{''.join(f'<td>{estimate_cell(row[kind])}</td>' for kind in 'ABC')}</tr>"
        for name, row in metrics["rsna_log_loss"].items()
    )
    return (
        f'<div class="scroll"><table class="wide"><thead><tr><th>{escape(metrics["data"])}</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        "<h3 style='margin-top:1rem'>RSNA weighted log loss (lower is better)</h3>"
        '<div class="scroll"><table class="wide small"><thead><tr><th>of</th><th>A, a study</th><th>B, over all</th>'
        f"<th>C, a column</th></tr></thead><tbody>{losses}</tbody></table></div>"
        "<p class='soft'>As given: clinical p. Score-optimal: 2p/(1+p), what B rewards (A divides by the weights of "
        "each study, and rewards about p), which is not a probability of fracture. What is not visible is scored with "
        "the prevalence of the validation studies.</p>"
    )


def _curves(metrics: Mapping[str, Any], labels: np.ndarray, probabilities: np.ndarray, bins: int) -> str:
    answers = []
    for name, key, part in (("vertebra", POOLED, slice(1, None)), ("patient", TARGETS[0], slice(0, 1))):
        y, p = labels[:, part].ravel(), probabilities[:, part].ravel()
        use = ~np.isnan(y) & ~np.isnan(p)
        answers.append(Answers(name, y[use] > 0.5, p[use], metrics["targets"][key]))
    return discrimination(answers, bins)


def _not_visible(metrics: Mapping[str, Any]) -> str:
    html = ""
    missing = metrics["not_visible"]["test"]
    if missing:
        items = "".join(f"<li>{escape(short(uid))}: {', '.join(levels)}</li>" for uid, levels in missing.items())
        html += f"<p class='soft'>Test studies, levels without a probability:</p><ul class='plain soft'>{items}</ul>"
    for reason, uids in metrics["left_out"].items():
        html += f"<p class='soft'>{len(uids)} studies: {escape(reason)} (named in metrics.json).</p>"
    return html


def _facts(metrics: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    names = list(metrics["counts"])
    counts = [
        [key.replace("_", " "), *(str(metrics["counts"][name][key]) for name in names)]
        for key in metrics["counts"]["test"]
    ]
    versions = ", ".join(f"{name} {version}" for name, version in metrics["versions"].items())
    shown = {**facts, "evaluated with": versions}
    return f'<div class="grid facts"><div>{facts_list(shown)}</div>{plain_table(["part", *names], counts)}</div>'
