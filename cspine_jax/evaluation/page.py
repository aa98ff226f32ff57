"""The pieces that every report is made of: one self-contained HTML page, sections, curves, tables."""

import dataclasses
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from cspine_jax.anatomy import VERTEBRAE
from cspine_jax.evaluation import curves, tables
from cspine_jax.evaluation.pictures import Chart
from cspine_jax.evaluation.style import STYLE
from cspine_jax.metrics import reliability_curve

LIMITS = (
    "Research only. Not a medical device, and not for any decision about a patient.",
    "Intervals resample studies of this test part only: they do not cover other scanners, hospitals or patients.",
    "An interval that is a single point (as at 1.000) means that no resample differed, not that the figure is certain.",
)
"""Of every report."""

PHANTOM_LIMIT = "These are phantom figures: synthetic studies. Phantom figures say nothing of clinical accuracy."


def write_page(path: Path, title: str, parts: Sequence[str]) -> None:
    """Writes `parts` (HTML) as one page that needs no network."""
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}: evaluation</title><style>{STYLE}</style></head>"
    )
    path.write_text(f"{head}<body><main>{''.join(parts)}</main></body></html>\n", encoding="utf-8")


def section(title: str, body: str) -> str:
    """A headed block; nothing where the body is empty."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def figure(title: str, chart: Chart, keys: Sequence[tuple[str, str]], caption: str = "") -> str:
    """A chart with its key: `(style, text)` a line."""
    items = "".join(f'<li class="{style}">{escape(text)}</li>' for style, text in keys)
    note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><h3>{escape(title)}</h3>{chart.svg()}<ul class="key">{items}</ul>{note}</figure>'


def estimate_cell(entry: Mapping[str, float | None]) -> str:
    """A value with its interval below it."""
    value, interval = tables.value_text(entry)
    return (
        f'<span class="v">{value}</span><br><small>{interval}</small>'
        if interval
        else f'<span class="v">{value}</span>'
    )


def limits(phantom: bool, lines: Sequence[str] = LIMITS) -> str:
    """A list of what the figures do not say; of phantoms that first."""
    lines = ((PHANTOM_LIMIT,) if phantom else ()) + tuple(lines)
    return f"<ul class='plain'>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """To one kind of question, for `discrimination`.

    Attributes:
        name: of the questions.
        truth: bool `[n]`.
        score: `[n]` probabilities.
        figures: the entries "auc" and "ece" of `metrics.json`.
    """

    name: str
    truth: np.ndarray
    score: np.ndarray
    figures: Mapping[str, Any]


def discrimination(answers: Sequence[Answers], bins: int) -> str:
    """ROC, precision-recall and reliability curves.

    Args:
        answers: one line each.
        bins: of the reliability diagram.
    """
    roc = Chart((0, 1), (0, 1), "1 - specificity", "sensitivity", "ROC curves")
    pr = Chart((0, 1), (0, 1), "recall", "precision", "Precision-recall curves")
    fit = Chart((0, 1), (0, 1), "predicted probability p", "observed frequency", "Reliability diagram")
    roc.line([0, 1], [0, 1], "ref")
    fit.line([0, 1], [0, 1], "ref")
    keys: dict[str, list[tuple[str, str]]] = {"roc": [], "pr": [], "fit": []}
    for i, each in enumerate(answers):
        name, style = each.name, f"s{i}"
        points = curves.roc_pr(each.truth, each.score)
        if points is None:
            for key in ("roc", "pr"):
                keys[key].append((style, f"{name}: one class only, no curve"))
        else:
            roc.line(*points.roc, style)
            pr.line(*points.pr, style)
            pr.line([0, 1], [points.prevalence] * 2, f"{style} thin")
            value, interval = tables.value_text(each.figures["auc"])
            keys["roc"].append((style, f"{name} AUC {value} {interval}"))
            keys["pr"].append((style, f"{name} AP {points.average_precision:.3f} (chance {points.prevalence:.3f})"))
        if len(each.truth):
            at, observed, count = reliability_curve(each.truth, each.score, bins)
            filled = count > 0
            fit.line(at[filled], observed[filled], style)
            radius = 2 + 6 * np.sqrt(count[filled] / count.max())
            tips = [f"{name}: {n} at p = {p:.2f}" for n, p in zip(count[filled], at[filled], strict=True)]
            fit.dots(at[filled], observed[filled], radius, style, tips)
            keys["fit"].append((style, f"{name} ECE {tables.value_text(each.figures['ece'])[0]}"))
    figures = [
        figure("ROC", roc, keys["roc"], "Dashed: chance."),
        figure("Precision and recall", pr, keys["pr"], "Thin lines: a guess at random."),
        figure("Reliability", fit, keys["fit"], "Dashed: perfect. A dot's size tells how many answers are in its bin."),
    ]
    return f'<div class="grid">{"".join(figures)}</div>'


def level_confusion(table: np.ndarray, threshold: float) -> str:
    """The table of `levels.level_confusion` `[8, 8]`, shaded by row."""
    total = table.sum(axis=1, keepdims=True)
    share = np.divide(table, total, out=np.zeros(table.shape), where=total > 0)
    names = (*VERTEBRAE, "none")
    rows = []
    for i, name in enumerate(names):
        cells = "".join(
            f'<td style="background:rgba(var(--heat),{0.75 * share[i, j]:.3f})">{table[i, j] or ""}</td>'
            for j in range(len(names))
        )
        rows.append(f"<tr><th>{name}</th>{cells}</tr>")
    head = "".join(f"<th>{name}</th>" for name in names)
    return (
        "<h3 style='margin-top:1rem'>Level named on slices that show exactly one vertebra, or none</h3>"
        f"<div class='scroll'><table class='heat'><thead><tr><th>truth \\ named</th>{head}</tr></thead><tbody>"
        f"{''.join(rows)}</tbody></table></div><p class='soft'>Named: the vertebra with the highest probability; "
        f"none where all are below {threshold:.3f}. Shade: share of the row.</p>"
    )


def training(history: Sequence[Mapping[str, Any]]) -> str:
    """Curves of the lines of `metrics.jsonl`."""
    figures = []
    for title, series in curves.training_series(history).items():
        names = sorted(series)[:6]
        x = np.concatenate([series[name][0] for name in names])
        y = np.concatenate([series[name][1] for name in names])
        low = float(y.min()) if title == "validation" else 0.0
        chart = Chart((0, float(x.max())), (low, float(y.max())), "step", title, f"Training: {title}")
        for i, name in enumerate(names):
            chart.line(*series[name], f"s{i}")
            if len(series[name][0]) <= 30:
                steps, values = series[name]
                tips = [f"{name} {value:.4g} at step {step}" for step, value in zip(steps, values, strict=True)]
                chart.dots(steps, values, [2.5] * len(steps), f"s{i}", tips)
        keys = [(f"s{i}", f"{name}, last {series[name][1][-1]:.4g}") for i, name in enumerate(names)]
        figures.append(figure(title.capitalize(), chart, keys))
    return f'<div class="grid four">{"".join(figures)}</div>' if figures else "<p class='soft'>No training log.</p>"


def short(uid: str) -> str:
    """The tail of a long StudyInstanceUID, enough to tell studies of one report apart."""
    return uid if len(uid) <= 14 else f"…{uid[-12:].lstrip('.')}"


def plain_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def facts_list(facts: Mapping[str, Any]) -> str:
    """Names and values."""
    items = (f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items())
    return f"<dl>{''.join(items)}</dl>"


def header(title: str, what: str, phantom: bool) -> str:
    """The page's title, its tags, and one paragraph."""
    tag = '<span class="tag">phantom data</span>' if phantom else ""
    return (
        f'<header><h1>{escape(title)}: evaluation</h1><p>{tag}<span class="tag">research only</span></p>'
        f'<p class="soft">{escape(what)}</p></header>'
    )
