"""Plans of necks for the tests of the rendered anatomy."""

import dataclasses

from cspine_jax.phantom.plan import Acquisition, Anatomy, StudyPlan

ANATOMY = Anatomy(
    sex="M",
    age=45.0,
    scale=1.0,
    lordosis_deg=16.0,
    rotation_deg=0.0,
    tilt_deg=0.0,
    trabecular_hu=260.0,
    cortical_hu=1150.0,
    osteophytes=0.2,
    disc_narrowing=(0.1,) * 6,
    habitus=0.4,
    dental_metal=True,
    seed=3,
)


def acquisition(size=112, fov=160.0, slices=100, spacing=2.0, top=95.0, **other) -> Acquisition:
    values = dict(
        size=size,
        pixel_mm=fov / size,
        slices=slices,
        spacing_mm=spacing,
        thickness_mm=spacing,
        top_mm=top,
        centre_mm=(0.0, 10.0),
        origin_mm=(0.0, 0.0, 0.0),
        ascending=False,
        first_number=1,
        sharpness=0.5,
        noise_hu=20.0,
        motion_mm=0.0,
        seed=1,
    )
    return Acquisition(**(values | other))


def make_plan(q: Acquisition, fractures=(), distractors=(), **anatomy) -> StudyPlan:
    return StudyPlan(0, "2.25.1", dataclasses.replace(ANATOMY, **anatomy), q, tuple(fractures), tuple(distractors))


def index_of(plan: StudyPlan, point) -> tuple[int, int, int]:
    """Nearest voxel (z, y, x) of a patient point (x, y, z)."""
    q = plan.acquisition
    x, y, z = point
    middle = (q.size - 1) / 2
    return (
        round((q.top_mm - z) / q.spacing_mm),
        round((y - q.centre_mm[1]) / q.pixel_mm + middle),
        round((x - q.centre_mm[0]) / q.pixel_mm + middle),
    )
