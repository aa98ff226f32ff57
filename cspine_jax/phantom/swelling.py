"""Swelling round a fracture: thickened prevertebral soft tissue, blood in the fat behind.

Widening of the prevertebral soft tissue is the classic indirect sign of a cervical fracture: the pharynx and airway are
pushed forward over the broken level. Injuries of the back of the vertebra swell less in front and stain the fat between
the muscles instead. Labels are not touched: only what lies in front of the vertebrae moves.
"""

import numpy as np
from scipy import ndimage

from cspine_jax.anatomy import NUM_VERTEBRAE
from cspine_jax.phantom.plan import Acquisition, Fracture

POSTERIOR: tuple[str, ...] = ("facet", "lamina", "spinous_process", "transverse_process")
POSTERIOR_SHARE = 0.7  # of the swelling in front that an injury behind shows

_REACH_MM = 38.0  # how far in front of the spine tissue still moves; beyond lie mandible, larynx and skin
_WIDTH_MM = 17.0  # standard deviation of the swelling from side to side
_TAIL_MM = 6.0  # and up and down, beyond the broken bone itself
_BLOOD_HU = 62.0
_STAIN_MM = 14.0


def swell(hu: np.ndarray, labels: np.ndarray, marks: np.ndarray, fractures: tuple[Fracture, ...], q: Acquisition):
    """Swells the tissue round each fracture, in place.

    Args:
        hu: float32 [D, H, W], superior slice first.
        labels: uint8 [D, H, W], 1..7 = C1..C7.
        marks: uint8 [D, H, W], level + 1 at the fracture's voxels.
        fractures: what broke; `swelling_mm` is the thickness added in front of the level.
        q: the grid.
    """
    thickness = np.zeros(len(hu))
    for fracture in fractures:
        found = np.flatnonzero((labels == fracture.level + 1).any((1, 2)))
        if not found.size or fracture.swelling_mm <= 0:
            continue
        behind = fracture.kind in POSTERIOR
        share = POSTERIOR_SHARE if behind else 1.0
        # Full over the upper half of the bone's extent (the body; the lower half is mostly spinous process).
        distance = np.maximum(found[0] - np.arange(len(hu)), np.arange(len(hu)) - (found[0] + found[-1]) / 2)
        profile = np.exp(-0.5 * (np.maximum(distance, 0) * q.spacing_mm / _TAIL_MM) ** 2)
        thickness = np.maximum(thickness, share * fracture.swelling_mm * profile)
        _stain(hu, marks == fracture.level + 1, min(fracture.swelling_mm / 6, 1.0), q)
    moved = np.flatnonzero(thickness > 0.25 * q.pixel_mm)
    if moved.size:
        _push(hu, labels, moved, thickness, q)


def _push(hu: np.ndarray, labels: np.ndarray, planes: np.ndarray, thickness: np.ndarray, q: Acquisition) -> None:
    """Moves the tissue in front of the vertebrae forward by `thickness` [D] mm, less and less away from the spine."""
    middle, front = _front(labels, q)
    if middle is None:
        return
    reach, half = round(_REACH_MM / q.pixel_mm), round(2.5 * _WIDTH_MM / q.pixel_mm)
    left, right = max(middle - half, 0), min(middle + half + 1, hu.shape[2])
    side = np.exp(-0.5 * ((np.arange(left, right) - middle) * q.pixel_mm / _WIDTH_MM) ** 2)
    ahead = np.arange(reach + 1)[:, None]  # pixels in front of the spine
    for k in planes:
        stop = round(float(front[k]))
        start = stop - reach
        if start < 0 or stop >= hu.shape[1]:
            continue  # the field of view ends in front of the spine
        old = hu[k, start : stop + 1, left:right][::-1]  # row 0 touches the spine
        push = thickness[k] / q.pixel_mm * side[None]
        # What lay at s now lies at push + s (1 - push / reach): nothing moves at the far end.
        source = np.clip((ahead - push) / np.maximum(1 - push / reach, 0.2), 0, reach)
        low = np.minimum(source.astype(np.int64), reach - 1)
        part = source - low
        new = np.take_along_axis(old, low, 0) * (1 - part) + np.take_along_axis(old, low + 1, 0) * part
        blood = np.clip(push - ahead + 0.5, 0, 1) * (old[:1] < 250)  # not over an osteophyte that touches the spine
        hu[k, start : stop + 1, left:right] = (new * (1 - blood) + _BLOOD_HU * blood)[::-1]


def _front(labels: np.ndarray, q: Acquisition) -> tuple[int | None, np.ndarray]:
    """Column of the spine's middle and, for each plane, the row just in front of the vertebrae (smooth along z)."""
    spine: np.ndarray = (labels > 0) & (labels <= NUM_VERTEBRAE + 1)
    columns = np.any(spine, axis=1).sum(0)
    if not columns.any():
        return None, np.zeros(len(labels))
    middle = round(float((columns * np.arange(columns.size)).sum() / columns.sum()))
    near = max(int(6 / q.pixel_mm), 1)
    strip = np.any(spine[:, :, max(middle - near, 0) : middle + near + 1], axis=2)
    seen = np.flatnonzero(np.any(strip, axis=1))
    rows = np.interp(np.arange(len(labels)), seen, strip[seen].argmax(1))
    # Discs and the gaps between arches show no label in front: the running minimum bridges them.
    window = max(round(12 / q.spacing_mm), 1)
    rows = ndimage.minimum_filter1d(rows, window, mode="nearest")
    return middle, ndimage.gaussian_filter1d(rows, max(4 / q.spacing_mm, 0.5), mode="nearest") - 2.0 / q.pixel_mm


def _stain(hu: np.ndarray, mark: np.ndarray, strength: float, q: Acquisition) -> None:
    """Fat within `_STAIN_MM` of the fracture takes up blood."""
    found = np.nonzero(mark)
    if not found[0].size:
        return
    spacing = (q.spacing_mm, q.pixel_mm, q.pixel_mm)
    margin = [int(np.ceil(_STAIN_MM / step)) for step in spacing]
    box = tuple(
        slice(max(int(at.min()) - m, 0), min(int(at.max()) + m + 1, n))
        for at, m, n in zip(found, margin, hu.shape, strict=True)
    )
    distance = np.asarray(ndimage.distance_transform_edt(~mark[box], sampling=spacing))
    weight = strength * np.clip(1.5 * (1 - distance / _STAIN_MM), 0, 1)
    part = hu[box]
    fat = np.clip((40.0 - part) / 100.0, 0, 1) * (part > -300)
    part += (weight * fat * (_BLOOD_HU - part)).astype(part.dtype)
