"""Skull base, face, mandible with teeth, hyoid, clavicles: bones that are not vertebrae but say which level one is at.

Skull frame: origin on the axis of the dens at the height of the foramen magnum, x left, y back, z up, mm.
"""

import dataclasses

import numpy as np

from cspine_jax.phantom.field import Field, Frame, build
from cspine_jax.phantom.noise import Texture
from cspine_jax.phantom.paint import Canvas, Marrow, paint_bone, paint_soft
from cspine_jax.phantom.plan import Anatomy
from cspine_jax.phantom.shapes import Bone, Part, ellipsoid, mirrored, rod, smooth_max, smoothstep, tube
from cspine_jax.phantom.spine import NOMINAL_Z, Posture

BRAIN, CSF, AIR, SCALP, NUCHAL = 36.0, 12.0, -1000.0, -15.0, 30.0


def _vault(x, y, z):
    """Distance to the inside of the braincase, straight-walled above the posterior fossa; two hollows below."""
    u, v, w = x * np.float32(1 / 57), (y - 34) * np.float32(1 / 53), np.minimum(z - 33, 0) * np.float32(1 / 32.5)
    k = np.sqrt(u * u + v * v + w * w)
    crest = 3.2 * np.exp(-np.square(x / 6)) * smoothstep(y, 34, 62)
    return (k - 1) * 42 + crest


def _cavity(x, y, z):
    """Distance to the posterior fossa with the foramen magnum below it."""
    clivus = -((y + 1.5) * 0.86 + z * 0.51)
    petrous = 0.62 * (np.abs(x) - 13) - 0.78 * (y + 15)
    room = smooth_max(smooth_max(_vault(x, y, z), clivus, 4.0), petrous, 6.0)
    hole = np.maximum((np.hypot(x * np.float32(1 / 14.5), (y - 16.5) * np.float32(1 / 17.5)) - 1) * 15, np.abs(z) - 12)
    return np.minimum(room, hole)


def _shell(x, y, z):
    """The occipital and temporal squama: thick at the inion, thin over the cerebellar hollows."""
    vault = _vault(x, y, z)
    thick = 3.2 + 6.5 * smoothstep(y, 58, 84) * np.exp(-np.square((z - 14) / 16)) + 2.2 * smoothstep(z, 6, 26)
    return smooth_max(np.maximum(vault - thick, -vault - 1.0), -8 - y + 0.35 * np.abs(x), 3.0)


def _scalp(x, y, z):
    """Distance to the scalp's outside."""
    u, v, w = x * np.float32(1 / 70), (y - 34) * np.float32(1 / 65), np.minimum(z - 33, 0) * np.float32(1 / 40)
    return (np.sqrt(u * u + v * v + w * w) - 1) * 52


CAVITY = Part(_cavity, (-60, -30, -12), (60, 90, 110), 0.8, 1.4)


def cranium() -> Bone:
    """Occiput, clivus, petrous and mastoid bones, condyles."""
    side = [
        rod((19.0, 8.0, -2.2), (14.0, -6.0, -2.8), 5.6, 5.0, shell=1.5, blend=4.0),
        rod((14.0, -2.0, 4.0), (26.0, 10.0, 8.0), 6.5, 6.0, shell=1.6, blend=5.0),
        rod((17.0, -14.0, 24.0), (46.0, 4.0, 22.0), 8.5, 10.0, flat=1.2, shell=3.2, blend=5.0),
        ellipsoid((51.0, 9.0, 6.0), (10.5, 14.0, 20.0), shell=1.6, blend=5.0),
        rod((48.0, -8.0, 28.0), (62.0, -10.0, 31.0), 6.5, 5.0, shell=1.6, blend=4.0),
        rod((36.5, -3.0, 4.0), (33.0, -16.0, -20.0), 2.0, 1.1, shell=1.2),
        rod((60.0, 2.0, 45.0), (63.0, -10.0, 110.0), 4.0, 4.0, flat=6.0, up=(0, 1, 0), shell=1.6),
    ]
    parts = [
        Part(_shell, (-68, -14, -12), (68, 106, 110), 3.0, 1.5),
        rod((0, -6.5, 3.0), (0, -27.0, 38.0), 5.2, 6.0, flat=2.5, up=(1, 0, 0), shell=1.3, blend=4.0),
        *side,
        *mirrored(side),
    ]
    canals = [rod((44, -5, 19), (78, -5, 19), 3.6, blend=0.5), rod((25, -12, 0), (25, -12, 30), 3.5, blend=0.5)]
    return Bone(tuple(parts), (CAVITY, *canals, *mirrored(canals)))


def _teeth(z_root: float, z_crown: float, wide: float) -> list[Part]:
    """Seven teeth a side along the dental arch."""
    parts = []
    for i in range(7):
        t = (i + 0.5) / 7
        x, y = wide * np.sin(t * 1.45) ** 0.8, -89 + 41 * (1 - np.cos(t * 1.5)) ** 0.9
        r = (2.1, 2.2, 2.5, 2.7, 2.8, 3.8, 3.9)[i]
        parts.append(rod((0.97 * x, y + 1.0, z_root), (x, y, z_crown), 0.7 * r, r, shell=2.0, blend=0.3, margin=2.0))
    return parts


def upper_face() -> Bone:
    """Maxilla with its sinuses' walls, palate, upper alveolar arch, pterygoid plates, zygoma, sphenoid."""
    side = [
        ellipsoid((26, -60, 21), (16.0, 18.5, 18.0), shell=1.2),
        *tube([(26, -48, -1), (24, -64, -1), (15, -79, -1), (0, -85, -1)], [4.5, 4.5, 4.3, 4.0], flat=1.5, shell=1.2),
        rod((15, -34, 36), (13, -40, -1), 1.9, 1.6, flat=3.6, up=(0, 1, 0), shell=1.1),
        *tube([(65, -12, 27), (69, -36, 22), (60, -56, 16), (44, -66, 14)], [2.2, 2.0, 3.5, 5.0], flat=1.6, shell=1.2),
        rod((14, -36, 40), (44, -30, 42), 5.0, 4.0, flat=1.5, up=(0, 1, 0), shell=1.3),
    ]
    middle = [
        ellipsoid((0, -38, 43), (17, 14, 12), shell=1.2),
        rod((0, -40, 4.5), (0, -78, 4.5), 1.7, 1.9, flat=10.0, up=(1, 0, 0), shell=1.1),
        rod((0, -36, 34), (0, -72, 10), 0.9, 0.9, flat=7.0, up=(0, 0, 1), shell=1.0),
    ]
    air = [ellipsoid((26, -60, 21), (14.2, 16.6, 16.0), blend=0.3), ellipsoid((0, -40, 44), (13, 10.5, 9), blend=0.3)]
    return Bone((*middle, *side, *mirrored(side)), (*air, *mirrored(air[:1])))


def mandible() -> Bone:
    """Condyles, rami, body and chin."""
    side = [
        rod((50, -13, 19), (49.5, -19, -4), 4.2, 3.4, flat=1.4, up=(1, 0, 0), shell=1.6, blend=3.0),
        rod((49, -29, 4), (47, -28, -27), 3.3, 3.6, flat=4.0, up=(0, 1, 0), shell=1.8, blend=4.0),
        rod((47.5, -42, 17), (48, -38, -4), 2.0, 3.0, flat=2.0, up=(0, 1, 0), shell=1.5, blend=3.0),
        *tube(
            [(46, -32, -27), (38, -52, -31), (27, -71, -33), (13, -83, -34), (0, -86, -34.5)],
            [4.6, 5.2, 5.2, 5.4, 5.8],
            flat=2.3,
            shell=2.3,
            blend=3.0,
        ),
    ]
    return Bone((*side, *mirrored(side)), ())


def hyoid() -> Bone:
    """Body and greater horns; frame at C4's nominal height, turned with the neck."""
    side = [
        *tube([(0, -52, 14), (9, -50, 14), (16, -42, 15)], [2.8, 2.6, 1.9], flat=1.9, shell=1.0),
        *tube([(16, -42, 15), (21, -31, 16.5), (21.5, -25, 17.5)], [1.9, 1.6, 1.8], flat=1.4, shell=1.0),
    ]
    return Bone((*side, *mirrored(side)), ())


def clavicles() -> Bone:
    """Both collar bones and the spines of the shoulder blades with the humeral heads; frame at T2."""
    side = [
        *tube(
            [(12, -66, -12), (34, -72, -4), (64, -62, 4), (100, -38, 10), (140, -20, 12)],
            [8.0, 6.5, 5.4, 5.6, 6.0],
            flat=0.9,
            shell=2.0,
            blend=3.0,
        ),
        *tube(
            [(62, 38, -14), (86, 44, 0), (120, 34, 12), (150, 4, 14)],
            [2.2, 3.0, 4.5, 6.0],
            flat=1.9,
            shell=1.6,
            blend=4.0,
        ),
        rod((64, 34, -14), (76, 36, -80), 2.2, 2.6, shell=1.4),
        rod((76, 38, -14), (112, 26, -30), 1.8, 3.0, flat=5.0, shell=1.3),
        ellipsoid((118, 14, -16), (9, 12, 16), shell=1.6),
        ellipsoid((146, 8, -14), (23, 23, 23), shell=1.4),
    ]
    return Bone((*side, *mirrored(side)), ())


def _cells(noise: Texture, side: int) -> Part:
    """Mastoid air cells: bubbles inside a thin wall."""

    def distance(x, y, z):
        k = np.sqrt(np.square((side * x - 51) / 8.6) + np.square((y - 9) / 12) + np.square((z - 7) / 18)) - 1
        return np.maximum(k * 9, (0.05 - noise(1.3 * x, 1.3 * y, 1.3 * z)) * 1.3)

    low = (40.0 if side > 0 else -62.0, -5.0, -14.0)
    return Part(distance, low, (low[0] + 22, 23.0, 28.0))


def paint_skull(canvas: Canvas, pose: Posture, anatomy: Anatomy, marrow: Marrow) -> Field | None:
    """Paints skull and mandible with brain, air cells and teeth; returns the cranium's field (C1 keeps clear of it)."""
    rng = np.random.default_rng([anatomy.seed, 16])
    frame = pose.skull
    dense = dataclasses.replace(marrow, cortical=1.12 * marrow.cortical, trabecular=marrow.trabecular + 190, uneven=0.9)
    bone = cranium()
    room = Field.create(canvas.grid, frame, bone.low, bone.high)
    cranial = None
    if room is not None:
        scalp = Part(_scalp, (-76, -10, -14), (76, 112, 110))
        paint_soft(canvas, room, scalp, SCALP, only_air=True)
        paint_soft(canvas, room, Part(lambda x, y, z: _vault(x, y, z) - 3, CAVITY.low, CAVITY.high), NUCHAL)
        paint_soft(canvas, room, CAVITY, BRAIN)
        paint_soft(canvas, room, ellipsoid((0, 31, 5), (15, 7, 6)), CSF)
        paint_soft(canvas, room, ellipsoid((0, 4, 20), (14, 4, 14)), CSF)
        cranial = room
        for part in bone.add:
            cranial.add(part)
        for part in bone.cut:
            cranial.cut(part)
        paint_bone(canvas, cranial, dense)
        for side in (-1, 1):
            paint_soft(canvas, cranial, _cells(marrow.surface, side), -900.0)
            paint_soft(canvas, cranial, rod((side * 44, -5, 19), (side * 84, -5, 19), 2.8), AIR)
    face = build(canvas.grid, frame, upper_face())
    if face is not None:
        paint_soft(canvas, face, ellipsoid((0, -62, 22), (12, 26, 16)), -250.0)
        for side in (-1, 1):
            paint_soft(canvas, face, ellipsoid((side * 5, -60, 20), (3.4, 27, 15)), AIR)
        paint_bone(canvas, face, dense)
        for part in upper_face().cut:
            paint_soft(canvas, face, part, AIR)
    jaw = Frame(frame.origin, frame.rotation, frame.scale * float(rng.normal(1, 0.02)))
    lower = build(canvas.grid, jaw, mandible())
    if lower is not None:
        paint_bone(canvas, lower, dataclasses.replace(dense, cortical=1.3 * marrow.cortical, uneven=0.5))
    enamel = dataclasses.replace(marrow, cortical=2350.0, trabecular=1500.0)
    for crowns, root, tip in ((-8.5, 3.0, 27.0), (-14.5, -25.0, 25.5)):
        teeth = _teeth(root, crowns, tip)
        kept = [part for part in teeth if rng.random() > 0.02 + 0.003 * max(anatomy.age - 35, 0)]
        row = [*kept, *(part for part in mirrored(teeth) if rng.random() > 0.02 + 0.003 * max(anatomy.age - 35, 0))]
        if row:
            field = build(canvas.grid, frame, Bone(tuple(row), ()))
            if field is not None:
                paint_bone(canvas, field, enamel)
    return cranial


def paint_landmarks(
    canvas: Canvas, pose: Posture, anatomy: Anatomy, marrow: Marrow, larynx_mm: float, chest_mm: float
) -> None:
    """Paints hyoid, clavicles and shoulders, which people carry higher or lower."""
    scale = anatomy.scale
    c3, c4 = pose.vertebrae[2], pose.vertebrae[3]
    for frame, bone, rise in (
        (Frame(0.5 * (c3.origin + c4.origin), c4.rotation, scale), hyoid(), larynx_mm - 0.5 * NOMINAL_Z[2]),
        (Frame(pose.vertebrae[8].origin, np.eye(3), scale), clavicles(), chest_mm + 4.0),
    ):
        # The neck's own axis is close to vertical here: only its turn about z is kept.
        turn = float(np.arctan2(frame.rotation[1, 0], frame.rotation[0, 0]))
        c, s = np.cos(turn), np.sin(turn)
        upright = Frame(
            frame.origin + np.array([0, 0, rise * scale]), np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]]), scale
        )
        field = build(canvas.grid, upright, bone)
        if field is not None:
            paint_bone(canvas, field, marrow)
