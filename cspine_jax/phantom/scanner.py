"""Ideal tissue becomes a CT image: blur and edge enhancement, coloured noise, streaks, motion, table, clipping.

Everything is drawn from the acquisition's own seed, never from the labels. One slice at a time, so the working set
stays in the processor's cache.
"""

import dataclasses

import numpy as np

from cspine_jax.phantom.plan import Acquisition, StudyPlan
from cspine_jax.phantom.scene import Scene

HU_MIN, HU_MAX = -1024, 3071
PADDING_HU = -3024
"""HU outside a circular field on scanners that store -2000 there and add their rescale intercept of -1024."""

_WATER_PER_MM = 0.019  # attenuation at about 70 keV
_NECK_PATH_MM = 130.0  # noise_hu is meant for a path of this length


@dataclasses.dataclass(frozen=True)
class _Grid:
    """Pixel positions from the image centre in mm: `x` [1, W], `y` [H, 1], `radius` [H, W]."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray

    @classmethod
    def of(cls, q: Acquisition) -> "_Grid":
        offset = (np.arange(q.size, dtype=np.float32) - (q.size - 1) / 2) * np.float32(q.pixel_mm)
        x, y = offset[None, :], offset[:, None]
        return cls(x, y, np.hypot(x, y))


def scan(scene: Scene, plan: StudyPlan) -> np.ndarray:
    """Scans one study.

    Args:
        scene: what lies in the scanner.
        plan: how it is scanned (`plan.acquisition`).

    Returns:
        int16 [D, H, W] HU in [-1024, 3071], superior slice first; `PADDING_HU` outside the circle in some studies.
    """
    q = plan.acquisition
    rng = np.random.default_rng((q.seed, 0))
    grid = _Grid.of(q)
    shifts = slice_shifts_px(plan)
    point_spread = kernel(q.sharpness, q.pixel_mm)
    noise = _noise(rng, scene, q)
    metal = _metal_streaks(rng, scene, q, grid)
    table = _table(rng, grid)
    cupping = (-rng.uniform(0, 25) * (1 - np.clip(grid.radius / 90, 0, 1) ** 2)).astype(np.float32)
    ghost_px = _ghosts_px(rng, q)
    padding, outside = _padding(q, grid)
    out = np.empty(scene.hu.shape, np.int16)
    for k in range(q.slices):
        hu = np.maximum(scene.hu[k], table)
        if shifts[k].any():
            hu = _roll(hu, shifts[k])
        if ghost_px[k] > 0.05:
            hu = _double_contour(hu, ghost_px[k])
        hu = _separable(hu, point_spread)
        hu += next(noise)
        if k in metal:
            hu += metal[k]
        np.add(hu, cupping, out=hu, where=hu > -500)
        np.rint(hu, out=hu)
        np.clip(hu, HU_MIN, HU_MAX, out=hu)
        if padding is not None:
            hu[outside] = padding
        out[k] = hu
    return out


def align(labels: np.ndarray, plan: StudyPlan) -> np.ndarray:
    """Brings label voxels [D, H, W] to where `scan` shows them.

    They move with the patient, whole pixels slice by slice, and vanish outside a circular field of view.
    """
    q = plan.acquisition
    shifts = slice_shifts_px(plan)
    moved = np.stack([_roll(plane, shift) for plane, shift in zip(labels, shifts, strict=True)])
    padding, outside = _padding(q, _Grid.of(q))
    if padding is not None:
        moved[:, outside] = 0
    return moved


def _padding(q: Acquisition, grid: _Grid) -> tuple[int | None, np.ndarray]:
    """HU outside the circular field of view (None: the whole square is reconstructed), and bool [H, W] outside it."""
    kind = np.random.default_rng((q.seed, 2)).choice(3, p=(0.6, 0.2, 0.2))
    return (None, HU_MIN, PADDING_HU)[kind], grid.radius > q.size * q.pixel_mm / 2


def kernel(sharpness: float, pixel_mm: float) -> np.ndarray:
    """The reconstruction kernel's point spread along x or y.

    A soft kernel is a Gaussian of about 0.55 mm; a bone kernel is narrower and overshoots at edges.

    Args:
        sharpness: 0 soft .. 1 sharp.
        pixel_mm: pixel size; a pixel larger than the blur leaves little of it.

    Returns:
        float32 [2 r + 1], symmetric, sums to 1.
    """
    narrow, wide, overshoot = 0.55 - 0.3 * sharpness, 0.9, 0.45 * sharpness
    radius = max(1, int(np.ceil(2.2 * wide / pixel_mm)))
    x = np.arange(-radius, radius + 1) * pixel_mm

    def gaussian(sigma: float) -> np.ndarray:
        g = np.exp(-0.5 * (x / max(sigma, 0.3 * pixel_mm)) ** 2)
        return g / g.sum()

    return ((1 + overshoot) * gaussian(narrow) - overshoot * gaussian(wide)).astype(np.float32)


def slice_shifts_px(plan: StudyPlan) -> np.ndarray:
    """In-plane patient motion in whole pixels.

    Args:
        plan: of the study; motionless unless `acquisition.motion_mm` > 0.

    Returns:
        int [D, 2] shift (y, x) of each slice: a drift, and sometimes a jerk within a few slices.
    """
    q = plan.acquisition
    if not q.motion_mm:
        return np.zeros((q.slices, 2), int)
    rng = np.random.default_rng((q.seed, 1))
    z = np.arange(q.slices) * q.spacing_mm
    at = rng.uniform(0.1, 0.9) * z[-1]
    wave = np.exp(-0.5 * ((z - at) / rng.uniform(3, 12)) ** 2)  # away and back within a breath or a swallow
    step = 1 / (1 + np.exp(-np.clip((z - at) / 0.8, -50, 50)))  # or away for good
    course = wave if rng.random() < 0.7 else step
    angle = rng.uniform(0, 2 * np.pi)
    mm = q.motion_mm * course[:, None] * np.array([np.sin(angle), np.cos(angle)])[None, :]
    return np.rint(mm / q.pixel_mm).astype(int)


def _ghosts_px(rng: np.random.Generator, q: Acquisition) -> np.ndarray:
    """Half distance in pixels between the two contours of a patient who moved within a rotation, [D]."""
    z = np.arange(q.slices) * q.spacing_mm
    centre, width = rng.uniform(0, z[-1]), rng.uniform(3, 10)
    return 0.5 * q.motion_mm / q.pixel_mm * np.exp(-0.5 * ((z - centre) / width) ** 2)


def _double_contour(hu: np.ndarray, px: float) -> np.ndarray:
    whole, part = divmod(px, 1.0)
    left, right = (
        (1 - part) * _roll(hu, (0, sign * int(whole))) + part * _roll(hu, (0, sign * (int(whole) + 1)))
        for sign in (-1, 1)
    )
    return (0.5 * (left + right)).astype(np.float32)


def _roll(plane: np.ndarray, shift) -> np.ndarray:
    """Shifts [H, W] by whole pixels (y, x), repeating the edge."""
    h, w = plane.shape
    rows = np.clip(np.arange(h) - int(shift[0]), 0, h - 1)
    columns = np.clip(np.arange(w) - int(shift[1]), 0, w - 1)
    return plane[rows[:, None], columns[None, :]]


def _separable(plane: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """Convolves float32 [H, W] with symmetric taps along both axes; the edge is repeated."""
    r = len(taps) // 2
    for axis in (0, 1):
        length = plane.shape[axis]
        ends = (plane.take([0] * r, axis), plane, plane.take([length - 1] * r, axis))
        padded = np.moveaxis(np.concatenate(ends, axis=axis), axis, 0)
        out = taps[r] * padded[r : r + length]
        for j in range(1, r + 1):
            pair = padded[r - j : r - j + length] + padded[r + j : r + j + length]
            pair *= taps[r + j]
            out += pair
        plane = np.moveaxis(out, 0, axis)
    return plane


def _noise(rng: np.random.Generator, scene: Scene, q: Acquisition):
    """Yields float32 [H, W] noise in HU, superior slice first.

    Filtered back-projection leaves little noise at low frequencies (the ramp) and rolls it off at high ones (the
    kernel); thick slices share rays with their neighbours. Where the path through the shoulders is long, few photons
    arrive: noise grows and stretches into horizontal streaks.
    """
    h = w = q.size
    fine = kernel(q.sharpness, q.pixel_mm)
    radius = max(1, round(1.5 / q.pixel_mm))
    box = np.full(2 * radius + 1, 1 / (2 * radius + 1), np.float32)

    def coloured() -> np.ndarray:
        white = _separable(rng.standard_normal((h, w), dtype=np.float32), fine)
        white -= np.float32(0.75) * _separable(white, box)
        return white

    unit = coloured().std()
    # Neighbouring slices share rays where they overlap, and a little by interpolation between detector rows.
    overlap = float(np.clip(1 - q.spacing_mm / q.thickness_mm, 0, 0.4) + 0.1)
    mix = np.sqrt((1 - np.sqrt(1 - 4 * overlap**2)) / 2)  # mix * sqrt(1 - mix^2) = overlap
    keep, fresh = np.float32(mix / unit), np.float32(np.sqrt(1 - mix**2) / unit)
    # Tube current modulation makes good most of the extra attenuation.
    starved = np.exp(0.18 * _WATER_PER_MM * np.maximum(scene.lateral_path_mm - _NECK_PATH_MM, 0))
    starved = np.minimum(starved, 3.0)
    coarse = max(2, w // 12)
    at = np.linspace(0, coarse - 1, w)
    left, part = np.minimum(at.astype(int), coarse - 2), (at % 1).astype(np.float32)
    part[-1] = 1.0
    previous = coloured()
    for k in range(q.slices):
        current = coloured()
        plane = keep * previous + fresh * current
        previous = current
        plane *= np.float32(q.noise_hu * starved[k])
        rows = rng.standard_normal((h, coarse), dtype=np.float32)  # drawn always: the stream must not depend on content
        if starved[k] > 1.02:
            rows[1:-1] -= 0.5 * (rows[:-2] + rows[2:])
            streaks = rows[:, left] * (1 - part)[None, :] + rows[:, left + 1] * part[None, :]
            plane += streaks * np.float32(q.noise_hu * 0.8 * (starved[k] - 1))
        # Air carries less noise than tissue: fewer interactions along those rays.
        plane *= np.where(scene.hu[k] < -800, np.float32(0.45), np.float32(1.0))
        yield plane


def _metal_streaks(rng: np.random.Generator, scene: Scene, q: Acquisition, grid: _Grid) -> dict[int, np.ndarray]:
    """HU added by dental metal, {slice: [H, W]}: saturated fillings, bright and dark rays fanning out from them."""
    streaks: dict[int, np.ndarray] = {}
    for metal in scene.metal:
        z, y, x = metal.centre
        dx = grid.x + np.float32(((q.size - 1) / 2 - x) * q.pixel_mm)
        dy = grid.y + np.float32(((q.size - 1) / 2 - y) * q.pixel_mm)
        distance = np.hypot(dx, dy)
        angle = ((np.arctan2(dy, dx) + np.pi) * (720 / (2 * np.pi))).astype(np.int16) % 720
        rays = rng.standard_normal(720).astype(np.float32)
        for width in (3, 7):  # a fan of sharp rays on broad ones
            rays += 1.5 * np.convolve(np.pad(rays, width, mode="wrap"), np.ones(2 * width + 1) / width, "valid")
        rays = (rays - rays.mean()) / rays.std()
        fade = np.exp(-distance / 45) * np.minimum(distance / 3, 1)
        strength = rng.uniform(120, 420)
        depth_mm = metal.radius_mm + q.thickness_mm / 2
        for k in range(q.slices):
            dz = abs(k - z) * q.spacing_mm
            if dz < depth_mm + 2.5:
                weight = np.exp(-0.5 * (dz / (depth_mm + 0.5)) ** 2)
                plane = (strength * weight) * rays[angle] * fade
                plane[distance < metal.radius_mm * np.sqrt(max(0, 1 - (dz / depth_mm) ** 2))] += 6000
                streaks[k] = streaks[k] + plane if k in streaks else plane.astype(np.float32)
    return streaks


def _table(rng: np.random.Generator, grid: _Grid) -> np.ndarray:
    """HU of the head holder, [H, W]: two thin curved shells with foam between them, behind the patient; else air."""
    radius, depth = rng.uniform(130, 260), rng.uniform(92, 120)
    r = np.hypot(grid.x - np.float32(rng.normal(0, 6)), grid.y - np.float32(depth - radius))
    hu = np.full(r.shape, -1000, np.float32)
    if rng.random() < 0.8:
        hu[(r > radius) & (r < radius + 14)] = -940
        hu[(np.abs(r - radius) < 0.9) | (np.abs(r - radius - 14) < 1.1)] = rng.uniform(-500, -150)
        hu[grid.y[:, 0] < depth - radius] = -1000
    return hu
