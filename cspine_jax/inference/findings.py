"""What a model found in one study: the one object that every output is written from."""

import csv
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cspine_jax.anatomy import PATIENT, TARGETS, VERTEBRAE
from cspine_jax.ct import Volume
from cspine_jax.ct.identity import Identity
from cspine_jax.errors import StudyError
from cspine_jax.metrics import score_optimal
from cspine_jax.training.workdir import write_text

FINDINGS = "findings.json"

NOTE = "Research only. Not a medical device, and not for any decision about a patient."
PHANTOM_NOTE = "The model was trained on synthetic studies only: its answers on real ones mean nothing yet."


@dataclasses.dataclass(frozen=True)
class VertebraFinding:
    """One of C1..C7.

    Attributes:
        name: "C1".."C7".
        visible: it was found on at least one slice; True where nobody looked (a model of whole studies, alone).
        probability: clinical probability of a fracture; None where not visible.
        fractured: `probability` is at or above the run's threshold; None where not visible.
        slices: first and last index of the run of slices that show it, superior first; None where not visible
            or nobody looked.
        slice_numbers: k of `k.dcm` of those two (-1 where no single file holds the slice); None likewise.
        surest_slice: index of the visible slice where f_ij is highest; None where not visible, or the model says
            nothing of slices.
        spread: standard deviation of the probability over test-time augmentations; None without.
    """

    name: str
    visible: bool
    probability: float | None
    fractured: bool | None
    slices: tuple[int, int] | None
    slice_numbers: tuple[int, int] | None
    surest_slice: int | None
    spread: float | None = None


def slice_name(index: int, number: int) -> str:
    """How a picture names a slice: as its file (or viewer) does, else by its place counted from the top."""
    return f"image {number}" if number >= 0 else f"slice {index} from the top"


@dataclasses.dataclass(frozen=True)
class SliceFinding:
    """One slice: index (0 = most superior), k of `k.dcm`, probability of a fracture, and the vertebrae it shows.

    `fracture_probability` is None where the slice shows no vertebra, the model saw none of its slices near this one, or
    says nothing of slices.
    """

    index: int
    slice_number: int
    fracture_probability: float | None
    vertebrae: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Findings:
    """Answers on one study. Probabilities are clinical unless the name says score-optimal.

    Attributes:
        study_uid: StudyInstanceUID.
        series_uid: SeriesInstanceUID of the series that was read.
        note: what the reader must know first.
        patient_probability: of any fracture among the visible vertebrae (in models of whole studies: in the picture);
            None where none is visible.
        patient_fractured: it is at or above the run's threshold.
        patient_score_optimal: p' = 2p/(1+p), for the RSNA 2022 metric only; not a probability.
        vertebrae: C1..C7.
        slices: every slice.
        spacing_mm: (z, y, x).
        thresholds: of the calls.
        warnings: of the reader and of the prediction.
        model: workdir name, step, backbone, training data.
        versions: of the software.
        seconds: time to read and to predict.
        content: tells the volume from another of the same UID, see `content_key`; "" where that is not known.
    """

    study_uid: str
    series_uid: str
    note: str
    patient_probability: float | None
    patient_fractured: bool | None
    patient_score_optimal: float | None
    vertebrae: tuple[VertebraFinding, ...]
    slices: tuple[SliceFinding, ...]
    spacing_mm: tuple[float, float, float]
    thresholds: dict[str, float]
    warnings: tuple[str, ...]
    model: dict[str, Any]
    versions: dict[str, str]
    seconds: dict[str, float]
    content: str = ""

    def probabilities(self) -> np.ndarray:
        """`[8]` clinical probabilities in the order of `anatomy.TARGETS`; NaN where there is no answer."""
        values = [self.patient_probability, *(vertebra.probability for vertebra in self.vertebrae)]
        return np.array([np.nan if value is None else value for value in values])


def content_key(volume: Volume, identity: Identity | None) -> str:
    """`Volume.content`, hashed where UIDs are."""
    return volume.content if identity is None else identity.uid(volume.content)


def check_content(there: str, volume: Volume, identity: Identity | None, folder: Path) -> None:
    """Refuses to take one study for another: names of files are not unique, and a study may have several series.

    Args:
        there: content of what `folder` is of; "" where that is not known.
        volume: what has been read now.
        identity: hashes UIDs.
        folder: where the results of both would be.

    Raises:
        StudyError: they are not the same.
    """
    if there and there != content_key(volume, identity):
        raise StudyError(
            f"{folder}: holds results of another study (or series) of the same name; choose another --out, or rename "
            "the file"
        )


def write_findings(path: Path, findings: Findings) -> None:
    """As one JSON object, see `write_json`."""
    write_json(path, dataclasses.asdict(findings))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """One JSON object; a list of objects has one line an entry, so that 300 slices stay readable."""
    lines = []
    for name, value in values.items():
        if isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            entries = ",\n  ".join(json.dumps(entry, allow_nan=False) for entry in value)
            lines.append(f' "{name}": [\n  {entries}\n ]')
        else:
            lines.append(f' "{name}": {json.dumps(value, allow_nan=False)}')
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def read_findings(path: Path) -> Findings | None:
    """What `write_findings` wrote; None where it is not there, or not whole."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        levels = (
            {**level, "slices": _pair(level["slices"]), "slice_numbers": _pair(level["slice_numbers"])}
            for level in values["vertebrae"]
        )
        slices = ({**each, "vertebrae": tuple(each["vertebrae"])} for each in values["slices"])
        return Findings(
            **{
                **values,
                "vertebrae": tuple(VertebraFinding(**level) for level in levels),
                "slices": tuple(SliceFinding(**each) for each in slices),
                "spacing_mm": tuple(values["spacing_mm"]),
                "warnings": tuple(values["warnings"]),
            }
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _pair(values: list[int] | None) -> tuple[int, int] | None:
    return None if values is None else (values[0], values[1])


def write_tables(out: Path, findings: Sequence[Findings], prevalence: np.ndarray) -> None:
    """`predictions.csv` and `submission.csv`.

    `predictions.csv` holds clinical probabilities, `StudyInstanceUID,patient_overall,C1..C7`, empty where a level is
    not visible. `submission.csv` is RSNA's `row_id,fractured` (`<uid>_C1` ...): score-optimal p' = 2p/(1+p), and as the
    format has no way to say "not visible", the level's prevalence there.

    Args:
        out: folder.
        findings: one a study.
        prevalence: `[8]` in the run's validation studies.
    """
    with (
        open(out / "predictions.csv", "w", newline="", encoding="utf-8") as table,
        open(out / "submission.csv", "w", newline="", encoding="utf-8") as submission,
    ):
        rows, entries = csv.writer(table), csv.writer(submission)
        rows.writerow(["StudyInstanceUID", *TARGETS])
        entries.writerow(["row_id", "fractured"])
        for found in findings:
            p = found.probabilities()
            rows.writerow([found.study_uid, *("" if np.isnan(value) else f"{value:.6g}" for value in p)])
            submitted = score_optimal(np.where(np.isnan(p), prevalence, p))
            order = [*VERTEBRAE, PATIENT]
            by_name = dict(zip(TARGETS, submitted, strict=True))
            entries.writerows([f"{found.study_uid}_{name}", f"{by_name[name]:.6g}"] for name in order)


def folder_name(study_uid: str) -> str:
    """A UID as a folder name: what a hostile file puts in its UID must not leave the output folder."""
    return re.sub(r"[^0-9A-Za-z.-]", "_", study_uid).strip(".")[:64] or "study"
