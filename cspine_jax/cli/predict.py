"""`cspine predict`: fractures in new studies: the vertebrae first, then what the model sees of them, or the whole."""

import argparse
import dataclasses
import sys
from pathlib import Path

from cspine_jax import __version__, progress
from cspine_jax.cli import HASH_UIDS, SERIES, say_left_out
from cspine_jax.ct import Volume
from cspine_jax.ct.identity import Identity, from_flag
from cspine_jax.ct.quality import NOT_USABLE
from cspine_jax.errors import ConfigError, DataError, StudyError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of this verb."""
    parser.add_argument("studies", nargs="+", metavar="STUDY", help="DICOM folder, zip of one, DICOMDIR, or NIfTI file")
    parser.add_argument(
        "--checkpoint",
        metavar="W",
        help="workdir of a trained run: of a slice model, of vertebra crops (gold, silver, bronze, levels) or of whole "
        "studies (classifier, vit3d, cnn3d); or a file of `cspine weights export --fracture`, or the name of one of "
        "the package (default: package:fracture, which has seen synthetic studies only)",
    )
    parser.add_argument("--weights", metavar="FILE", help="of the vertebra networks (default: the package's own)")
    parser.add_argument(
        "--no_segment", action="store_true", help="leave the vertebrae to the model, if it can do without"
    )
    parser.add_argument("--masks", action="store_true", help="also write what `cspine segment` does of each study")
    parser.add_argument(
        "--out",
        required=True,
        help="folder of findings.json (models of crops: and breaks.png) a study, predictions.csv, submission.csv",
    )
    parser.add_argument("--series", help=SERIES)
    parser.add_argument("--overwrite", action="store_true", help="ask again what the same model has answered before")
    parser.add_argument("--hash_uids", metavar="SALT", help=HASH_UIDS)
    parser.add_argument(
        "--batch",
        type=int,
        default=0,
        help="slices at once (default: data.eval_batch_size of the run), or vertebrae or clips (7)",
    )


def run(args: argparse.Namespace) -> int:
    """Predicts every study not done before; a bad one is named and passed over. 0 if any could be used, else 2."""
    if args.batch < 0:
        raise ConfigError(f"--batch={args.batch}: must be at least 1, or 0 for the run's own")
    from cspine_jax.inference.breaks import PICTURE, draw_breaks
    from cspine_jax.inference.findings import (
        FINDINGS,
        Findings,
        check_content,
        folder_name,
        read_findings,
        write_findings,
        write_tables,
    )
    from cspine_jax.inference.predict import VERSIONS, about, load_run, predict_study
    from cspine_jax.inference.vertebrae.files import REPORT
    from cspine_jax.training.compiling import enable_cache

    enable_cache()
    model, out = load_run(args.checkpoint, args.batch), Path(args.out)
    if args.no_segment and model.needs_vertebrae:
        raise ConfigError(
            f"--no_segment: {model.name} {model.needs_vertebrae}; leave the flag out, or give a run that does without "
            "(Type 3; whole studies without a mask)"
        )
    identity = from_flag(args.hash_uids)
    segmenter, keep = (None, None) if args.no_segment else _first_stage(args, out, identity)
    wanted = {**about(model), "vertebrae_by": getattr(segmenter, "weights", "")}
    thresholds = {level: model.card.thresholds[level] for level in ("vertebra", "patient")}
    beside = [*([PICTURE] if model.config.task == "crops" else []), *([REPORT] if args.masks else [])]

    def mine(folder: Path) -> Findings | None:
        """What the same command wrote in the folder of a study before."""
        found = read_findings(folder / FINDINGS)
        if found is None or (found.model, found.versions) != (wanted, VERSIONS):
            return None
        same = all(found.thresholds.get(level) == value for level, value in thresholds.items())
        return found if same and all((folder / name).is_file() for name in beside) else None

    def there(uid: str) -> Findings | None:
        """What is known of a study, and need not be asked again."""
        found = None if args.overwrite else mine(out / folder_name(uid))
        return found if found is not None and found.study_uid == uid else None

    def known(volume: Volume) -> Findings | None:
        """The same of one that has been read: of its name there may be another."""
        folder = out / folder_name(volume.study_uid)
        before = None if args.overwrite else read_findings(folder / FINDINGS)
        if before is None or not before.content:
            return None
        check_content(before.content, volume, identity, folder)
        return there(volume.study_uid)

    done: dict[str, Findings] = {}
    others: list[Findings] = []
    seen: list = []  # what a model of crops found in a study, to be drawn
    kept = bad = 0
    try:
        for study in progress.bar(args.studies, what="predict", unit="study"):
            name = study if identity is None else identity.text(study)
            try:
                seen.clear()
                last = Path(study).name  # in the RSNA layout the UID: what is done is not even read again
                found = None if args.series else there(last if identity is None else identity.uid(last))
                if found is None:
                    found = predict_study(
                        model, study, identity, segmenter, keep, lambda *x: seen.append(x), known, args.series
                    )
                before = found.model == wanted  # what is new does not name the weights of the segmentation yet
                found = dataclasses.replace(found, model=wanted)
                folder = folder_name(found.study_uid)
                if folder in done:
                    raise StudyError(f"{name}: a study {found.study_uid} was given before; give it once, or rename it")
                if not before:
                    (out / folder).mkdir(parents=True, exist_ok=True)
                    for each in seen:
                        draw_breaks(out / folder / PICTURE, *each)
                    write_findings(out / folder / FINDINGS, found)
            except OSError as error:
                raise DataError(f"{error.filename or out}: {error.strerror or error}; choose another --out") from error
            except Exception as error:  # nothing that one study has in it may end a batch of thousands
                bad += 1
                say_left_out("predict", name, error, identity)
                continue
            done[folder] = found
            kept += before
            print(_line(found))
            for note in found.warnings:
                if note.startswith(NOT_USABLE):
                    print(f"  {note}")
    finally:  # an interrupt keeps what is done
        if done:
            rest = [path.parent for path in sorted(out.glob(f"*/{FINDINGS}")) if path.parent.name not in done]
            others = [found for folder in rest if (found := mine(folder)) is not None]
            if identity is not None:  # what was written under true UIDs would give the hashed ones away
                others = [found for found in others if identity.is_own(found.study_uid)]
            write_tables(out, [*done.values(), *others], model.card.prevalence)
    if not done:
        print(f"cspine predict: error: none of {len(args.studies)} studies could be used", file=sys.stderr)
        return 2
    counts = f"{len(done)} studies ({bad} left out" + (f", {kept} done before)" if kept else ")")
    counts += f" and {len(others)} of earlier calls" if others else ""
    print(f"{out / 'predictions.csv'}: clinical probabilities p of {counts}")
    print(f"{out / 'submission.csv'}: score-optimal p' = 2p/(1+p), for the RSNA metric by normalisation B only")
    print(next(iter(done.values())).note)
    return 0


def _first_stage(args: argparse.Namespace, out: Path, identity: Identity | None):
    """The segmenter, and what writes its masks (None unless asked for)."""
    import jax
    import numpy as np

    from cspine_jax.ct import Volume
    from cspine_jax.inference import weights
    from cspine_jax.inference.findings import NOTE, content_key, folder_name
    from cspine_jax.inference.vertebrae.files import write_study
    from cspine_jax.inference.vertebrae.result import Vertebrae
    from cspine_jax.inference.vertebrae.segment import Segmenter

    spine, refine, card = weights.load(args.weights)
    versions = {"cspine_jax": __version__, "jax": jax.__version__, "numpy": np.__version__}

    def keep(volume: Volume, found: Vertebrae) -> None:
        write_study(
            out / folder_name(volume.study_uid),
            volume,
            found,
            note=f"{NOTE} {card.note}",
            model={"weights": card.name, "digest": card.digest, "trained_on_phantoms_only": card.phantom},
            versions=versions,
            seconds=found.seconds,
            content=content_key(volume, identity),
        )

    segmenter = Segmenter(spine, refine, weights=f"{card.name} {card.digest}")
    return segmenter, keep if args.masks else None


def _line(found) -> str:
    levels = "  ".join(
        f"{level.name} {'not visible' if level.probability is None else format(level.probability, '.2f')}"
        + ("*" if level.fractured else "")
        for level in found.vertebrae
    )
    patient = "not visible" if found.patient_probability is None else f"{found.patient_probability:.2f}"
    return f"{found.study_uid}: patient {patient}{'*' if found.patient_fractured else ''}  {levels}"
