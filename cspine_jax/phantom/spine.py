"""Posture: where each vertebra and the skull sit, from lordosis, rotation, tilt, size and disc heights."""

import dataclasses

import numpy as np

from cspine_jax.phantom.field import Frame
from cspine_jax.phantom.plan import Anatomy

LEVELS = 15
"""C1..C7 and T1..T8: vertebrae that exist; those outside the image are never evaluated."""

NOMINAL_Z = (55.5, 36.5, 16.5, 0.0, -16.5, -33.2, -50.5, -69.0, -88.5, -109.0, -130.0, -151.5, -173.5, -196.0, -219.0)
"""Heights (mm, C4 = 0) of the vertebral origins C1..T8 in the neutral posture: the scale soft tissue is tabled on."""

SKULL_Z = 68.5

# Share of the head's axial rotation and lateral tilt that each level follows, skull first, then C1..C7; T1.. none.
_ROTATION = (1.0, 0.96, 0.45, 0.36, 0.28, 0.2, 0.12, 0.06)
_TILT = (1.0, 0.95, 0.85, 0.7, 0.55, 0.4, 0.25, 0.12)
# Sagittal angle of each level as a share of the lordosis above C7 (C7 = 0 -> C2 = 1).
_LORDOSIS = (1.15, 1.5, 1.0, 0.86, 0.68, 0.48, 0.25, 0.0)


@dataclasses.dataclass(frozen=True)
class Posture:
    """Frames of the skull and of C1..T8 (index = level), and each level's disc height below in mm (local)."""

    skull: Frame
    vertebrae: tuple[Frame, ...]
    discs: tuple[float, ...]


def _rotation(pitch: float, roll: float, yaw: float) -> np.ndarray:
    """Rotation [3, 3]: pitch tips the upper end forward, roll tips it right, yaw turns about the long axis; radians."""
    c, s = np.cos(pitch), np.sin(pitch)
    x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    c, s = np.cos(roll), np.sin(roll)
    y = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    c, s = np.cos(yaw), np.sin(yaw)
    z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return z @ y @ x


def posture(anatomy: Anatomy) -> Posture:
    """Frames of every bone of the spine. C4's origin is the origin of the patient frame.

    Args:
        anatomy: the person; the stream [seed, 11] adds the natural unevenness between levels.
    """
    a = anatomy
    rng = np.random.default_rng([a.seed, 11])
    uneven = rng.normal(0, 1.0, (3, 1 + LEVELS))
    lordosis = np.array([*_LORDOSIS, *[0.0] * (LEVELS - 7)]) * a.lordosis_deg
    slope = 13.0 + 0.25 * (a.lordosis_deg - 15) + rng.normal(0, 1.5)
    # Thoracic kyphosis: the slope keeps growing below C7 whatever the neck does.
    below = np.concatenate([np.zeros(8), 4.0 * np.arange(1, LEVELS - 6)])
    pitch = slope + below - lordosis + 0.8 * uneven[0]
    pitch[0] = pitch[2] - 6 + rng.normal(0, 2)
    pitch[1] = pitch[2] - 12 + rng.normal(0, 4)
    roll = np.array([*_TILT, *[0.0] * (LEVELS - 7)]) * a.tilt_deg + 0.5 * uneven[1]
    yaw = np.array([*_ROTATION, *[0.0] * (LEVELS - 7)]) * a.rotation_deg + 0.5 * uneven[2]
    turn = [_rotation(*np.deg2rad(angles)) for angles in zip(pitch, roll, yaw, strict=True)]

    narrow = (0.0, *a.disc_narrowing, *[0.1] * (LEVELS - 7))  # below C1 (a joint), C2, ..., then thoracic discs
    discs = tuple(5.0 * (1 - 0.6 * float(n)) for n in narrow)
    step = -np.diff(NOMINAL_Z)  # level i to i + 1
    step = np.array([s - (5.0 - disc) for s, disc in zip(step, discs[:-1], strict=True)])
    origins = [np.zeros(3)] * LEVELS
    for i in range(2, -1, -1):  # C3, C2, C1 upward from C4
        up = (turn[1 + i] + turn[2 + i])[:, 2]
        origins[i] = origins[i + 1] + a.scale * step[i] * up / np.linalg.norm(up)
    # C1 turns about the dens, so it stays on C2's axis.
    origins[0] = origins[1] + a.scale * step[0] * turn[2][:, 2]
    for i in range(4, LEVELS):
        up = (turn[1 + i] + turn[i])[:, 2]
        origins[i] = origins[i - 1] - a.scale * step[i - 1] * up / np.linalg.norm(up)
    skull = origins[0] + a.scale * (SKULL_Z - NOMINAL_Z[0]) * turn[0][:, 2]
    frames = tuple(Frame(o, r, a.scale) for o, r in zip(origins, turn[1:], strict=True))
    return Posture(Frame(skull, turn[0], a.scale), frames, discs)
