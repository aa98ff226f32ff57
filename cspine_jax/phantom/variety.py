"""People and scans far beyond the challenge's: what a network must have seen to carry over from phantoms to real CT.

Domain randomisation (Tobin et al. 2017; for segmentation, Billot et al. 2023): real necks then lie inside the range
of the synthetic ones. Plans only; contrast, blur and noise vary further on the device while a network trains.
"""

import dataclasses

import numpy as np

from cspine_jax.phantom.plan import Acquisition, Anatomy

VARIETIES = ("rsna", "wide")

_FOV_MM = (120.0, 300.0)
_SPACING_MM = (0.6, 1.6)
_TOP_MM, _BOTTOM_MM = (75.0, 150.0), (-180.0, -85.0)
_SHORTEST_MM = 45.0


def widen(
    rng: np.random.Generator, anatomy: Anatomy, acquisition: Acquisition, scale: float, factor: float
) -> tuple[Anatomy, Acquisition]:
    """Redraws nearly everything, evenly over wide ranges.

    Half of the scans show the whole neck; the others begin or end anywhere in it, and a few are only some vertebrae
    long. Bone may be dense or nearly gone, discs open or closed, the head bent, turned and tilted.

    Args:
        rng: the study's own stream.
        anatomy: drawn for the challenge.
        acquisition: the same.
        scale: factor on the number of slices.
        factor: factor on the field of view.

    Returns:
        The wider anatomy and acquisition.
    """
    anatomy = dataclasses.replace(
        anatomy,
        scale=float(rng.uniform(0.78, 1.2)),
        lordosis_deg=float(rng.uniform(-22, 50)),
        rotation_deg=float(np.clip(rng.normal(0, 11), -30, 30)),
        tilt_deg=float(np.clip(rng.normal(0, 6), -16, 16)),
        trabecular_hu=float(rng.uniform(60, 480)),
        cortical_hu=float(rng.uniform(450, 1700)),
        osteophytes=float(rng.uniform(0, 1)),
        disc_narrowing=tuple(float(x) for x in rng.uniform(0, 1) * rng.uniform(0, 1.15, 6)),
        habitus=float(rng.uniform(0, 1)),
        dental_metal=bool(rng.random() < 0.4),
    )
    top, bottom = (s * anatomy.scale for s in (rng.uniform(*_TOP_MM), rng.uniform(*_BOTTOM_MM)))
    kind = rng.choice(3, p=(0.5, 0.35, 0.15))
    if kind == 1:  # one end lies within the neck
        if rng.random() < 0.5:
            top = rng.uniform(-40, 70) * anatomy.scale
        else:
            bottom = rng.uniform(-80, 30) * anatomy.scale
    elif kind == 2:  # a short piece
        length = rng.uniform(_SHORTEST_MM, 110)
        top = rng.uniform(bottom + length, top)
        bottom = top - length
    fov = factor * rng.uniform(*_FOV_MM)
    spacing = rng.uniform(*_SPACING_MM) / scale
    slices = max(8, round((top - bottom) / spacing) + 1)
    sharpness = float(rng.random())
    behind = 20 * np.clip((215 - fov) / 70, 0, 1)
    acquisition = dataclasses.replace(
        acquisition,
        pixel_mm=float(fov / acquisition.size),
        slices=slices,
        spacing_mm=float(spacing),
        thickness_mm=float(spacing * rng.uniform(0.8, 1.6)),
        top_mm=float(top),
        centre_mm=(float(rng.normal(0, 9)), float(behind + rng.normal(0, 9))),
        sharpness=sharpness,
        noise_hu=float(6 * 14 ** rng.random()),
        motion_mm=float(rng.uniform(0.5, 3)) if rng.random() < 0.15 else 0.0,
    )
    return anatomy, acquisition
