"""What is written for a segmented study: mask, JSON, picture; and the table of all slices of all studies."""

import csv
import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cspine_jax.anatomy import LABEL_NAMES, VERTEBRAE
from cspine_jax.ct import Volume
from cspine_jax.inference.vertebrae.preview import draw_preview
from cspine_jax.inference.vertebrae.result import Vertebrae
from cspine_jax.inference.vertebrae.stored import write_mask

MASK, REPORT, PICTURE, SLICES = "vertebrae.nii.gz", "vertebrae.json", "preview.png", "slices.csv"


def write_study(
    folder: Path,
    volume: Volume,
    found: Vertebrae,
    *,
    note: str,
    model: Mapping[str, Any],
    versions: Mapping[str, str],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Writes `vertebrae.nii.gz`, `vertebrae.json` and `preview.png`.

    Args:
        folder: created if missing.
        volume: the study.
        found: what is in it.
        note: what every reader must know first.
        model: about the weights.
        versions: of the software.
        seconds: by stage.

    Returns:
        What `vertebrae.json` holds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    orthogonal = write_mask(folder / MASK, found.labels, volume)
    draw_preview(folder / PICTURE, volume, found, note)
    warnings = [*volume.warnings, *found.warnings]
    if not orthogonal:
        warnings.append(f"{MASK}: gantry tilt: its axes are not orthogonal, and some viewers refuse such a file")
    report = {
        "study_uid": volume.study_uid,
        "series_uid": volume.series_uid,
        "note": note,
        "naming": {
            "probability": _short(found.naming_probability),
            "entropy_nats": _short(found.entropy),
            "all_one_too_low": _short(found.shifted[0]),
            "all_one_too_high": _short(found.shifted[1]),
        },
        "vertebrae": [_plain(dataclasses.asdict(vertebra)) for vertebra in found.levels],
        "grid": {
            "voxel_order": "z, y, x; slice 0 is the most superior; centroid_mm is LPS (x, y, z)",
            "shape": list(volume.shape),
            "spacing_mm": [_short(value) for value in volume.spacing_mm],
            "affine_lps": np.round(volume.affine, 6).tolist(),
        },
        "mask": {"file": MASK, "labels": {str(value): name for value, name in LABEL_NAMES.items()}},
        "warnings": warnings,
        "model": dict(model),
        "versions": dict(versions),
        "seconds": dict(seconds),
    }
    _write_json(folder / REPORT, report)
    return report


def write_slices(path: Path, studies: Iterable[tuple[str, np.ndarray, np.ndarray]]) -> None:
    """Writes v_ij of every slice, in the form that `data.vertebra_probs` takes.

    Args:
        path: the CSV: StudyInstanceUID, slice_index (0-based, superior first), slice_number (k of `k.dcm`, -1 where no
            single file holds the slice), C1..C7.
        studies: UID, slice numbers int [D] and v [D, 7] of each.
    """
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["StudyInstanceUID", "slice_index", "slice_number", *VERTEBRAE])
        for uid, numbers, visibility in studies:
            for index, (number, row) in enumerate(zip(numbers, visibility, strict=True)):
                rows.writerow([uid, index, int(number), *(f"{value:.6g}" for value in row)])


def _write_json(path: Path, report: Mapping[str, Any]) -> None:
    """One JSON object; a list of objects has one line an entry."""
    lines = []
    for name, value in report.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            entries = ",\n  ".join(json.dumps(entry, allow_nan=False) for entry in value)
            lines.append(f' "{name}": [\n  {entries}\n ]')
        else:
            lines.append(f' "{name}": {json.dumps(value, allow_nan=False)}')
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _short(value) if isinstance(value, float) else value


def _short(value: float) -> float:
    return float(f"{value:.6g}")
