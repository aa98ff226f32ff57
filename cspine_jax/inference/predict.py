"""A study on disk -> `Findings`."""

import os
import time

import jax
import numpy as np

from cspine_jax import __version__, aggregation
from cspine_jax.anatomy import VERTEBRAE
from cspine_jax.ct import Identity, Volume, read_study
from cspine_jax.inference.findings import NOTE, PHANTOM_NOTE, Findings, SliceFinding, VertebraFinding
from cspine_jax.inference.run import SliceRun
from cspine_jax.metrics import score_optimal


def predict_study(run: SliceRun, path: str | os.PathLike, identity: Identity | None = None) -> Findings:
    """Reads a study and predicts it.

    Args:
        run: the loaded model.
        path: as `cspine_jax.ct.read_study` takes it.
        identity: hashes the UIDs; None keeps them.

    Raises:
        StudyError: the study cannot be read.
    """
    started = time.perf_counter()
    volume = read_study(path, identity=identity)
    return findings_of(run, volume, time.perf_counter() - started)


def findings_of(run: SliceRun, volume: Volume, seconds_to_read: float = 0.0) -> Findings:
    """Predicts every slice and aggregates by document B's formulas.

    Args:
        run: the loaded model.
        volume: the study.
        seconds_to_read: reported as it is.
    """
    started = time.perf_counter()
    fracture, vertebra = run.slices(volume.hu)
    cut = run.card.thresholds
    p = aggregation.study_targets(fracture, vertebra, np.zeros(len(fracture), int), 1, cut["presence"])[0]
    on_slice = aggregation.slice_probability(fracture, vertebra, cut["presence"])
    numbers = [int(number) for number in volume.slice_numbers]
    levels = tuple(_vertebra(j, p[1 + j], fracture[:, j], vertebra[:, j], numbers, cut) for j in range(len(VERTEBRAE)))
    patient = _known(p[0])
    return Findings(
        study_uid=volume.study_uid,
        series_uid=volume.series_uid,
        note=f"{NOTE} {PHANTOM_NOTE}" if run.card.phantom else NOTE,
        patient_probability=patient,
        patient_fractured=None if patient is None else patient >= cut["patient"],
        patient_score_optimal=None if patient is None else float(score_optimal(np.asarray(patient))),
        vertebrae=levels,
        slices=tuple(
            SliceFinding(
                i, numbers[i], _known(on_slice[i]), tuple(np.array(VERTEBRAE)[vertebra[i] >= cut["presence"]].tolist())
            )
            for i in range(len(fracture))
        ),
        spacing_mm=volume.spacing_mm,
        thresholds=dict(cut),
        warnings=(*volume.warnings, *_warnings(run, levels)),
        model={
            "run": run.config.name,
            "step": run.step,
            "type": run.config.model.type,
            "backbone": run.config.model.backbone,
            "trained_on": "phantom" if run.card.phantom else "data.manual_dir of the run",
        },
        versions={"cspine_jax": __version__, "jax": jax.__version__, "numpy": np.__version__},
        seconds={"read": round(seconds_to_read, 3), "predict": round(time.perf_counter() - started, 3)},
    )


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _vertebra(
    j: int, p: float, fracture: np.ndarray, vertebra: np.ndarray, numbers: list[int], cut: dict[str, float]
) -> VertebraFinding:
    if np.isnan(p):
        return VertebraFinding(VERTEBRAE[j], False, None, None, None, None, None)
    shown = vertebra >= cut["presence"]
    peak = int(vertebra.argmax())
    first = peak - int(np.argmin(np.append(shown[: peak + 1][::-1], False))) + 1
    last = peak + int(np.argmin(np.append(shown[peak:], False))) - 1
    surest = first + int(fracture[first : last + 1].argmax())
    return VertebraFinding(
        VERTEBRAE[j],
        True,
        float(p),
        bool(p >= cut["vertebra"]),
        (first, last),
        (numbers[first], numbers[last]),
        surest,
    )


def _warnings(run: SliceRun, levels: tuple[VertebraFinding, ...]) -> list[str]:
    lines = []
    hidden = [level.name for level in levels if not level.visible]
    if hidden:
        lines.append(
            f"{', '.join(hidden)} not visible: no probability is given; submission.csv holds the prevalence instead"
        )
    if not run.card.evaluated:
        lines.append("the run has no evaluation/metrics.json: all thresholds are 0.5, not chosen on validation data")
    return lines
