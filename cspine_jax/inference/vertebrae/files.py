"""What is written for a segmented study: mask, picture, table, JSON; and the table of all slices of all studies."""

import csv
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cspine_jax.anatomy import LABEL_NAMES, VERTEBRAE
from cspine_jax.ct import Volume
from cspine_jax.ct.identity import Identity
from cspine_jax.inference.findings import write_json
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
    content: str = "",
) -> dict[str, Any]:
    """Writes `vertebrae.nii.gz`, `preview.png`, `slices.csv`, and when all that is there `vertebrae.json`.

    Args:
        folder: created if missing.
        volume: the study.
        found: what is in it.
        note: what every reader must know first.
        model: about the weights.
        versions: of the software.
        seconds: by stage.
        content: of the volume, see `findings.content_key`.

    Returns:
        What `vertebrae.json` holds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REPORT).unlink(missing_ok=True)  # it says that the others are whole
    orthogonal = write_mask(folder / MASK, found.labels, volume)
    draw_preview(folder / PICTURE, volume, found, note)
    _write_slices(folder / SLICES, volume.study_uid, volume.slice_numbers, found.visibility)
    warnings = [*volume.warnings, *volume.quality.notes, *found.warnings]
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
        "content": content,
    }
    write_json(folder / REPORT, report)
    return report


def read_report(folder: Path, model: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `write_study` returned for a study, if all of it is there and of this model; else None."""
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        whole = report["model"] == dict(model) and isinstance(report["study_uid"], str)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return report if whole and all((folder / name).is_file() for name in (MASK, PICTURE, SLICES)) else None


def report_content(folder: Path) -> str:
    """The content that a folder's report is of, by whatever model; "" where there is none or it does not say."""
    try:
        return str(json.loads((folder / REPORT).read_text(encoding="utf-8"))["content"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


_HEADER = ",".join(["StudyInstanceUID", "slice_index", "slice_number", *VERTEBRAE]) + "\n"


def join_slices(out: Path, model: Mapping[str, Any], identity: Identity | None = None) -> None:
    """Writes `slices.csv` of all studies in `out` that are of this model, in the form that `data.vertebra_probs` takes.

    Its columns: StudyInstanceUID, slice_index (0-based, superior first), slice_number (k of `k.dcm`, -1 where no single
    file holds the slice), C1..C7. With an identity those alone whose UIDs it has hashed.
    """
    temporary = out / f"{SLICES}.tmp"
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        file.write(_HEADER)
        for report in sorted(out.glob(f"*/{REPORT}")):
            there = read_report(report.parent, model)
            if there and (identity is None or identity.is_own(there["study_uid"])):
                file.write(report.with_name(SLICES).read_text(encoding="utf-8").removeprefix(_HEADER))
    temporary.replace(out / SLICES)


def _write_slices(path: Path, uid: str, numbers: np.ndarray, visibility: np.ndarray) -> None:
    """The columns of `join_slices` for slice numbers int [D] and v_ij [D, 7] of one study."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        file.write(_HEADER)
        rows = csv.writer(file, lineterminator="\n")
        for index, (number, row) in enumerate(zip(numbers, visibility, strict=True)):
            rows.writerow([uid, index, int(number), *(f"{value:.6g}" for value in row)])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _short(value) if isinstance(value, float) else value


def _short(value: float) -> float:
    return float(f"{value:.6g}")
