"""What looks like a fracture and is none: nutrient canals, accessory ossicles, old corticated lines, osteophytes.

Mimics are smooth and corticated and displace nothing; they occur in broken and whole necks alike. The basivertebral
vein's canal that everybody has, and the osteophytes of age, live here too.
"""

import dataclasses

import numpy as np

from cspine_jax.phantom.person import Person, landmarks
from cspine_jax.phantom.plan import Anatomy, Distractor
from cspine_jax.phantom.shapes import Part, ellipsoid, rod

VEIN_HU = np.float32(70.0)


@dataclasses.dataclass(frozen=True)
class Channel:
    """A vascular canal: a smooth tapering tube from `a` to `b` with a thin dense rim; local mm."""

    a: np.ndarray
    b: np.ndarray
    radius: float
    strength: float
    fracture: bool = False

    def change(self, points: np.ndarray, width: float, bone: np.ndarray, weight: np.ndarray) -> np.ndarray | None:
        """Lowers bone along the canal and raises it at its rim."""
        tube = rod(tuple(self.a), tuple(self.b), self.radius, 0.45 * self.radius)
        near = np.flatnonzero(
            np.all([(p > lo) & (p < hi) for p, lo, hi in zip(points, tube.low, tube.high, strict=True)], axis=0)
        )
        if not near.size:
            return None
        d = tube.distance(*points[:, near])
        inside = np.clip(0.5 - d / width, 0, 1) * np.float32(self.strength)
        rim = np.exp(-np.square((d - 0.7) / 0.6)) * (1 - inside) * np.float32(160 * self.strength)
        bone[near] += inside * (VEIN_HU * weight[near] - bone[near]) + rim * weight[near]
        return None


@dataclasses.dataclass(frozen=True)
class HealedLine:
    """An old, healed or developmental line: plane, thin, with sclerotic margins on both sides; local mm."""

    centre: np.ndarray
    normal: np.ndarray
    reach: float
    gap: float
    strength: float
    bend: float
    fracture: bool = False

    def change(self, points: np.ndarray, width: float, bone: np.ndarray, weight: np.ndarray) -> np.ndarray | None:
        """Lowers bone in the line and raises its margins."""
        offset = points - self.centre.astype(np.float32)[:, None]
        r2 = np.sum(offset * offset, axis=0)
        near = np.flatnonzero(r2 < (self.reach + 1) ** 2)
        s = self.normal.astype(np.float32) @ offset[:, near]
        s += np.float32(self.bend) * r2[near]
        inside = np.clip(self.reach - np.sqrt(r2[near]) + 0.5, 0, 1)
        half = np.float32(0.5 * self.gap)
        cover = np.clip(s + width / 2, -half, half) - np.clip(s - width / 2, -half, half)
        cover *= np.float32(self.strength) * inside / np.float32(width)
        margin = np.exp(-np.square((np.abs(s) - half - 0.8) / 0.8)) * inside * (1 - cover)
        bone[near] += cover * (np.float32(120) * weight[near] - bone[near])
        bone[near] += np.float32(330) * margin * weight[near]
        return None


Mark = Channel | HealedLine


def _anywhere(level: int, side: int, person: Person, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A place where fractures occur too, and the direction across it: lamina, transverse or spinous process, body."""
    spot = landmarks(level, person)
    if side == 0:
        if level >= 1 and rng.random() < 0.5:
            corner = np.asarray(spot["bottom"]) + np.asarray(spot["front"]) * (0, 0.55, 0) + (0, 0, 3.0)
            return corner, np.array([0, -0.7, -0.71])
        a, b = "spine_root", "spine_tip"
    else:
        a, b = (("lamina_side", "lamina_back"), ("transverse_root", "transverse_tip"))[int(rng.integers(2))]
    p, q = (np.asarray(spot[k]) * ((side or 1), 1, 1) for k in (a, b))
    return p + rng.uniform(0.25, 0.6) * (q - p), (q - p) / np.linalg.norm(q - p)


def distractor(plan: Distractor, person: Person) -> tuple[list[Part], list[Part], list[Mark]]:
    """A planned mimic.

    Returns:
        Parts that fuse with the vertebra (osteophytes), parts that stay separate from it (ossicles), and marks.
    """
    rng = np.random.default_rng([plan.seed, 41])
    level, side = plan.level, plan.side
    spot = landmarks(level, person)
    if plan.kind == "nutrient_canal":
        if side == 0 and level >= 2:
            return [], [], [_basivertebral(level, person, rng, 1.0, 1.5)]
        centre, along = _anywhere(level, side or 1, person, rng)
        across = np.cross(along, rng.normal(size=3))
        across *= 6 / np.linalg.norm(across)
        return (
            [],
            [],
            [Channel(centre - across, centre + across, float(rng.uniform(0.5, 0.9)), float(rng.uniform(0.7, 1)))],
        )
    if plan.kind == "old_corticated_line":
        centre, along = _anywhere(level, side, person, rng)
        normal = along + 0.15 * rng.normal(size=3)
        normal /= np.linalg.norm(normal)
        line = HealedLine(
            centre, normal, 8.0, float(rng.uniform(0.5, 1.3)), float(rng.uniform(0.6, 1)), float(rng.normal(0, 0.01))
        )
        return [], [], [line]
    if plan.kind == "accessory_ossicle":
        r = rng.uniform(1.5, 2.8, 3) * (1.2, 0.9, 1.0)
        if side == 0 and level >= 1 and rng.random() < 0.5:
            at = (
                np.asarray(spot["bottom"])
                + np.asarray(spot["front"]) * (0, 1, 0)
                + (rng.normal(0, 3), -r[1] - 1.0, 1.0)
            )
        elif side == 0:
            at = np.asarray(spot["spine_tip"]) + np.array([rng.normal(0, 1.0), r[1] + 3.0, -1.0])
        else:
            at = np.asarray(spot["transverse_tip"]) * (side, 1, 1) + (side * (r[0] + 3.2), 0, -0.5)
        return [], [ellipsoid(tuple(at), tuple(r), blend=0.0, shell=0.9)], []
    return _spurs(level, person, rng, 1.0, (side,) if side else (-1, 1)), [], []


def _basivertebral(level: int, person: Person, rng: np.random.Generator, strength: float, radius: float) -> Channel:
    """The basivertebral vein's groove in the middle of the back of the body."""
    b = person.dims(level).depth
    sway = float(rng.normal(0, 0.6))
    return Channel(
        np.array([sway, b + 1.0, 0.3]), np.array([sway * 0.5, rng.uniform(0.1, 0.45) * b, 0.3]), radius, strength
    )


def _spurs(level: int, person: Person, rng: np.random.Generator, size: float, sides: tuple[int, ...]) -> list[Part]:
    """Osteophytes: beaks at the anterior and lateral rims of a body (C1: at its anterior arch)."""
    spot = landmarks(level, person)
    if level == 0:
        x = 2.0 * sides[0]
        end = (x, -14.0 - 2.2 * size, 4.5 + 1.5 * size)
        return [rod((x, -11.5, 2.0), end, 2.0, 0.9, shell=0.8)]
    d = person.dims(level)
    bottom = spot["bottom"][2]
    top = d.height / 2 if level >= 2 else None
    parts = []
    for side in sides:
        for z, up in ((bottom + 1.2, -1.0), *(((top - 1.2, 1.0),) if top is not None else ())):
            if rng.random() > 0.45 + 0.4 * size:
                continue
            x = side * rng.uniform(0.1, 0.6) * d.width
            y = -d.depth + 1.6 + 0.03 * x * x
            long = size * rng.uniform(1.5, 3.6)
            end = (1.1 * x, y - 1.6 - long, z + up * (0.6 + 0.45 * long))
            parts.append(rod((x, y, z), end, 2.0, 0.8, flat=1.8, up=(1, 0, 0), shell=0.7, blend=2.0))
    return parts


def wear(level: int, anatomy: Anatomy, person: Person) -> tuple[list[Part], list[Mark]]:
    """What everybody has at a level: the basivertebral canal, and osteophytes as the person's age brings them."""
    if level < 2:
        return [], []
    rng = np.random.default_rng([anatomy.seed, 42, level])
    channel = _basivertebral(level, person, rng, float(rng.uniform(0.25, 0.75)), float(rng.uniform(0.9, 1.4)))
    narrow = anatomy.disc_narrowing[level - 1] if level <= 6 else 0.2
    size = anatomy.osteophytes * (0.35 + narrow) * rng.uniform(0.5, 1.2)
    return (_spurs(level, person, rng, float(min(size, 1.0)), (-1, 1)) if size > 0.15 else []), [channel]
