"""`cspine inspect`: what is in a study, and whether it can be used."""

import argparse
import dataclasses
import json
import sys
from typing import Any

import numpy as np

from cspine_jax.cli import HASH_UIDS, SERIES
from cspine_jax.ct import Quality, Volume, assess, read_study
from cspine_jax.ct.identity import from_flag
from cspine_jax.errors import StudyError

CODEC_NAMES: dict[str, str] = {
    "": "NIfTI",
    "1.2.840.10008.1.2": "implicit VR little endian",
    "1.2.840.10008.1.2.1": "explicit VR little endian",
    "1.2.840.10008.1.2.1.99": "deflated",
    "1.2.840.10008.1.2.2": "explicit VR big endian",
    "1.2.840.10008.1.2.5": "RLE",
    "1.2.840.10008.1.2.4.50": "JPEG baseline (lossy)",
    "1.2.840.10008.1.2.4.51": "JPEG extended (lossy)",
    "1.2.840.10008.1.2.4.57": "JPEG-Lossless",
    "1.2.840.10008.1.2.4.70": "JPEG-Lossless SV1",
    "1.2.840.10008.1.2.4.80": "JPEG-LS",
    "1.2.840.10008.1.2.4.81": "JPEG-LS near-lossless (lossy)",
    "1.2.840.10008.1.2.4.90": "JPEG 2000",
    "1.2.840.10008.1.2.4.91": "JPEG 2000 (lossy)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of this verb."""
    parser.add_argument("study", metavar="STUDY", help="DICOM folder, zip of one, DICOMDIR, or NIfTI file")
    parser.add_argument("--series", help=SERIES)
    parser.add_argument("--hash_uids", metavar="SALT", help=HASH_UIDS)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Reads, judges, prints; 0 usable, 2 unusable."""
    identity = from_flag(args.hash_uids)
    name = args.study if identity is None else identity.text(args.study)
    try:
        volume = read_study(args.study, series=args.series, identity=identity)
    except StudyError as error:
        report: dict[str, Any] = {"study": name, "usable": False, "warnings": [], "errors": [str(error)]}
    else:
        report = describe(name, volume, assess(volume))
    if args.json:
        json.dump(report, sys.stdout, indent=2)
        print()
    else:
        print(as_table(report))
    return 0 if report["usable"] else 2


def describe(path: str, volume: Volume, quality: Quality) -> dict[str, Any]:
    """Everything about a study that could be read, JSON-ready; holds no patient name or ID."""
    measured = dataclasses.asdict(quality)
    return {
        "study": path,
        "usable": quality.usable,
        "study_uid": volume.study_uid,
        "series_uid": volume.series_uid,
        "shape": list(volume.shape),
        "slices": quality.slices,
        "spacing_mm": [round(value, 5) for value in volume.spacing_mm],
        "thickness_mm": volume.thickness_mm,
        "extent_mm": quality.extent_mm,
        "order": _order(volume.slice_numbers),
        "orientation": _orientation(volume),
        "codec": CODEC_NAMES.get(volume.transfer_syntax, volume.transfer_syntax),
        "transfer_syntax": volume.transfer_syntax,
        "kernel": volume.kernel,
        "affine": np.round(volume.affine, 6).tolist(),
        "quality": {name: value for name, value in measured.items() if name not in ("usable", "warnings", "errors")},
        "warnings": [*volume.warnings, *quality.warnings],
        "errors": list(quality.errors),
    }


def as_table(report: dict[str, Any]) -> str:
    """The report as lines to read."""
    lines = [f"{report['study']}: {'usable' if report['usable'] else 'NOT USABLE'}"]
    if "shape" in report:
        quality = report["quality"]
        noise = "unknown" if quality["noise_hu"] is None else f"{quality['noise_hu']} HU"
        contrast = {None: "unknown", True: "yes", False: "none named"}[quality["contrast_agent"]]
        rows = {
            "slices": f"{report['slices']} of {report['shape'][1]} x {report['shape'][2]} pixels",
            "spacing": " x ".join(f"{value:.4g}" for value in report["spacing_mm"]) + " mm (z, y, x)",
            "extent": f"{report['extent_mm']:.1f} mm",
            "order": report["order"],
            "orientation": report["orientation"],
            "codec": report["codec"],
            "kernel": report["kernel"] or "not named",
            "gaps": f"{quality['gaps']}, {quality['interpolated']} slices interpolated",
            "tilt": f"{quality['tilt_degrees']} degrees",
            "noise": noise,
            "bone, metal": f"{quality['bone_ml']:.0f} ml, {quality['metal_ml']:.2f} ml",
            "contrast": contrast,
            "body at border": f"{100 * quality['truncated']:.0f}%",
            "study": report["study_uid"],
            "series": report["series_uid"],
        }
        lines += [f"  {name:15s} {value}" for name, value in rows.items()]
    lines += [f"  warning: {note}" for note in report["warnings"]]
    lines += [f"  error:   {note}" for note in report["errors"]]
    return "\n".join(lines)


def _order(numbers: np.ndarray) -> str:
    """How the slice numbers run from head to feet."""
    known = numbers[numbers >= 0]
    if len(known) < 2:
        return "slices are not numbered"
    steps = np.diff(known)
    if (steps > 0).all():
        return "numbers rise towards the feet"
    return "numbers rise towards the head" if (steps < 0).all() else "numbers do not follow the position"


def _orientation(volume: Volume) -> str:
    """How the slices were acquired."""
    if not volume.transfer_syntax:
        return "a volume, no slices"
    return {0: "axial", 1: "coronal", 2: "sagittal"}[volume.turned[0].index(0)]
