"""A network that takes one size of window, over a grid of any size: overlapping windows, Gaussian weights.

The weights are those of Isensee et al. 2021 (nnU-Net): a voxel counts most for the window in whose middle it lies,
where the network sees its surroundings on all sides.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SIGMA = 1 / 8
"""Of the Gaussian, in window sides."""

FLOOR = 1e-3
"""Least weight, so that a corner seen by a single window is still divided by a sound number."""

ROUND = 16
"""Grids are padded to multiples of this on the device, so that studies share what is compiled."""


def gaussian(window: Sequence[int]) -> np.ndarray:
    """float32 [window]: 1 in the middle, never below `FLOOR`."""
    sides = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (SIGMA * n)) ** 2) for n in window]
    weights = sides[0][:, None, None] * sides[1][None, :, None] * sides[2][None, None, :]
    return np.maximum(weights / weights.max(), FLOOR).astype(np.float32)


def starts_along(length: int, window: int, overlap: float) -> list[int]:
    """First voxels of windows that cover an axis, evenly spread, overlapping by at least `overlap` of a window.

    An axis shorter than the window has the one start 0 (the input is padded).
    """
    if length <= window:
        return [0]
    step = max(window * (1 - overlap), 1.0)
    count = int(np.ceil((length - window) / step - 1e-9)) + 1
    return [round(at) for at in np.linspace(0, length - window, count)]


def grid_starts(shape: Sequence[int], window: Sequence[int], overlap: float) -> list[tuple[int, ...]]:
    """Windows over a whole grid."""
    axes = (starts_along(n, w, overlap) for n, w in zip(shape, window, strict=True))
    return list(itertools.product(*axes))


def starts_over(mask: np.ndarray, window: Sequence[int], overlap: float) -> list[tuple[int, ...]]:
    """Windows that follow a structure from slice to slice instead of filling its bounding box.

    Args:
        mask: bool [d, h, w]; where an answer is needed.
        window: size of a window.
        overlap: least overlap, share of a window.

    Returns:
        Starts of windows that cover every voxel of the mask; a window lies around its part of the mask as centrally
        as the grid allows.
    """
    found: list[tuple[int, ...]] = []
    rows = np.flatnonzero(mask.any(axis=(1, 2)))
    if not len(rows):
        return found
    for start in starts_along(int(rows[-1] - rows[0] + 1), window[0], overlap):
        z = _held(int(rows[0]) + start, mask.shape[0], window[0])
        slab = mask[z : z + window[0]].any(axis=0)
        sides = []
        for axis in (0, 1):
            there = np.flatnonzero(slab.any(axis=-1 if axis == 0 else 0))
            if not len(there):
                break
            low, length, size = int(there[0]), int(there[-1] - there[0] + 1), window[1 + axis]
            spare = max(size - length, 0) // 2
            starts = (low + at - spare for at in starts_along(length, size, overlap))
            sides.append([_held(at, mask.shape[1 + axis], size) for at in starts])
        else:
            found += [(z, y, x) for y, x in itertools.product(*sides)]
    return list(dict.fromkeys(found))


def _held(start: int, length: int, window: int) -> int:
    """A start moved so that the window lies in the grid where it can."""
    return max(0, min(start, length - window))


def slide(
    function: Callable[[Any], Any],
    grid: np.ndarray,
    window: Sequence[int],
    starts: Sequence[Sequence[int]] | None = None,
    *,
    overlap: float = 0.5,
    batch: int = 1,
    fill: np.ndarray | float = 0.0,
    default: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Runs a function of windows over a grid and averages what overlaps.

    The grid goes to the device once and the answer comes back once; windows are cut, run and added up there.

    Args:
        function: [batch, *window, channels] -> [batch, *(scale * window), classes]; always called with that one shape,
            so that it is compiled once. Any whole scale.
        grid: float [d, h, w, channels].
        window: (z, y, x).
        starts: first voxels of the windows; None for `grid_starts` over everything.
        overlap: of those.
        batch: windows at a time; the last batch is filled up by repeating its last window.
        fill: [channels] or a number; what lies outside the grid, where it is smaller than the window.
        default: [classes] or a number; the answer where no window lies.

    Returns:
        float32 [scale d, scale h, scale w, classes].
    """
    shape, window = grid.shape[:3], tuple(window)
    starts = grid_starts(shape, window, overlap) if starts is None else [tuple(start) for start in starts]
    if not starts:
        raise ValueError("no window: nothing to run the function on")
    room = tuple(-(-max(n, w) // ROUND) * ROUND for n, w in zip(shape, window, strict=True))
    whole = np.empty((*room, grid.shape[-1]), np.float32)
    whole[:] = fill
    whole[tuple(slice(n) for n in shape)] = grid
    on_device = jax.device_put(whole)
    soft, sums, scale = jnp.zeros(()), None, 1
    for first in range(0, len(starts), batch):
        some = np.array([starts[min(first + k, len(starts) - 1)] for k in range(batch)], np.int32)
        answers = jnp.asarray(function(_cut(on_device, some, window)), jnp.float32)
        if sums is None:
            scale = answers.shape[1] // window[0]
            soft = jax.device_put(gaussian([scale * w for w in window]))
            size = tuple(scale * n for n in room)
            sums = jnp.zeros((*size, answers.shape[-1]), jnp.float32), jnp.zeros((*size, 1), jnp.float32)
        fresh = (np.arange(batch) < len(starts) - first).astype(np.float32)
        sums = _add(sums, answers, soft, scale * some, fresh)
    assert sums is not None
    classes = sums[0].shape[-1]
    mean = np.asarray(_mean(sums, np.broadcast_to(np.asarray(default, np.float32), classes)))
    return mean[tuple(slice(scale * n) for n in shape)].copy()  # cut here: on the device each shape would be compiled


@functools.partial(jax.jit, static_argnums=2)
def _cut(grid: jax.Array, starts: jax.Array, window: tuple[int, ...]) -> jax.Array:
    size = (*window, grid.shape[-1])
    return jnp.stack([jax.lax.dynamic_slice(grid, (*start, 0), size) for start in starts])


@functools.partial(jax.jit, donate_argnums=0)
def _add(
    sums: tuple[jax.Array, jax.Array], answers: jax.Array, soft: jax.Array, starts: jax.Array, fresh: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Adds windows to (sum of weighted answers, sum of weights); those that are not `fresh` count nothing."""
    total, weights = sums
    for answer, start, counts in zip(answers, starts, fresh, strict=True):
        weight = counts * soft[..., None]
        at = (*start, 0)
        there = jax.lax.dynamic_slice(total, at, answer.shape)
        total = jax.lax.dynamic_update_slice(total, there + weight * answer, at)
        there = jax.lax.dynamic_slice(weights, at, weight.shape)
        weights = jax.lax.dynamic_update_slice(weights, there + weight, at)
    return total, weights


@jax.jit
def _mean(sums: tuple[jax.Array, jax.Array], default: jax.Array) -> jax.Array:
    total, weights = sums
    return jnp.where(weights > 0, total / jnp.maximum(weights, FLOOR * FLOOR), default[None, None, None])
