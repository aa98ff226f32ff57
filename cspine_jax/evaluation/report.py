"""`report.html`: one file with everything in it, to be read in a browser without a network."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from cspine_jax.anatomy import VERTEBRAE
from cspine_jax.config import EvalConfig
from cspine_jax.evaluation import page, tables
from cspine_jax.evaluation.examples import Example
from cspine_jax.evaluation.levels import Decision
from cspine_jax.evaluation.page import (
    estimate_cell,
    header,
    level_confusion,
    section,
    short,
    training,
    write_page,
)
from cspine_jax.evaluation.pictures import window_png

LIMITS = (
    page.LIMITS[0],
    "Slice truth follows the training target; where nobody knows it the slice is left out and counted.",
    *page.LIMITS[1:],
    "The patient probability 1 - prod(1 - p_j) treats vertebrae as independent, so it tends to run high.",
)

CURVES = ("slice", "vertebra", "patient")


def write_report(
    path: Path,
    metrics: Mapping[str, Any],
    found: Mapping[str, Decision],
    *,
    config: EvalConfig,
    history: Sequence[Mapping[str, Any]],
    examples: tuple[list[Example], list[Example]],
    read_slice: Any,
    window: tuple[float, float],
    facts: Mapping[str, Any],
) -> None:
    """Writes the page.

    Args:
        path: file to write.
        metrics: what `evaluate` returns.
        found: the decisions behind the figures, for the curves.
        config: bins of the reliability diagram.
        history: lines of `metrics.jsonl`.
        examples: `(right, wrong)` slices.
        read_slice: `(uid, index) -> int16 [H, W]`, or None for no pictures.
        window: (level, width) in HU of the pictures.
        facts: printed as they are.
    """
    answers = [page.Answers(name, found[name].truth, found[name].score, metrics[name]) for name in CURVES]
    parts = [
        _header(metrics),
        _cards(metrics),
        section("Results", _results(metrics)),
        section("Discrimination and calibration", page.discrimination(answers, config.ece_bins)),
        section("Each vertebra", _vertebrae(metrics)),
        section("Training", training(history)),
        section("Slices the model was surest of", _pictures(metrics, examples, read_slice, window)),
        section("Data, model and thresholds", _facts(metrics, facts)),
        section("Limits", page.limits(metrics["phantom"], LIMITS)),
    ]
    write_page(path, metrics["title"], parts)


def _header(metrics: Mapping[str, Any]) -> str:
    counts = metrics["counts"]["test"]
    what = (
        f"Document B's Type {metrics['model_type']} slice model. Figures of {counts['studies']} test "
        f"studies ({counts['patients_fractured']} fractured, {counts['vertebrae_fractured']} vertebrae) and "
        f"{counts['slices']} slices, none of them trained on. Thresholds come from the validation studies. "
        f"Intervals: {metrics['interval']}."
    )
    return header(metrics["title"], what, metrics["phantom"])


def _cards(metrics: Mapping[str, Any]) -> str:
    cards = []
    for level, quantity, name in (
        ("presence", "mean_auc", "Vertebra presence AUC"),
        ("slice", "auc", "Slice fracture AUC"),
        ("vertebra", "auc", "Vertebra fracture AUC"),
        ("patient", "auc", "Patient AUC"),
    ):
        if level in metrics:
            value, interval = tables.value_text(metrics[level][quantity])
            theirs = tables.DOCUMENT_B[level][quantity]
            cards.append(
                f'<div class="card"><span class="soft">{name}</span><b>{value}</b>'
                f'<span class="soft">{escape(metrics["data"])} {interval}<br>'
                f"document B on RSNA: {theirs:.3f}</span></div>"
            )
    return f'<div class="cards">{"".join(cards)}</div>'


def _results(metrics: Mapping[str, Any]) -> str:
    names = ("accuracy", "auc", "sensitivity", "specificity", "f1", "brier", "ece")
    titles = ("accuracy", "AUC", "recall (sensitivity)", "specificity", "F1", "Brier", "ECE")
    rows = []
    for level, heading, remark in tables.headings(metrics):
        cells = []
        for name in names:
            name = "mean_auc" if level == "presence" and name == "auc" else name
            theirs = tables.document_b(level).get(name)
            beside = f"<br><i>{theirs:.3f}</i>" if theirs is not None else ""
            cells.append(f"<td>{estimate_cell(metrics[level][name])}{beside}</td>")
        rows.append(
            f'<tr><td><b>{escape(heading)}</b><br><span class="soft">{escape(remark)}</span></td>{"".join(cells)}</tr>'
        )
    head = "".join(f"<th>{title}</th>" for title in titles)
    losses = "".join(
        f"<tr><td><b>{name}</b></td>"
        + "".join(f"<td>{estimate_cell(metrics['rsna_log_loss'][key][kind])}</td>" for kind in "ABC")
        + "</tr>"
        for key, name in (("p", "clinical p"), ("score_optimal", "score-optimal p' = 2p/(1+p)"))
    )
    remarks = " ".join(
        [
            f"Ours on {metrics['data']}, 95% interval below it; <i>in italics document B's figure, theirs on RSNA</i>.",
            "Presence AUC is the mean of C1-C7.",
            *map(escape, tables.remarks(metrics)),
        ]
    )
    return (
        f'<div class="scroll"><table class="wide"><thead><tr><th>ours ({escape(metrics["data"])})</th>{head}</tr>'
        f'</thead><tbody>{"".join(rows)}</tbody></table></div><p class="soft">{remarks}</p>'
        "<h3 style='margin-top:1rem'>RSNA weighted log loss (lower is better)</h3>"
        f'<div class="scroll"><table class="wide small"><thead><tr><th>of</th><th>A, a study</th><th>B, over all</th>'
        f"<th>C, a column</th></tr></thead><tbody>{losses}</tbody></table></div>"
        "<p class='soft'>Positives weigh twice, so 2p/(1+p) is what B rewards if p is calibrated; A divides by the "
        "weights of each study, and rewards about p. 2p/(1+p) is not a probability of fracture.</p>"
    )


def _vertebrae(metrics: Mapping[str, Any]) -> str:
    fracture, presence = metrics["vertebra"], metrics.get("presence")
    threshold = metrics["thresholds"]["vertebra"]["value"]
    rows = []
    for name in VERTEBRAE:
        c = fracture["confusion"][name]
        cells = [" ".join(tables.value_text(fracture["auc_each"][name])).strip()]
        cells += [str(c[key]) for key in ("tp", "fp", "fn", "tn")]
        cells += [_share(c["tp"], c["fn"]), _share(c["tn"], c["fp"])]
        if presence:
            cells.append(" ".join(tables.value_text(presence["auc_each"][name])).strip())
        rows.append(f"<tr><td>{name}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    last = "<th>presence AUC [95%]</th>" if presence else ""
    html = (
        f"<h3>Fracture, called at p &ge; {threshold:.3f}</h3>"
        "<div class='scroll'><table><thead><tr><th>vertebra</th><th>AUC [95%]</th>"
        "<th>TP</th><th>FP</th><th>FN</th><th>TN</th>"
        f"<th>sensitivity</th><th>specificity</th>{last}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
    if presence:
        html += level_confusion(np.array(presence["level_confusion"]), metrics["thresholds"]["presence"]["value"])
    missing = metrics["not_visible"]
    if missing:
        items = "".join(f"<li>{escape(short(uid))}: {', '.join(levels)}</li>" for uid, levels in missing.items())
        html += (
            "<p class='soft'>Not visible to the model, so without a probability (scored with the prevalence of the "
            f"validation studies):</p><ul class='plain soft'>{items}</ul>"
        )
    return html


def _share(part: int, rest: int) -> str:
    return f"{part / (part + rest):.2f}" if part + rest else "n/a"


def _pictures(
    metrics: Mapping[str, Any], examples: tuple[list[Example], list[Example]], read_slice: Any, window
) -> str:
    if read_slice is None:
        return "<p class='soft'>No images were given.</p>"
    threshold, html = metrics["thresholds"]["slice"]["value"], ""
    for title, style, group in (("Right", "right", examples[0]), ("Wrong", "wrong", examples[1])):
        figures = "".join(_picture(example, read_slice(example.uid, example.index), window) for example in group)
        body = f'<div class="pictures {style}">{figures}</div>' if figures else "<p class='soft'>There is none.</p>"
        html += f"<div class='{style}'><h3>{title}</h3>{body}</div>"
    return (
        html
        + f"<p class='soft'>Bone window, level {window[0]:g} and width {window[1]:g} HU. A slice is called fractured "
        f"at p &ge; {threshold:.3f}; half of each row are slices called fractured, half slices called clear, surest "
        "first, and one a study as far as possible.</p>"
    )


_KINDS = {"TP": "fracture found", "TN": "rightly clear", "FP": "false alarm", "FN": "fracture missed"}


def _picture(example: Example, hu: np.ndarray, window: tuple[float, float]) -> str:
    truth = "fracture" if example.kind in ("TP", "FN") else "clear"
    side = "right" if example.right else "wrong"
    return (
        f'<figure class="{side}" title="{escape(example.uid)}">'
        f'<img alt="{_KINDS[example.kind]}" src="{window_png(hu, window)}">'
        f"<figcaption><b>{_KINDS[example.kind]}</b><br>p = {example.probability:.3f}, truth: {truth}<br>"
        f"on the slice: {example.truth_levels}<br>named: {example.named_levels}<br>"
        f"study {escape(short(example.uid))}, slice {example.index}</figcaption></figure>"
    )


def _facts(metrics: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    shown = {name.replace("_", " "): value for name, value in facts.items()}
    shown |= {
        "evaluated with": ", ".join(f"{name} {version}" for name, version in metrics["versions"].items()),
        "fracture target": metrics["fracture_target"],
        "loss weight of positives": f"{metrics['positive_weight']:g} (undone: p is the clinical probability)",
    }
    left = "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>" for name, value in shown.items())
    names = list(metrics["counts"])
    counts = metrics["counts"]
    rows = []
    for key in counts["test"]:
        cells = "".join(f"<td>{counts[name][key]}</td>" for name in names)
        rows.append(f"<tr><td>{key.replace('_', ' ')}</td>{cells}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    counted = f"<table><thead><tr><th>part</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    chosen = "".join(
        f"<tr><td>{name.replace('_', ' ')}</td><td>{entry['value']:.3f}</td>"
        f"<td>{'n/a' if entry['f1'] is None else format(entry['f1'], '.3f')}</td><td>{entry['source']}</td></tr>"
        for name, entry in metrics["thresholds"].items()
    )
    chosen = (
        "<table><thead><tr><th>threshold of</th><th>value</th><th>F1 there</th><th>from</th></tr></thead>"
        f"<tbody>{chosen}</tbody></table>"
    )
    return (
        f'<div class="grid facts"><div><h3>Facts</h3><dl>{left}</dl></div>'
        f'<div class="scroll"><h3>Counts</h3>{counted}</div>'
        f'<div class="scroll"><h3>Thresholds</h3>{chosen}</div></div>'
    )
