"""`comparison.html`: one self-contained page with every table, test, diagram and caveat."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from cspine_jax.evaluation import page
from cspine_jax.evaluation.compare import columns
from cspine_jax.evaluation.compare.compare import Comparison, Row
from cspine_jax.evaluation.compare.nested import GROUPS
from cspine_jax.evaluation.compare.published import CANNOT_BE_COMPARED, PUBLISHED
from cspine_jax.evaluation.pictures import Chart
from cspine_jax.evaluation.tables import value_text
from cspine_jax.metrics import reliability_curve

FILES: Mapping[str, str] = {
    "tables/MODEL/oof.csv": "clinical probability p, raw: what the fold that tested on the study wrote; empty where a "
    "level is not visible",
    "tables/MODEL/calibrated.csv": "clinical probability p after the calibrator that was chosen for its fold",
    "tables/MODEL/score_optimal.csv": "p' = 2p/(1+p) of calibrated.csv, empty cells filled with the prevalence: for "
    "submission to the RSNA metric only. It is NOT a probability of a fracture",
    "tables/MODEL/conformal_sets.csv": "intact, fractured, unsure or none, a vertebra",
    "uncertainty.csv": "spread (standard deviation) of the models' p, a vertebra",
    "comparison.csv, comparison.json": "every figure with its interval",
}

LIMITS = (
    "Research only. Not a medical device, and not for any decision about a patient.",
    "Fill values, thresholds, weights and calibrators of a fold come from the other folds alone (of one fold alone: "
    "from its validation studies). The choice of recipes "
    "does not: whoever tunes a recipe on these tables has seen them.",
    "ensemble-rank and ensemble-weighted are fitted fold by fold on all other folds; their thresholds and calibrators, "
    "chosen on those, have thus seen a little of the fold they are for.",
    "A pooled AUC compares scores of different folds' models; 'within folds' is the mean of each fold's own AUC.",
    "Intervals resample the studies of this comparison. They leave out what another training seed, scanner or hospital "
    "would change.",
    "An interval that is a single point (as at 1.000) means that no resample differed, not that the figure is certain.",
    "Conformal sets are calibrated on the scores of other folds' models (of one fold alone: on the validation studies, "
    "which have chosen the checkpoint), so their guarantee holds as far as those scores are alike; the coverage "
    "measured is what counts.",
    "Many tests are made at once: a difference is called one where p, adjusted by Holm, is below 0.05.",
)

_CALIBRATORS = ("before", "temperature", "platt", "isotonic", "chosen")


def write_report(path: Path, found: Comparison, title: str) -> None:
    """Writes the page.

    Args:
        path: file to write.
        found: what `compare` returns.
        title: of the page.
    """
    facts = found.facts
    elsewhere = ", ".join(row.name for row in found.rows.values() if row.kind == "outside table")
    files = [f"{name}: {what}" for name, what in FILES.items() if found.spread is not None or name != "uncertainty.csv"]
    what = (
        f"{len(facts['rows'])} tables on the same {facts['studies']} studies ({facts['patients_fractured']} fractured, "
        f"{facts['vertebrae_fractured']} vertebrae), each study predicted by a model that did not learn from it"
        f"{f' (of {elsewhere}, and of ensembles with it, this is not known)' if elsewhere else ''}; "
        f"{len(facts['folds'])} of {facts['num_folds']} folds. Data: {facts['data']}. Intervals: {facts['interval']}."
    )
    scored = [row for row in found.rows.values() if row.kind != "constant"]
    parts = [
        page.header(title, what, facts["data"] == "phantom"),
        page.section("Results", _results(facts)),
        page.section("What was left out or filled", _list([*facts["notes"], *columns.hidden_lines(facts)])),
        page.section("Do the ensembles beat their best member?", _ensembles(facts)),
        page.section("Model against model", _list([columns.pair_line(entry) for entry in facts["pairs"]])),
        page.section("All figures", _all_figures(facts)),
        page.section("Calibration", _calibration(facts, scored, found.aligned.labels)),
        page.section("Conformal sets of vertebrae", _conformal(facts)),
        page.section("Does uncertainty point at the errors?", _uncertainty(facts)),
        page.section("Cost", _cost(facts)),
        page.section("Published figures, on other data", _published()),
        page.section("Files beside this page", _list(files)),
        page.section("Limits", _list(LIMITS)),
    ]
    page.write_page(path, title, parts)


def _list(lines) -> str:
    return f'<ul class="plain">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>' if lines else ""


def _grid(head: list[str], rows: list[list[str]]) -> str:
    """A table whose cells are HTML; heads and first cells are text."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr><td>{escape(name)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for name, *cells in rows
    )
    return f'<div class="scroll"><table class="wide"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _results(facts: Mapping[str, Any]) -> str:
    head = ["", *columns.TITLES.values()]
    rows = [
        [name, *(page.estimate_cell(row["figures"][key]) for key in columns.TITLES)]
        for name, row in facts["rows"].items()
    ]
    failed = [f"{name}: failed, not in the table: {why}" for name, why in facts["absent"].items()]
    note = (
        "p is the clinical probability; p' = 2p/(1+p) is what the RSNA metric rewards where all studies weigh alike "
        "(B), and no probability; A divides by each study's weights, and rewards about p. "
        f"Losses, Brier and ECE: lower is better. All columns: {facts['data']}. F1, sensitivity and specificity at the "
        f"threshold of the highest F1 on {facts['chosen_on']}. ensemble-rank is calibrated by its making (Platt, on "
        "the same): compare losses after calibration."
    )
    return _grid(head, rows) + f'<p class="soft">{escape(note)}</p>' + _list(failed)


def _ensembles(facts: Mapping[str, Any]) -> str:
    if "ensemble_tests" not in facts:
        return ""
    lines = _list([columns.test_line(entry) for entry in facts["ensemble_tests"]])
    rows = [
        [f"fold {fold}, {group}", ", ".join(f"{name} {weight:.2f}" for name, weight in weights.items())]
        for fold, groups in facts["ensemble_weights"].items()
        for group, weights in groups.items()
    ]
    return (
        lines
        + "<h3>Weights of ensemble-weighted, each fold's found on "
        + f"{escape(facts['chosen_on'])} (least metric A of p)</h3>"
        + page.plain_table(["", "weights"], rows)
    )


def _all_figures(facts: Mapping[str, Any]) -> str:
    names = list(facts["rows"])
    keys = list(next(iter(facts["rows"].values()))["figures"])
    rows = [[_title(key), *(page.estimate_cell(facts["rows"][name]["figures"][key]) for name in names)] for key in keys]
    for group in GROUPS:
        cells = [facts["rows"][name]["thresholds"][group] for name in names]
        rows.append([f"{group} threshold of each fold", *(_thresholds(entry) for entry in cells)])
    return _grid(["", *names], rows)


def _title(key: str) -> str:
    table, _, kind = key.rpartition("_")
    if key.startswith("rsna"):
        of = {
            "rsna_p": "p",
            "rsna_optimal": "p'",
            "rsna_calibrated": "p' after calibration",
            "rsna_calibrated_p": "p after calibration",
        }
        return f"RSNA {kind} of {of[table]}"
    words = key.replace("_", " ")
    for small, large in (("auc", "AUC"), ("f1", "F1"), ("ece", "ECE"), ("brier", "Brier")):
        words = words.replace(small, large)
    return words


def _thresholds(entry: Mapping[str, Any]) -> str:
    values = " ".join(f"{value:.2f}" for value in entry["of_fold"].values())
    return values + (f" ({entry['source']})" if "default" in entry["source"] else "")


def _calibration(facts: Mapping[str, Any], rows: list[Row], labels: np.ndarray) -> str:
    table = []
    for row in rows:
        for group in GROUPS:
            entry = row.facts["calibration"][group]
            chosen = " ".join(f"{fold}:{name}" for fold, name in entry["chosen_for_fold"].items())
            for name in _CALIBRATORS:
                label = f"chosen ({chosen})" if name == "chosen" else name
                cells = (page.estimate_cell(entry[name][key]) for key in ("log_loss", "brier", "ece"))
                table.append([f"{row.name}, {group}: {label}", *cells])
    figures = "".join(_reliability(row, group, labels) for row in rows for group in GROUPS)
    note = (
        f"Each fold is calibrated by what was fitted on {facts['chosen_on']}; which one it gets is decided there by "
        "cross-fitted log loss, or it is the stiffest where that cannot be done. Cells that are not visible are left "
        "out here. Compare a row with 'before': with few studies calibration can cost more than it gains."
    )
    return (
        f'<p class="soft">{escape(note)}</p>'
        + _grid(["", "log loss", "Brier", "ECE"], table)
        + f'<div class="grid">{figures}</div>'
    )


def _reliability(row: Row, group: str, labels: np.ndarray) -> str:
    chart = Chart((0, 1), (0, 1), "predicted", "observed", f"Reliability of {row.name}, {group}")
    chart.line([0, 1], [0, 1], "ref")
    part, keys = GROUPS[group], []
    y = labels[:, part].ravel()
    for style, name, p in (("s0", "raw (oof.csv)", row.raw), ("s1", "calibrated.csv", row.calibrated)):
        curve = reliability_curve(y, p[:, part].ravel())
        use = curve.count > 0
        tips = [
            f"{name}: {int(n)} examples, predicted {a:.3f}, observed {b:.3f}"
            for n, a, b in zip(curve.count[use], curve.predicted[use], curve.observed[use], strict=True)
        ]
        sizes = 2.0 + 4.0 * np.sqrt(curve.count[use] / max(1, curve.count.max()))
        chart.line(curve.predicted[use], curve.observed[use], style)
        chart.dots(curve.predicted[use], curve.observed[use], sizes, style, tips)
        entry = row.facts["calibration"][group]["before" if style == "s0" else "chosen"]
        keys.append((style, f"{name}: ECE {value_text(entry['ece'])[0]}"))
    return page.figure(f"{row.name}, {group}", chart, keys, "Dots: bins of equal width; size: how many examples.")


def _conformal(facts: Mapping[str, Any]) -> str:
    rows = []
    for name, row in facts["rows"].items():
        if row["kind"] == "constant":
            continue
        for way, found in row["conformal"].items():
            covered = (_covered(found["coverage"][which]) for which in ("all", "intact", "fractured"))
            counts = (str(found["sets"][kind]) for kind in ("intact", "fractured", "unsure", "none"))
            rows.append([f"{name}, {way}", *covered, page.estimate_cell(found["mean_size"]), *counts])
    head = ["", "coverage", "of intact", "of fractured", "mean size", "intact", "fractured", "unsure", "none"]
    note = (
        f"Wanted: at least {1 - facts['miss_rate']:.0%} of sets hold the truth; 'by class' (Mondrian) wants it "
        f"among the fractured, too. Calibrated on {facts['chosen_on']}, measured on the fold itself. Interval: studies "
        "resampled; in brackets: binomial, as if vertebrae were independent."
    )
    return _grid(head, rows) + f'<p class="soft">{escape(note)}</p>'


def _covered(entry: Mapping[str, Any]) -> str:
    if entry["binomial_low"] is None:
        return "n/a"
    return f"{page.estimate_cell(entry)}<br><small>({entry['binomial_low']:.3f}, {entry['binomial_high']:.3f})</small>"


def _uncertainty(facts: Mapping[str, Any]) -> str:
    if not facts["uncertainty"]:
        return ""
    rows = [
        [
            entry["table"],
            entry["uncertainty"],
            f"{entry['errors']} of {entry['vertebrae']}",
            *(_share(entry["share_of_errors"][key]) for key in ("0.1", "0.2")),
            "n/a" if entry["auc"] is None else f"{entry['auc']:.3f}",
        ]
        for entry in facts["uncertainty"]
    ]
    head = ["errors of", "most uncertain by", "errors", "in the top 10%", "in the top 20%", "AUC for errors"]
    note = (
        "Share of wrong decisions about vertebrae among the 10% and 20% that are least certain; chance: 10%, 20%, .5. "
        "A spread is worth its cost only where it beats the nearness of p to the threshold, which is free."
    )
    return page.plain_table(head, rows) + f'<p class="soft">{escape(note)}</p>'


def _share(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.0%}"


def _cost(facts: Mapping[str, Any]) -> str:
    head, rows = columns.short_rows(facts)
    start = 4 + len(columns.TITLES)
    kept = [[row[0], *row[start:]] for row in rows if any(row[start:])]
    note = (
        "Wall and training seconds: sum of the folds. Seconds a study: mean. Peak memory: largest of the folds, with "
    )
    note += "whatever the run did (the first one of all may have made the data)."
    return (page.plain_table([head[0], *head[start:]], kept) + f'<p class="soft">{note}</p>') if kept else ""


def _published() -> str:
    rows = [[entry.source, entry.model, entry.measure, entry.value, entry.data] for entry in PUBLISHED]
    return f"<p><b>{escape(CANNOT_BE_COMPARED)}</b></p>" + page.plain_table(
        ["source", "model", "measure", "value", "measured on"], rows
    )
