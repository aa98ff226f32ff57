"""`cspine segment`: the vertebrae of new studies, as masks, tables and a picture."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from cspine_jax import __version__, progress
from cspine_jax.cli import HASH_UIDS, SERIES, say_left_out
from cspine_jax.ct import Volume, read_mask, read_study
from cspine_jax.ct.identity import from_flag
from cspine_jax.errors import ConfigError, DataError, StudyError
from cspine_jax.evaluation.segmentation import MaskScores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of this verb."""
    parser.add_argument("studies", nargs="+", metavar="STUDY", help="DICOM folder, zip of one, DICOMDIR, or NIfTI file")
    parser.add_argument(
        "--out",
        required=True,
        help="folder of vertebrae.nii.gz, vertebrae.json, preview.png, slices.csv a study, and slices.csv of all in it",
    )
    parser.add_argument("--weights", metavar="FILE", help="weights file (default: the ones that come with the package)")
    parser.add_argument(
        "--flip", action="store_true", help="also ask about the mirror image and average (twice as slow)"
    )
    parser.add_argument(
        "--truth", metavar="DIR", help="folder of <StudyInstanceUID>.nii[.gz] masks: also write scores.csv, scores.json"
    )
    parser.add_argument("--series", help=SERIES)
    parser.add_argument("--overwrite", action="store_true", help="segment again what the same weights have done before")
    parser.add_argument("--hash_uids", metavar="SALT", help=HASH_UIDS)
    parser.add_argument("--json", action="store_true", help="print one JSON object a study instead of lines to read")


def run(args: argparse.Namespace) -> int:
    """Segments every study not done before; a bad one is named and passed over. 0 if any could be used, else 2."""
    import jax

    from cspine_jax.inference import weights
    from cspine_jax.inference.findings import NOTE, check_content, content_key, folder_name
    from cspine_jax.inference.vertebrae.files import (
        REPORT,
        SLICES,
        join_slices,
        read_report,
        report_content,
        write_study,
    )
    from cspine_jax.inference.vertebrae.segment import Segmenter
    from cspine_jax.training.compiling import enable_cache

    enable_cache()
    out, identity = Path(args.out), from_flag(args.hash_uids)
    truth = None if args.truth is None else Path(args.truth)
    if truth is not None and (identity is not None or not truth.is_dir()):
        raise ConfigError(
            f"--truth={truth}: "
            + (
                "masks are named by UIDs that --hash_uids hides; give one of the two"
                if identity
                else "no such folder; give that of <StudyInstanceUID>.nii.gz"
            )
        )
    scores = MaskScores()
    spine, refine, card = weights.load(args.weights)
    segmenter = Segmenter(spine, refine, flip=args.flip)
    note = f"{NOTE} {card.note}"
    model = {"weights": card.name, "digest": card.digest, "trained_on_phantoms_only": card.phantom, "flip": args.flip}
    versions = {"cspine_jax": __version__, "jax": jax.__version__, "numpy": np.__version__}

    def there(uid: str) -> dict[str, Any] | None:
        """What the same command wrote before; to be scored, masks have to be as they come out of the networks."""
        report = None if args.overwrite or truth is not None else read_report(out / folder_name(uid), model)
        return report if report is not None and report["study_uid"] == uid else None

    done: set[str] = set()
    kept = bad = 0
    try:
        for study in progress.bar(args.studies, what="segment", unit="study"):
            name = study if identity is None else identity.text(study)
            try:
                last = Path(study).name  # in the RSNA layout the UID: what is done is not even read again
                uid = last if identity is None else identity.uid(last)
                report, volume = None if args.series else there(uid), None
                started = time.perf_counter()
                if report is None:
                    volume = read_study(study, series=args.series, identity=identity)
                    uid = volume.study_uid
                    report = there(uid)
                    if not args.overwrite:
                        content = report_content(out / folder_name(uid))
                        check_content(content, volume, identity, out / folder_name(uid))
                        report = report if content else None  # an older version's: of what, is not known
                folder = folder_name(uid)
                if folder in done:
                    raise StudyError(f"{name}: a study {uid} was given before; give it once, or rename it")
                if report is not None:
                    kept += 1
                else:
                    assert volume is not None  # else there is a report
                    seconds = {"read": round(time.perf_counter() - started, 3)}
                    mask = None if truth is None else _truth(truth, volume)
                    found = segmenter(volume)
                    report = write_study(
                        out / folder,
                        volume,
                        found,
                        note=note,
                        model=model,
                        versions=versions,
                        seconds={**seconds, **found.seconds},
                        content=content_key(volume, identity),
                    )
                    if mask is not None:
                        scores.add(uid, mask, found.labels, found.visibility, volume.spacing_mm)
            except OSError as error:
                raise DataError(f"{error.filename or out}: {error.strerror or error}; choose another --out") from error
            except Exception as error:  # nothing that one study has in it may end a batch of thousands
                bad += 1
                say_left_out("segment", name, error, identity)
                continue
            done.add(folder)
            print(json.dumps(report, allow_nan=False) if args.json else _line(report))
    finally:  # an interrupt keeps what is done
        if done:
            join_slices(out, model, identity)
        if scores.studies:
            scores.write(out)
    if not done:
        print(f"cspine segment: error: none of {len(args.studies)} studies could be used", file=sys.stderr)
        return 2
    if not args.json:
        counts = f"{len(done)} studies ({bad} left out" + (f", {kept} done before)" if kept else ")")
        print(f"{out / '<study>' / REPORT}: {counts}; {out / SLICES}: v_ij of every slice")
        if truth is not None:
            print(scores.line() if scores.studies else f"{truth}: holds no mask of these studies")
        print(note)
    return 0


def _truth(folder: Path, volume: Volume) -> np.ndarray | None:
    """uint8 [D, H, W]: the mask of a study, None where the folder has none."""
    files = [folder / f"{volume.study_uid}{suffix}" for suffix in (".nii.gz", ".nii")]
    there = next((file for file in files if file.is_file()), None)
    return None if there is None else read_mask(there, volume)


def _line(report: dict[str, Any]) -> str:
    levels = "  ".join(
        f"{v['name']} {v['state']}" + ("" if v["state"] == "absent" else f" {v['confidence']:.2f}")
        for v in report["vertebrae"]
    )
    warnings = "".join(f"\n  warning: {line}" for line in report["warnings"])
    return f"{report['study_uid']}: {levels}{warnings}"
