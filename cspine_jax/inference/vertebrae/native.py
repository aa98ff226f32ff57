"""Colours at 1 mm -> masks and visibilities on the grid of the study, one slice at a time."""

import concurrent.futures
import os

import numpy as np

from cspine_jax.ct import Volume
from cspine_jax.inference.vertebrae import COLOURS
from cspine_jax.inference.vertebrae.fine import Fine, interpolate, nearest
from cspine_jax.inference.vertebrae.grids import Grid

VISIBLE_MM2 = 6.0
"""Area over which the most probable pixels of a slice are averaged: about the least that a reader would see."""


def to_native(fine: Fine, volume: Volume, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Masks and visibilities.

    Probabilities are interpolated linearly to the pixels of each slice, which takes the most probable class there.
    s_ik, how visible instance k is on slice i, is the mean probability of k's colour over the `VISIBLE_MM2` of pixels
    near k in which it is highest (pixels that are missing count as 0).

    Args:
        fine: what `see_bone` found.
        volume: the study.
        levels: int [n]; of each instance, -1 for none.

    Returns:
        Labels uint8 [D, H, W], level + 1; s float32 [D, n].
    """
    labels = np.zeros(volume.shape, np.uint8)
    visible = np.zeros((volume.shape[0], len(levels)), np.float32)
    values = np.concatenate(([0], levels + 1)).astype(np.uint8)  # of owner
    axes = [np.arange(side.start, side.stop) for side in fine.box]
    at = [_on(axes[axis], fine.grid, axis) for axis in range(3)]
    p, grid = fine.probabilities, fine.grid
    rows = [nearest(_on(axes[axis], fine.owner_grid, axis), fine.owner_grid.shape[axis]) for axis in range(3)]
    pixels = max(1, round(VISIBLE_MM2 / (volume.spacing_mm[1] * volume.spacing_mm[2])))

    def one(k: int) -> None:
        z = axes[0][k]
        below = int(np.clip(np.floor(at[0][k]), 0, max(grid.shape[0] - 2, 0)))
        pair = p[:, below : below + 2]  # [4, 2, h, w]
        plane = interpolate(pair, at[0][k : k + 1] - below, 1)[:, 0]
        plane = interpolate(interpolate(plane, at[1], 1), at[2], 2)  # [4, H, W] of the box
        best = plane.argmax(axis=0)
        out = labels[z, fine.box[1], fine.box[2]]
        for c in range(COLOURS):
            owner = fine.owner[c, rows[0][k]][np.ix_(rows[1], rows[2])]
            mine = best == 1 + c
            out[mine] = values[owner[mine]]
            there = plane[1 + c] > 0.01
            near, chance = owner[there], plane[1 + c][there]
            for number in np.unique(near[near > 0]):
                visible[z, number - 1] = _top_mean(chance[near == number], pixels)

    with concurrent.futures.ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool:
        list(pool.map(one, range(len(axes[0]))))  # every slice writes its own part
    return labels, visible


def _on(index: np.ndarray, grid: Grid, axis: int) -> np.ndarray:
    """Positions of voxels of the volume on a grid."""
    return (index - grid.origin[axis]) / grid.step[axis]


def _top_mean(values: np.ndarray, count: int) -> float:
    """Mean of the `count` highest values, zeros where there are fewer."""
    if len(values) > count:
        values = np.partition(values, len(values) - count)[-count:]
    return float(values.sum()) / count
