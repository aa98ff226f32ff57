"""A plan becomes a volume: ideal tissue HU with partial volume, vertebra labels and the exact fracture voxels."""

import dataclasses

import numpy as np

from cspine_jax.phantom.field import Field, Grid
from cspine_jax.phantom.fractures import Sclerosis, Squash, fracture_marks
from cspine_jax.phantom.noise import Texture
from cspine_jax.phantom.paint import Canvas, Marrow, paint_bone, paint_soft
from cspine_jax.phantom.plan import StudyPlan
from cspine_jax.phantom.skull import paint_landmarks, paint_skull
from cspine_jax.phantom.spine import LEVELS, posture
from cspine_jax.phantom.shapes import Part, rounded_rectangle
from cspine_jax.phantom.tissue import soft_tissue
from cspine_jax.phantom.vertebra import Bone, Person, ribs, vertebra


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
    return Scene(hu, canvas.labels, canvas.fractures, tissue.lateral_path())


def _spine(canvas, plan, pose, person, marrow, above):
    for level in range(LEVELS):
        bone = vertebra(level, person)
        field = Field.create(canvas.grid, pose.vertebrae[level], bone.low, bone.high)
        if field is None:
            above = None
            continue
        marks = [mark for f in plan.fractures if f.level == level for mark in fracture_marks(f, person)]
        for mark in marks:
            if not isinstance(mark, Sclerosis):
                mark.displace(field)
        for part in bone.add:
            field.add(part)
        for part in bone.cut:
            field.cut(part)
        if above is not None:
            field.keep_clear(above, 1.4)
        if level >= 1:
            paint_soft(
                canvas,
                field,
                disc(person.dims(level), -10.0 if level == 1 else -person.dims(level).height / 2, pose.discs[level]),
                85,
            )
        if level >= 7:
            for side in ribs(level, person):
                paint_rib(canvas, pose.vertebrae[level], side, marrow)
        paint_bone(canvas, field, marrow, level + 1, [m for m in marks if not isinstance(m, Squash)])
        above = field


def disc(d, bottom, height):
    def distance(x, y, z):
        return np.maximum(
            rounded_rectangle(x, y, d.width - 0.5, d.depth - 0.3, 4.5),
            np.abs(z - bottom + height / 2 - 0.5) - height / 2 - 1.5,
        )

    return Part(distance, (-d.width - 2, -d.depth - 2, bottom - height - 3), (d.width + 2, d.depth + 2, bottom + 4))


def paint_rib(canvas, frame, parts, marrow):
    bone = Bone(tuple(parts), ())
    field = Field.create(canvas.grid, frame, bone.low, bone.high)
    if field is None:
        return
    for part in parts:
        field.add(part)
    paint_bone(canvas, field, marrow)
