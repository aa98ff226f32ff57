"""The pieces that every report is made of: one self-contained HTML page, sections, curves, tables."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from cspine_jax.anatomy import VERTEBRAE
from cspine_jax.evaluation import curves, tables
from cspine_jax.evaluation.pictures import Chart
from cspine_jax.evaluation.style import STYLE


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
