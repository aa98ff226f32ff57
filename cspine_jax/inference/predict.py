"""A study on disk -> `Findings`."""

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import jax
import numpy as np

from cspine_jax import __version__, aggregation
from cspine_jax.anatomy import VERTEBRAE
from cspine_jax.ct import Identity, Volume, read_study
from cspine_jax.errors import ConfigError
from cspine_jax.inference.findings import NOTE, PHANTOM_NOTE, Findings, SliceFinding, VertebraFinding
from cspine_jax.inference.run import Card, SliceRun, read_config
from cspine_jax.inference.vertebrae.result import Vertebrae
from cspine_jax.metrics import score_optimal

if TYPE_CHECKING:
    from cspine_jax.inference.crops_run import CropsAnswer, CropsRun
    from cspine_jax.inference.study_run import StudyRun

AIR_HU = -1000


FIELD_TOLERANCE = 1.15
"""A field of view up to this much larger than in training is left as it is."""


Run: TypeAlias = "SliceRun | CropsRun | StudyRun"


def load_run(source: str | Path | None = None, batch: int = 0) -> Run:
    """The model of a run or of a weights file, whatever it sees of a study; arguments and errors as `SliceRun`."""
    if source is None or str(source).endswith(".npz"):
        return SliceRun(source, batch)
    task = read_config(Path(source)).task  # the others load what reads records, which slice models do without
    if task == "crops":
        from cspine_jax.inference.crops_run import CropsRun

        return CropsRun(source, batch)
    if task == "study":
        from cspine_jax.inference.study_run import StudyRun

        return StudyRun(source, batch)
    return SliceRun(source, batch)


@dataclasses.dataclass(frozen=True)
class _Answer:
    """Of any model: clinical probabilities [8], NaN where not visible; what `Findings` says of levels and slices."""

    targets: np.ndarray
    vertebrae: tuple[VertebraFinding, ...]
    slices: tuple[SliceFinding, ...]
    thresholds: dict[str, float]
    notes: list[str]
    crops: "CropsAnswer | None" = None


def predict_study(
    run: Run,
    path: str | os.PathLike,
    identity: Identity | None = None,
    segmenter: Callable[[Volume], Vertebrae] | None = None,
    keep: Callable[[Volume, Vertebrae], None] | None = None,
    show: "Callable[[Findings, CropsAnswer], None] | None" = None,
) -> Findings:
    """Reads a study and predicts it.

    Args:
        run: the loaded model.
        path: as `cspine_jax.ct.read_study` takes it.
        identity: hashes the UIDs; None keeps them.
        segmenter: finds the vertebrae first (both stages, a `vertebrae.segment.Segmenter`); None leaves them to the
            slice model, which must be of Type 3, or does without them (models of whole studies without a mask).
        keep: called with the study and its vertebrae, e.g. to write masks.
        show: called with what a model of crops found, e.g. to draw it; not with a slice model.

    Raises:
        StudyError: the study cannot be read.
        ConfigError: the model needs vertebrae, and nobody finds them.
    """
    if segmenter is None and run.needs_vertebrae:
        raise ConfigError(f"{run.name} {run.needs_vertebrae}; give a segmenter")
    started = time.perf_counter()
    volume = read_study(path, identity=identity)
    seconds = time.perf_counter() - started
    vertebrae = None if segmenter is None else segmenter(volume)
    if vertebrae is not None and keep is not None:
        keep(volume, vertebrae)
    findings, crops = _asked(run, volume, seconds, vertebrae)
    if crops is not None and show is not None:
        show(findings, crops)
    return findings


def findings_of(run: Run, volume: Volume, seconds_to_read: float = 0.0, vertebrae: Vertebrae | None = None) -> Findings:
    """Predicts what the model sees of a study, and aggregates as its run's evaluation does.

    Args:
        run: the loaded model.
        volume: the study.
        seconds_to_read: reported as it is.
        vertebrae: of the study, from the segmentation; None takes the slice model's own.
    """
    return _asked(run, volume, seconds_to_read, vertebrae)[0]


def _asked(
    run: Run, volume: Volume, seconds_to_read: float, vertebrae: Vertebrae | None
) -> "tuple[Findings, CropsAnswer | None]":
    started = time.perf_counter()
    found = _of_slices(run, volume, vertebrae) if isinstance(run, SliceRun) else _of_whole(run, volume, vertebrae)
    patient = _known(found.targets[0])
    findings = Findings(
        study_uid=volume.study_uid,
        series_uid=volume.series_uid,
        note=f"{NOTE} {PHANTOM_NOTE}" if run.card.phantom else NOTE,
        patient_probability=patient,
        patient_fractured=None if patient is None else patient >= found.thresholds["patient"],
        patient_score_optimal=None if patient is None else float(score_optimal(np.asarray(patient))),
        vertebrae=found.vertebrae,
        slices=found.slices,
        spacing_mm=volume.spacing_mm,
        thresholds=found.thresholds,
        warnings=(
            *volume.warnings,
            *(() if vertebrae is None else vertebrae.warnings),
            *found.notes,
            *_warnings(run, found.vertebrae),
        ),
        model={
            "run": run.config.name,
            "step": run.step,
            **run.facts,
            "trained_on": "phantom" if run.card.phantom else "data.manual_dir of the run",
        },
        versions={"cspine_jax": __version__, "jax": jax.__version__, "numpy": np.__version__},
        seconds={
            "read": round(seconds_to_read, 3),
            **({} if vertebrae is None else {"segment": round(sum(vertebrae.seconds.values()), 3)}),
            "predict": round(time.perf_counter() - started, 3),
        },
    )
    return findings, found.crops


def _of_slices(run: SliceRun, volume: Volume, vertebrae: Vertebrae | None) -> _Answer:
    """Every slice, aggregated by document B's formulas."""
    notes: list[str] = []
    cut = dict(run.card.thresholds)
    if vertebrae is None:
        fracture, vertebra = run.slices(volume.hu)
    else:
        hu, notes = field_of_training(run.card, volume, vertebrae.labels)
        near = run.card.slice_mm / volume.spacing_mm[0] if run.card.slice_mm else 1
        fracture, _ = run.slices(hu, vertebrae.visibility, stride=max(1, round(near)))
        vertebra, cut["presence"] = vertebrae.visibility, 0.5
    p = aggregation.study_targets(fracture, vertebra, np.zeros(len(fracture), int), 1, cut["presence"])[0]
    on_slice = aggregation.slice_probability(fracture, vertebra, cut["presence"])
    numbers = [int(number) for number in volume.slice_numbers]
    levels = tuple(_vertebra(j, p[1 + j], fracture[:, j], vertebra[:, j], numbers, cut) for j in range(len(VERTEBRAE)))
    return _Answer(p, levels, _slices(numbers, on_slice, vertebra >= cut["presence"]), cut, notes)


def _of_whole(run: "CropsRun | StudyRun", volume: Volume, vertebrae: Vertebrae | None) -> _Answer:
    """By a study-level model."""
    from cspine_jax.inference.crops_run import CropsRun  # as in `load_run`

    if not isinstance(run, CropsRun):
        return _of_study(run, volume, vertebrae)
    assert vertebrae is not None  # see `CropsRun.needs_vertebrae`
    return _of_crops(run, volume, vertebrae)


def _of_crops(run: "CropsRun", volume: Volume, vertebrae: Vertebrae) -> _Answer:
    """The vertebrae that were found. A slice has the probability of the nearest position that shows it."""
    found = run.answer(volume.study_uid, volume.hu, vertebrae.labels, volume.spacing_mm)
    table, depth = found.table, len(volume.hu)
    cut = _of_targets(run.card)
    numbers = [int(number) for number in volume.slice_numbers]
    shown, of_level = np.zeros((depth, len(VERTEBRAE)), bool), np.full((depth, len(VERTEBRAE)), np.nan)
    levels = []
    for j, name in enumerate(VERTEBRAE):
        record = table.record[0, j]
        if record < 0:
            levels.append(_hidden(name))
            continue
        shown[:, j] = (vertebrae.labels == j + 1).any((1, 2))
        first, last = (int(row) for row in np.flatnonzero(shown[:, j])[[0, -1]])
        surest = None
        if found.positions is not None:
            at = table.slice_index[record]
            apart = np.abs(np.arange(depth)[:, None] - at)
            seen = apart.min(1) <= run.layout.radius * table.axes[record, 0, 0] + 0.5
            of_level[:, j] = np.where(seen, found.positions[j, apart.argmin(1)], np.nan)
            surest = int(np.clip(np.rint(at[found.surest(j)]), first, last))
        p = float(found.targets[1 + j])
        spread = None if found.spread is None else float(found.spread[j])
        calls = p, bool(p >= cut["vertebra"]), (first, last), (numbers[first], numbers[last]), surest, spread
        levels.append(VertebraFinding(name, True, *calls))
    on_slice = np.where(shown, np.nan_to_num(of_level, nan=-1.0), -1.0).max(1)
    slices = _slices(numbers, np.where(on_slice < 0, np.nan, on_slice), shown)
    return _Answer(found.targets, tuple(levels), slices, cut, run.reservations, found)


def _of_study(run: "StudyRun", volume: Volume, vertebrae: Vertebrae | None) -> _Answer:
    """Eight answers on the whole of it; slices have none, and show the vertebrae that were found on them."""
    labels = None if vertebrae is None else vertebrae.labels
    found = run.answer(volume.study_uid, volume.hu, labels, volume.spacing_mm)
    cut, depth = _of_targets(run.card), len(volume.hu)
    numbers = [int(number) for number in volume.slice_numbers]
    shown = np.zeros((depth, len(VERTEBRAE)), bool)
    targets, notes, levels = found.targets.copy(), [], []
    if labels is None:
        notes.append("no vertebrae were looked for: a level outside of the picture has a probability too")
    for j, name in enumerate(VERTEBRAE):
        first_last = number_of = None
        if labels is not None:
            shown[:, j] = (labels == j + 1).any((1, 2))
            if not shown[:, j].any():
                targets[1 + j] = np.nan
                levels.append(_hidden(name))
                continue
            first, last = (int(row) for row in np.flatnonzero(shown[:, j])[[0, -1]])
            first_last, number_of = (first, last), (numbers[first], numbers[last])
        p = float(targets[1 + j])
        spread = None if found.spread is None else float(found.spread[j])
        levels.append(VertebraFinding(name, True, p, bool(p >= cut["vertebra"]), first_last, number_of, None, spread))
    if labels is not None and not shown.any():
        targets[0] = np.nan
    return _Answer(targets, tuple(levels), _slices(numbers, np.full(depth, np.nan), shown), cut, notes)


def _of_targets(card: Card) -> dict[str, float]:
    """The thresholds of study-level models."""
    return {name: card.thresholds[name] for name in ("vertebra", "patient")}


def _slices(numbers: list[int], probability: np.ndarray, shown: np.ndarray) -> tuple[SliceFinding, ...]:
    """Findings of slices from their probabilities [D] (NaN: none) and the vertebrae that they show, [D, 7]."""
    names = np.array(VERTEBRAE)
    return tuple(
        SliceFinding(i, number, _known(probability[i]), tuple(names[shown[i]].tolist()))
        for i, number in enumerate(numbers)
    )


def field_of_training(card: Card, volume: Volume, labels: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The square around the spine that is as large as what the slice model saw in training.

    Args:
        card: `field_mm`.
        volume: the study.
        labels: uint8 [D, H, W], its vertebrae.

    Returns:
        int16 [D, h, w] HU, air beyond the image; the whole image where the field of training is not known, no
        vertebra was found, or the image is no larger. And one line that says what was done, if anything.
    """
    spacing, shape = volume.spacing_mm[1:], volume.shape[1:]
    sides = [n * s for n, s in zip(shape, spacing, strict=True)]
    neck = (labels > 0) & (labels <= len(VERTEBRAE))
    if card.field_mm is None or not neck.any() or max(sides) <= FIELD_TOLERANCE * card.field_mm:
        return volume.hu, []
    windows, pads = [], []
    for axis, (n, s) in enumerate(zip(shape, spacing, strict=True)):
        rows = np.flatnonzero(neck.any(axis=(0, 2 - axis)))
        length = max(1, round(card.field_mm / s))
        low = round((rows[0] + rows[-1]) / 2 - length / 2)
        windows.append(slice(max(0, low), min(n, low + length)))
        pads.append((max(0, -low), max(0, low + length - n)))
    hu = np.pad(volume.hu[:, windows[0], windows[1]], ((0, 0), *pads), constant_values=AIR_HU)
    return hu, [f"fractures looked for in {card.field_mm:.0f} mm around the spine, as the model was trained"]


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _hidden(name: str) -> VertebraFinding:
    return VertebraFinding(name, False, None, None, None, None, None)


def _vertebra(
    j: int, p: float, fracture: np.ndarray, vertebra: np.ndarray, numbers: list[int], cut: dict[str, float]
) -> VertebraFinding:
    if np.isnan(p):
        return _hidden(VERTEBRAE[j])
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


def _warnings(run: Run, levels: tuple[VertebraFinding, ...]) -> list[str]:
    lines = []
    hidden = [level.name for level in levels if not level.visible]
    if hidden:
        lines.append(
            f"{', '.join(hidden)} not visible: no probability is given; submission.csv holds the prevalence instead"
        )
    if not run.card.evaluated:
        lines.append("the run has no evaluation/metrics.json: all thresholds are 0.5, not chosen on validation data")
    return lines
