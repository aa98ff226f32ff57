"""Fracture boxes from the pixels of a file `k.dcm` to the pixels of the volume."""

from collections.abc import Sequence

import numpy as np

from cspine_jax.ct import Volume


def place_boxes(boxes: Sequence[Sequence[float]], volume: Volume) -> tuple[tuple[np.ndarray, ...], tuple[int, ...]]:
    """Puts boxes on the rows of a volume.

    Args:
        boxes: (slice_number, x, y, width, height) in pixels of the stored image of that slice.
        volume: [D, H, W]. Where the reader turned the images or shifted them against a gantry tilt, the boxes follow.

    Returns:
        D arrays float64 [n, 4] of (x, y, width, height) in pixels of the volume, and the slice numbers of boxes that
        have no slice there.
    """
    rows = {int(number): row for row, number in enumerate(volume.slice_numbers) if number >= 0}
    placed: list[list[tuple[float, ...]]] = [[] for _ in volume.slice_numbers]
    lost = []
    for number, *box in boxes:
        row = rows.get(int(number))
        if row is None:
            lost.append(int(number))
        else:
            placed[row].append(_turn(box, row, volume))
    return tuple(np.array(row, float).reshape(-1, 4) for row in placed), tuple(lost)


def _turn(box: Sequence[float], row: int, volume: Volume) -> tuple[float, ...]:
    """One stored box (x, y, width, height) in the volume's pixels; the stack's axes are (slice, row, column)."""
    axes, flips = volume.turned
    x, y, width, height = box
    low, extent = [0.0, y, x], [1.0, height, width]
    if volume.resampling is not None:
        at = len(volume.slice_numbers) - 1 - row if flips[0] else row
        shift = volume.resampling.shift[round(volume.resampling.source[at])]
        low[1:] = y + shift[0], x + shift[1]
    turned = [volume.shape[i] - low[axes[i]] - extent[axes[i]] if flips[i] else low[axes[i]] for i in range(3)]
    return float(turned[2]), float(turned[1]), float(extent[axes[2]]), float(extent[axes[1]])
