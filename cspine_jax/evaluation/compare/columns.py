"""The comparison as rows of figures: on the terminal, in markdown and in `comparison.csv`."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cspine_jax.errors import DataError
from cspine_jax.evaluation.tables import value_text

OPEN, CLOSE = "<!-- comparison -->", "<!-- /comparison -->"

TITLES: dict[str, str] = {
    "rsna_p_A": "RSNA A of p",
    "rsna_calibrated_p_A": "RSNA A, calibrated p",
    "rsna_calibrated_B": "RSNA B, calibrated p'",
    "patient_auc": "patient AUC",
    "vertebra_auc": "vertebra AUC",
    "patient_f1": "patient F1",
    "vertebra_f1": "vertebra F1",
    "vertebra_sensitivity": "vertebra sensitivity",
    "vertebra_specificity": "vertebra specificity",
    "vertebra_brier": "vertebra Brier",
    "vertebra_ece": "vertebra ECE",
}
"""The figures of the short table, in order."""

COSTS: dict[str, str] = {
    "wall_seconds": "wall s",
    "training_seconds": "training s",
    "prediction_seconds_a_study": "s / study",
    "peak_memory_mb": "peak MB",
}


def short_rows(facts: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the short table: every table, its figures with intervals, its cost; the absent ones last."""
    head = ["model", "data", "folds", "studies", *TITLES.values(), *COSTS.values()]
    rows = []
    for name, row in facts["rows"].items():
        figures = [" ".join(value_text(row["figures"][key])).strip() for key in TITLES]
        costs = [_number(row.get("cost", {}).get(key)) for key in COSTS]
        rows.append([name, facts["data"], str(len(facts["folds"])), str(row["studies"]), *figures, *costs])
    rows += [[name, "-", "-", "-", f"failed: {why}", *[""] * (len(head) - 5)] for name, why in facts["absent"].items()]
    return head, rows


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def terminal(facts: Mapping[str, Any]) -> str:
    """The short table in two blocks that fit a screen, then tests and notes."""
    head, rows = short_rows(facts)
    figures, blocks = len(TITLES), []
    present = rows[: len(facts["rows"])]
    for start, stop in ((4, 9), (9, 4 + figures), (4 + figures, len(head))):
        columns = [0, *range(start, stop)]
        block = [[head[k] for k in columns], *([row[k] for k in columns] for row in present)]
        if any(cell for row in block[1:] for cell in row[1:]):
            blocks.append(_aligned(block))
    lines = [
        f"{facts['studies']} studies ({facts['patients_fractured']} fractured, {facts['vertebrae_fractured']} "
        f"vertebrae), {len(facts['folds'])} of {facts['num_folds']} folds, data: {facts['data']}",
        "",
        "\n\n".join(blocks),
        "",
        *_short_tests(facts),
        *(f"{name}: FAILED, not in the table: {why}" for name, why in facts["absent"].items()),
        *hidden_lines(facts),
        *facts["notes"],
        "p: clinical probability. p' = 2p/(1+p): for the RSNA metric only, normalised as B. Intervals: "
        + facts["interval"]
        + ".",
        facts["note"],
    ]
    return "\n".join(lines)


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]])


def test_line(entry: Mapping[str, Any]) -> str:
    """One ensemble against its best member, in words."""
    return f"{entry['ensemble']} against {entry['best_member']}: {entry['verdict']} in {_tested(entry)}"


def pair_line(entry: Mapping[str, Any]) -> str:
    """Two models against each other, in words."""
    return f"{entry['a']} against {entry['b']}: {_winner(entry)} in {_tested(entry)}"


def _winner(entry: Mapping[str, Any]) -> str:
    return f"{entry[entry['better']]} is better" if entry["better"] else "no difference shown"


def _tested(entry: Mapping[str, Any]) -> str:
    change = " ".join(value_text(entry["difference"])).strip()
    return f"{TITLES[entry['figure']]}: difference {change}, {_p(entry)}, {entry['test']}"


def _p(entry: Mapping[str, Any]) -> str:
    return "p not defined" if entry["p"] is None else f"p {entry['p']:.2g}, Holm {entry['p_holm']:.2g}"


def _short_tests(facts: Mapping[str, Any]) -> list[str]:
    """A line for each ensemble and each pair of models: what was decided about each figure."""
    lines: dict[str, list[str]] = {}
    for entry in facts.get("ensemble_tests", ()):
        said = f"{entry['verdict']}" + (f" {entry['best_member']}" if entry["better"] else "")
        lines.setdefault(entry["ensemble"], []).append(f"{TITLES[entry['figure']]} {said} ({_p(entry)})")
    for entry in facts["pairs"]:
        said = f"{TITLES[entry['figure']]} {_winner(entry)} ({_p(entry)})"
        lines.setdefault(f"{entry['a']} against {entry['b']}", []).append(said)
    return [f"{name}: {'; '.join(said)}" for name, said in lines.items()]


def hidden_lines(facts: Mapping[str, Any]) -> list[str]:
    """How many cells had no probability, a table with any; ensembles inherit theirs and are left out."""
    lines = []
    for name, row in facts["rows"].items():
        cells = row["not_visible"]["cells"]
        if cells and row["kind"] != "ensemble":
            some = "; ".join(f"{uid} {' '.join(levels)}" for uid, levels in list(cells.items())[:3])
            lines.append(
                f"{name}: {row['not_visible']['count']} cells in {len(cells)} studies have no probability (not "
                f"visible); scored with the prevalence found on {facts['chosen_on']}: {some}"
                + ("; ..." if len(cells) > 3 else ".")
            )
    return lines


def markdown(facts: Mapping[str, Any]) -> str:
    """The short table and what must be said beside it."""
    head, rows = short_rows(facts)
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    table = [head, ["---"] * len(head), *rows]
    notes = [*facts["notes"], *hidden_lines(facts), facts["note"]]
    lines = [f"| {' | '.join(row)} |" for row in table]
    tests = [f"- {test_line(entry)}" for entry in facts.get("ensemble_tests", ())]
    return "\n".join([*lines, "", *tests, *(f"- {note}" for note in notes)])


def check_marks(path: Path) -> None:
    """Refuses a file that has no place for the table.

    Raises:
        DataError: the file exists without the two marks, or cannot be read.
    """
    if not path.exists():
        return
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if text.count(OPEN) != 1 or text.count(CLOSE) != 1 or text.index(OPEN) > text.index(CLOSE):
        raise DataError(f"{path}: write one line {OPEN} and, below it, one line {CLOSE} where the table is to go")


def write_markdown(path: Path, facts: Mapping[str, Any]) -> None:
    """Puts the table between the marks of a file, and changes nothing else; a new file holds just that."""
    check_marks(path)
    text = path.read_text(encoding="utf-8") if path.exists() else f"{OPEN}\n{CLOSE}\n"
    before, after = text.split(OPEN)[0], text.split(CLOSE)[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{before}{OPEN}\n\n{markdown(facts)}\n\n{CLOSE}{after}", encoding="utf-8")


def write_csv(path: Path, facts: Mapping[str, Any]) -> None:
    """`comparison.csv`: one row a table; every figure with the ends of its interval; failed models have a row too."""
    rows = [{"model": name, "status": "compared", "data": facts["data"], **_flat(row, facts)}
            for name, row in facts["rows"].items()]  # fmt: skip
    rows += [{"model": name, "status": f"failed: {why}"} for name, why in facts["absent"].items()]
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)


def _flat(row: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {
        "kind": row["kind"],
        "folds": " ".join(map(str, facts["folds"])),
        "studies": row["studies"],
        "not_visible": row["not_visible"]["count"],
    }
    figures = dict(row["figures"])
    for group, found in row["calibration"].items():
        figures |= {f"{group}_{key}_calibrated": entry for key, entry in found["chosen"].items()}
    for way, found in row["conformal"].items():
        prefix = f"conformal_{way.replace(' ', '_')}"
        figures |= {f"{prefix}_coverage_{name}": entry for name, entry in found["coverage"].items()}
        figures[f"{prefix}_mean_size"] = found["mean_size"]
    for name, entry in figures.items():
        flat |= {name: entry["value"], f"{name}_low": entry["low"], f"{name}_high": entry["high"]}
    return flat | {key: row.get("cost", {}).get(key) for key in COSTS}
