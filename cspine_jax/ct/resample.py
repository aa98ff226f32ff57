"""An uneven or tilted stack -> a regular one: missing slices interpolated and listed, sideways drift taken out."""

import numpy as np

from cspine_jax.ct import limits
from cspine_jax.ct.geometry import UNEVEN, Stack
from cspine_jax.ct.hu import AIR_HU
from cspine_jax.ct.volume import Resampling
from cspine_jax.errors import StudyError

_SNAP = 0.05
"""A grid position this close to a stored slice (in slice spacings) takes that slice as it is."""


def plan(stack: Stack, where: str) -> tuple[Resampling | None, np.ndarray, list[str]]:
    """Decides how a stack becomes regular.

    Args:
        stack: ordered slices.
        where: the study's folder, for messages.

    Returns:
        The resampling (None where the stack is regular already), the affine [4, 4] of the result with axes
        (slice, row, column), and warnings that list every gap and the tilt.

    Raises:
        StudyError: the slices are too far apart to be one volume.
    """
    if stack.even and not stack.tilted:
        return None, stack.affine, []
    n, (rows, columns) = len(stack.headers), (stack.headers[0].rows, stack.headers[0].columns)
    notes: list[str] = []
    gaps: tuple[str, ...] = ()
    source, spacing = np.arange(n, dtype=float), stack.spacing_mm
    if not stack.even:
        spacing, gaps = _gaps(stack)
        count = round(float(stack.depths[-1]) / spacing) + 1
        if count > 4 * n + 16:
            raise StudyError(
                f"{where}: {n} slices spread over {stack.depths[-1]:.0f} mm at a spacing of {spacing:.3g} mm: most "
                "of the study is missing; export it again"
            )
        source = np.interp(np.arange(count) * spacing, stack.depths, source)
        nearest = np.rint(source)
        # Distances in mm, not in slices: across a wide gap 0.05 slices are far.
        away = np.abs(stack.depths[nearest.astype(int)] - np.arange(count) * spacing)
        source = np.where(away <= _SNAP * spacing, nearest, source)
        made = int((source != np.rint(source)).sum())
        notes.extend(f"uneven spacing: {gap}" for gap in gaps)
        notes.append(f"resampled onto a regular grid of {spacing:.4g} mm: {made} of {count} slices interpolated")
    shift = np.zeros((n, 2))
    low, high = np.zeros(2), np.zeros(2)
    if stack.tilted:
        low, high = np.floor(stack.drift.min(axis=0)), stack.drift.max(axis=0)
        shift = stack.drift - low
        notes.append(
            f"gantry tilt {stack.tilt_degrees:.1f} degrees: each slice shifted in its plane onto an orthogonal grid "
            f"(linear interpolation; the image grew to {rows + int(np.ceil(high[0] - low[0]))} x "
            f"{columns + int(np.ceil(high[1] - low[1]))} pixels)"
        )
    shape = (len(source), rows + int(np.ceil(high[0] - low[0])), columns + int(np.ceil(high[1] - low[1])))
    if max(shape[1:]) > 2 * limits.MAX_SIDE or 2 * shape[0] * shape[1] * shape[2] > limits.MAX_VOLUME_BYTES:
        raise StudyError(
            f"{where}: slices drift {np.abs(high - low).max():.0f} pixels sideways; export the study again"
        )
    affine = stack.affine
    affine[:3, 0] = stack.directions[0] * spacing
    if not stack.tilted:  # a drift below half a pixel stays in the affine
        affine[:3, 0] = stack.affine[:3, 0] * (spacing / stack.spacing_mm)
    affine[:3, 3] += affine[:3, 1] * low[0] + affine[:3, 2] * low[1]
    return Resampling(source, shift, shape, gaps, stack.tilt_degrees if stack.tilted else 0.0), affine, notes


def _gaps(stack: Stack) -> tuple[float, tuple[str, ...]]:
    """The spacing of the regular grid (the finest that is common in the stack) and the gaps that differ from it."""
    gaps = np.diff(stack.depths)
    finest = float(np.quantile(gaps, 0.1, method="lower"))  # one of the gaps, never a value between two
    spacing = float(gaps[np.abs(gaps - finest) <= 0.2 * finest].mean())
    odd = np.flatnonzero(np.abs(gaps - spacing) > UNEVEN * spacing)
    return spacing, tuple(
        f"{gaps[i]:.4g} mm instead of {spacing:.4g} between {stack.headers[i].name} and {stack.headers[i + 1].name}"
        for i in odd
    )


def apply(resampling: Resampling, stack: np.ndarray) -> np.ndarray:
    """Resamples HU, linearly.

    Args:
        resampling: what `plan` decided.
        stack: int16 [n, rows, columns].

    Returns:
        int16 [D, H, W]; outside the stored images it holds `AIR_HU`.
    """
    out = np.empty(resampling.shape, np.int16)
    for k, at in enumerate(resampling.source):
        below = int(at)
        part = at - below
        plane = _shifted(stack[below], resampling.shift[below], resampling.shape[1:])
        if part:
            above = _shifted(stack[below + 1], resampling.shift[below + 1], resampling.shape[1:])
            plane = plane * (1 - part) + above * part
        out[k] = np.rint(plane)
    return out


def apply_nearest(resampling: Resampling, stack: np.ndarray, fill: int = 0) -> np.ndarray:
    """Resamples labels [n, rows, columns] to the nearest voxel: the twin of `apply` for masks."""
    out = np.full(resampling.shape, fill, stack.dtype)
    rows, columns = stack.shape[1:]
    for k, at in enumerate(np.rint(resampling.source).astype(int)):
        down, right = np.rint(resampling.shift[at]).astype(int)
        out[k, down : down + rows, right : right + columns] = stack[at]
    return out


def _shifted(image: np.ndarray, shift: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The image on a larger canvas, moved by a fraction of pixels along both axes; float32."""
    out = np.full(shape, AIR_HU, np.float32)
    down, right = (int(value) for value in np.floor(shift))
    part = shift - (down, right)
    moved = image.astype(np.float32)
    for axis, fraction in enumerate(part):
        if fraction > 1e-6:
            pad = [(0, 0), (0, 0)]
            pad[axis] = (1, 1)
            padded = np.pad(moved, pad, mode="edge")  # mixed with air, the rim would turn dark
            first, second = (padded[1:], padded[:-1]) if axis == 0 else (padded[:, 1:], padded[:, :-1])
            moved = first * np.float32(1 - fraction) + second * np.float32(fraction)
    rows, columns = min(moved.shape[0], shape[0] - down), min(moved.shape[1], shape[1] - right)
    out[down : down + rows, right : right + columns] = moved[:rows, :columns]
    return out
