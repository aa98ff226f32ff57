"""The files of a comparison."""

import json
from pathlib import Path

import numpy as np

from cspine_jax.anatomy import TARGETS, VERTEBRAE
from cspine_jax.evaluation.compare.columns import write_csv
from cspine_jax.evaluation.compare.compare import Comparison
from cspine_jax.evaluation.compare.models import write_table
from cspine_jax.evaluation.compare.published import CANNOT_BE_COMPARED, PUBLISHED
from cspine_jax.evaluation.compare.report import write_report
from cspine_jax.metrics.conformal import SETS
from cspine_jax.metrics.intervals import plain

TABLES = ("oof.csv", "calibrated.csv", "score_optimal.csv", "conformal_sets.csv")


def write_comparison(out: Path, found: Comparison, title: str = "Comparison") -> None:
    """Writes `comparison.html`, `comparison.csv`, `comparison.json`, `uncertainty.csv` and `tables/<model>/*.csv`.

    Args:
        out: folder; made if absent.
        found: what `compare` returns.
        title: of the page.
    """
    out.mkdir(parents=True, exist_ok=True)
    for old in (out / "uncertainty.csv", *(path for name in TABLES for path in (out / "tables").glob(f"*/{name}"))):
        old.unlink(missing_ok=True)  # of models that an earlier call compared
    for folder in (out / "tables").glob("*/"):
        if not any(folder.iterdir()):
            folder.rmdir()
    aligned = found.aligned
    where = aligned.uids, aligned.fold
    for name, row in found.rows.items():
        if row.kind == "constant":
            continue
        folder = out / "tables" / name
        sets = np.where(row.sets >= 0, np.array(SETS, object)[row.sets], "")
        values = row.raw, row.calibrated, row.optimal, sets
        for name_of_file, table in zip(TABLES, values, strict=True):
            write_table(folder / name_of_file, *where, table, VERTEBRAE if table is sets else TARGETS)
    if found.spread is not None:
        write_table(out / "uncertainty.csv", *where, found.spread, VERTEBRAE)
    write_csv(out / "comparison.csv", found.facts)
    published = {"warning": CANNOT_BE_COMPARED, "figures": [entry._asdict() for entry in PUBLISHED]}
    text = json.dumps(plain({**found.facts, "published": published}), indent=1, allow_nan=False)
    (out / "comparison.json").write_text(text + "\n", encoding="utf-8")
    write_report(out / "comparison.html", found, title)
