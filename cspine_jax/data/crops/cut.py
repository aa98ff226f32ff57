"""Crops of one vertebra: where its planes lie, and what is on them. numpy only.

Everything is in the study's array axes (z, y, x) = (towards the feet, the back, the patient's left). Millimetres are
measured from voxel (0, 0, 0). A crop is planned first (`plan`: a few numbers) and sampled later (`sample`: pixels).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.ndimage
import scipy.sparse

from cspine_jax.data.crops.layout import CropLayout

AIR_HU = -1000
STEEPEST = 60.0
"""Degrees between spine and z axis up to which a direction is believed; beyond, centroids are of something else."""

STRAY = 0.01
"""Share of a label's voxels up to which what lies apart from the rest is a slip of the pencil."""

_HU_MIN, _HU_MAX = np.iinfo(np.int16).min, np.iinfo(np.int16).max
_REACH = 2  # levels up and down in which a neighbour is looked for


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Where the crop of one vertebra lies.

    Attributes:
        level: 1..7, its label in the mask.
        origin: float64 [S, 3]; centre of pixel (0, 0) of each plane, in voxels (z, y, x).
        axes: float64 [3, 3]; one neighbour, one row and one column further, in voxels (z, y, x).
        spacing_mm: float64 [3]; the lengths of `axes`.
        slice_index: float64 [S]; where the centre of each plane lies in the study.
        complete: the mask touches no face of the volume. One that does may go on outside.
    """

    level: int
    origin: np.ndarray
    axes: np.ndarray
    spacing_mm: np.ndarray
    slice_index: np.ndarray
    complete: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """A label of a mask.

    Attributes:
        box: of its voxels, short of stray ones (`STRAY`).
        centre: float64 [3]; mean of those in it (z, y, x).
    """

    box: tuple[slice, ...]
    centre: np.ndarray


def look(mask: np.ndarray) -> dict[int, Seen]:
    """The labels that a mask shows, ascending.

    Args:
        mask: uint8 [D, H, W]; 1..7 C1..C7, 8..19 T1..T12.
    """
    boxes = scipy.ndimage.find_objects(mask)
    seen = {}
    for label, whole in enumerate(boxes, start=1):
        if whole is not None:
            box = _without_strays(mask, label, whole)
            seen[label] = Seen(box, _voxels(mask, label, box).mean(0))
    return seen


def _without_strays(mask: np.ndarray, label: int, box: tuple[slice, ...]) -> tuple[slice, ...]:
    """The box without what empty planes part from the rest at its ends, if that is next to nothing.

    One voxel that a reader left a few slices away would move all planes of the crop and make its pixels larger.
    """
    there = mask[box] == label
    for axis in (0, 1, 2) * 2:  # twice: cutting along one axis may open a gap along another
        others = tuple(a for a in range(3) if a != axis)
        filled = np.flatnonzero(there.any(others))
        gaps = np.flatnonzero(np.diff(filled) > 1)
        if not len(gaps):
            continue
        count = there.sum(others)
        runs, spare = np.split(filled, gaps + 1), STRAY * count.sum()
        while len(runs) > 1:
            end = 0 if count[runs[0]].sum() <= count[runs[-1]].sum() else -1
            spare -= count[runs[end]].sum()
            if spare < 0:
                break
            del runs[end]
        low, high = int(runs[0][0]), int(runs[-1][-1]) + 1
        there = there[tuple(slice(low, high) if a == axis else slice(None) for a in range(3))]
        box = tuple(slice(s.start + low, s.start + high) if a == axis else s for a, s in enumerate(box))
    return box


def _voxels(mask: np.ndarray, label: int, box: tuple[slice, ...]) -> np.ndarray:
    """int64 [n, 3] (z, y, x) of a label."""
    return np.argwhere(mask[box] == label) + [side.start for side in box]


def plan(mask: np.ndarray, spacing_mm: np.ndarray, level: int, layout: CropLayout, seen: Mapping[int, Seen]) -> Plan:
    """Where the crop of a vertebra lies.

    Args:
        mask: uint8 [D, H, W] labels; `level` is among them.
        spacing_mm: [3] (z, y, x) of its voxels.
        level: 1..7.
        layout: of the crops.
        seen: `look(mask)`.
    """
    spacing = np.asarray(spacing_mm, np.float64)
    box = seen[level].box
    complete = not any(a.start == 0 or a.stop == n for a, n in zip(box, mask.shape, strict=True))
    points = _voxels(mask, level, box) * spacing
    centres = {label: one.centre * spacing for label, one in seen.items()}
    frame = _frame(points, level, centres) if layout.oriented else None
    turn = np.eye(3) if frame is None else frame  # rows: directions of planes, rows and columns, in mm
    along = points @ turn.T
    low, high = along.min(0), along.max(0)
    width = np.abs(turn) @ spacing  # of a voxel along each direction

    if frame is None:
        depth = np.rint(_spaced(box[0].start, box[0].stop - 1, layout.positions)) * spacing[0]
    else:
        # Half a voxel inside the outermost voxel centres: there a tilted plane still cuts all of a flat end face.
        inset = min(width[0] / 2, (high[0] - low[0]) / 2)
        depth = _spaced(low[0] + inset, high[0] - inset, layout.positions)

    sides = (high - low + width)[1:]
    field = sides.max() * (1 + 2 * layout.margin)
    pixel = field / layout.size
    corner = (low + high)[1:] / 2 - field / 2 + pixel / 2
    steps = np.array([layout.stride or spacing[0], pixel, pixel])
    middle = (low + high)[1:] / 2
    origin = np.concatenate([depth[:, None], np.broadcast_to(corner, (len(depth), 2))], axis=1) @ turn
    centre = np.concatenate([depth[:, None], np.broadcast_to(middle, (len(depth), 2))], axis=1) @ turn
    return Plan(
        level=level,
        origin=origin / spacing,
        axes=turn * steps[:, None] / spacing,
        spacing_mm=steps,
        slice_index=centre[:, 0] / spacing[0],
        complete=complete,
    )


def sample(hu: np.ndarray, mask: np.ndarray, where: Plan, layout: CropLayout) -> tuple[np.ndarray, np.ndarray]:
    """The pixels of a planned crop.

    Linear for HU, with antialiasing where pixels are larger than voxels; nearest for the mask. Beyond the image in
    plane there is air; beyond the first and the last slice these repeat, as in stacks of slices, but no mask does.

    Args:
        hu: int16 [D, H, W].
        mask: uint8 [D, H, W] labels.
        where: from `plan`.
        layout: of the crops.

    Returns:
        (int16 [S, size, size, 2 radius + 1] HU, superior neighbour first; uint8 [S, size, size], 1 on the vertebra).
    """
    return (_sample_oriented if layout.oriented else _sample_slices)(hu, mask, where, layout)


def boxed(mask: np.ndarray, boxes: Sequence[np.ndarray], where: Plan, radius: int) -> np.ndarray:
    """Where, on each position of a planned crop, boxes show a break of its vertebra.

    A break along the slices is on one or two of them, which thin slices put between the positions. So a box counts for
    the position (or two) whose plane is nearest to its centre, if that one's neighbours reach it; and in any case for a
    plane that is at most half a slice away.

    Args:
        mask: uint8 [D, H, W] labels.
        boxes: D arrays [n, 4] of (x, y, width, height) in pixels; pixel (row, column) is from there to one further.
        where: from `plan`.
        radius: neighbours shown on each side of a plane.

    Returns:
        float32 [S, 4]: top, left, bottom and right, in pixels of the crop (pixel k is from k to k + 1), of the smallest
        rectangle about a position's boxes that overlap a pixel of the vertebra on their slice; zeros where there is
        none. On a tilted plane it is the rectangle about their projection along the spine.
    """
    found = np.zeros((len(where.origin), 4), np.float32)
    shown = [
        (row, y, x, y + h, x + w)
        for row, on_slice in enumerate(boxes)
        for x, y, w, h in on_slice
        if (mask[row, _covered(y, h), _covered(x, w)] == where.level).any()
    ]
    if not shown:
        return found
    corners = np.array([[(row, y, x) for y in (a, c) for x in (b, d)] for row, a, b, c, d in shown], np.float64)
    corners[..., 1:] -= 0.5  # edges, as voxels count: from their centres
    to_crop = np.linalg.inv(where.axes)
    inside = (corners - where.origin[:, None, None]) @ to_crop  # [S, boxes, 4 corners, (neighbours, rows, columns)]
    apart, slack = np.abs(inside[..., 0].mean(2)), 1e-6  # what is halfway between two positions is of both
    near = (apart <= apart.min(0) + slack) & (apart <= radius + slack)
    near |= apart <= abs(to_crop[0, 0]) / 2 + slack
    for position in np.flatnonzero(near.any(1)):
        plane = inside[position, near[position], :, 1:].reshape(-1, 2) + 0.5
        found[position] = [*plane.min(0), *plane.max(0)]
    return found


def _covered(start: float, length: float) -> slice:
    """The pixels that an interval overlaps."""
    return slice(max(0, int(np.floor(start))), max(0, int(np.ceil(start + length))))


def _spaced(first: float, last: float, count: int) -> np.ndarray:
    """float64 [count] from first to last; one alone is in the middle."""
    return np.linspace(first, last, count) if count > 1 else np.array([(first + last) / 2])


def _frame(points: np.ndarray, level: int, centres_mm: Mapping[int, np.ndarray]) -> np.ndarray:
    """float64 [3, 3]: rows are the spine's direction, and y and x turned with it by the smallest rotation.

    The direction is that of the line through the centroids of the next levels above and below (the vertebra's own
    where there is none on a side). A vertebra on its own gives the principal axis of its voxels that is nearest to z.
    """
    above = next((centres_mm[n] for n in range(level - 1, level - 1 - _REACH, -1) if n in centres_mm), None)
    below = next((centres_mm[n] for n in range(level + 1, level + 1 + _REACH) if n in centres_mm), None)
    if above is None and below is None:
        spread = np.cov(points.T) if len(points) > 1 else np.eye(3)
        vectors = np.linalg.eigh(spread)[1].T
        direction = vectors[np.argmax(np.abs(vectors[:, 0]))]
        direction = direction if direction[0] > 0 else -direction
    else:
        own = centres_mm[level]
        direction = (own if below is None else below) - (own if above is None else above)
    length = np.linalg.norm(direction)
    if length == 0 or direction[0] / length < np.cos(np.radians(STEEPEST)):
        return np.eye(3)
    return _turned(direction / length)


def _turned(direction: np.ndarray) -> np.ndarray:
    """The smallest rotation that takes (1, 0, 0) to `direction` (unit, first component positive), as rows."""
    z, side = direction[0], direction[1:]
    turn = np.eye(3)
    turn[0] = direction
    turn[1:, 0] = -side
    turn[1:, 1:] -= np.outer(side, side) / (1 + z)
    return turn


def _sample_slices(hu: np.ndarray, mask: np.ndarray, where: Plan, layout: CropLayout) -> tuple[np.ndarray, np.ndarray]:
    size, depth = layout.size, len(hu)
    reach = np.arange(-layout.radius, layout.radius + 1) * where.axes[0, 0]
    planes = where.origin[:, :1] + reach  # [S, neighbours], in slices
    planes = np.clip(np.round(planes, 6), 0, depth - 1)  # whole slices are whole: millimetres and back may be off a bit
    base = np.floor(planes).astype(int)
    share = (planes - base).astype(np.float32)
    after = np.minimum(base + 1, depth - 1)
    needed = np.unique(np.concatenate([base.ravel(), after[share > 0]]))

    (rows, inner_rows) = _field(hu.shape[1], where.origin[0, 1], where.axes[1, 1], size)
    (columns, inner_columns) = _field(hu.shape[2], where.origin[0, 2], where.axes[2, 2], size)
    flat = np.empty((len(needed), size, size), np.float32)
    for target, number in zip(flat, needed, strict=True):
        # Air is zero here, so that weights which fall beyond the image stand for air.
        source = hu[number, inner_rows, inner_columns].astype(np.float32) - AIR_HU
        target[:] = (columns @ (rows @ source).T).T
    image = np.empty((layout.positions, size, size, layout.channels), np.int16)
    lower, upper = np.searchsorted(needed, base), np.searchsorted(needed, np.where(share > 0, after, base))
    for position, channel in np.ndindex(planes.shape):
        one, other, part = flat[lower[position, channel]], flat[upper[position, channel]], share[position, channel]
        mixed = one if part == 0 else one * (1 - part) + other * part
        image[position, :, :, channel] = np.clip(np.rint(mixed + AIR_HU), _HU_MIN, _HU_MAX)

    return image, _nearest(mask, where, layout)


def _field(length: int, start: float, step: float, size: int) -> tuple[scipy.sparse.csr_array, slice]:
    """Weights of one axis: [size, n] float32, and which n of the `length` source pixels they are for.

    Linear, widened to a triangle filter where pixels grow, as in `data.resize`; but beyond the image a row sums to less
    than 1 by what it would take from there.
    """
    width = max(step, 1.0)
    at = start + np.arange(size) * step
    low = int(np.clip(np.floor(at[0] - width), 0, length - 1))
    high = int(np.clip(np.ceil(at[-1] + width) + 1, low + 1, length))
    reach = int(np.ceil(width))
    near = np.rint(at).astype(int)[:, None] + np.arange(-reach - 1, reach + 2)  # all that can have a weight
    weights = np.maximum(0.0, 1.0 - np.abs(near - at[:, None]) / width)
    weights /= weights.sum(1, keepdims=True)
    keep = (weights > 0) & (near >= low) & (near < high)
    row = np.broadcast_to(np.arange(size)[:, None], near.shape)
    matrix = scipy.sparse.csr_array(
        (weights[keep].astype(np.float32), (row[keep], near[keep] - low)), shape=(size, high - low)
    )
    return matrix, slice(low, high)


def _sample_oriented(
    hu: np.ndarray, mask: np.ndarray, where: Plan, layout: CropLayout
) -> tuple[np.ndarray, np.ndarray]:
    size = layout.size
    # Pixels larger than voxels: the mean of `fine` x `fine` samples a pixel.
    spacing = where.spacing_mm / np.linalg.norm(where.axes, axis=1)
    fine = max(1, round(where.spacing_mm[1] / float(spacing[1:].min())))
    inner = (np.arange(size * fine) + 0.5) / fine - 0.5
    plane = inner[:, None, None] * where.axes[1] + inner[None, :, None] * where.axes[2]  # [h, w, 3]
    image = np.empty((layout.positions, size, size, layout.channels), np.int16)
    for position, origin in enumerate(where.origin):
        for channel in range(layout.channels):
            at = plane + (origin + (channel - layout.radius) * where.axes[0])
            at[..., 0] = np.clip(at[..., 0], 0, len(hu) - 1)
            values = scipy.ndimage.map_coordinates(
                hu, np.moveaxis(at, -1, 0), np.float32, order=1, mode="grid-constant", cval=AIR_HU
            )
            values = values.reshape(size, fine, size, fine).mean((1, 3))
            image[position, :, :, channel] = np.clip(np.rint(values), _HU_MIN, _HU_MAX)
    return image, _nearest(mask, where, layout)


def _nearest(mask: np.ndarray, where: Plan, layout: CropLayout) -> np.ndarray:
    """uint8 [S, size, size]: 1 where the nearest voxel is the vertebra; 0 beyond the volume."""
    steps = np.arange(layout.size)
    plane = steps[:, None, None] * where.axes[1] + steps[None, :, None] * where.axes[2]
    out = np.empty(layout.shape, np.uint8)
    limit = np.array(mask.shape)
    for target, origin in zip(out, where.origin, strict=True):
        # Halfway is up, though spacings may differ in the seventh digit: DICOM has decimals, NIfTI single precision.
        voxel = np.floor(np.round(plane + origin, 3) + 0.5).astype(int)
        inside = ((voxel >= 0) & (voxel < limit)).all(-1)
        z, y, x = np.moveaxis(np.clip(voxel, 0, limit - 1), -1, 0)
        target[:] = (mask[z, y, x] == where.level) & inside
    return out
