"""Implicit shapes: signed distances (negative inside, local millimetres) of the few solids that bones are built from.

A `Part` is a distance function of local coordinates and the box outside which it is of no interest; parts are only
ever evaluated inside their box. Distances are first-order accurate near the surface, which is all that antialiasing
and a cortical shell of a millimetre or two need.
"""

import dataclasses
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

Distance = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
Point = Sequence[float]


@dataclasses.dataclass(frozen=True)
class Part:
    """One solid in local coordinates: `distance(x, y, z)`, its bounding box and how it joins its bone.

    `blend` is the radius of the fillet where the part meets what is there already, `shell` the cortical thickness; mm.
    """

    distance: Distance
    low: tuple[float, float, float]
    high: tuple[float, float, float]
    blend: float = 2.0
    shell: float = 1.2


@dataclasses.dataclass(frozen=True)
class Bone:
    """Parts to join, then parts to take away (canal, foramina), and the box that holds them."""

    add: tuple[Part, ...]
    cut: tuple[Part, ...]

    @property
    def low(self) -> tuple[float, float, float]:
        """Lower corner of the bounding box, mm."""
        return tuple(np.min([part.low for part in self.add], axis=0))

    @property
    def high(self) -> tuple[float, float, float]:
        """Upper corner of the bounding box, mm."""
        return tuple(np.max([part.high for part in self.add], axis=0))


def smooth_min(a: np.ndarray, b: np.ndarray, radius: float) -> np.ndarray:
    """Minimum of two distances with a fillet (polynomial blend) of the given radius, same shape as the inputs."""
    if radius <= 0:
        return np.minimum(a, b)
    h = radius - np.abs(a - b)
    np.maximum(h, 0, out=h)
    h *= h
    h *= 1 / (4 * radius)
    return np.minimum(a, b) - h


def smooth_max(a: np.ndarray, b: np.ndarray, radius: float) -> np.ndarray:
    """Maximum of two distances (an intersection) with a rounded edge of the given radius."""
    return -smooth_min(-a, -b, radius)


def smoothstep(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, a cubic between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def rounded_rectangle(x: np.ndarray, y: np.ndarray, a, b, corner: float) -> np.ndarray:
    """Distance to a rectangle of half-widths `a`, `b` (numbers or arrays) with rounded corners."""
    u, v = np.abs(x) - (a - corner), np.abs(y) - (b - corner)
    inside = np.minimum(np.maximum(u, v), 0)
    return np.hypot(np.maximum(u, 0), np.maximum(v, 0)) + inside - corner


def _box(points: np.ndarray, margin: float) -> tuple[tuple, tuple]:
    return tuple(points.min(axis=0) - margin), tuple(points.max(axis=0) + margin)


def ellipsoid(centre: Point, radii: Point, *, blend: float = 2.0, shell: float = 1.2, margin: float = 3.0) -> Part:
    """An axis-aligned ellipsoid; `margin` mm beyond it the distance is no longer evaluated."""
    c, r = np.asarray(centre, np.float32), np.asarray(radii, np.float32)
    inverse = 1 / r

    def distance(x, y, z):
        u, v, w = (x - c[0]) * inverse[0], (y - c[1]) * inverse[1], (z - c[2]) * inverse[2]
        k = np.sqrt(u * u + v * v + w * w)
        u *= inverse[0]
        v *= inverse[1]
        w *= inverse[2]
        g = np.sqrt(u * u + v * v + w * w)
        return k * (k - 1) / np.maximum(g, 1e-3 * float(inverse.min()))

    low, high = _box(np.stack([c - r, c + r]), margin)
    return Part(distance, low, high, blend, shell)


def rod(
    a: Point,
    b: Point,
    ra: float,
    rb: float | None = None,
    *,
    flat: float = 1.0,
    up: Point = (0, 0, 1),
    blend: float = 2.0,
    shell: float = 1.2,
    margin: float = 3.0,
) -> Part:
    """A capsule from `a` to `b` of radii `ra` -> `rb`, its section stretched `flat` times along `up`."""
    rb = ra if rb is None else rb
    p, q = np.asarray(a, np.float64), np.asarray(b, np.float64)
    axis = q - p
    length2 = max(float(axis @ axis), 1e-6)
    w = np.asarray(up, np.float64)
    w = w / np.linalg.norm(w)
    t0, wx, wy, wz = -float(p @ axis) / length2, *(float(c) for c in w)
    ax, ay, az = (float(c) for c in axis)
    px, py, pz = (float(c) for c in p)
    squeeze = 1 / flat**2

    def distance(x, y, z):
        t = x * (ax / length2) + y * (ay / length2) + z * (az / length2)
        t += t0
        np.clip(t, 0, 1, out=t)
        u, v, s = x - (px + ax * t), y - (py + ay * t), z - (pz + az * t)
        k2 = u * u + v * v + s * s
        r = ra + (rb - ra) * t
        if flat == 1.0:
            return np.sqrt(k2) - r
        along = u * wx + v * wy + s * wz
        along *= along
        g2 = k2 + along * (squeeze * squeeze - 1)
        k2 += along * (squeeze - 1)
        k = np.sqrt(np.maximum(k2, 1e-6))
        return (k - r) * k / np.sqrt(np.maximum(g2, 1e-6))

    reach = max(ra, rb)
    spread = reach + reach * (max(flat, 1.0) - 1) * np.abs(w)
    low, high = _box(np.stack([p - spread, p + spread, q - spread, q + spread]), margin)
    return Part(distance, low, high, blend, shell)


def tube(
    points: Sequence[Point], radii: Sequence[float] | float, *, flat: float = 1.0, up: Point = (0, 0, 1), **join
) -> list[Part]:
    """Rods along a polyline; `radii` one for each point, or one for all."""
    r = [radii] * len(points) if isinstance(radii, int | float) else list(radii)
    ends = list(zip(points, r, strict=True))
    return [rod(p, q, rp, rq, flat=flat, up=up, **join) for (p, rp), (q, rq) in pairwise(ends)]


def mirrored(parts: Sequence[Part]) -> list[Part]:
    """The same parts on the other side of the mid-sagittal plane."""

    def mirror(part: Part) -> Part:
        return dataclasses.replace(
            part,
            distance=lambda x, y, z: part.distance(-x, y, z),
            low=(-part.high[0], part.low[1], part.low[2]),
            high=(-part.low[0], part.high[1], part.high[2]),
        )

    return [mirror(part) for part in parts]
