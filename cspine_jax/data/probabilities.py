"""Vertebra probabilities v_ij that another model predicted for every slice of a data set."""

from pathlib import Path

import numpy as np

from cspine_jax.anatomy import NUM_VERTEBRAE, VERTEBRAE
from cspine_jax.data.source import SliceTable
from cspine_jax.data.tables import UID, csv_rows
from cspine_jax.errors import DataError


def vertebra_probabilities(table: SliceTable, source: str) -> np.ndarray:
    """The vertebra probabilities that Type 1 and 2 models read.

    Args:
        table: N records.
        source: "mask" for the truth (0 or 1 with a mask, 0.5 = unknown without), "none" for 0.5 everywhere, or the
            path of a csv table with the columns StudyInstanceUID, slice_index (0-based, superior first) or
            slice_number (k of k.dcm), C1..C7.

    Returns:
        float32 [N, 7]; NaN for records a csv table does not name, see `require_probabilities`.

    Raises:
        DataError: the table is missing or malformed, or names a slice twice.
    """
    if source == "none":
        return np.full((len(table), NUM_VERTEBRAE), 0.5, np.float32)
    if source == "mask":
        known = table.has_mask[table.study][:, None]
        return np.where(known, table.presence, 0.5).astype(np.float32)
    path = Path(source).expanduser()
    if not path.is_file():
        raise DataError(f"{path}: no such file; data.vertebra_probs must be mask, none or the path of a csv table")
    with path.open() as file:
        by = "slice_index" if "slice_index" in file.readline() else "slice_number"
    column = table.index if by == "slice_index" else table.slice_number
    record = {
        (uid, int(number)): row
        for row, (uid, number) in enumerate(zip(table.uids[table.study].tolist(), column, strict=True))
    }
    out = np.full((len(table), NUM_VERTEBRAE), np.nan, np.float32)
    for line, values in csv_rows(path, (UID, by, *VERTEBRAE)):
        try:
            row = record.get((values[UID], int(values[by])))
            probabilities = np.array([float(values[name]) for name in VERTEBRAE], np.float32)
        except ValueError as error:
            raise DataError(f"{path}:{line}: {error}") from None
        if not ((probabilities >= 0) & (probabilities <= 1)).all():
            raise DataError(f"{path}:{line}: probabilities {probabilities.tolist()} must be within 0..1")
        if row is None:
            continue  # a table may cover more studies than these records
        if not np.isnan(out[row, 0]):
            raise DataError(f"{path}:{line}: {by} {values[by]} of study {values[UID]} is named twice")
        out[row] = probabilities
    return out


def require_probabilities(table: SliceTable, probabilities: np.ndarray, records: np.ndarray, source: str) -> None:
    """Checks that every record in use has its vertebra probabilities.

    Raises:
        DataError: one has not; the message names it.
    """
    missing = records[np.isnan(probabilities[records, 0])]
    if missing.size:
        uid, row = table.uids[table.study[missing[0]]], table.index[missing[0]]
        raise DataError(f"{source}: no row for slice_index {row} of study {uid} ({missing.size} slices are missing)")
