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
"""Columns that are the same in all records of a study."""

PER_SLICE: dict[str, str] = {
    "index": "int32",
    "slice_number": "int32",
    "presence": "uint8",
    "area_fraction": "float32",
    "position_mm": "float32",
}


def study_columns(
    examples: Sequence[Mapping[str, Any]], shape: tuple[int, ...], notes: Sequence[Note] = ()
) -> dict[str, np.ndarray]:
    """Columns of one study.

    Args:
        examples: its records in z order; pixels may be missing.
        shape: (H, W) of its images.
        notes: what was left out of the study.
    """
    first = examples[0]
    columns = {name: np.asarray(first[name], kind) for name, kind in PER_STUDY.items()}
    columns |= {name: np.array([example[name] for example in examples], kind) for name, kind in PER_SLICE.items()}
    boxes = [np.asarray(example["boxes"], np.float32).reshape(-1, 4) for example in examples]
    return columns | {
        "count": np.int32(len(examples)),
        "shape": np.array(shape, np.int32),
        "boxes": np.concatenate(boxes),
        "notes": np.array([dataclasses.astuple(note) for note in notes], str).reshape(-1, 3),
        "num_boxes": np.array([len(rows) for rows in boxes], np.int32),
    }


def join(studies: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The columns of all studies in record order: per study [S, ...], per record [N, ...], boxes [M, 4]."""
    stacked = (*PER_STUDY, "count", "shape")
    joined = {name: np.stack([study[name] for study in studies]) for name in stacked}
    return joined | {
        name: np.concatenate([study[name] for study in studies]) for name in (*PER_SLICE, "boxes", "num_boxes", "notes")
    }


def split(columns: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The inverse of `join`."""
    records = np.cumsum(columns["count"])[:-1]
    boxes = np.cumsum([len(part) and part.sum() for part in np.split(columns["num_boxes"], records)])[:-1]
    parts = {name: np.split(columns[name], records) for name in (*PER_SLICE, "num_boxes")}
    parts["boxes"] = np.split(columns["boxes"], boxes)
    return [
        {name: columns[name][study] for name in (*PER_STUDY, "count", "shape")}
        | {name: part[study] for name, part in parts.items()}
        | {"notes": columns["notes"][columns["notes"][:, 0] == columns["study_uid"][study]]}
        for study in range(len(columns["count"]))
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
