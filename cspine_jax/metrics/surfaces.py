"""Overlap and surface distances of two masks, in mm, on anisotropic voxels."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

TOLERANCE_MM = 1.0
"""Of the surface Dice: about one voxel, and what two readers differ by."""


class Overlap(NamedTuple):
    """How far a mask agrees with the truth.

    Attributes:
        dice: 2 |A and B| / (|A| + |B|).
        surface_dice: share of both surfaces within the tolerance of the other.
        hd95: 95% Hausdorff distance, mm.
    """

    dice: float
    surface_dice: float
    hd95: float


def dice(truth: np.ndarray, predicted: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|) of two bool masks (Dice 1945); NaN where both are empty."""
    total = int(np.count_nonzero(truth)) + int(np.count_nonzero(predicted))
    return 2 * int(np.count_nonzero(truth & predicted)) / total if total else float("nan")


def overlap(
    truth: np.ndarray, predicted: np.ndarray, spacing_mm: Sequence[float], tolerance_mm: float = TOLERANCE_MM
) -> Overlap:
    """Dice, surface Dice and HD95 of two bool masks [D, H, W].

    A surface is the voxels of a mask that have a face in common with the outside (the edge of the array is outside);
    distances run from voxel centre to voxel centre. Surface Dice is that of Nikolov et al. 2018 with voxels instead of
    surface elements; HD95 is the larger of the two directed 95th percentiles.

    Returns:
        The scores. Both masks empty: all NaN. One empty: Dice and surface Dice 0, HD95 NaN, for no distance is
        defined (count such cases; a mean over the rest hides them).
    """
    if not (truth.any() or predicted.any()):
        return Overlap(float("nan"), float("nan"), float("nan"))
    if not (truth.any() and predicted.any()):
        return Overlap(0.0, 0.0, float("nan"))
    box = tuple(
        slice(max(side.start - 1, 0), side.stop + 1)
        for side in ndimage.find_objects((truth | predicted).astype(np.uint8))[0]
    )
    there, back = _distances(truth[box], predicted[box], spacing_mm)
    within = np.count_nonzero(there <= tolerance_mm) + np.count_nonzero(back <= tolerance_mm)
    return Overlap(
        dice(truth[box], predicted[box]),
        within / (len(there) + len(back)),
        float(max(np.percentile(there, 95), np.percentile(back, 95))),
    )


def _distances(a: np.ndarray, b: np.ndarray, spacing_mm: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Mm from each surface voxel of a to the surface of b, and from b to a."""
    surface_a, surface_b = (mask & ~np.asarray(ndimage.binary_erosion(mask), bool) for mask in (a, b))
    to_a, to_b = (
        np.asarray(ndimage.distance_transform_edt(np.logical_not(surface), sampling=spacing_mm))
        for surface in (surface_a, surface_b)
    )
    return to_b[surface_a], to_a[surface_b]
