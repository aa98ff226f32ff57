"""Soft tissue of the neck: skin outline, fat, muscles, airway, larynx, vessels, glands, cord, lung apices.

Every structure is a tube with an elliptic axial section whose centre, radii and angle are tabled against height on the
nominal scale of `spine.NOMINAL_Z` (C4 = 0 mm), relative to the vertebral bodies: it bends, turns and grows with the
spine. Structures are painted on a coarser set of planes and interpolated to the slices.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from cspine_jax.phantom.field import Grid
from cspine_jax.phantom.noise import Texture
from cspine_jax.phantom.plan import Anatomy
from cspine_jax.phantom.spine import NOMINAL_Z, SKULL_Z, Posture

AIR, FAT, MUSCLE, LUNG = -1000.0, -98.0, 55.0, -860.0

Knot = tuple[float, float, float, float, float, float]
"""(height, x, y, half width, half depth, angle in degrees): one section of a left-sided or midline tube."""


@dataclasses.dataclass(frozen=True)
class Tube:
    """A tabled structure. `group` says what it moves with: "spine", "larynx", "chest" or "jaw"; `halo` is the
    fat plane around it in mm, `uneven` the spread of its HU, `clipped` keeps it inside the subcutaneous fat.
    """

    hu: float
    knots: tuple[Knot, ...]
    paired: bool = True
    halo: float = 0.0
    group: str = "spine"
    uneven: float = 0.0
    clipped: bool = False


# Half width, front and back depth of the skin outline against height.
_OUTLINE = np.array(
    [
        (125, 74, 92, 96),
        (95, 75, 94, 97),
        (75, 74, 96, 92),
        (60, 70, 97, 84),
        (45, 66, 96, 77),
        (30, 62, 88, 73),
        (20, 60, 76, 71),
        (10, 58, 64, 70),
        (0, 57, 58, 70),
        (-20, 57, 57, 73),
        (-35, 61, 53, 77),
        (-46, 72, 50, 81),
        (-58, 104, 52, 85),
        (-70, 150, 60, 87),
        (-85, 185, 74, 87),
        (-120, 212, 96, 86),
        (-200, 215, 120, 84),
    ]
)[::-1]

MUSCLES: tuple[Tube, ...] = (
    # Fascia, nodes and small muscles around the pharynx and the carotid sheath.
    Tube(
        5.0,
        (
            (85, 20, -24, 26, 14, 15),
            (55, 22, -22, 30, 15, 25),
            (20, 22, -22, 30, 17, 25),
            (0, 20, -24, 28, 18, 25),
            (-30, 18, -26, 26, 17, 15),
            (-60, 18, -28, 26, 16, 10),
            (-80, 18, -28, 24, 16, 10),
        ),
        uneven=38,
        clipped=True,
    ),
    # The shoulder girdle's own bed.
    Tube(
        MUSCLE - 14,
        ((-50, 80, 30, 26, 16, 0), (-64, 100, 14, 54, 30, 0), (-80, 108, 0, 66, 42, 0), (-200, 112, -6, 70, 54, 0)),
        uneven=26,
        clipped=True,
        group="chest",
    ),
    # The bed that the posterior muscles lie in: their thin fat planes are painted over it.
    Tube(
        MUSCLE - 4,
        (
            (66, 22, 44, 27, 16, -25),
            (45, 22, 40, 30, 21, -30),
            (10, 21, 41, 29, 20, -32),
            (-20, 24, 43, 31, 20, -25),
            (-45, 34, 45, 40, 20, -12),
            (-70, 44, 45, 48, 20, 0),
            (-200, 46, 45, 50, 20, 0),
        ),
        uneven=18,
        clipped=True,
    ),
    # Prevertebral: longus colli and capitis.
    Tube(
        MUSCLE,
        (
            (66, 9, -14, 6, 4, 0),
            (50, 8, -15.5, 7, 3.5, 10),
            (20, 9, -12.5, 8, 3.4, 12),
            (-30, 10, -12.5, 8, 3.6, 15),
            (-90, 10, -12, 6, 3, 10),
        ),
        halo=0.6,
    ),
    # Scalenes: anterior, and middle with posterior.
    Tube(
        MUSCLE,
        (
            (14, 25, -3, 3, 3, 0),
            (-10, 28, -7, 4, 5, 30),
            (-35, 32, -12, 5, 8, 35),
            (-60, 38, -16, 6, 8, 50),
            (-80, 44, -20, 8, 5, 20),
        ),
        halo=0.8,
        uneven=6,
    ),
    Tube(
        MUSCLE,
        (
            (26, 28, 4, 4, 5, 0),
            (0, 31, 4, 5, 7, 15),
            (-25, 36, 3, 6, 10, 35),
            (-48, 43, 4, 8, 12, 45),
            (-70, 52, 5, 10, 13, 45),
            (-86, 60, 8, 10, 10, 40),
        ),
        halo=0.9,
        uneven=6,
    ),
    # Levator scapulae.
    Tube(
        MUSCLE,
        (
            (54, 38, 8, 5, 6, 60),
            (35, 39, 14, 6, 8, 70),
            (10, 41, 19, 6, 11, 75),
            (-15, 43, 24, 7, 12, 70),
            (-40, 50, 30, 8, 13, 55),
            (-66, 62, 38, 9, 14, 35),
        ),
        halo=1.2,
    ),
    # Deep posterior: suboccipital muscles above, multifidus and semispinalis cervicis below.
    Tube(
        MUSCLE,
        (
            (64, 15, 36, 10, 6, -20),
            (50, 18, 32, 14, 8, -25),
            (36, 15, 33, 12, 8, -30),
            (18, 11, 33, 10, 8, -35),
            (-10, 11, 34, 10, 9, -35),
            (-40, 14, 36, 13, 10, -30),
            (-70, 18, 36, 17, 11, -15),
            (-130, 18, 36, 18, 12, -10),
        ),
        halo=1.0,
        uneven=10,
    ),
    # Semispinalis capitis.
    Tube(
        MUSCLE,
        (
            (70, 17, 50, 12, 6, -10),
            (50, 18, 48, 16, 7, -15),
            (25, 17, 48, 15, 7, -28),
            (0, 16, 48, 13, 7, -35),
            (-25, 17, 49, 12, 6.5, -35),
            (-50, 19, 51, 13, 6, -30),
            (-80, 22, 51, 12, 5, -20),
        ),
        halo=1.2,
        uneven=8,
    ),
    # Splenius.
    Tube(
        MUSCLE,
        (
            (66, 46, 22, 12, 4, -65),
            (45, 38, 38, 18, 4.5, -50),
            (20, 31, 44, 20, 4.8, -45),
            (-5, 26, 50, 20, 5, -38),
            (-35, 22, 57, 18, 4.5, -25),
            (-75, 16, 60, 12, 3.5, -12),
        ),
        halo=1.2,
        uneven=8,
    ),
    # Longissimus and erector spinae of the lower neck and back.
    Tube(
        MUSCLE,
        (
            (40, 34, 22, 4, 7, 60),
            (0, 31, 27, 5, 9, 55),
            (-40, 34, 34, 8, 9, 40),
            (-75, 38, 40, 14, 9, 10),
            (-130, 40, 40, 16, 12, 0),
        ),
        halo=1.0,
    ),
    # Trapezius.
    Tube(
        MUSCLE,
        (
            (66, 12, 66, 9, 2.5, -12),
            (40, 19, 62, 17, 3, -22),
            (15, 25, 60, 24, 3.2, -27),
            (-10, 31, 60, 29, 4, -27),
            (-35, 39, 61, 37, 6, -22),
            (-52, 56, 58, 52, 9, -15),
            (-70, 72, 58, 66, 12, -8),
            (-130, 70, 64, 68, 7, 0),
        ),
        halo=1.0,
        uneven=8,
    ),
    # Rhomboids, serratus and the muscles of the shoulder blade.
    Tube(
        MUSCLE,
        ((-46, 70, 24, 16, 10, 0), (-60, 92, 22, 34, 18, 0), (-80, 112, 20, 52, 28, 0), (-130, 118, 18, 55, 34, 0)),
        halo=2.0,
        group="chest",
    ),
    Tube(
        MUSCLE,
        ((-64, 70, -30, 16, 10, 30), (-80, 86, -48, 34, 14, 15), (-130, 92, -62, 50, 18, 10)),
        halo=2.0,
        group="chest",
    ),
    # Sternocleidomastoid.
    Tube(
        MUSCLE,
        (
            (64, 58, 12, 10, 5, 70),
            (45, 57, 4, 14, 5.5, 72),
            (20, 53, -9, 17, 6, 64),
            (0, 48, -20, 18, 6.5, 56),
            (-22, 40, -33, 17, 6.5, 40),
            (-45, 29, -42, 14, 6, 24),
            (-70, 18, -50, 10, 5, 10),
            (-82, 14, -54, 7, 4, 0),
        ),
        halo=1.6,
    ),
    # Infrahyoid straps.
    Tube(
        MUSCLE,
        ((8, 9, -51, 9, 2, 22), (-20, 12, -47, 10, 2.2, 40), (-45, 13, -44, 12, 2.3, 28), (-75, 12, -46, 11, 2.5, 12)),
        halo=0.8,
        group="larynx",
    ),
    # Muscles of mastication.
    Tube(
        MUSCLE,
        ((88, 58, -36, 5, 16, 8), (68, 57, -33, 7, 17, 10), (40, 56, -30, 7.5, 16, 10), (24, 51, -30, 5, 11, 12)),
        halo=1.4,
        group="jaw",
    ),
    Tube(
        MUSCLE, ((72, 34, -34, 6, 10, 25), (50, 39, -30, 6.5, 12, 22), (32, 43, -26, 4, 10, 15)), halo=1.4, group="jaw"
    ),
    Tube(MUSCLE, ((100, 36, -34, 12, 12, 0), (80, 38, -28, 13, 9, 0), (72, 40, -26, 8, 7, 0)), halo=1.4, group="jaw"),
    # Tongue and floor of the mouth.
    Tube(
        48,
        (
            (66, 0, -62, 20, 18, 0),
            (50, 0, -60, 24, 24, 0),
            (32, 0, -60, 24, 24, 0),
            (16, 0, -60, 21, 16, 0),
            (10, 0, -58, 15, 8, 0),
        ),
        paired=False,
        halo=2.0,
        group="jaw",
        uneven=14,
    ),
    Tube(MUSCLE, ((34, 27, -58, 5, 20, 14), (18, 20, -58, 7, 16, 20), (10, 12, -56, 5, 8, 20)), halo=0.8, group="jaw"),
)

ORGANS: tuple[Tube, ...] = (
    # Parotid, submandibular and thyroid glands.
    Tube(
        -5,
        ((80, 56, -8, 7, 9, 0), (55, 54, -9, 10, 14, 10), (30, 50, -12, 8, 11, 15), (20, 46, -16, 4, 5, 0)),
        halo=0.0,
        uneven=20,
    ),
    Tube(
        42,
        ((28, 36, -36, 6, 8, 30), (16, 32, -40, 9, 11, 30), (4, 29, -41, 7, 8, 30), (-3, 28, -41, 3, 3, 0)),
        halo=1.0,
        group="jaw",
        uneven=8,
    ),
    # Pharyngeal wall, larynx, oesophagus.
    Tube(
        50,
        (
            (100, 0, -33, 19, 15, 0),
            (62, 0, -30, 19, 13, 0),
            (40, 0, -27, 18, 11, 0),
            (20, 0, -28, 18, 13, 0),
            (4, 0, -32, 19, 17, 0),
            (-8, 0, -34, 18, 17, 0),
            (-24, 0, -34, 15, 16, 0),
            (-36, 0, -32, 13, 14, 0),
        ),
        paired=False,
        halo=1.2,
        group="larynx",
        uneven=6,
    ),
    Tube(
        45,
        ((-24, 0, -19, 11, 5, 0), (-36, 1.5, -17, 10, 5, 0), (-60, 4, -17.5, 8.5, 5, 0), (-130, 4, -18, 8, 5.5, 0)),
        paired=False,
        halo=0.8,
        group="larynx",
    ),
    Tube(
        105,
        (
            (-16, 19, -30, 3, 5, 20),
            (-30, 19.5, -29, 6.5, 10, 20),
            (-44, 18, -29, 7.5, 9.5, 20),
            (-56, 15, -31, 4.5, 5, 20),
        ),
        halo=0.6,
        group="larynx",
        uneven=10,
    ),
    Tube(
        105,
        ((-34, 0, -44, 4, 1.5, 0), (-40, 0, -43.5, 14, 3, 0), (-47, 0, -42.5, 9, 2, 0)),
        paired=False,
        group="larynx",
    ),
    # Carotid arteries, jugular veins, vertebral arteries, the great vessels of the chest's inlet.
    Tube(
        64,
        (
            (90, 24, -12, 2.6, 2.6, 0),
            (60, 27, -12, 2.6, 2.6, 0),
            (20, 27, -15, 3.0, 3.0, 0),
            (4, 26.5, -18, 4.4, 4.0, 20),
            (-10, 25.5, -19, 3.6, 3.6, 0),
            (-60, 22, -20, 3.7, 3.7, 0),
            (-80, 16, -26, 4.5, 4.5, 0),
            (-130, 12, -34, 5.5, 5.5, 0),
        ),
        halo=1.2,
    ),
    Tube(
        60,
        (
            (82, 31, -4, 4, 3.5, 0),
            (50, 33, -7, 4.8, 4.0, 30),
            (10, 34, -13, 6.4, 4.4, 35),
            (-30, 33, -19, 6.8, 5, 30),
            (-60, 30, -27, 7.6, 6, 20),
            (-80, 26, -36, 7, 6, 20),
            (-130, 18, -46, 8, 6, 0),
        ),
        halo=1.2,
    ),
    Tube(58, ((14, 27, -24, 2.2, 2.0, 0), (6, 26, -25, 2.2, 2.0, 0)), halo=0.8),
    Tube(
        64,
        (
            (60, 27, 9, 1.8, 1.8, 0),
            (55, 27, 4, 1.9, 1.9, 0),
            (44, 24, 3.5, 1.9, 1.9, 0),
            (36, 16.8, 2.4, 1.9, 1.9, 0),
            (-33, 17.2, 1.8, 1.9, 1.9, 0),
            (-44, 16, -5, 2, 2, 0),
            (-70, 20, -14, 2.4, 2.4, 0),
        ),
    ),
    Tube(62, ((-68, 36, -18, 5, 4, 30), (-78, 28, -22, 9, 4.5, 20), (-86, 20, -26, 5, 4, 0)), halo=1.0, group="chest"),
    Tube(60, ((-84, 8, -50, 14, 6, 0), (-130, 8, -56, 16, 12, 0)), paired=False, halo=2.0, group="chest"),
)

LUNGS: tuple[Tube, ...] = (
    Tube(
        40,
        (
            (-71, 32, 2, 6, 7, 0),
            (-78, 33, 1, 15, 17, 20),
            (-90, 37, -3, 25, 29, 20),
            (-120, 47, -8, 38, 46, 10),
            (-200, 64, -12, 53, 70, 0),
        ),
        group="chest",
        clipped=True,
    ),
    Tube(
        LUNG,
        (
            (-73, 32, 2, 4, 5, 0),
            (-79, 33, 1, 12, 14, 20),
            (-90, 37, -3, 22.5, 26, 20),
            (-120, 47, -8, 35, 43, 10),
            (-200, 64, -12, 50, 67, 0),
        ),
        group="chest",
        uneven=14,
    ),
)

CANAL: tuple[Tube, ...] = (
    Tube(
        -20,
        (
            (58, 0, 14, 13, 10, 0),
            (36, 0, 16, 12.5, 8.5, 0),
            (16, 0, 15, 12, 7.4, 0),
            (-50, 0, 15.5, 12, 7.4, 0),
            (-80, 0, 16, 10.5, 7.5, 0),
            (-220, 0, 17, 9, 7.5, 0),
        ),
        paired=False,
        uneven=18,
    ),
    Tube(
        16,
        (
            (76, 0, 14, 12, 11, 0),
            (58, 0, 14, 11, 9.2, 0),
            (36, 0, 15.2, 10.5, 7.6, 0),
            (16, 0, 14.5, 10, 6.2, 0),
            (-50, 0, 15, 9.8, 6.2, 0),
            (-80, 0, 15.5, 8.6, 6.2, 0),
            (-220, 0, 16.5, 7.5, 6.2, 0),
        ),
        paired=False,
    ),
    Tube(
        42,
        (
            (76, 0, 12, 6.5, 6.5, 0),
            (58, 0, 12.5, 5.6, 5.0, 0),
            (36, 0, 14.8, 5.8, 4.3, 0),
            (16, 0, 14.3, 6.2, 3.8, 0),
            (-30, 0, 14.6, 6.6, 3.7, 0),
            (-55, 0, 14.8, 5.6, 3.5, 0),
            (-80, 0, 15, 4.4, 3.4, 0),
            (-220, 0, 16, 4, 3.2, 0),
        ),
        paired=False,
    ),
)

AIRWAY: tuple[Tube, ...] = (
    Tube(
        AIR,
        (
            (105, 0, -36, 12, 9, 0),
            (80, 0, -34, 13, 11, 0),
            (62, 0, -29, 12, 8, 0),
            (54, 0, -25.5, 10, 4.5, 0),
            (44, 0, -25, 11, 5.5, 0),
            (28, 0, -27, 12.5, 7.5, 0),
            (14, 0, -32, 12, 9, 0),
            (6, 0, -36, 9.5, 8, 0),
            (-4, 0, -37, 7.5, 7.5, 0),
            (-13, 0, -38, 5, 9, 0),
            (-17, 0, -38, 2.2, 10, 0),
            (-21, 0, -37, 5, 10, 0),
            (-28, 0, -34, 7.5, 9.5, 0),
            (-38, 0, -32, 8.2, 8.8, 0),
            (-70, 1, -30, 8.6, 8.2, 0),
            (-130, 2, -28, 8.8, 8.2, 0),
        ),
        paired=False,
        group="larynx",
    ),
    # Epiglottis, with the valleculae in front of it; pyriform sinuses beside the larynx.
    Tube(AIR, ((14, 5, -43, 3, 2.2, 0), (9, 5.5, -43.5, 4.4, 3, 0), (5, 5, -43, 2, 1.5, 0)), group="larynx"),
    Tube(
        52,
        ((17, 0, -37.5, 7, 1.2, 0), (10, 0, -40, 9, 1.3, 0), (3, 0, -42, 7, 1.6, 0), (-3, 0, -43, 3, 2, 0)),
        paired=False,
        group="larynx",
    ),
    Tube(52, ((3, 0, -30, 9, 1.6, 0), (-6, 0, -29.5, 8.5, 3, 0), (-16, 0, -28, 8, 4, 0)), paired=False, group="larynx"),
    Tube(
        AIR, ((2, 12.5, -30, 3.5, 2.6, 60), (-5, 13.5, -29, 4.6, 2.6, 60), (-13, 13, -26, 3, 1.8, 60)), group="larynx"
    ),
)

_NOTHING = np.empty(0)


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
        c, g, a = self._course, self._grid, self._anatomy
        everything = slice(None)
        height = c.height - np.where(c.height < -30, self.shift["chest"], 0) * np.clip((-30 - c.height) / 20, 0, 1)
        half, front, back = (np.interp(height, _OUTLINE[:, 0], _OUTLINE[:, i]) for i in (1, 2, 3))
        fat = 2.5 + 10.0 * a.habitus + 0.5 * self._rng.normal()
        plump = 1.03 + 0.16 * (a.habitus - 0.4) + 0.02 * self._rng.normal()
        back = back + 11 * a.habitus * np.clip((60 - c.height) / 30, 0, 1)
        half, front, back = (c.scale * plump * v for v in (half, front, back))
        neck = np.clip((25 - c.height) / 15, 0, 1) * np.clip((c.height + 60) / 15, 0, 1)
        middle, deep = (back - front) / 2, (back + front) / 2
        corner = 0.86 * np.minimum(half, deep)
        f = lambda v: v.astype(np.float32)[:, None, None]  # noqa: E731
        cos, sin = f(np.cos(c.turn)), f(np.sin(c.turn))
        px, py = g.x[None, None, :] - f(c.x), g.y[None, :, None] - f(c.y)
        u = np.abs(cos * px + sin * py)
        v = cos * py - sin * px
        ahead = np.clip(-v / f(front), 0, 1)
        wide = f(half) * (1 - f(0.38 * neck) * ahead * ahead) - f(corner)
        du, dv = u - wide, np.abs(v - f(middle)) - f(deep - corner)
        inside = np.minimum(np.maximum(du, dv), 0)
        np.maximum(du, 0, out=du)
        np.maximum(dv, 0, out=dv)
        distance = np.sqrt(du * du + dv * dv)
        distance += inside
        distance -= f(corner)
        thick = np.float32(fat * c.scale) * (1 + (0.4 + 1.2 * a.habitus) * np.clip(v / f(back), 0, 1) ** 2)
        w = self._width
        noise = self._cells(everything, everything, everything)
        hu = np.float32(FAT) + 7 * noise
        hu -= np.clip(0.5 - (distance + thick) / w, 0, 1) * (-22)
        rim = np.clip(0.5 + (distance + 1.7) / w, 0, 1)
        hu += rim * (20 - hu)
        hu += np.clip(0.5 + distance / w, 0, 1) * (np.float32(AIR) - hu)
        self.hu = hu
        self._fascia = distance + 0.8 * thick
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
