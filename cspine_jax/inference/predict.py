"""A study on disk -> `Findings`."""

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np

from cspine_jax import __version__, aggregation
from cspine_jax.anatomy import VERTEBRAE
from cspine_jax.ct import Identity, Volume, read_study
from cspine_jax.errors import ConfigError
from cspine_jax.inference.findings import NOTE, PHANTOM_NOTE, Findings, SliceFinding, VertebraFinding, content_key
from cspine_jax.inference.loaded import Card, config_of
from cspine_jax.inference.run import SliceRun
from cspine_jax.inference.vertebrae.result import Vertebrae
from cspine_jax.metrics import score_optimal

if TYPE_CHECKING:
    from cspine_jax.inference.crops_run import CropsAnswer, CropsRun
    from cspine_jax.inference.study_run import StudyRun

AIR_HU = -1000


FIELD_TOLERANCE = 1.15
"""A field of view up to this much larger or smaller than in training is left as it is."""

SHARE_OF_NECK = 1 / 3
"""Of a scan's slices, below which a model of whole studies is told to see too little of the neck."""


VERSIONS = {"cspine_jax": __version__, "jax": jax.__version__, "numpy": np.__version__}

Run: TypeAlias = "SliceRun | CropsRun | StudyRun"


def load_run(source: str | Path | None = None, batch: int = 0) -> Run:
    """The model of a run or of a weights file, whatever it sees of a study; arguments and errors as `SliceRun`."""
    if source is None:
        return SliceRun(source, batch)
    task = config_of(source).task  # the others load what reads records, which slice models do without
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
    known: Callable[[Volume], Findings | None] | None = None,
    series: str | None = None,
) -> Findings:
    """Reads a study and predicts it.

    Args:
        run: the loaded model.
        path: as `cspine_jax.ct.read_study` takes it.
        identity: hashes the UIDs; None keeps them.
        segmenter: finds the vertebrae first (both stages, a `vertebrae.segment.Segmenter`); None leaves them to the
            slice model, which must be of Type 3, or does without them (models of whole studies without a mask).
        keep: called with the study and its vertebrae, e.g. to write masks.
        show: called with what a model of crops found, e.g. to draw it; only with one of these.
        known: called with the study once that is read; what it knows of it is returned as it is.
        series: which one, as `cspine_jax.ct.read_study` takes it.

    Raises:
        StudyError: the study cannot be read.
        ConfigError: the model needs vertebrae, and nobody finds them.
    """
    _check_needs(run, segmenter)
    started = time.perf_counter()
    volume = read_study(path, series=series, identity=identity)
    seconds = time.perf_counter() - started
    if known is not None and (findings := known(volume)) is not None:
        return findings
    vertebrae = None if segmenter is None else segmenter(volume)
    if vertebrae is not None and keep is not None:
        keep(volume, vertebrae)
    findings, crops = _asked(run, volume, seconds, vertebrae)
    findings = dataclasses.replace(findings, content=content_key(volume, identity))
    if crops is not None and show is not None:
        show(findings, crops)
    return findings


def findings_of(run: Run, volume: Volume, seconds_to_read: float = 0.0, vertebrae: Vertebrae | None = None) -> Findings:
    """Predicts what the model sees of a study, and aggregates as its run's evaluation does.

    Args:
        run: the loaded model.
        volume: the study.
        seconds_to_read: reported as it is.
        vertebrae: of the study, from the segmentation; None as with no segmenter in `predict_study`.

    Raises:
        ConfigError: the model needs vertebrae, and there are none.
    """
    return _asked(run, volume, seconds_to_read, vertebrae)[0]


def _asked(
    run: Run, volume: Volume, seconds_to_read: float, vertebrae: Vertebrae | None
) -> "tuple[Findings, CropsAnswer | None]":
    _check_needs(run, vertebrae)
    started = time.perf_counter()
    of_task: Any = {"crops": _of_crops, "study": _of_study}
    found = of_task.get(run.config.task, _of_slices)(run, volume, vertebrae)
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
            *volume.quality.notes,
            *(() if vertebrae is None else vertebrae.warnings),
            *found.notes,
            *_warnings(run, found.vertebrae),
        ),
        model=about(run),
        versions=VERSIONS,
        seconds={
            "read": round(seconds_to_read, 3),
            **({} if vertebrae is None else {"segment": round(sum(vertebrae.seconds.values()), 3)}),
            "predict": round(time.perf_counter() - started, 3),
        },
    )
    return findings, found.crops


def about(run: Run) -> dict[str, Any]:
    """What findings say of the model."""
    return {
        "run": run.config.name,
        "step": run.step,
        "digest": run.digest,
        **run.facts,
        "trained_on": "phantom" if run.card.phantom else "studies not all synthetic",
    }


def _check_needs(run: Run, vertebrae: object) -> None:
    if vertebrae is None and run.needs_vertebrae:
        raise ConfigError(f"{run.name} {run.needs_vertebrae}; give a segmenter")


def _of_slices(run: SliceRun, volume: Volume, vertebrae: Vertebrae | None) -> _Answer:
    """Every slice, aggregated by document B's formulas."""
    notes: list[str] = []
    cut = dict(run.card.thresholds)
    if vertebrae is None:
        fracture, vertebra = run.slices(volume.hu)
    else:
        hu, _, notes = field_of_training(run.card, volume, vertebrae.labels)
        near = run.card.slice_mm / volume.spacing_mm[0] if run.card.slice_mm else 1
        fracture, _ = run.slices(hu, vertebrae.visibility, stride=max(1, round(near)))
        vertebra, cut["presence"] = vertebrae.visibility, 0.5
    p = aggregation.study_targets(fracture, vertebra, np.zeros(len(fracture), int), 1, cut["presence"])[0]
    on_slice = aggregation.slice_probability(fracture, vertebra, cut["presence"])
    numbers = _numbers(volume)
    levels = tuple(_vertebra(j, p[1 + j], fracture[:, j], vertebra[:, j], numbers, cut) for j in range(len(VERTEBRAE)))
    return _Answer(p, levels, _slices(numbers, on_slice, vertebra >= cut["presence"]), cut, notes)


def _of_crops(run: "CropsRun", volume: Volume, vertebrae: Vertebrae) -> _Answer:
    """The vertebrae that were found. A slice has the probability of the nearest position that shows it."""
    found = run.answer(volume.study_uid, volume.hu, vertebrae.labels, volume.spacing_mm)
    table, depth = found.table, len(volume.hu)
    shown, of_level = _shown(vertebrae.labels), np.full((depth, len(VERTEBRAE)), np.nan)
    surest: list[int | None] = [None] * len(VERTEBRAE)
    for j, record in enumerate(table.record[0]):
        if record < 0 or found.positions is None:
            continue
        at = table.slice_index[record]
        apart = np.abs(np.arange(depth)[:, None] - at)
        seen = apart.min(1) <= run.layout.radius * table.axes[record, 0, 0] + 0.5
        of_level[:, j] = np.where(seen, found.positions[j, apart.argmin(1)], np.nan)
        rows = np.flatnonzero(shown[:, j])
        surest[j] = int(np.clip(np.rint(at[found.surest(j)]), rows[0], rows[-1]))
    levels = _levels(run.card, volume, found.targets, found.spread, shown, surest)
    on_slice = np.where(shown, np.nan_to_num(of_level, nan=-1.0), -1.0).max(1)
    slices = _slices(_numbers(volume), np.where(on_slice < 0, np.nan, on_slice), shown)
    return _Answer(found.targets, levels, slices, _of_targets(run.card), run.reservations, found)


def _of_study(run: "StudyRun", volume: Volume, vertebrae: Vertebrae | None) -> _Answer:
    """Eight answers on the whole of it; slices have none, and show the vertebrae that were found on them."""
    hu, labels, notes = volume.hu, None, run.reservations
    if vertebrae is None:
        shown = None
        notes.append("no vertebrae were looked for: a level outside of the picture has a probability too")
    else:
        shown = _shown(vertebrae.labels)
        hu, labels, said = field_of_training(run.card, volume, vertebrae.labels)
        share = float(shown.any(1).mean())
        notes += said
        if share < SHARE_OF_NECK:
            notes.append(
                f"C1..C7 are on {share:.0%} of the slices only: the model sees the whole scan, give it the neck alone"
            )
    targets, spread = run.answer(volume.study_uid, hu, labels, volume.spacing_mm)
    if shown is not None:
        targets = np.where(np.concatenate([[shown.any()], shown.any(0)]), targets, np.nan)
    levels = _levels(run.card, volume, targets, spread, shown, [None] * len(VERTEBRAE))
    of_slices = np.zeros((len(hu), len(VERTEBRAE)), bool) if shown is None else shown
    slices = _slices(_numbers(volume), np.full(len(hu), np.nan), of_slices)
    return _Answer(targets, levels, slices, _of_targets(run.card), notes)


def _shown(labels: np.ndarray) -> np.ndarray:
    """Bool [D, 7]: slices that show C1..C7, of labels [D, H, W]."""
    return np.stack([(labels == j + 1).any((1, 2)) for j in range(len(VERTEBRAE))], axis=1)


def _levels(
    card: Card,
    volume: Volume,
    targets: np.ndarray,
    spread: np.ndarray | None,
    shown: np.ndarray | None,
    surest: list[int | None],
) -> tuple[VertebraFinding, ...]:
    """C1..C7 of a study-level model from its answers [8], [7] and the slices that show them, [D, 7] (None: unknown)."""
    found, numbers = [], _numbers(volume)
    for j, name in enumerate(VERTEBRAE):
        p = float(targets[1 + j])
        if np.isnan(p):
            found.append(_hidden(name))
            continue
        first_last = number_of = None
        if shown is not None:
            first, last = (int(row) for row in np.flatnonzero(shown[:, j])[[0, -1]])
            first_last, number_of = (first, last), (numbers[first], numbers[last])
        s = None if spread is None else float(spread[j])
        called = bool(p >= card.thresholds["vertebra"])
        found.append(VertebraFinding(name, True, p, called, first_last, number_of, surest[j], s))
    return tuple(found)


def _numbers(volume: Volume) -> list[int]:
    return [int(number) for number in volume.slice_numbers]


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


def field_of_training(card: Card, volume: Volume, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The square around the spine that is as large as what the model saw in training.

    Args:
        card: `field_mm`.
        volume: the study.
        labels: uint8 [D, H, W], its vertebrae.

    Returns:
        int16 [D, h, w] HU, air beyond the image, and its labels; the whole image where the field of training is not
        known, no vertebra was found, or the image is about as large. And one line that says what was done, if anything.
    """
    spacing, shape = volume.spacing_mm[1:], volume.shape[1:]
    sides = [n * s for n, s in zip(shape, spacing, strict=True)]
    neck = (labels > 0) & (labels <= len(VERTEBRAE))
    if card.field_mm is None or not neck.any():
        return volume.hu, labels, []
    if max(sides) <= FIELD_TOLERANCE * card.field_mm and min(sides) >= card.field_mm / FIELD_TOLERANCE:
        return volume.hu, labels, []
    windows, pads = [], []
    for axis, (n, s) in enumerate(zip(shape, spacing, strict=True)):
        rows = np.flatnonzero(neck.any(axis=(0, 2 - axis)))
        length = max(1, round(card.field_mm / s))
        low = round((rows[0] + rows[-1]) / 2 - length / 2)
        windows.append(slice(max(0, low), min(n, low + length)))
        pads.append((max(0, -low), max(0, low + length - n)))
    hu = np.pad(volume.hu[:, windows[0], windows[1]], ((0, 0), *pads), constant_values=AIR_HU)
    inside = np.pad(labels[:, windows[0], windows[1]], ((0, 0), *pads))
    return hu, inside, [f"fractures looked for in {card.field_mm:.0f} mm around the spine, as the model was trained"]


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
