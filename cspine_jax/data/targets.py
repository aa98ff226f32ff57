"""What a slice is trained on, and whether that is known: study labels x vertebra masks x fracture boxes.

Real data have labels for every study, masks for 87 and boxes for 235. Each target therefore comes with a "known" flag,
and what is not known is never guessed: the losses leave it out.
"""

from pathlib import Path

import numpy as np

from cspine_jax.anatomy import NUM_VERTEBRAE, VERTEBRAE
from cspine_jax.data.source import SliceTable
from cspine_jax.data.tables import UID, csv_rows
from cspine_jax.errors import ConfigError, DataError


def slice_targets(table: SliceTable, fracture_target: str) -> dict[str, np.ndarray]:
    """Targets of every record, with y_j the study's label of vertebra j and v_ij its presence on slice i.

    "level" (document B): f_ij = y_j v_ij. Known where y_j = 0, and everywhere in a study with a mask.
    "box": f_ij = y_j v_ij [slice i has a box]. Known where y_j = 0; in a study with boxes also on slices without one
    (0), and on slices with one if there is a mask, or if y has a single 1, which the box then must show.
    A study without labels has nothing known.

    Args:
        table: N records.
        fracture_target: "level" or "box".

    Returns:
        float32 arrays of 0 and 1, targets 0 where unknown: `presence` [N, 7], `presence_known` [N], `fracture` [N, 7],
        `fracture_known` [N, 7], `slice_fracture` [N] (any vertebra fractured on the slice; under "box" the slice has a
        box) and `slice_known` [N].

    Raises:
        ConfigError: there is no such `fracture_target`.
    """
    if fracture_target not in ("level", "box"):
        raise ConfigError(f"data.fracture_target={fracture_target!r}: must be level or box")
    labelled = table.has_labels[table.study]
    masked = table.has_mask[table.study]
    y = table.labels[table.study].astype(bool)
    patient, levels = y[:, 0], y[:, 1:]
    v = table.presence.astype(bool)

    if fracture_target == "level":
        known = labelled[:, None] & (~levels | masked[:, None])
        fracture = levels & v
        slice_known = labelled & (~patient | masked)
        slice_fracture = fracture.any(1)
    else:
        boxed = table.has_boxes[table.study]
        box = table.num_boxes > 0
        single = levels.sum(1) == 1
        certain = boxed & (~box | masked | single)
        known = labelled[:, None] & (~levels | certain[:, None])
        visible = np.where(masked[:, None], v, levels & single[:, None])
        fracture = levels & visible & box[:, None]
        slice_known = labelled & (~patient | boxed)
        slice_fracture = box & patient
    flags = {
        "presence": v & masked[:, None],
        "presence_known": masked,
        "fracture": fracture & known,
        "fracture_known": known,
        "slice_fracture": slice_fracture & slice_known,
        "slice_known": slice_known,
    }
    return {name: flag.astype(np.float32) for name, flag in flags.items()}


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
