"""Slice predictions of one part of a data set, and the study tables that document B's formulas make of them."""

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cspine_jax import aggregation
from cspine_jax.anatomy import NUM_VERTEBRAE, TARGETS, VERTEBRAE
from cspine_jax.errors import DataError
from cspine_jax.metrics.clinical import unweighted
from cspine_jax.metrics.target_table import write_targets


@dataclasses.dataclass(frozen=True)
class SplitPredictions:
    """What a model said about N slices of S studies, with the truth as far as it is known.

    Attributes:
        uids: `[S]` StudyInstanceUIDs.
        study: `[N]` position of each slice's study in `uids`.
        index: `[N]` slice index inside the study, 0 = most superior.
        fracture: `[N, 7]` probabilities f_ij, or `[N, 1]` f_i for a Type 1 model.
        vertebra: `[N, 7]` probabilities v_ij: the model's own (Type 3), or those it was given (Type 1 and 2).
        presence: `[N, 7]` 0/1, vertebra j is on slice i; read where `presence_known`.
        presence_known: `[N]` 0/1, the study has a mask.
        slice_fracture: `[N]` 0/1, the slice shows a fracture (as the training target defines it).
        slice_known: `[N]` 0/1.
        labels: `[S, 8]` 0/1 patient_overall, C1..C7; NaN where unknown.

    Raises:
        DataError: shapes do not agree, or a probability is not in 0..1.
    """

    uids: Sequence[str]
    study: np.ndarray
    index: np.ndarray
    fracture: np.ndarray
    vertebra: np.ndarray
    presence: np.ndarray
    presence_known: np.ndarray
    slice_fracture: np.ndarray
    slice_known: np.ndarray
    labels: np.ndarray

    def __post_init__(self):
        n, s = len(self.study), len(self.uids)
        fields = {
            "study": (np.int64, (n,)),
            "index": (np.int64, (n,)),
            "fracture": (np.float64, (n, 1 if np.shape(self.fracture)[-1:] == (1,) else NUM_VERTEBRAE)),
            "vertebra": (np.float64, (n, NUM_VERTEBRAE)),
            "presence": (bool, (n, NUM_VERTEBRAE)),
            "presence_known": (bool, (n,)),
            "slice_fracture": (bool, (n,)),
            "slice_known": (bool, (n,)),
            "labels": (np.float64, (s, len(TARGETS))),
        }
        for name, (kind, shape) in fields.items():
            value = np.asarray(getattr(self, name))
            if value.shape != shape:
                raise DataError(f"predictions.{name} has shape {value.shape}, expected {shape}")
            object.__setattr__(self, name, value > 0.5 if kind is bool else value.astype(kind))
        if n and not 0 <= self.study.min() <= self.study.max() < s:
            raise DataError(f"predictions.study runs {self.study.min()}..{self.study.max()}, but there are {s} uids")
        for name in ("fracture", "vertebra"):
            value = getattr(self, name)
            if not np.all((value >= 0) & (value <= 1)):
                raise DataError(
                    f"predictions.{name} holds values outside 0..1 (or NaN); pass probabilities, not logits"
                )

    def level_fracture(self) -> tuple[np.ndarray, np.ndarray]:
        """Document B's slice truth: is a vertebra on the slice that is fractured anywhere? `([N] bool, [N] known)`."""
        labels = self.labels[self.study, 1:]
        negative, unknown = np.all(labels == 0, axis=1), np.isnan(labels).any(axis=1)
        shown = np.logical_and(labels > 0.5, self.presence)
        return np.logical_or.reduce(shown, axis=1), (self.presence_known | negative) & ~unknown


@dataclasses.dataclass(frozen=True)
class Aggregated:
    """A split's probabilities after aggregation, NaN where nothing is visible.

    Attributes:
        slices: `[N]` probability of a fracture on each slice.
        targets: `[S, 8]` patient_overall, C1..C7.
    """

    slices: np.ndarray
    targets: np.ndarray

    def filled(self, prevalence: np.ndarray) -> np.ndarray:
        """`[S, 8]` to score: `prevalence` `[8]` stands where the model gave no probability."""
        return np.where(np.isnan(self.targets), prevalence[None, :], self.targets)


def clinical(split: SplitPredictions, positive_weight: float, *, vertebra: bool) -> SplitPredictions:
    """Undoes the loss weight of positives (`cspine_jax.metrics.clinical.unweighted`).

    Args:
        split: the network's outputs.
        positive_weight: of its training loss.
        vertebra: the vertebra probabilities are outputs too (Type 3), not inputs.
    """
    if positive_weight <= 0:
        raise DataError(f"positive_weight={positive_weight}: must be above 0, the weight of the training loss")
    return dataclasses.replace(
        split,
        fracture=unweighted(split.fracture, positive_weight),
        vertebra=unweighted(split.vertebra, positive_weight) if vertebra else split.vertebra,
    )


def aggregate(split: SplitPredictions, min_visibility: float) -> Aggregated:
    """Document B's three formulas on every study.

    Args:
        split: slice predictions.
        min_visibility: a slice or a level whose largest v_ij stays below it is not visible (`cspine_jax.aggregation`):
            the weighted mean over next to no weight would be noise.
    """
    slices = aggregation.slice_probability(split.fracture, split.vertebra, min_visibility)
    targets = aggregation.study_targets(split.fracture, split.vertebra, split.study, len(split.uids), min_visibility)
    return Aggregated(slices, targets)


def write_predictions(path: Path, split: SplitPredictions, aggregated: Aggregated) -> None:
    """`StudyInstanceUID,patient_overall,C1..C7`: clinical probabilities; empty where a level is not visible."""
    write_targets(path, split.uids, aggregated.targets)


def write_slices(path: Path, split: SplitPredictions, aggregated: Aggregated) -> None:
    """One row a slice: uid, index, slice probability, v_C1..v_C7, f_C1..f_C7 (or f), truth (empty where unknown)."""
    names = ["f"] if split.fracture.shape[1] == 1 else [f"f_{name}" for name in VERTEBRAE]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["StudyInstanceUID", "slice", "fracture", *(f"v_{name}" for name in VERTEBRAE), *names, "truth_fracture"]
        )
        for row in map(int, np.lexsort((split.index, split.study))):
            truth = int(split.slice_fracture[row] > 0.5) if split.slice_known[row] else ""
            probabilities = [*map(_cell, split.vertebra[row]), *map(_cell, split.fracture[row])]
            place = [split.uids[split.study[row]], int(split.index[row])]
            writer.writerow([*place, _cell(aggregated.slices[row]), *probabilities, truth])


def _cell(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6g}"
