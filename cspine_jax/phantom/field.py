"""From shapes to voxels: the sampling grid, local frames, and a bone's distance field inside its own box."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from cspine_jax.phantom.plan import Acquisition
from cspine_jax.phantom.shapes import Bone, Part, smooth_max, smooth_min

FAR = np.float32(6.0)
"""Distance (mm) far from every part: beyond it nothing is blended or painted."""

Box = tuple[slice, slice, slice]


@dataclasses.dataclass(frozen=True)
class Frame:
    """Where a bone sits: `patient = origin + rotation @ (scale * local)`, mm."""

    origin: np.ndarray
    rotation: np.ndarray
    scale: float

    def to_patient(self, local: np.ndarray) -> np.ndarray:
        """Patient coordinates [..., 3] of local points [..., 3]."""
        return self.origin + (self.scale * np.asarray(local, np.float64)) @ self.rotation.T


class Grid:
    """Sample positions: pixels in plane, and `sub` planes inside each slice that are averaged to its thickness."""

    def __init__(self, acquisition: Acquisition):
        """Lays the samples of an acquisition out in the patient frame."""
        q = acquisition
        thickness = max(q.thickness_mm, 0.1)
        self.sub = int(np.clip(round(thickness / 1.25), 1, 4))
        offsets = thickness * ((np.arange(self.sub) + 0.5) / self.sub - 0.5)
        middle = q.top_mm - q.spacing_mm * np.arange(q.slices)
        self.z = (middle[:, None] - offsets[None, :]).ravel().astype(np.float32)
        pixels = (np.arange(q.size) - (q.size - 1) / 2) * q.pixel_mm
        self.x = (pixels + q.centre_mm[0]).astype(np.float32)
        self.y = (pixels + q.centre_mm[1]).astype(np.float32)
        self.shape = (q.slices, q.size, q.size)
        self.pixel = q.pixel_mm
        self.spacing = q.spacing_mm
        self.width = np.float32(max(q.pixel_mm, 0.8 * thickness / self.sub))
        """Antialiasing width in mm."""

    def box(self, low: np.ndarray, high: np.ndarray) -> Box | None:
        """Index box (z counts sub-planes, whole slices) of the patient-frame box low..high; None outside the image."""
        x = np.searchsorted(self.x, (low[0], high[0]))
        y = np.searchsorted(self.y, (low[1], high[1]))
        z = np.searchsorted(-self.z, (-high[2], -low[2]))
        z0, z1 = z[0] // self.sub * self.sub, -(-z[1] // self.sub) * self.sub
        if x[0] >= x[1] or y[0] >= y[1] or z0 >= z1:
            return None
        return slice(z0, z1), slice(y[0], y[1]), slice(x[0], x[1])


def corners(low, high) -> np.ndarray:
    """The eight corners [8, 3] of a box."""
    return np.stack(np.meshgrid(*zip(low, high, strict=True), indexing="ij"), axis=-1).reshape(8, 3)


class Field:
    """A bone's signed distance (local mm) and cortical thickness on its own box of the grid.

    Attributes:
        box: index box in the grid.
        x, y, z: local coordinates, float32 [d, h, w].
        distance: float32 [d, h, w], negative inside.
        shell: float32 [d, h, w], cortical thickness in mm.
    """

    def __init__(self, grid: Grid, frame: Frame, low, high, box: Box):
        """Local coordinates over `box`; `low`, `high` is the bone's local bounding box."""
        self.grid, self.frame, self.box, self.low, self.high = grid, frame, box, low, high
        m = (frame.rotation.T / frame.scale).astype(np.float32)
        sx, sy, sz = (grid.x[box[2]], grid.y[box[1]], grid.z[box[0]])
        o = frame.origin.astype(np.float32)
        px, py, pz = (sx - o[0])[None, None, :], (sy - o[1])[None, :, None], (sz - o[2])[:, None, None]
        self.x, self.y, self.z = (m[i, 0] * px + m[i, 1] * py + m[i, 2] * pz for i in range(3))
        self._shape: tuple[np.ndarray, np.ndarray, np.ndarray] = (self.x, self.y, self.z)
        self.distance: np.ndarray = np.full(self.x.shape, FAR, np.float32)
        self.shell = np.full(self.x.shape, np.float32(1.2))

    @classmethod
    def create(cls, grid: Grid, frame: Frame, low, high) -> "Field | None":
        """The field over a local bounding box, None where that lies outside the image."""
        points = frame.to_patient(corners(low, high))
        box = grid.box(points.min(axis=0), points.max(axis=0))
        return None if box is None else cls(grid, frame, low, high, box)

    def within(self, low, high) -> Box | None:
        """Index box relative to this field of a local bounding box."""
        points = self.frame.to_patient(corners(low, high))
        box = self.grid.box(points.min(axis=0), points.max(axis=0))
        return None if box is None else relative(box, self.box)

    def shape_coordinates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Coordinates that parts are evaluated at, to be displaced in place before parts are added (fragments)."""
        if self._shape[0] is self.x:
            self._shape = (self.x.copy(), self.y.copy(), self.z.copy())
        return self._shape

    def add(self, part: Part) -> None:
        """Joins a part on, with its fillet."""
        box = self.within(part.low, part.high)
        if box is None:
            return
        new = part.distance(*(v[box] for v in self._shape))
        old = self.distance[box]
        np.copyto(self.shell[box], np.float32(part.shell), where=new < old)
        self.distance[box] = smooth_min(old, new, part.blend)

    def cut(self, part: Part) -> None:
        """Takes a part away, with a rounded edge."""
        box = self.within(part.low, part.high)
        if box is None:
            return
        new = part.distance(*(v[box] for v in self._shape))
        self.distance[box] = smooth_max(self.distance[box], -new, part.blend)

    def keep_clear(self, other: "Field", gap: float) -> None:
        """Carves a joint space: stays `gap` mm away from another bone."""
        mine, theirs = relative(other.box, self.box), relative(self.box, other.box)
        if mine is None or theirs is None:
            return
        ratio = np.float32(other.frame.scale / self.frame.scale)
        self.distance[mine] = smooth_max(self.distance[mine], gap - ratio * other.distance[theirs], 0.8)


def relative(box: Box, outer: Box) -> Box | None:
    """`box` clipped to `outer`, in indices that start at `outer`'s corner; None if they do not meet."""
    out = []
    for a, b in zip(box, outer, strict=True):
        low, high = max(a.start, b.start), min(a.stop, b.stop)
        if low >= high:
            return None
        out.append(slice(low - b.start, high - b.start))
    return out[0], out[1], out[2]


class Displacement(Protocol):
    """Something that moves bone before its shape is known: a fracture's fragment, a sunken endplate."""

    def displace(self, field: Field) -> None:
        """Alters the field's shape coordinates in place."""
        ...


def build(grid: Grid, frame: Frame, bone: Bone, displacements: Sequence[Displacement] = ()) -> Field | None:
    """A bone's finished field, None where it lies outside the image."""
    field = Field.create(grid, frame, bone.low, bone.high)
    if field is None:
        return None
    for displacement in displacements:
        displacement.displace(field)
    for part in bone.add:
        field.add(part)
    for part in bone.cut:
        field.cut(part)
    return field
