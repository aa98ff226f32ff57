"""Scores of vertebra masks: overlap a level, vertebrae found under their right names, slices that show a level.

A level that is not in the truth has no overlap and cannot be identified: NaN, never 0 or 1. A level that is in the
truth and was not predicted counts as missed (Dice 0, not identified).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

from cspine_jax.anatomy import LABEL_NAMES, NUM_VERTEBRAE
from cspine_jax.metrics.binary import accuracy, roc_auc
from cspine_jax.metrics.surfaces import TOLERANCE_MM, overlap

IDENTIFIED_MM = 20.0
"""A vertebra is identified when its predicted centroid is within this of its true one, and no other true one nearer."""

LEVELS = len(LABEL_NAMES)


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentationScores:
    """Of one study.

    Attributes:
        dice: float64 [7]; C1..C7, NaN where the level is not in the truth.
        surface_dice: float64 [7]; at 1 mm.
        hd95_mm: float64 [7]; also NaN where it was not predicted.
        identified: float64 [19]; 1 or 0 for each level, NaN where it is not in the truth.
        named_right: float64 [19]; of each predicted level, whether the true vertebra nearest to it has that name and
            is within `IDENTIFIED_MM`; NaN where it was not predicted.
        false_levels: names that were predicted though the truth has no voxel of them.
    """

    dice: np.ndarray
    surface_dice: np.ndarray
    hd95_mm: np.ndarray
    identified: np.ndarray
    named_right: np.ndarray
    false_levels: tuple[str, ...]


def segmentation_scores(
    truth: np.ndarray, predicted: np.ndarray, spacing_mm: Sequence[float], tolerance_mm: float = TOLERANCE_MM
) -> SegmentationScores:
    """Scores a study.

    Args:
        truth: uint8 [D, H, W]; 0 background, 1..7 C1..C7, 8..19 T1..T12.
        predicted: the same, of the same shape.
        spacing_mm: (z, y, x).
        tolerance_mm: of the surface Dice.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"truth {truth.shape} and prediction {predicted.shape} must lie on one grid")
    scores = np.full((NUM_VERTEBRAE, 3), np.nan)
    true_boxes, boxes = (ndimage.find_objects(labels, LEVELS) for labels in (truth, predicted))
    for level in range(NUM_VERTEBRAE):
        if true_boxes[level] is not None:
            box = _union(true_boxes[level], boxes[level])
            scores[level] = overlap(truth[box] == level + 1, predicted[box] == level + 1, spacing_mm, tolerance_mm)
    true_centroids, centroids = (centroids_mm(labels, spacing_mm) for labels in (truth, predicted))
    return SegmentationScores(
        dice=scores[:, 0],
        surface_dice=scores[:, 1],
        hd95_mm=scores[:, 2],
        identified=identified(true_centroids, centroids),
        named_right=named_right(true_centroids, centroids),
        false_levels=tuple(LABEL_NAMES[value] for value in sorted(centroids.keys() - true_centroids.keys())),
    )


def centroids_mm(labels: np.ndarray, spacing_mm: Sequence[float]) -> dict[int, np.ndarray]:
    """Mean position (z, y, x) of each mask value that is there, mm from the centre of voxel (0, 0, 0)."""
    found = {}
    for value, box in enumerate(ndimage.find_objects(labels, LEVELS), start=1):
        if box is not None:
            low = np.array([side.start for side in box])
            found[value] = (np.argwhere(labels[box] == value).mean(axis=0) + low) * np.asarray(spacing_mm)
    return found


def identified(
    truth: Mapping[int, np.ndarray], predicted: Mapping[int, np.ndarray], within_mm: float = IDENTIFIED_MM
) -> np.ndarray:
    """Which true vertebrae were found under their names (Sekuboyina et al. 2021, VerSe).

    Args:
        truth: centroid in mm of each mask value 1..19.
        predicted: the same.
        within_mm: furthest a centroid may be off.

    Returns:
        float64 [19]; 1 where the centroid predicted under the name is within `within_mm` and the true centroid of that
        name is the nearest to it, else 0; NaN where the level is not in the truth. The mean is the identification rate.
    """
    right = named_right(truth, predicted, within_mm)
    result = np.full(LEVELS, np.nan)
    for value in truth:
        result[value - 1] = np.nan_to_num(right[value - 1])  # not predicted: not identified
    return result


def named_right(
    truth: Mapping[int, np.ndarray], predicted: Mapping[int, np.ndarray], within_mm: float = IDENTIFIED_MM
) -> np.ndarray:
    """Level accuracy: which predicted vertebrae lie where the truth has that level.

    Returns:
        float64 [19]; 1 where the true centroid nearest to the predicted one is of the same level and within
        `within_mm`, else 0; NaN where the level was not predicted.
    """
    result = np.full(LEVELS, np.nan)
    for value, centroid in predicted.items():
        distance = {other: float(np.linalg.norm(centroid - place)) for other, place in truth.items()}
        nearest = min(distance, key=distance.__getitem__, default=None)
        result[value - 1] = nearest == value and distance[value] <= within_mm
    return result


def presence_scores(shown: np.ndarray, visibility: np.ndarray, threshold: float = 0.5) -> dict[str, float | np.ndarray]:
    """How well v_ij tells the slices that show a level, over any number of studies' slices.

    Args:
        shown: 0 / 1 [N, 7]; whether a voxel of the level is in the slice; NaN leaves out.
        visibility: [N, 7] probabilities.
        threshold: of "visible".

    Returns:
        "accuracy" and "auc" over all pairs of slice and level; "level_accuracy" and "level_auc" float64 [7], AUC NaN
        where all slices or none show the level.
    """
    columns = list(zip(np.asarray(shown).T, np.asarray(visibility).T, strict=True))
    return {
        "accuracy": accuracy(np.ravel(shown), np.ravel(visibility), threshold),
        "auc": roc_auc(np.ravel(shown), np.ravel(visibility)),
        "level_accuracy": np.array([accuracy(y, p, threshold) for y, p in columns]),
        "level_auc": np.array([roc_auc(y, p) for y, p in columns]),
    }


def summary(studies: Sequence[SegmentationScores]) -> dict[str, float]:
    """Means over studies: of levels where they are defined, first within a level and then over levels.

    Returns:
        "dice", "surface_dice", "hd95_mm", "identification_rate" (C1..C7 and all levels), "level_accuracy",
        "missed" (levels C1..C7 in the truth without a voxel predicted) and "no_false_level" (share of studies).
    """
    stacks = {
        name: np.stack([getattr(study, name) for study in studies])
        for name in ("dice", "surface_dice", "hd95_mm", "identified", "named_right")
    }
    neck = stacks["identified"][:, :NUM_VERTEBRAE]
    return {
        "dice": _mean_of_levels(stacks["dice"]),
        "surface_dice": _mean_of_levels(stacks["surface_dice"]),
        "hd95_mm": _mean_of_levels(stacks["hd95_mm"]),
        "identification_rate": _mean(neck),
        "identification_rate_all": _mean(stacks["identified"]),
        "level_accuracy": _mean(stacks["named_right"]),
        "missed": float((np.isnan(stacks["hd95_mm"]) & ~np.isnan(stacks["dice"])).sum()),
        "no_false_level": float(np.mean([not study.false_levels for study in studies])),
    }


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _mean_of_levels(values: np.ndarray) -> float:
    return _mean(np.array([_mean(column) for column in values.T]))


def _union(a: tuple[slice, ...], b: tuple[slice, ...] | None) -> tuple[slice, ...]:
    """A box around two boxes, one voxel larger at each side where the array allows."""
    both = [a] if b is None else [a, b]
    return tuple(
        slice(max(0, min(box[axis].start for box in both) - 1), max(box[axis].stop for box in both) + 1)
        for axis in range(3)
    )
