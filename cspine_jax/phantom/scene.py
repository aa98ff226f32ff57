"""A plan becomes a volume: ideal tissue HU with partial volume, vertebra labels and the exact fracture voxels."""

import dataclasses

import numpy as np

from cspine_jax.phantom.plan import StudyPlan

AIR_HU, FAT_HU, MUSCLE_HU = -1000.0, -100.0, 50.0


@dataclasses.dataclass(frozen=True)
class Metal:
    """A metal filling: `centre` voxel index (z, y, x) as floats, possibly outside the volume, and radius in mm."""

    centre: tuple[float, float, float]
    radius_mm: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """What lies in the scanner, on the acquisition grid, superior slice first.

    Attributes:
        hu: float32 [D, H, W], tissue HU averaged over each voxel; no noise.
        labels: uint8 [D, H, W], 0 background, 1..7 = C1..C7, 8.. = T1...
        fractures: uint8 [D, H, W], level + 1 where a fracture's cleft is, else 0.
        lateral_path_mm: float32 [D], left-right width of the body at each slice, shoulders outside the image included.
        metal: dental metal, the sources of streaks.
    """

    hu: np.ndarray
    labels: np.ndarray
    fractures: np.ndarray
    lateral_path_mm: np.ndarray
    metal: tuple[Metal, ...] = ()


def render(plan: StudyPlan) -> Scene:
    """Renders one study.

    Args:
        plan: everything that decides the study.

    Returns:
        The `Scene` on the plan's acquisition grid.
    """
    a, q = plan.anatomy, plan.acquisition
    z = (q.top_mm - q.spacing_mm * np.arange(q.slices, dtype=np.float32))[:, None, None]
    offset = (np.arange(q.size, dtype=np.float32) - (q.size - 1) / 2) * q.pixel_mm
    x, y = (offset + q.centre_mm[0])[None, None, :], (offset + q.centre_mm[1])[None, :, None]
    s = a.scale
    half_width = (60 + 80 / (1 + np.exp((z / s + 70) / 8))) * s
    body = (x / half_width) ** 2 + ((y - 5) / (65 * s)) ** 2
    hu = np.where(body < 1, np.where(body < 0.85, MUSCLE_HU, FAT_HU), AIR_HU).astype(np.float32)
    hu[(x**2 + (y + 35 * s) ** 2 < (8 * s) ** 2) & (body < 1)] = AIR_HU
    labels = np.zeros(hu.shape, np.uint8)
    fractures = np.zeros(hu.shape, np.uint8)
    for level, zc in enumerate((50, 33, 17, 0, -17, -34, -51, -69, -88, -108)):
        u, v, w = x / s, y / s, z / s - zc
        solid = (u / 12) ** 2 + (v / 8) ** 2 + (w / 7) ** 2 < 1
        ring = (np.hypot(u / 14, (v - 16) / 10) - 1.2) ** 2 * 100 + (w / 1.2) ** 2 < 36
        spine = (u / 4) ** 2 + ((v - 34) / 9) ** 2 + ((w + 8) / 8) ** 2 < 1
        bone = (solid | ring | spine) if level else ring
        hu[bone] = a.trabecular_hu + 200
        labels[bone] = level + 1
    for fracture in plan.fractures:
        zc = (50, 33, 17, 0, -17, -34, -51)[fracture.level]
        cleft = (labels == fracture.level + 1) & (np.abs(z / s - zc) < 8) & (np.abs(x - y / 2) < fracture.gap_mm + 0.5)
        hu[cleft] += fracture.conspicuity * (60 - hu[cleft])
        fractures[cleft] = fracture.level + 1
    return Scene(hu, labels, fractures, (2 * half_width[:, 0, 0]).astype(np.float32))
