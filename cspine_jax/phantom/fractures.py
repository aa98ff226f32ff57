"""Named fractures as clefts: where each type runs through its vertebra, how it is displaced, what it does to HU.

A cleft is a slightly bent, uneven surface limited to the named part. Bone inside it falls towards blood by the
fracture's conspicuity, the fragment beyond it is displaced, which interrupts the cortex and leaves a step.
Types follow the classifications in use: Anderson and D'Alonzo for the dens, Jefferson for C1, hangman's fracture of
the C2 pars, compression / burst / teardrop for the bodies, and the posterior elements by part.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from cspine_jax.phantom.field import Field
from cspine_jax.phantom.paint import BLOOD_HU
from cspine_jax.phantom.person import Person, landmarks
from cspine_jax.phantom.plan import Fracture
from cspine_jax.phantom.shapes import smoothstep

Vector = np.ndarray


def _unit(v) -> Vector:
    v = np.asarray(v, np.float64)
    return v / np.linalg.norm(v)


@dataclasses.dataclass(frozen=True)
class Cleft:
    """One fracture surface in a vertebra's local frame (mm).

    Attributes:
        centre: a point of it.
        normal, across: unit vectors: towards the fragment, and one in the surface; the third axis follows.
        reach: half sizes of the surface along `across` and along the third axis.
        gap: width of the cleft.
        conspicuity: how far HU inside falls towards blood, (0, 1].
        shift: displacement of the fragment.
        fragment: how far behind the surface bone is displaced; fades out over the second half unless `free`.
        free: the fragment is a whole end (a tip), not a stretch of a ring.
        bend: curvature, 1/mm, along the two axes.
        waves: (amplitude mm, wavelength mm, phase) along `across`, along the third axis, and of the width.
    """

    centre: Vector
    normal: Vector
    across: Vector
    reach: tuple[float, float]
    gap: float
    conspicuity: float
    shift: Vector
    fragment: float = 12.0
    free: bool = False
    bend: tuple[float, float] = (0.0, 0.0)
    waves: tuple[tuple[float, float, float], ...] = ()
    fracture: bool = True

    def _coordinates(self, x, y, z):
        """Signed distance to the surface, and the coordinates along its two axes."""
        third = np.cross(self.normal, self.across)
        dx, dy, dz = (v - np.float32(c) for v, c in zip((x, y, z), self.centre, strict=True))
        s, u, v = (
            dx * np.float32(axis[0]) + dy * np.float32(axis[1]) + dz * np.float32(axis[2])
            for axis in (self.normal, self.across, third)
        )
        s = s + np.float32(self.bend[0]) * u * u + np.float32(self.bend[1]) * v * v
        for (amplitude, length, phase), t in zip(self.waves, (u, v, u + 0.7 * v), strict=False):
            s += np.float32(amplitude) * np.sin(t * np.float32(2 * np.pi / length) + np.float32(phase))
        return s, u, v

    def displace(self, field: Field) -> None:
        """Moves the fragment: the field's shape coordinates behind the surface, in place."""
        if not np.any(np.abs(self.shift) > 0.02):
            return
        size = max(*self.reach, self.fragment) + 6
        box = field.within(self.centre - size, self.centre + size)
        if box is None:
            return
        s, u, v = self._coordinates(field.x[box], field.y[box], field.z[box])
        weight = (s > 0).astype(np.float32)
        weight *= 1 - smoothstep(s, self.fragment if self.free else 0.4 * self.fragment, self.fragment + 2 * self.free)
        for t, reach in zip((u, v), self.reach, strict=True):
            weight *= 1 - smoothstep(np.abs(t), reach, reach + 3)
        for shape, amount in zip(field.shape_coordinates(), self.shift, strict=True):
            shape[box] -= weight * np.float32(amount)

    def change(self, points: np.ndarray, width: float, bone: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Lowers bone inside the cleft towards blood; returns the share of each sample it fills."""
        s, u, v = self._coordinates(*points)
        gap = np.float32(self.gap)
        if self.waves:
            length, phase = self.waves[0][1:]
            gap = gap * (0.85 + 0.3 * np.sin(v * np.float32(4 * np.pi / length) + np.float32(phase)))
        half, half_voxel = 0.5 * gap, np.float32(0.5 * width)
        cover = np.clip(s + half_voxel, -half, half) - np.clip(s - half_voxel, -half, half)
        cover *= 1 / np.float32(width)
        for t, reach in zip((u, v), self.reach, strict=True):
            cover *= np.clip(np.float32(reach) - np.abs(t) + 0.5, 0, 1)
        bone += np.float32(self.conspicuity) * cover * (BLOOD_HU * weight - bone)
        return cover


@dataclasses.dataclass(frozen=True)
class Squash:
    """Loss of height of a body's upper half: the endplate sinks, most in front (wedge); `loss` in mm."""

    half_width: float
    depth: float
    half_height: float
    loss: float
    wedge: float

    def displace(self, field: Field) -> None:
        """Pulls the upper endplate down in the field's shape coordinates."""
        w, b, h = self.half_width, self.depth, self.half_height
        box = field.within((-w - 5, -b - 5, -h), (w + 5, b + 2, h + 9))
        if box is None:
            return
        x, y, z = field.x[box], field.y[box], field.z[box]
        weight = (
            smoothstep(z, -0.3 * h, 0.8 * h) * (1 - smoothstep(np.abs(x), w, w + 4)) * (1 - smoothstep(z, h + 5, h + 8))
        )
        weight *= 1 - np.float32(self.wedge) * smoothstep(y, -b, b - 1)
        weight *= 1 - smoothstep(y, b - 2, b + 1)
        field.shape_coordinates()[2][box] += np.float32(self.loss) * weight


@dataclasses.dataclass(frozen=True)
class Sclerosis:
    """A band of impacted trabeculae under a sunken endplate: denser, no cleft."""

    z: float
    half: float
    front: float
    back: float
    half_width: float
    gain: float
    fracture: bool = False

    def change(self, points: np.ndarray, width: float, bone: np.ndarray, weight: np.ndarray) -> np.ndarray | None:
        """Raises HU in the band."""
        x, y, z = points
        band = np.exp(-np.square((z - self.z - 0.08 * y) / self.half)) * (np.abs(x) < self.half_width)
        band *= smoothstep(y, self.front - 1, self.front + 1) * (1 - smoothstep(y, self.back - 4, self.back))
        bone += np.float32(self.gain) * band * weight
        return None


class _Surgeon:
    """Shared draws of one fracture: unevenness, bend, tilt."""

    def __init__(self, fracture: Fracture):
        self.plan = fracture
        self.rng = np.random.default_rng([fracture.seed, 31])

    def cleft(
        self, centre, normal, across, reach, *, push=None, fragment=12.0, free=False, narrow=1.0, tilt=0.14, wave=1.0
    ) -> Cleft:
        """A cleft near `centre`: tilted, bent and uneven; `push` says where it is displaced."""
        f, rng = self.plan, self.rng
        n = _unit(_unit(normal) + tilt * rng.normal(size=3))
        u = np.asarray(across, np.float64)
        u = _unit(u - (u @ n) * n)
        step_direction = _unit(np.cross(n, u) * rng.choice((-1.0, 1.0)) + 0.4 * rng.normal() * u)
        push = n if push is None else _unit(push)
        shift = f.step_mm * step_direction + f.displacement_mm * push
        waves = tuple(
            (wave * float(a), float(length), float(phase))
            for a, length, phase in zip(
                rng.uniform(0.25, 0.8, 3),
                rng.uniform((12, 9, 3.0), (26, 18, 5.0)),
                rng.uniform(0, 2 * np.pi, 3),
                strict=True,
            )
        )
        waves = (*waves[:2], (0.35 * waves[2][0], *waves[2][1:]))
        bend = (float(rng.normal(0, 0.018)), float(rng.normal(0, 0.018)))
        gap = f.gap_mm * narrow
        return Cleft(
            np.asarray(centre, np.float64), n, u, reach, gap, f.conspicuity, shift, fragment, free, bend, waves
        )

    def sides(self) -> tuple[int, ...]:
        """The side of a lateral fracture; a plan without one gets a draw."""
        return (self.plan.side,) if self.plan.side else (int(self.rng.choice((-1, 1))),)


Marks = list[Cleft | Squash | Sclerosis]
Z, Y, X = np.array([0.0, 0, 1]), np.array([0.0, 1, 0]), np.array([1.0, 0, 0])


def _jefferson(s: _Surgeon, person: Person) -> Marks:
    marks: Marks = []
    spot = landmarks(0, person)
    side = s.plan.side or int(s.rng.choice((-1, 1)))
    x = side * s.rng.uniform(3.0, 9.0)
    marks.append(s.cleft((x, spot["arch_front"][1] + 0.02 * x * x, 0), (side, 0.1, 0.0), Y, (6, 9), fragment=7))
    for this in (-1, 1) if s.plan.side == 0 else (side,):
        a, b = (np.asarray(spot[k]) * (this, 1, 1) for k in ("arch_side", "arch_back"))
        t = s.rng.uniform(0.15, 0.75)
        marks.append(s.cleft(a + t * (b - a), a - b, Z, (7, 6), fragment=8, narrow=s.rng.uniform(0.7, 1.1)))
    return marks


def _dens(
    z_low: float, z_high: float, reach: float, tilt: tuple[float, float, float]
) -> Callable[[_Surgeon, Person], Marks]:
    def build(s: _Surgeon, person: Person) -> Marks:
        z = s.rng.uniform(z_low, z_high)
        lean = s.rng.choice((-1.0, 1.0))
        normal = (s.plan.side * tilt[0], lean * tilt[1], tilt[2])
        return [s.cleft((0, -0.3, z), normal, X, (reach, reach), push=(0, lean, 0.2), fragment=30, free=True)]

    return build


def _hangman(s: _Surgeon, person: Person) -> Marks:
    marks: Marks = []
    for side in (-1, 1):
        centre = (side * 14.8, 7.2 + s.rng.uniform(-1.2, 1.2), -1.6)
        marks.append(
            s.cleft(
                centre,
                (-0.15 * side, -0.85, 0.45),
                X,
                (8, 8),
                push=(0, -1, 0),
                fragment=7,
                narrow=s.rng.uniform(0.7, 1.15),
            )
        )
    return marks


def _compression(s: _Surgeon, person: Person) -> Marks:
    d, f = person.dims(s.plan.level), s.plan
    h, b = d.height / 2, d.depth
    loss = float(np.clip(1.2 + f.displacement_mm + f.step_mm, 1.2, 0.4 * d.height))
    top = h - 0.75 * loss
    z = top - s.rng.uniform(2.2, 3.6)
    line = s.cleft((0, -1.5, z), (0, -0.12, 1), X, (d.width + 1.5, b), tilt=0.06, wave=1.2)
    line = dataclasses.replace(line, shift=np.zeros(3))
    gain = 110 + 90 * f.conspicuity
    band = Sclerosis(z - 1.8, 1.5, -b, b - 1, d.width, gain)
    return [Squash(d.width, b, h, loss, float(s.rng.uniform(0.45, 0.8))), band, line]


def _burst(s: _Surgeon, person: Person) -> Marks:
    d, f = person.dims(s.plan.level), s.plan
    h, b = d.height / 2, d.depth
    x = s.rng.uniform(-3, 3)
    sagittal = s.cleft((x, 0, 0), (1, 0, 0), Y, (b + 2, h + 4), fragment=5, tilt=0.1)
    sagittal = dataclasses.replace(sagittal, shift=sagittal.shift * 0.4)
    y = b - s.rng.uniform(4.0, 6.0)
    back = s.cleft((0, y, 0.5), (0, 1, 0.25), X, (0.62 * d.width, h + 3), fragment=9, free=True, tilt=0.08)
    push = np.array([0, 0.8 + f.displacement_mm, 0.3 * f.displacement_mm])
    back = dataclasses.replace(back, shift=push)
    oblique = s.cleft((s.rng.choice((-1, 1)) * 4, -3, 2), (0.5, -0.6, 0.6), X, (d.width, b), fragment=6, narrow=0.7)
    loss = float(np.clip(0.6 + 0.5 * f.displacement_mm, 0.6, 3.0))
    return [Squash(d.width, b, h, loss, 0.3), back, sagittal, oblique]


def _teardrop(s: _Surgeon, person: Person) -> Marks:
    level = s.plan.level
    b, bottom = person.dims(level).depth, landmarks(level, person)["bottom"][2]
    width = person.dims(level).width
    corner = (0, -b + s.rng.uniform(3.2, 5.2), bottom + s.rng.uniform(2.4, 4.2))
    return [s.cleft(corner, (0, -0.72, -0.69), X, (width + 3, 8), push=(0, -1, -0.35), fragment=9, free=True)]


def _facet(s: _Surgeon, person: Person) -> Marks:
    d = person.dims(s.plan.level)
    (side,) = s.sides()
    centre = (side * d.pillar_x, d.depth + 1.6, s.rng.uniform(4.0, 6.5))
    return [s.cleft(centre, (0.1 * side, -0.35, 0.95), X, (7, 6.5), push=(0.2 * side, -1, 0.3), fragment=10, free=True)]


def _lamina(s: _Surgeon, person: Person) -> Marks:
    spot = landmarks(s.plan.level, person)
    (side,) = s.sides()
    a, b = (np.asarray(spot[k]) * (side, 1, 1) for k in ("lamina_side", "lamina_back"))
    centre = a + s.rng.uniform(0.3, 0.75) * (b - a)
    return [s.cleft(centre, b - a, Z, (9, 5), push=(-0.5 * side, -1, 0), fragment=7)]


def _pedicle(s: _Surgeon, person: Person) -> Marks:
    d = person.dims(s.plan.level)
    (side,) = s.sides()
    centre = (side * (d.width + 0.5 * (d.pillar_x - d.width) - 1.5), d.depth + 0.6, 1.3)
    return [s.cleft(centre, (0.62 * side, 0.78, 0), Z, (6.5, 6), push=(side, 0.3, 0), fragment=5)]


def _spinous(s: _Surgeon, person: Person) -> Marks:
    spot = landmarks(s.plan.level, person)
    root, tip = np.asarray(spot["spine_root"]), np.asarray(spot["spine_tip"])
    centre = root + s.rng.uniform(0.3, 0.62) * (tip - root)
    normal = _unit(tip - root) + np.array([0, 0, s.rng.normal(0, 0.35)])
    length = float(np.linalg.norm(tip - root))
    return [s.cleft(centre, normal, X, (7, 9), push=(0, 0.35, -1), fragment=length + 6, free=True)]


def _transverse(s: _Surgeon, person: Person) -> Marks:
    spot = landmarks(s.plan.level, person)
    (side,) = s.sides()
    a, b = (np.asarray(spot[k]) * (side, 1, 1) for k in ("transverse_root", "transverse_tip"))
    centre = a + s.rng.uniform(0.2, 0.65) * (b - a)
    return [s.cleft(centre, (side, 0.1, -0.2), Y, (9, 7), push=(side, 0, -0.6), fragment=16, free=True)]


BUILDERS: dict[str, Callable[[_Surgeon, Person], Marks]] = {
    "jefferson": _jefferson,
    "dens_i": _dens(20.0, 22.0, 8.0, (0.5, 0.15, 1.0)),
    "dens_ii": _dens(10.2, 12.2, 7.5, (0.15, 0.25, 1.0)),
    "dens_iii": _dens(3.0, 5.5, 11.0, (0.1, 0.2, 1.0)),
    "hangman": _hangman,
    "body_compression": _compression,
    "body_burst": _burst,
    "body_teardrop": _teardrop,
    "facet": _facet,
    "lamina": _lamina,
    "pedicle": _pedicle,
    "spinous_process": _spinous,
    "transverse_process": _transverse,
}


def fracture_marks(fracture: Fracture, person: Person) -> Marks:
    """What a planned fracture does to its vertebra: displacements to apply before its shape, marks to paint after."""
    return BUILDERS[fracture.kind](_Surgeon(fracture), person)
