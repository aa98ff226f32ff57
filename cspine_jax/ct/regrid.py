"""Volumes on another spacing: separable, antialiased linear resampling, axis by axis.

A target axis has ceil(n s / t) voxels and shares its centre with the source axis, so that both cover the same extent
but for less than one target voxel.
"""

from collections.abc import Sequence

import numpy as np


def target_length(n: int, spacing: float, target: float) -> int:
    """Voxels of an axis of `n` voxels at `spacing` mm when brought to `target` mm."""
    return max(1, int(np.ceil(n * spacing / target - 1e-6)))


def source_positions(n: int, spacing: float, target: float, length: int | None = None) -> np.ndarray:
    """float64 [m]: where each target voxel's centre lies on the source axis, in source voxels (0 = first centre).

    Args:
        n: source voxels.
        spacing: of the source, mm.
        target: spacing of the target, mm.
        length: m; None for `target_length`.
    """
    m = target_length(n, spacing, target) if length is None else length
    return (np.arange(m) - (m - 1) / 2) * (target / spacing) + (n - 1) / 2


def axis_weights(n: int, spacing: float, target: float) -> np.ndarray:
    """float32 [m, n]: each target voxel as a weighted mean of source voxels.

    A triangle whose half width is one voxel of the coarser of the two grids (linear interpolation where the target is
    finer, its antialiased form where it is coarser); rows sum to 1, so edges repeat rather than fade.
    """
    at = source_positions(n, spacing, target)
    width = max(1.0, target / spacing)
    weights = np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(n)[None, :]) / width)
    empty = weights.sum(axis=1) == 0
    weights[empty, np.clip(np.rint(at[empty]).astype(int), 0, n - 1)] = 1.0
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def regrid(
    volume: np.ndarray,
    spacing_mm: Sequence[float],
    target_mm: Sequence[float] | float,
    bounds: tuple[float, float] | None = None,
) -> np.ndarray:
    """Resamples a volume.

    Args:
        volume: [D, H, W], any real dtype. For masks see `regrid_labels`.
        spacing_mm: of its axes (z, y, x).
        target_mm: wanted spacing, one for all axes or one each.
        bounds: values are clipped to these first, so that padding of -2000 HU does not bleed into its neighbours.

    Returns:
        float32 [D', H', W']. Memory: one plane at a time, no float copy of the source.
    """
    goal = np.broadcast_to(np.asarray(target_mm, float), 3)
    wz, wy, wx = (axis_weights(n, s, t) for n, s, t in zip(volume.shape, spacing_mm, goal, strict=True))
    planes = np.empty((volume.shape[0], len(wy), len(wx)), np.float32)
    right = np.ascontiguousarray(wx.T)
    for k, plane in enumerate(volume):
        values = plane.astype(np.float32) if bounds is None else np.clip(plane, *bounds, dtype=np.float32)
        planes[k] = wy @ (values @ right)
    return (wz @ planes.reshape(len(planes), -1)).reshape(len(wz), len(wy), len(wx))


def regrid_labels(labels: np.ndarray, spacing_mm: Sequence[float], target_mm: Sequence[float] | float) -> np.ndarray:
    """Labels [D, H, W] on another spacing, each target voxel that of the nearest source voxel."""
    goal = np.broadcast_to(np.asarray(target_mm, float), 3)
    rows = [
        np.clip(np.rint(source_positions(n, s, t)).astype(int), 0, n - 1)
        for n, s, t in zip(labels.shape, spacing_mm, goal, strict=True)
    ]
    return labels[np.ix_(*rows)]
