"""Soft tissue of the neck: skin outline, fat, muscles, airway, larynx, vessels, glands, cord, lung apices.

Every structure of `neck` is a tube with an elliptic axial section that bends, turns and grows with the spine.
Structures are painted on a coarser set of planes and interpolated to the slices.
"""

from collections.abc import Sequence

import numpy as np

from cspine_jax.phantom.field import Grid
from cspine_jax.phantom.neck import AIR, AIRWAY, CANAL, FAT, LUNG, LUNGS, MUSCLES, ORGANS, OUTLINE, SKIN, Tube
from cspine_jax.phantom.noise import Texture
from cspine_jax.phantom.plan import Anatomy
from cspine_jax.phantom.shapes import rounded_rectangle
from cspine_jax.phantom.spine import NOMINAL_Z, SKULL_Z, Posture


class Course:
    """Where the coarse planes lie along the neck: nominal height, centre line and turn of each.

    Args:
        grid: sampling grid.
        pose: the spine.
        scale: size of the person.
    """

    def __init__(self, grid: Grid, pose: Posture, scale: float):
        """Picks planes about 2 mm apart that cover the grid."""
        top, bottom = float(grid.z[0]), float(grid.z[-1])
        count = max(2, int(np.ceil((top - bottom) / 2.0)) + 1) if top > bottom else 2
        self.z = np.linspace(top, bottom, count) if top > bottom else np.array([top, top - 1.0])
        origins = np.stack([pose.skull.origin, *(frame.origin for frame in pose.vertebrae)])
        turns = np.array([np.arctan2(f.rotation[1, 0], f.rotation[0, 0]) for f in (pose.skull, *pose.vertebrae)])
        nominal = np.array([SKULL_Z, *NOMINAL_Z])
        # Beyond the skull the course goes on straight up.
        z = np.concatenate([[origins[0, 2] + 200 * scale], origins[:, 2]])
        nominal = np.concatenate([[nominal[0] + 200], nominal])
        self.height = np.interp(self.z, z[::-1], nominal[::-1])
        self.x = np.interp(self.z, z[::-1], np.concatenate([origins[:1, 0], origins[:, 0]])[::-1])
        self.y = np.interp(self.z, z[::-1], np.concatenate([origins[:1, 1], origins[:, 1]])[::-1])
        # Soft tissue does not follow the kinks between vertebrae.
        self.y = np.convolve(np.pad(self.y, 4, mode="edge"), np.ones(9) / 9, mode="valid") if count > 9 else self.y
        self.turn = np.interp(self.z, z[::-1], np.concatenate([turns[:1], turns])[::-1])
        self.scale = scale


class Tissue:
    """The coarse soft-tissue volume [n, H, W] of one person, painted structure by structure."""

    def __init__(self, grid: Grid, course: Course, anatomy: Anatomy):
        """Sets up the outline: air, skin, subcutaneous fat, and the fatty bed inside the fascia."""
        self._grid, self._course, self._anatomy = grid, course, anatomy
        rng = np.random.default_rng([anatomy.seed, 21])
        self._rng = rng
        self._noise = Texture(rng, 2.0, 1.0)
        self._wobble = Texture(rng, 3.6, 1.5)
        self._width = np.float32(max(grid.pixel, 0.9))
        self.shift = {
            "spine": 0.0,
            "larynx": float(np.clip(rng.normal(0, 5.0), -10, 9)),
            "chest": float(np.clip(rng.normal(0, 7.0), -14, 14)),
            "jaw": 0.0,
        }
        self._bulk = (1.16 if anatomy.sex == "M" else 1.06) * rng.normal(1, 0.05)
        self.half_width = self._outline()

    def _cells(self, zs: slice, ys: slice, xs: slice) -> np.ndarray:
        """Noise on an aligned box of the coarse planes (unit standard deviation)."""
        c, g = self._course, self._grid
        return self._noise.aligned(c.z[zs], g.y[ys], g.x[xs])

    def _outline(self) -> np.ndarray:
        """Paints the outline plane by plane; returns the half width of the body on each, mm [n]."""
        c, g, a, w = self._course, self._grid, self._anatomy, self._width
        height = c.height - np.where(c.height < -30, self.shift["chest"], 0) * np.clip((-30 - c.height) / 20, 0, 1)
        half, front, back = (np.interp(height, OUTLINE[:, 0], OUTLINE[:, i]) for i in (1, 2, 3))
        fat = c.scale * (2.5 + 10.0 * a.habitus + 0.5 * self._rng.normal())
        plump = 1.03 + 0.16 * (a.habitus - 0.4) + 0.02 * self._rng.normal()
        back = back + 11 * a.habitus * np.clip((60 - c.height) / 30, 0, 1)
        half, front, back = (c.scale * plump * v for v in (half, front, back))
        # Between chin and collar bones the neck narrows towards the larynx.
        taper = 0.38 * np.clip((25 - c.height) / 15, 0, 1) * np.clip((c.height + 60) / 15, 0, 1)
        corner = 0.86 * np.minimum(half, (back + front) / 2)
        self.hu = np.empty((len(c.z), len(g.y), len(g.x)), np.float32)
        self._fascia = np.empty_like(self.hu)
        for k in range(len(c.z)):
            cos, sin = np.float32(np.cos(c.turn[k])), np.float32(np.sin(c.turn[k]))
            px, py = g.x[None, :] - np.float32(c.x[k]), g.y[:, None] - np.float32(c.y[k])
            u, v = np.abs(cos * px + sin * py), cos * py - sin * px
            ahead = np.clip(v * np.float32(-1 / front[k]), 0, 1)
            wide = np.float32(half[k]) * (1 - np.float32(taper[k]) * ahead * ahead)
            middle, deep = np.float32((back[k] - front[k]) / 2), np.float32((back[k] + front[k]) / 2)
            distance = rounded_rectangle(u, v - middle, wide, deep, float(corner[k]))
            rear = np.clip(v * np.float32(1 / back[k]), 0, 1)
            thick = np.float32(fat) * (1 + np.float32(0.4 + 1.2 * a.habitus) * rear * rear)
            hu = self._cells(slice(k, k + 1), slice(None), slice(None))[0] * np.float32(7)
            hu += np.float32(FAT)
            hu += np.clip(0.5 - (distance + thick) / w, 0, 1) * np.float32(22)
            hu += np.clip(0.5 + (distance + np.float32(1.7)) / w, 0, 1) * (np.float32(SKIN) - hu)
            hu += np.clip(0.5 + distance / w, 0, 1) * (np.float32(AIR) - hu)
            self.hu[k] = hu
            np.add(distance, np.float32(0.8) * thick, out=self._fascia[k])
        return half

    def paint(self, tubes: Sequence[Tube]) -> None:
        """Paints structures in order, each over what is there."""
        for tube in tubes:
            for side in (1, -1) if tube.paired else (1,):
                self._paint_tube(tube, side)

    def _paint_tube(self, tube: Tube, side: int) -> None:
        c = self._course
        knots = np.array(sorted(tube.knots))
        jitter = self._rng.normal(0, 1, 4)
        heights = knots[:, 0] + self.shift[tube.group]
        rows = np.flatnonzero((c.height >= heights[0]) & (c.height <= heights[-1]))
        if not rows.size:
            return
        at = c.height[rows]
        cx, cy, a, b, angle = (np.interp(at, heights, knots[:, i]) for i in range(1, 6))
        muscle = tube.halo > 0
        bulk = self._bulk if muscle and tube.paired else 1.0
        a = a * bulk * (1 + 0.04 * jitter[2]) * c.scale
        b = b * bulk * (1 + 0.05 * jitter[3]) * c.scale
        small = float(min(a.max(), b.max())) < 3.5 * c.scale
        cx = side * cx + (0.2 if small else 0.7) * jitter[0] * (1 if tube.paired or not small else 0)
        cy = cy + (0.2 if small else 0.6) * jitter[1]
        turn, angle = c.turn[rows], side * np.deg2rad(angle)
        px = c.x[rows] + c.scale * (np.cos(turn) * cx - np.sin(turn) * cy)
        py = c.y[rows] + c.scale * (np.sin(turn) * cx + np.cos(turn) * cy)
        for start in range(0, len(rows), 10):
            part = slice(start, min(start + 10, len(rows)))
            self._paint_run(tube, rows[part], px[part], py[part], a[part], b[part], angle[part] + turn[part])

    def _paint_run(self, tube: Tube, rows, px, py, a, b, angle) -> None:
        """A stretch of a tube: rows of the coarse volume and its section in each of them (patient mm)."""
        g, w = self._grid, self._width
        halo = tube.halo * (0.35 + 0.9 * self._anatomy.habitus)
        reach = np.maximum(a, b) + halo + 2
        x0, x1 = np.searchsorted(g.x, ((px - reach).min(), (px + reach).max()))
        y0, y1 = np.searchsorted(g.y, ((py - reach).min(), (py + reach).max()))
        if x0 >= x1 or y0 >= y1:
            return
        box = (slice(rows[0], rows[-1] + 1), slice(y0, y1), slice(x0, x1))
        f = lambda v: v.astype(np.float32)[:, None, None]  # noqa: E731
        dx, dy = g.x[None, None, x0:x1] - f(px), g.y[None, y0:y1, None] - f(py)
        cos, sin = np.cos(angle), np.sin(angle)
        p = f(cos / a) * dx + f(sin / a) * dy
        q = f(cos / b) * dy - f(sin / b) * dx
        k = np.sqrt(p * p + q * q)
        distance = (k - 1) * f(np.minimum(a, b))
        if tube.halo > 0 or tube.clipped or tube.hu == LUNG:
            # Nobody's muscles are ellipses.
            c = self._course
            size = np.float32(min(1.7, 0.16 * float(np.minimum(a, b).max())))
            distance += size * self._wobble.aligned(c.z[box[0]], g.y[box[1]], g.x[box[2]])
        if tube.halo > 0 or tube.clipped:
            inner = self._fascia[box] + 0.5
            distance = np.maximum(distance, inner)
        hu = self.hu[box]
        if halo > 0:
            # Fat planes come and go: thick where the noise is high, gone where it is low.
            plane = np.clip(0.56 + 0.36 * self._cells(*box), 0, 0.9)
            plane *= np.clip(0.5 - (distance - halo) / (1.6 * w), 0, 1)
            hu += plane * (np.float32(FAT + 10) - hu)
        value = np.float32(tube.hu)
        if tube.uneven:
            value = value + np.float32(tube.uneven) * self._cells(*box)
        elif tube.halo > 0:
            value = value + 8 * self._cells(*box)
        hu += np.clip(0.5 - distance / w, 0, 1) * (value - hu)

    def cartilage(self) -> None:
        """Thyroid and cricoid cartilage and tracheal rings, ossified in patches with age."""
        age = float(np.clip((self._anatomy.age - 25) / 50, 0, 1))
        base, patch = 95 + 130 * age, 60 + 190 * age
        plate = (
            (10, 19.5, -27, 1.6, 1.5, 0),
            (3, 15, -35, 9, 1.6, 54),
            (-2, 11, -39, 14.5, 1.7, 54),
            (-16, 11, -38.5, 14, 1.7, 55),
            (-22, 14, -33, 8, 1.7, 55),
            (-30, 13.5, -28, 1.6, 1.5, 0),
        )
        self.paint([Tube(base, plate, group="larynx", uneven=patch)])
        ring = ((-23, 0, -25, 9, 3.5, 0), (-27, 0, -31, 11.5, 11.5, 0), (-36, 0, -32.5, 11.5, 12, 0))
        trachea = ((-37, 0, -32.2, 10.2, 10.6, 0), (-70, 1, -30.2, 10.4, 10, 0), (-130, 2, -28.2, 10.6, 10, 0))
        self.paint([Tube(base, ring, paired=False, group="larynx", uneven=patch)])
        self.paint([Tube(70 + 50 * age, trachea, paired=False, group="larynx", uneven=20)])

    def to_slices(self) -> np.ndarray:
        """HU on the acquisition grid, float32 [D, H, W], interpolated along z."""
        g, c = self._grid, self._course
        middle = g.z.reshape(-1, g.sub).mean(axis=1)
        place = np.interp(-middle, -c.z, np.arange(len(c.z)))
        low = np.minimum(place.astype(np.int64), len(c.z) - 2)
        t = (place - low).astype(np.float32)
        out = np.empty(g.shape, np.float32)
        for k in range(g.shape[0]):
            a, b = self.hu[low[k]], self.hu[low[k] + 1]
            np.subtract(b, a, out=out[k])
            out[k] *= t[k]
            out[k] += a
        return out

    def lateral_path(self) -> np.ndarray:
        """Left-right width of the body in mm at each slice, float32 [D]."""
        g, c = self._grid, self._course
        middle = g.z.reshape(-1, g.sub).mean(axis=1)
        return np.interp(-middle, -c.z, 2 * self.half_width).astype(np.float32)


def soft_tissue(grid: Grid, pose: Posture, anatomy: Anatomy) -> Tissue:
    """All soft tissue of a person on the coarse planes of a grid."""
    tissue = Tissue(grid, Course(grid, pose, anatomy.scale), anatomy)
    for tubes in (LUNGS, MUSCLES, ORGANS[:3]):
        tissue.paint(tubes)
    tissue.cartilage()
    for tubes in (AIRWAY, ORGANS[3:], CANAL):
        tissue.paint(tubes)
    return tissue
