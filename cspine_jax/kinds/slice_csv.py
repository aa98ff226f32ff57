"""`W/predictions/slices.csv`: what a slice model says of every slice of a data set, ready as `data.vertebra_probs`.

Columns: StudyInstanceUID, slice_index (0-based, superior first), part ("train", "validation", "test" or "none" of the
run that predicts), C1..C7 (vertebra probabilities; left out by models that have none of their own), f_C1..f_C7 or f
(fracture; left out by vertebra models).
"""

import csv
from pathlib import Path

import jax
import numpy as np

from cspine_jax.anatomy import VERTEBRAE
from cspine_jax.data.tables import UID
from cspine_jax.kinds.records import Records
from cspine_jax.training.workdir import say


def write_slice_table(
    workdir: Path,
    data: Records,
    found: dict[str, np.ndarray],
    vertebra: np.ndarray | None,
    fracture: np.ndarray | None = None,
) -> Path:
    """Writes the table (from the first host only) and says where.

    Args:
        workdir: W.
        data: the records and their parts.
        found: `study` [N] and `index` [N] of each slice.
        vertebra: [N, 7] probabilities, or None.
        fracture: [N, 7], [N, 1], or None.

    Returns:
        `W/predictions/slices.csv`.
    """
    names, columns = [], []
    if vertebra is not None:
        names, columns = [*VERTEBRAE], [vertebra]
    if fracture is not None:
        names += ["f"] if fracture.shape[1] == 1 else [f"f_{name}" for name in VERTEBRAE]
        columns.append(fracture)
    values, part_of = np.concatenate(columns, axis=1), data.part_of
    out = workdir / "predictions" / "slices.csv"
    if jax.process_index() == 0:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([UID, "slice_index", "part", *names])
            for study, index, row in zip(found["study"], found["index"], values, strict=True):
                writer.writerow([data.table.uids[study], int(index), part_of[study], *(f"{x:.6g}" for x in row)])
    say(f"predictions: {out}")
    return out
