"""NIfTI vertebra masks -> the grid of a volume, by their affine and without interpolation."""

import os

import numpy as np

from cspine_jax.anatomy import LABEL_NAMES
from cspine_jax.ct import geometry, nifti, resample
from cspine_jax.ct.volume import Volume
from cspine_jax.errors import StudyError

_AXES = ("z (head to feet)", "y (front to back)", "x (right to left)")

SPACING_TOLERANCE = 0.05
"""Share by which a mask's voxel size may differ from the study's (headers round it)."""

PLACE_TOLERANCE = 1.0
"""Voxels by which a corner of the mask may lie off the study's."""


def read_mask(path: str | os.PathLike, volume: Volume, *, check_place: bool = True, repair: bool = False) -> np.ndarray:
    """Reads a label mask onto a volume's grid.

    Args:
        path: `.nii` or `.nii.gz`, in any storage order; its affine (RAS mm) says which.
        volume: the study it belongs to.
        check_place: refuse a mask whose position in the patient is not the study's. False trusts the order of the
            axes only (for masks whose origin was lost).
        repair: flip a mask whose vertebrae run from feet to head, where the bone in the image shows that it is the
            mask that stands upside down.

    Returns:
        uint8 [D, H, W]: 0 background, 1..7 C1..C7, 8..19 T1..T12.

    Raises:
        StudyError: the file is no label mask, or its shape, spacing, axes or place are not the study's; the message
            says which axis.
    """
    name = os.fspath(path)
    labels, affine = _load(name)
    axes, flips = geometry.to_axial(affine)
    turned = geometry.turned_affine(affine, labels.shape, axes, flips)
    labels = geometry.turn(labels, axes, flips)
    labels = _fit(name, labels, turned, volume, check_place)
    if _upside_down(labels):
        labels = _stand_up(name, labels, volume, repair)
    return labels


def _load(name: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 labels as stored, and the affine to LPS mm."""
    data, (slope, intercept), affine = nifti.load(name, "mask")
    if (slope, intercept) != (1, 0):
        data = data * slope + intercept
    top = max(LABEL_NAMES)
    if data.dtype != np.uint8:
        rounded = np.rint(data)
        if not np.array_equal(rounded, data) or (data.size and data.min() < 0):
            raise StudyError(f"{name}: holds values that are no labels; a mask holds whole numbers 0 to {top}")
        data = rounded
    if data.size and data.max() > top:
        raise StudyError(f"{name}: label {data.max():g}: labels are 0 to {top} (C1..C7, T1..T12)")
    return data.astype(np.uint8, copy=False), affine


def _fit(name: str, labels: np.ndarray, affine: np.ndarray, volume: Volume, check_place: bool) -> np.ndarray:
    """Checks the mask against the stored grid of the study; then follows the study's own resampling."""
    if labels.shape == volume.shape and _mismatch(affine, volume.affine, volume.shape, check_place) is None:
        return labels
    stored_shape, stored_affine = volume.stored_shape, volume.stored_affine
    for axis, (mask_size, study_size) in enumerate(zip(labels.shape, stored_shape, strict=True)):
        if mask_size != study_size:
            raise StudyError(
                f"{name}: {mask_size} voxels along axis {_AXES[axis]} but the study has {study_size} "
                f"(mask {labels.shape}, study {stored_shape} in z, y, x); use the mask of this series"
            )
    problem = _mismatch(affine, stored_affine, stored_shape, check_place)
    if problem:
        raise StudyError(f"{name}: {problem}")
    if volume.resampling is None:
        return labels
    axes, flips = volume.turned  # from the stored stack to (z, y, x): back, resample, and forth again
    back = np.argsort(axes)
    stack = labels[tuple(slice(None, None, -1 if flip else 1) for flip in flips)].transpose(back)
    return geometry.turn(resample.apply_nearest(volume.resampling, stack), axes, flips)


def _mismatch(mask: np.ndarray, study: np.ndarray, shape: tuple[int, ...], check_place: bool) -> str | None:
    """What keeps two grids of one shape from being the same, with the axis; None where they are the same."""
    mask_mm, study_mm = np.linalg.norm(mask[:3, :3], axis=0), np.linalg.norm(study[:3, :3], axis=0)
    for axis in range(3):
        if abs(mask_mm[axis] / study_mm[axis] - 1) > SPACING_TOLERANCE:
            return (
                f"voxels of {mask_mm[axis]:.4g} mm along axis {_AXES[axis]}, the study's are {study_mm[axis]:.4g} mm; "
                "use the mask of this series"
            )
    if not check_place:
        return None
    for axis in range(3):
        cosine = float(mask[:3, axis] @ study[:3, axis] / (mask_mm[axis] * study_mm[axis]))
        if cosine < np.cos(np.radians(5)):
            return (
                f"axis {_AXES[axis]} lies {np.degrees(np.arccos(np.clip(cosine, -1, 1))):.0f} degrees off the study's; "
                "save the mask with the study's orientation"
            )
    corners = np.array([[z, y, x, 1] for z in (0, shape[0] - 1) for y in (0, shape[1] - 1) for x in (0, shape[2] - 1)])
    off = np.abs((np.linalg.inv(study) @ mask @ corners.T).T[:, :3] - corners[:, :3]).max(axis=0)
    worst = int(off.argmax())
    if off[worst] > PLACE_TOLERANCE:
        return (
            f"lies {off[worst] * study_mm[worst]:.3g} mm off the study along axis {_AXES[worst]}; use the mask of this "
            "series, or check_place=False if only its origin was lost"
        )
    return None


def _upside_down(labels: np.ndarray) -> bool:
    """Whether the vertebrae run from feet to head."""
    heights = _heights(labels)
    return len(heights) > 1 and heights[-1] < heights[0]


def _heights(labels: np.ndarray) -> list[float]:
    """Mean z index of each label that is there, C1 first."""
    counts = np.stack([np.bincount(plane.reshape(-1), minlength=20) for plane in labels])[:, 1:]  # [D, 19]
    total = counts.sum(axis=0)
    index = np.arange(len(labels))
    return [float(index @ counts[:, label]) / total[label] for label in np.flatnonzero(total)]


def _stand_up(name: str, labels: np.ndarray, volume: Volume, repair: bool) -> np.ndarray:
    flipped = labels[::-1]
    bone, bone_flipped = (float(volume.hu[mask > 0].mean()) for mask in (labels, flipped))
    evidence = f"mean {bone:.0f} HU under the mask as it is, {bone_flipped:.0f} HU flipped"
    if not repair:
        raise StudyError(f"{name}: vertebrae run upside down along axis {_AXES[0]} ({evidence}); repair=True flips it")
    if bone_flipped <= bone:
        raise StudyError(
            f"{name}: vertebrae run upside down along axis {_AXES[0]} but the bone fits it as it is ({evidence}): "
            "its labels are in the wrong order; label it again"
        )
    return np.ascontiguousarray(flipped)
