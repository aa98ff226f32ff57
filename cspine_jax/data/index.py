"""The index beside the records: every column but the pixels, so that nothing is decoded to plan an epoch."""

import dataclasses
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cspine_jax.data.tables import Note

INDEX_FILE = "index.npz"
PER_STUDY: dict[str, str] = {
    "study_uid": "U",
    "labels": "uint8",
    "has_labels": "bool",
    "has_mask": "bool",
    "has_boxes": "bool",
    "fold": "int32",
    "num_slices": "int32",
    "spacing_mm": "float32",
}
"""Columns that are the same in all slice records of a study."""

PER_SLICE: dict[str, str] = {
    "index": "int32",
    "slice_number": "int32",
    "presence": "uint8",
    "area_fraction": "float32",
    "position_mm": "float32",
}


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of one kind of record, with their dtypes.

    Attributes:
        per_study: the same in all records of a study; `study_uid` is one of them.
        per_record: one value or array a record.
        boxes: records have boxes, any number each.
    """

    per_study: Mapping[str, str]
    per_record: Mapping[str, str]
    boxes: bool = False


SLICES = Columns(PER_STUDY, PER_SLICE, boxes=True)


def study_columns(
    examples: Sequence[Mapping[str, Any]],
    shape: tuple[int, ...],
    notes: Sequence[Note] = (),
    columns: Columns = SLICES,
) -> dict[str, np.ndarray]:
    """Columns of one study.

    Args:
        examples: its records in order; pixels may be missing.
        shape: of its masks: (H, W) of slices.
        notes: what was left out of the study.
        columns: of this kind of record.
    """
    first = examples[0]
    out = {name: np.asarray(first[name], kind) for name, kind in columns.per_study.items()}
    out |= {name: np.array([example[name] for example in examples], kind) for name, kind in columns.per_record.items()}
    out |= {"count": np.asarray(len(examples), np.int32), "shape": np.array(shape, np.int32)}
    boxes = [np.asarray(example["boxes"], np.float32).reshape(-1, 4) for example in examples if columns.boxes]
    if columns.boxes:
        out["boxes"] = np.concatenate(boxes)
    out["notes"] = np.array([dataclasses.astuple(note) for note in notes], str).reshape(-1, 3)
    if columns.boxes:
        out["num_boxes"] = np.array([len(rows) for rows in boxes], np.int32)
    return out


def join(studies: Sequence[Mapping[str, np.ndarray]], columns: Columns = SLICES) -> dict[str, np.ndarray]:
    """The columns of all studies in record order: per study [S, ...], per record [N, ...], boxes [M, 4]."""
    stacked = (*columns.per_study, "count", "shape")
    boxes = ("boxes", "num_boxes") if columns.boxes else ()
    joined = {name: np.stack([study[name] for study in studies]) for name in stacked}
    return joined | {
        name: np.concatenate([study[name] for study in studies]) for name in (*columns.per_record, *boxes, "notes")
    }


def split(table: Mapping[str, np.ndarray], columns: Columns = SLICES) -> list[dict[str, np.ndarray]]:
    """The inverse of `join`."""
    records = np.cumsum(table["count"])[:-1]
    names = (*columns.per_record, "num_boxes") if columns.boxes else tuple(columns.per_record)
    parts = {name: np.split(table[name], records) for name in names}
    if columns.boxes:
        boxes = np.cumsum([len(part) and part.sum() for part in np.split(table["num_boxes"], records)])[:-1]
        parts["boxes"] = np.split(table["boxes"], boxes)
    return [
        {name: table[name][study] for name in (*columns.per_study, "count", "shape")}
        | {name: part[study] for name, part in parts.items()}
        | {"notes": table["notes"][table["notes"][:, 0] == table["study_uid"][study]]}
        for study in range(len(table["count"]))
    ]


def save(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Writes the columns as `np.load` reads them; a killed process leaves the old file or the new one, never half."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, column in columns.items():
                member = zipfile.ZipInfo(f"{name}.npy")  # of a fixed date: equal columns make equal files
                member.compress_type = zipfile.ZIP_DEFLATED
                with archive.open(member, "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asanyarray(column), allow_pickle=False)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path) -> dict[str, np.ndarray]:
    """Reads what `save` wrote."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as columns:
        return {name: columns[name] for name in columns.files}
