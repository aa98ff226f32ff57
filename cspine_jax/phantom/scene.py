"""A plan becomes a volume: ideal tissue HU with partial volume, vertebra labels and the exact fracture voxels."""

import dataclasses

import numpy as np

from cspine_jax.phantom.distractors import distractor, wear
from cspine_jax.phantom.field import Field, Grid, build
from cspine_jax.phantom.fractures import Sclerosis, Squash, fracture_marks
from cspine_jax.phantom.noise import Texture
from cspine_jax.phantom.paint import Canvas, Marrow, paint_bone, paint_soft
from cspine_jax.phantom.person import Person, landmarks
from cspine_jax.phantom.plan import StudyPlan
from cspine_jax.phantom.shapes import Bone
from cspine_jax.phantom.skull import paint_landmarks, paint_skull
from cspine_jax.phantom.spine import LEVELS, Posture, posture
from cspine_jax.phantom.swelling import swell
from cspine_jax.phantom.tissue import soft_tissue
from cspine_jax.phantom.vertebra import disc, ribs, vertebra

JOINT_MM = 1.4
DISC_HU = 85.0


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
    a = plan.anatomy
    grid = Grid(plan.acquisition)
    pose = posture(a)
    person = Person(a.seed, a.sex)
    rng = np.random.default_rng([a.seed, 15])
    marrow = Marrow(a.cortical_hu, a.trabecular_hu, Texture(rng, 1.3, 0.6), Texture(rng, 3.5, 0.8))
    tissue = soft_tissue(grid, pose, a)
    hu = tissue.to_slices()
    canvas = Canvas(grid, hu, np.zeros(grid.shape, np.uint8), np.zeros(grid.shape, np.uint8))
    cranium = paint_skull(canvas, pose, a, marrow)
    paint_landmarks(canvas, pose, a, marrow, tissue.shift["larynx"], tissue.shift["chest"])
    _spine(canvas, plan, pose, person, marrow, cranium)
    swell(hu, canvas.labels, canvas.fractures, plan.fractures, plan.acquisition)
    return Scene(hu, canvas.labels, canvas.fractures, tissue.lateral_path(), _metal(plan, pose))


def _spine(canvas: Canvas, plan: StudyPlan, pose: Posture, person: Person, marrow: Marrow, above: Field | None) -> None:
    """Paints C1 down to the last vertebra in the image; each stays clear of the bone above it, which leaves joints."""
    for level in range(LEVELS):
        frame = pose.vertebrae[level]
        bone = vertebra(level, person)
        spurs, common = wear(level, plan.anatomy, person)
        mimics = [distractor(d, person) for d in plan.distractors if d.level == level]
        loose = [part for _, separate, _ in mimics for part in separate]
        fused = [*spurs, *(part for parts, _, _ in mimics for part in parts)]
        broken = [mark for f in plan.fractures if f.level == level for mark in fracture_marks(f, person)]
        bone = Bone((*bone.add, *fused, *loose), bone.cut)
        if level >= 7:
            for side in ribs(level, person):
                rib = build(canvas.grid, frame, Bone(tuple(side), ()))
                if rib is not None:
                    paint_bone(canvas, rib, marrow)
        field = build(canvas.grid, frame, bone, [mark for mark in broken if not isinstance(mark, Sclerosis)])
        if field is None:
            above = None
            continue
        if above is not None:
            field.keep_clear(above, JOINT_MM)
        if level >= 1:
            paint_soft(
                canvas,
                field,
                disc(person.dims(level), landmarks(level, person)["bottom"][2], pose.discs[level]),
                DISC_HU,
            )
        marks = [*common, *(mark for _, _, marks in mimics for mark in marks)]
        marks += [mark for mark in broken if not isinstance(mark, Squash)]
        paint_bone(canvas, field, marrow, level + 1, marks)
        above = field


def _metal(plan: StudyPlan, pose: Posture) -> tuple[Metal, ...]:
    """Fillings and crowns along the dental arch."""
    if not plan.anatomy.dental_metal:
        return ()
    q, rng = plan.acquisition, np.random.default_rng([plan.anatomy.seed, 17])
    out = []
    for _ in range(int(rng.integers(1, 6))):
        side, along = rng.choice((-1, 1)), rng.uniform(0.35, 1.0)
        local = (
            side * 26 * np.sin(along * 1.45) ** 0.8,
            -89 + 41 * (1 - np.cos(along * 1.5)) ** 0.9,
            rng.uniform(-16, -7),
        )
        x, y, z = pose.skull.to_patient(np.array(local))
        middle = (q.size - 1) / 2
        centre = (
            float(q.top_mm - z) / q.spacing_mm,
            float(y - q.centre_mm[1]) / q.pixel_mm + middle,
            float(x - q.centre_mm[0]) / q.pixel_mm + middle,
        )
        out.append(Metal(centre, float(rng.uniform(1.5, 4.0))))
    return tuple(out)
