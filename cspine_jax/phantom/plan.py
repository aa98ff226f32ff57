"""What a phantom study is, before any voxel exists: a few frozen dataclasses drawn from one seed.

Patient frame: LPS millimetres, x towards the patient's left, y towards the back, z towards the head. The origin is the
centre of the C4 vertebral body in the neutral posture, so every anatomical coordinate below is relative to it.
"""

import dataclasses

FRACTURE_KINDS: dict[str, tuple[int, ...]] = {
    "jefferson": (0,),
    "dens_i": (1,),
    "dens_ii": (1,),
    "dens_iii": (1,),
    "hangman": (1,),
    "body_compression": (2, 3, 4, 5, 6),
    "body_burst": (2, 3, 4, 5, 6),
    "body_teardrop": (1, 2, 3, 4, 5, 6),
    "facet": (2, 3, 4, 5, 6),
    "lamina": (1, 2, 3, 4, 5, 6),
    "pedicle": (2, 3, 4, 5, 6),
    "spinous_process": (1, 2, 3, 4, 5, 6),
    "transverse_process": (0, 1, 2, 3, 4, 5, 6),
}
"""Named fracture types and the levels (0 = C1 .. 6 = C7) they occur at."""

DISTRACTOR_KINDS: tuple[str, ...] = (
    "nutrient_canal",
    "accessory_ossicle",
    "old_corticated_line",
    "osteophyte",
)
"""Fracture mimics drawn in negatives and positives alike; motion is a property of the acquisition."""


@dataclasses.dataclass(frozen=True)
class Fracture:
    """One fracture. `level` 0..6; `side` -1 right, 0 midline or both, +1 left; lengths in mm.

    `gap_mm` is the width of the cleft, `step_mm` the cortical step across it, `displacement_mm` the shift of the
    fragment, `conspicuity` in (0, 1] how far the cleft's HU falls from bone towards soft tissue (1 = completely),
    `swelling_mm` the thickening of the soft tissue in front of the level.
    """

    level: int
    kind: str
    side: int
    gap_mm: float
    step_mm: float
    displacement_mm: float
    conspicuity: float
    seed: int
    swelling_mm: float = 0.0


@dataclasses.dataclass(frozen=True)
class Distractor:
    """One fracture mimic at a level (0..6) and side (-1 right, 0 midline, +1 left)."""

    kind: str
    level: int
    side: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """One person and their posture on the table. Angles in degrees, densities in HU, fractions 0..1."""

    sex: str
    age: float
    scale: float
    lordosis_deg: float
    rotation_deg: float
    tilt_deg: float
    trabecular_hu: float
    cortical_hu: float
    osteophytes: float
    disc_narrowing: tuple[float, ...]
    habitus: float
    dental_metal: bool
    seed: int


@dataclasses.dataclass(frozen=True)
class Acquisition:
    """How the scanner saw it.

    `size` pixels of `pixel_mm` in plane; `slices` planes `spacing_mm` apart, each `thickness_mm` thick.
    `top_mm` is the z of the first (most superior) plane and `centre_mm` the (x, y) of the image centre, patient frame
    of this module; `origin_mm` is what the scanner adds to make its own coordinates (LPS).
    `ascending`: the slice number rises with z (a tenth of the real studies). `first_number` names the first file.
    `sharpness` 0 soft .. 1 sharp kernel; `noise_hu` its standard deviation in soft tissue; `motion_mm` amplitude of
    patient motion during the scan.
    """

    size: int
    pixel_mm: float
    slices: int
    spacing_mm: float
    thickness_mm: float
    top_mm: float
    centre_mm: tuple[float, float]
    origin_mm: tuple[float, float, float]
    ascending: bool
    first_number: int
    sharpness: float
    noise_hu: float
    motion_mm: float
    seed: int


@dataclasses.dataclass(frozen=True)
class StudyPlan:
    """Everything that decides a study's bytes."""

    index: int
    uid: str
    anatomy: Anatomy
    acquisition: Acquisition
    fractures: tuple[Fracture, ...]
    distractors: tuple[Distractor, ...]

    @property
    def labels(self) -> tuple[int, ...]:
        """[8] 0/1: patient_overall, C1..C7."""
        broken = {fracture.level for fracture in self.fractures}
        return (int(bool(broken)), *(int(level in broken) for level in range(7)))
