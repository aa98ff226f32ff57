"""The spine's box at 1 mm through the `refine` network, which colours neighbouring vertebrae differently."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from cspine_jax.ct import Volume
from cspine_jax.ct.regrid import regrid
from cspine_jax.inference.vertebrae import COLOURS
from cspine_jax.inference.vertebrae.coarse import softmax
from cspine_jax.inference.vertebrae.grids import PADDING, Grid, normalise, pack, regridded
from cspine_jax.inference.vertebrae.sliding import slide, starts_over

SPACING_MM = 1.0
MARGIN_MM = 10.0
"""Round the coarse mask of the spine."""

REACH_MM = 8.0
"""A piece of bone that comes nowhere this near to the coarse mask of a vertebra of its colour is something else."""

SPECK_ML = 0.06
"""Smaller detached parts are noise, not fragments."""

Refine = Callable[[Any], dict[str, Any]]
"""x [B, d, h, w, 11] at 2 mm -> {"logits" [B, 2 d, 2 h, 2 w, 4]} at 1 mm: background and the colours 0, 1, 2."""


@dataclasses.dataclass(frozen=True, eq=False)
class Fine:
    """Colours of bone in the spine's box.

    Attributes:
        box: the box, as slices of the volume.
        probabilities: float32 [4, d, h, w]; background, colours 0, 1, 2.
        grid: of `probabilities`, 1 mm.
        owner: int16 [3, d', h', w']; which instance (index + 1) bone of each colour belongs to at a place: the nearest
            of that colour, 0 where there is none.
        owner_grid: of `owner`, 4 mm.
    """

    box: tuple[slice, slice, slice]
    probabilities: np.ndarray
    grid: Grid
    owner: np.ndarray
    owner_grid: Grid


def see_bone(
    refine: Refine,
    volume: Volume,
    bone: np.ndarray,
    index: np.ndarray,
    levels: np.ndarray,
    coarse: Grid,
    *,
    window: Sequence[int],
    overlap: float,
    batch: int,
) -> Fine:
    """Runs the fine network along the named vertebrae.

    Args:
        refine: see `Refine`.
        volume: the study.
        bone: float32 [d, h, w]; coarse probability of any vertebra.
        index: int16 [d, h, w]; coarse instances, index + 1.
        levels: int [n]; of each instance, -1 for none.
        coarse: the grid of both.
        window: of the network's input, voxels of 2 mm.
        overlap: of neighbouring windows.
        batch: windows at a time.
    """
    colour = np.concatenate(([-1], np.where(levels >= 0, levels % COLOURS, -1)))[index]  # -1: no named instance
    box, grid = crop_round(colour >= 0, coarse, volume)
    packed = grid.packed()
    image = pack(normalise(regrid(volume.hu[box], volume.spacing_mm, SPACING_MM)))
    at = [positions(packed, coarse, axis) for axis in range(3)]
    halo = _halo(colour, coarse)
    hints = np.stack([bone * (halo == c) for c in range(COLOURS)], axis=-1)  # [d, h, w, 3]
    for axis in range(3):
        hints = interpolate(hints, at[axis], axis)
    near = ndimage.binary_dilation(hints.max(axis=-1) > 0.05, iterations=2)  # 4 mm
    logits = slide(
        lambda x: refine(x)["logits"],
        np.concatenate((image, hints), axis=-1),
        window,
        starts_over(near, window, overlap),
        batch=batch,
        fill=np.array([PADDING] * 8 + [0.0] * COLOURS, np.float32),
        default=np.array([20.0] + [0.0] * COLOURS, np.float32),
    )
    d, h, w = grid.shape  # without what packing added to odd sides
    probabilities = np.ascontiguousarray(np.moveaxis(softmax(logits[:d, :h, :w]), -1, 0))
    owner, far, owner_grid = _owners(index, colour, coarse, grid)
    fine = Fine(box, probabilities, grid, owner, owner_grid)
    _clean(fine, far)
    return fine


def positions(of: Grid, on: Grid, axis: int) -> np.ndarray:
    """float64 [n]: where the voxels of one grid lie on another along an axis."""
    return (of.origin[axis] + np.arange(of.shape[axis]) * of.step[axis] - on.origin[axis]) / on.step[axis]


def interpolate(array: np.ndarray, at: np.ndarray, axis: int) -> np.ndarray:
    """Linear interpolation at positions `at` along an axis; edges repeat.

    By gathering, not by a matrix product: on planes this small, and beside other work, threads of a BLAS wait for each
    other many times longer than they compute.
    """
    last = array.shape[axis] - 1
    at = np.clip(at, 0, last)
    below = np.minimum(at.astype(int), max(last - 1, 0))
    part = (at - below).astype(np.float32).reshape([-1 if k == axis % array.ndim else 1 for k in range(array.ndim)])
    low = array.take(below, axis)
    high = array.take(np.minimum(below + 1, last), axis)
    high -= low
    high *= part
    high += low
    return high


def nearest(at: np.ndarray, n: int) -> np.ndarray:
    """The nearest voxel of an axis of n voxels."""
    return np.clip(np.rint(at).astype(int), 0, n - 1)


def crop_round(mask: np.ndarray, coarse: Grid, volume: Volume) -> tuple[tuple[slice, slice, slice], Grid]:
    """The box of a coarse mask with `MARGIN_MM` around it, as slices of the volume, and the 1 mm grid over it."""
    found = ndimage.find_objects(mask.astype(np.uint8))[0]
    low = coarse.to_volume([side.start - 0.5 for side in found]) - MARGIN_MM / np.asarray(volume.spacing_mm)
    high = coarse.to_volume([side.stop - 0.5 for side in found]) + MARGIN_MM / np.asarray(volume.spacing_mm)
    sides = [
        slice(max(0, int(np.floor(a))), min(n, int(np.ceil(b)) + 1))
        for a, b, n in zip(low, high, volume.shape, strict=True)
    ]
    shape, start = [side.stop - side.start for side in sides], [side.start for side in sides]
    return (sides[0], sides[1], sides[2]), regridded(shape, volume.spacing_mm, SPACING_MM, start)


def _halo(colour: np.ndarray, coarse: Grid) -> np.ndarray:
    """The colour of the nearest instance, within `REACH_MM`; -1 elsewhere. Faint bone at the rims is part of a hint."""
    distance, where = ndimage.distance_transform_edt(colour < 0, sampling=coarse.spacing_mm, return_indices=True)  # type: ignore[misc]
    return np.where(distance <= REACH_MM, colour[tuple(where)], -1)


def _owners(index: np.ndarray, colour: np.ndarray, coarse: Grid, grid: Grid) -> tuple[np.ndarray, np.ndarray, Grid]:
    """For each colour the nearest instance that has it, over the part of the coarse grid that holds `grid`.

    Returns:
        Owner int16 [3, d, h, w]; whether it is further than `REACH_MM`, bool of the same shape; their grid.
    """
    parts = []
    for axis in range(3):
        at = positions(grid, coarse, axis)[[0, -1]]
        parts.append(slice(max(0, int(np.floor(at[0]))), min(coarse.shape[axis], int(np.ceil(at[1])) + 1)))
    part = tuple(parts)
    index, colour = index[part], colour[part]
    owner = np.zeros((COLOURS, *index.shape), np.int16)
    far = np.ones(owner.shape, bool)
    for c in range(COLOURS):
        if (colour == c).any():
            distance, where = ndimage.distance_transform_edt(
                colour != c, sampling=coarse.spacing_mm, return_indices=True
            )  # type: ignore[misc]
            owner[c], far[c] = index[tuple(where)], distance > REACH_MM
    origin = tuple(float(o) for o in coarse.to_volume([side.start for side in parts]))
    return owner, far, dataclasses.replace(coarse, shape=index.shape, origin=origin)


def _clean(fine: Fine, far: np.ndarray) -> None:
    """Gives to the background, in place, bone without an owner, specks, and pieces that are `far` all over."""
    p = fine.probabilities
    rows = np.ix_(
        *(nearest(positions(fine.grid, fine.owner_grid, axis), fine.owner_grid.shape[axis]) for axis in range(3))
    )
    best = p.argmax(axis=0)
    fewest = SPECK_ML * 1000 / np.prod(fine.grid.spacing_mm)
    for c in range(COLOURS):
        owner = fine.owner[c][rows]
        close = ~far[c][rows]
        gone = owner == 0
        mine = np.where(best == 1 + c, owner, 0)
        for number, box in enumerate(ndimage.find_objects(mine), start=1):
            if box is None:
                continue
            parts, _ = ndimage.label(mine[box] == number)  # type: ignore[misc]
            sizes = np.bincount(parts.ravel())
            near = np.bincount(parts.ravel(), close[box].ravel())
            away = (sizes < fewest) | (near == 0)
            away[0] = False
            gone[box] |= away[parts]
        p[0][gone] += p[1 + c][gone]
        p[1 + c][gone] = 0
