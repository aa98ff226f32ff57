"""The bones of the spine as lists of parts in local millimetres: C1, C2, C3-C7, T1 and below.

Local frame: origin at the centre of the vertebral body (C1: on the axis of the dens), x left, y back, z up. Dimensions
are those of an adult of middle size; a person's own proportions come from `Person`.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from cspine_jax.phantom.person import Dims, Person
from cspine_jax.phantom.shapes import (
    Bone,
    Part,
    ellipsoid,
    mirrored,
    rod,
    rounded_rectangle,
    smooth_max,
    smoothstep,
    tube,
)


def body(d: Dims, *, low: float | None = None, high: float | None = None, lip: float = 1.6, blend: float = 2.0) -> Part:
    """A vertebral body: waist, uncinate lips, concave lower endplate with its antero-inferior lip."""
    half = d.height / 2
    bottom, top = -half if low is None else low, half if high is None else high
    middle, reach = (top + bottom) / 2, (top - bottom) / 2

    def distance(x, y, z):
        ax = np.abs(x)
        t = (z - middle) * (1 / reach)
        waist = np.maximum(1 - t * t, 0)
        a = d.width - 1.3 * waist - 0.03 * np.square(np.minimum(y, 0)) + 0.8 * smoothstep(t, 0.3, 1.0)
        b = d.depth - 0.7 * waist
        side = rounded_rectangle(x, y, a, b, 6.2)
        edge = smoothstep(ax, 0.62 * d.width, 0.97 * d.width)
        # Uncinate lips rise from the sides of the upper endplate; the neighbour above is bevelled to fit.
        rise = edge * (d.uncus * (0.35 + 0.65 * smoothstep(y, -0.9 * d.depth, 0.2 * d.depth))) + 0.05 * y - 0.6
        dish = (
            1.1
            - 1.1 * np.square(y / d.depth)
            - lip * smoothstep(-y, 0.45 * d.depth, 1.0 * d.depth)
            + 0.5 * d.uncus * edge
        )
        cap = np.maximum(z - (top + rise), (bottom + dish) - z)
        return smooth_max(side, cap, 1.6)

    low_corner = (-d.width - 3.5, -d.depth - 3, bottom - 4.5)
    return Part(distance, low_corner, (d.width + 3.5, d.depth + 3, top + d.uncus + 3), blend, 0.55)


def canal(front: float, half_width: float, depth: float, low: float = -24, high: float = 24) -> Part:
    """The vertebral canal to be taken away: a rounded triangle, base in front."""
    back = front + depth
    # Lateral walls from (half_width, front + 0.3 depth) to (1.5, back + 1).
    dx, dy = half_width - 1.5, 0.7 * depth + 1
    norm = float(np.hypot(dx, dy))
    nx, ny = dy / norm, dx / norm

    def distance(x, y, z):
        ax = np.abs(x)
        slant = (ax - half_width) * nx + (y - (front + 0.3 * depth)) * ny
        walls = smooth_max(slant, ax - half_width, 3.0)
        return smooth_max(smooth_max(walls, front - 0.008 * x * x - y, 2.0), y - back, 3.0)

    return Part(distance, (-half_width - 3, front - 4, low), (half_width + 3, back + 4, high), 0.8, 1.0)


def pillar(
    centre: Sequence[float], half_x: float, half_y: float, half: float, facet: float, upper=1.0, lower=1.0
) -> Part:
    """An articular pillar: a block cut obliquely by the two facets, `half` mm from its middle along their normal."""
    cx, cy, cz = (float(c) for c in centre)
    s, c = float(np.sin(np.deg2rad(facet))), float(np.cos(np.deg2rad(facet)))
    tall = (half * max(upper, lower) + half_y * s) / c

    def distance(x, y, z):
        u, v = x - cx, y - cy
        n = v * s + (z - cz) * c
        n = np.maximum(n - half * upper, -half * lower - n)
        return smooth_max(rounded_rectangle(u, v, half_x, half_y, 4.6), n, 2.0)

    low = (cx - half_x - 3, cy - half_y - 3, cz - tall - 2)
    return Part(distance, low, (cx + half_x + 3, cy + half_y + 3, cz + tall + 2), 2.5, 0.9)


def _spinous(d_front: float, tip_y: float, root_z: float, drop: float, bifid: float, radius: float, rng) -> list[Part]:
    """The spinous process from the spinolaminar junction back and down to its (bifid) tip."""
    sway = float(rng.normal(0, 0.7))
    root, tip = (0, d_front, root_z), (sway, tip_y, root_z - drop)
    length = tip_y - d_front
    up = (0, drop, length)
    parts = [rod(root, tip, radius, 0.82 * radius, flat=1.75, up=up, shell=1.05, blend=3.0)]
    if bifid > 0.15:
        start = tuple(np.asarray(root) + 0.62 * (np.asarray(tip) - root))
        for side in (-1, 1):
            spread = (1.5 + 3.6 * bifid) * float(rng.uniform(0.8, 1.2))
            end = (sway + side * spread, tip_y + 1.5, root_z - drop - 2.4)
            parts.append(rod(start, end, 1.9, 2.1, flat=1.3, shell=1.05))
    else:
        parts.append(ellipsoid((sway, tip_y - 1, root_z - drop - 1), (3.4, 3.6, 4.8), shell=1.2, blend=3.0))
    return parts


def subaxial(level: int, person: Person) -> Bone:
    """C3-C7 (level 2..6)."""
    d, rng = person.dims(level), person.stream(level)
    b, back = d.depth, d.depth + d.canal_depth
    py = b + 4.6
    parts = [body(d)]
    for mirror in (False, True):
        jx, jz = float(rng.normal(0, 0.4)), float(rng.normal(0, 0.3))
        px = d.pillar_x + jx
        tip = d.transverse + jx
        fx, f = d.width + 1.2 + d.foramen, max(d.foramen, 1.5)
        last = level == 6
        side = [
            rod((d.width - 2, b - 2.6, 1.0), (px - 3, py - 1.0, 0.6), 2.6, 2.9, flat=1.5, shell=1.05),
            pillar((px, py, jz), 5.6, 6.0, d.pillar_half, d.facet),
            rod((px - 3, py + 4, -1.0), (0.6, back + 1.2, -3.0), 2.5, 2.6, flat=2.1, up=(0, -0.3, 1), shell=1.05),
            # The root of the transverse process: a plate that the foramen is cut through.
            ellipsoid((fx, 1.7, -0.6), (f + 2.3, f + 2.5, 3.4), shell=0.9),
            # Anterior (costal) bar with its tubercle, posterior bar, and the bridge that closes the foramen.
            rod((d.width - 1.5, -2.2, 0.2), (fx + 3.0, -3.6, -1.2), 1.7, 1.5 if last else 2.2, flat=1.4, shell=1.0),
            rod(
                (px - 3, b + 0.6, -0.8),
                (tip, b - 2.0 + 2 * last, -4.2 + 2.5 * last),
                2.3,
                2.5 + last,
                flat=1.3,
                shell=1.1,
            ),
            rod((fx + f + 1.0, -3.2, -1.6), (fx + f + 2.2, b - 3.2, -2.6), 1.4, 1.7, flat=1.9, shell=1.0),
        ]
        parts += mirrored(side) if mirror else side
    parts += _spinous(back + 0.8, d.tip_y, -3.2, d.tip_drop, d.bifid, 2.5 + 0.5 * (level == 6), rng)
    cut = [canal(b, d.canal_width, d.canal_depth)]
    if d.foramen > 0.5:
        for side in (-1, 1):
            r = d.foramen * float(rng.uniform(0.85, 1.15))
            x = side * (d.width + 1.2 + d.foramen)
            cut.append(rod((x, 2.2, -11), (x, 1.4, 9), r, blend=0.6))
    return Bone(tuple(parts), tuple(cut))


def axis(person: Person) -> Bone:
    """C2: body, dens, sloping shoulders for C1, thick laminae and a large bifid spinous process."""
    d, rng = person.dims(2), person.stream(1)
    b = 7.6 * person.common["depth"]
    shape = dataclasses.replace(d, width=9.2 * person.common["width"], depth=b, uncus=0.0, height=19.0)
    cw, depth = 1.02 * d.canal_width, 1.16 * d.canal_depth
    back, py = b + depth, b + 5.0
    lean, sway = float(rng.normal(0.8, 0.8)), float(rng.normal(0, 0.4))
    parts = [
        body(shape, low=-10.0, high=8.0, lip=2.4),
        *tube(
            [(0, -0.6, 6.5), (0, -0.5, 13.5), (sway, -0.4 + 0.5 * lean, 19.5), (sway, lean, 22.4)],
            [5.9, 4.7, 5.3, 4.1],
            shell=1.05,
            blend=3.0,
        ),
    ]
    tip = back + float(rng.uniform(13.5, 17.5))
    for mirror in (False, True):
        px = 18.6 + float(rng.normal(0, 0.4))
        side = [
            rod((8.5, -0.2, 7.6), (18.0, 0.4, 3.6), 4.2, 4.0, flat=1.8, up=(0, 1, 0), shell=1.2, blend=3.0),
            rod((12.0, 3.5, 1.0), (px - 0.6, py, -5.0), 4.4, 4.6, shell=1.05, blend=3.0),
            pillar((px, py + 0.4, -3.6), 5.7, 6.0, d.pillar_half, 44, upper=0.5),
            rod((px - 3, py + 4, -3.0), (0.8, back + 1.8, -4.0), 3.2, 3.6, flat=1.9, up=(0, -0.35, 1), shell=1.3),
            rod((15.5, 4.0, -1.5), (25.0, 6.5, -5.0), 3.4, 2.3, flat=1.2, shell=1.1),
            rod((13.0, -1.0, -0.5), (22.0, 3.0, -4.5), 2.4, 2.0, flat=1.2, shell=1.1),
        ]
        parts += mirrored(side) if mirror else side
    parts += _spinous(back + 1.5, tip, -4.4, 4.6, float(rng.uniform(0.7, 1.3)), 3.5, rng)
    cut = [canal(b, cw, depth)]
    for side in (-1, 1):
        x = side * (15.8 + d.foramen * 0.3)
        cut.append(rod((x, 1.6, -14), (x + side * 0.8, 2.6, -1), 2.5, blend=0.6))
        cut.append(rod((x + side * 0.8, 2.6, -1), (side * 24.0, 3.0, 6.0), 2.4, blend=0.6))
    return Bone(tuple(parts), tuple(cut))


def atlas(person: Person) -> Bone:
    """C1: a ring of two lateral masses and two arches, wide transverse processes, no body."""
    rng = person.stream(0)
    wide, back = person.common["transverse"], 31.5 * person.common["canal_depth"] ** 0.6
    rise = float(rng.normal(0, 1.0))

    def lateral_mass(x, y, z):
        side = rounded_rectangle(x - 17.2, y - 0.5, 6.6, 9.2, 5.0)
        slope = x - 17.2
        cap = np.maximum(z - (7.6 + 0.42 * slope + 0.018 * np.square(y)), -8.4 - 0.36 * slope - z)
        return smooth_max(side, cap, 2.0)

    mass = Part(lateral_mass, (8, -12, -14), (27, 13, 15), 2.5, 1.0)
    parts: list[Part] = []
    for mirror in (False, True):
        tip = 36.0 * wide + float(rng.normal(0, 0.7))
        arch = float(rng.uniform(0.85, 1.15))
        side = [
            mass,
            *tube([(17, -6.5, 0), (9.5, -9.3, 0), (0, -10.4, 0)], [3.2, 2.5, 2.7], flat=1.9, shell=1.3),
            *tube(
                [(18.5, 7.5, 0), (19.0, 14.5, rise), (14.0, 23.5, rise), (6.0, back - 2.5, rise), (0, back - 1, rise)],
                [3.0, 2.2 * arch, 2.5, 2.5 * arch, 2.9],
                flat=1.45,
                shell=1.2,
            ),
            rod((21, -2.0, -1.0), (32, 1.0, -2.0), 2.2, 2.3, flat=1.3, shell=1.1),
            rod((21, 7.0, -1.0), (32, 6.0, -2.0), 2.2, 2.4, flat=1.3, shell=1.1),
            rod((31.5, 0.8, -2.0), (32.5, 6.2, -2.2), 2.5, 2.5, flat=1.3, shell=1.1),
            rod((31, 3.5, -2.0), (tip, 4.5, -2.6), 3.2, 2.8, flat=1.3, shell=1.1),
        ]
        parts += mirrored(side) if mirror else side
    parts.append(ellipsoid((0, -12.6, -0.8), (3.2, 2.6, 3.8), shell=1.2))
    parts.append(ellipsoid((0, back + 0.6, rise - 0.6), (2.8, 2.8, 3.4), shell=1.2))
    cut = [rod((side * 27.0, 3.4, -9), (side * 27.0, 3.4, 7), 3.0, blend=0.6) for side in (-1, 1)]
    return Bone(tuple(parts), tuple(cut))


def thoracic(level: int, person: Person) -> Bone:
    """T1 and below (level 7..): taller bodies, long transverse processes and steep spinous processes."""
    d, rng = person.dims(level), person.stream(level)
    b, back = d.depth, d.depth + d.canal_depth
    py = b + 6.0
    parts = [body(d, lip=0.8)]
    for mirror in (False, True):
        side = [
            rod((d.width - 5, b - 2.5, 3.5), (d.pillar_x - 3, py - 1, 3.0), 2.8, 2.9, flat=1.7, shell=1.2),
            pillar((d.pillar_x - 1.5, py + 1.0, 0), 5.0, 4.6, d.pillar_half, d.facet),
            rod((d.pillar_x - 4, py + 3, 0), (0.6, back + 1.4, -3), 2.5, 2.6, flat=2.8, up=(0, -0.3, 1), shell=1.05),
            rod((d.pillar_x - 2, py + 2, 1.5), (d.transverse, py + 9, 3.0), 3.6, 3.9, flat=1.25, shell=1.2, blend=3),
        ]
        parts += mirrored(side) if mirror else side
    parts += _spinous(back + 0.8, d.tip_y, -3.5, d.tip_drop, 0.0, 2.8, rng)
    return Bone(tuple(parts), (canal(b, d.canal_width, d.canal_depth),))


def ribs(level: int, person: Person) -> tuple[list[Part], list[Part]]:
    """The ribs of T1 and below as (right, left) tubes from the vertebral body round to the front; local frame."""
    n = level - 7
    d = person.dims(level)
    w, r = 1.0 + 0.16 * min(n, 5), 3.0
    out = 20 + 26 * w
    points = [
        (d.width + 1.5, d.depth - 1.5, d.height / 2 - 3.0),
        (d.transverse - 4, d.depth + 8.5, 3.0),
        (out, 22 + 6.0 * n, 0.0),
        (out + 14 * w, 5.0 + 2.0 * n, -7.0 - 2.0 * n),
        (out + 10 * w, -28.0, -18.0 - 5.0 * n),
        (out - 10, -52.0, -30.0 - 7.0 * n),
        (22, -68.0, -38.0 - 7.0 * n),
    ]
    flat = 1.9 if n else 0.75
    left = [*tube(points[:3], [2.6, 2.8, 3.2], flat=1.3, shell=1.0), *tube(points[2:], r, flat=flat, shell=1.0)]
    return mirrored(left), left


BUILDERS: tuple[Callable[[Person], Bone], ...] = (atlas, axis)


def vertebra(level: int, person: Person) -> Bone:
    """The bone of a level: 0 = C1 .. 6 = C7, 7 = T1 .. ."""
    if level < 2:
        return BUILDERS[level](person)
    return subaxial(level, person) if level < 7 else thoracic(level, person)


def disc(d: Dims, bottom: float, height: float) -> Part:
    """The intervertebral disc below a body whose lower endplate is at `bottom`."""
    middle, half = bottom - height / 2 + 0.5, height / 2 + 1.5

    def distance(x, y, z):
        return np.maximum(rounded_rectangle(x, y, d.width - 0.5, d.depth - 0.3, 6.0), np.abs(z - middle) - half)

    low = (-d.width - 2, -d.depth - 2, middle - half - 1)
    return Part(distance, low, (d.width + 2, d.depth + 2, middle + half + 1))
