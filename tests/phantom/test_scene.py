"""The rendered neck: labels in order, HU of every tissue, measures of real masks, determinism, any geometry."""

import dataclasses
import json
from functools import cache
from importlib import resources

import numpy as np
import pytest
from necks import ANATOMY, acquisition, index_of, make_plan

from cspine_jax.phantom.field import Grid
from cspine_jax.phantom.person import Person
from cspine_jax.phantom.plan import Distractor, StudyPlan
from cspine_jax.phantom.scene import Scene, render
from cspine_jax.phantom.spine import posture


@cache
def neck() -> tuple[StudyPlan, Scene]:
    plan = make_plan(acquisition())
    return plan, render(plan)


def test_volumes_have_the_plan_s_shape_and_types():
    plan, scene = neck()
    q = plan.acquisition
    assert scene.hu.shape == scene.labels.shape == scene.fractures.shape == (q.slices, q.size, q.size)
    assert (scene.hu.dtype, scene.labels.dtype, scene.fractures.dtype) == (np.float32, np.uint8, np.uint8)
    assert scene.lateral_path_mm.shape == (q.slices,)
    assert not scene.fractures.any()
    assert scene.metal
    assert np.isfinite(scene.hu).all()


def test_vertebrae_follow_each_other_from_c1_down():
    _, scene = neck()
    centres = [np.argwhere(scene.labels == label)[:, 0].mean() for label in range(1, 10)]
    assert np.all(np.diff(centres) > 0)
    for label in range(1, 9):
        x = np.argwhere(scene.labels == label)[:, 2].mean()
        assert abs(x - (scene.hu.shape[2] - 1) / 2) < 4


def test_tissues_have_the_hu_of_ct():
    plan, scene = neck()
    pose, person = posture(plan.anatomy), Person(plan.anatomy.seed, plan.anatomy.sex)
    assert scene.hu.min() == pytest.approx(-1000, abs=5)
    assert 700 < scene.hu[scene.labels > 0].max() < 1900
    for level in range(2, 7):
        z, y, x = index_of(plan, pose.vertebrae[level].to_patient((0, -2, 0.5)))
        body = scene.hu[z, y - 2 : y + 3, x - 2 : x + 3].mean()
        assert 130 < body < 520, level
        depth = person.dims(level).depth
        z, y, x = index_of(plan, pose.vertebrae[level].to_patient((0, depth + 7.0, 0)))
        assert 5 < scene.hu[z, y, x] < 60, level
    muscle = (scene.hu > 35) & (scene.hu < 75)
    fat = (scene.hu > -125) & (scene.hu < -70)
    assert muscle.mean() > 0.1
    assert fat.mean() > 0.03
    # Cortex is brighter than what it encloses.
    bone = scene.hu[scene.labels == 5]
    assert np.quantile(bone, 0.9) > 1.5 * np.quantile(bone, 0.3)


def test_canal_is_open_through_the_whole_neck():
    plan, scene = neck()
    pose, person = posture(plan.anatomy), Person(plan.anatomy.seed, plan.anatomy.sex)
    path = []
    for level in range(7):
        depth = 0 if level == 0 else person.dims(max(level, 2)).depth
        path.append(pose.vertebrae[level].to_patient((0, (13 if level == 0 else depth + 7.5), 0)))
    path = np.array(path)
    for t in np.linspace(0, 6, 61):
        point = [np.interp(t, np.arange(7), path[:, i]) for i in range(3)]
        z, y, x = index_of(plan, point)
        assert scene.labels[z, y, x] == 0
        assert scene.hu[z, y, x] < 120


@pytest.mark.parametrize(("level", "x"), [(1, None), (2, None), (4, None), (5, None), (0, 27.0)])
def test_transverse_foramina_are_holes_with_bone_around(level, x):
    q = acquisition(size=200, fov=90.0, slices=60, spacing=0.7)
    pose, person = posture(ANATOMY), Person(ANATOMY.seed, ANATOMY.sex)
    frame = pose.vertebrae[level]
    top = float(frame.origin[2]) + 21.0
    plan = make_plan(dataclasses.replace(q, top_mm=top, centre_mm=(0.0, float(frame.origin[1]) + 8)))
    scene = render(plan)
    d = person.dims(max(level, 2))
    for side in (-1, 1):
        across = x if x else (15.9 if level == 1 else d.width + 1.2 + d.foramen)
        spot = (side * across, 3.4 if level == 0 else 1.9, -4.0 if level == 1 else -0.8)
        k, j, i = index_of(plan, frame.to_patient(spot))
        assert scene.labels[k, j, i] == 0
        # Bone of this vertebra lies medial, lateral, in front and behind, within 9 mm, on some nearby slice.
        reach = int(9 / plan.acquisition.pixel_mm)
        bone = scene.labels[k - 4 : k + 5] == level + 1
        for step in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            line = [bone[:, j + n * step[0], i + n * step[1]].any() for n in range(1, reach)]
            assert any(line), (level, side, step)


def test_extents_are_those_of_real_masks():
    table = json.loads(resources.files("cspine_jax.phantom").joinpath("statistics.json").read_text())
    extents = []
    for seed in range(6):
        plan = make_plan(acquisition(size=80, slices=190, spacing=1.0), seed=seed, sex="MF"[seed % 2])
        scene = render(plan)
        present = np.stack([(scene.labels == label).any(axis=(1, 2)) for label in range(1, 8)])
        rows = np.flatnonzero(present.any(axis=0))
        extents.append([*present.sum(axis=1), rows[-1] - rows[0] + 1])
    median = np.median(extents, axis=0)
    want = [table["mask_axial_extent_mm_per_vertebra"][f"C{i}"]["50"] for i in range(1, 8)]
    assert np.abs(median[:7] - want).max() < 5.0
    assert abs(median[7] - table["C1_to_C7_extent_mm"]["50"]) < 8.0


def test_same_plan_same_voxels():
    plan = make_plan(acquisition(size=48, slices=40, spacing=4.0), distractors=(Distractor("osteophyte", 4, 0, 9),))
    first, second = render(plan), render(plan)
    np.testing.assert_array_equal(first.hu, second.hu)
    np.testing.assert_array_equal(first.labels, second.labels)


def test_people_differ():
    q = acquisition(size=48, slices=40, spacing=4.0)
    a, b = render(make_plan(q, seed=1)), render(make_plan(q, seed=2))
    assert np.mean(a.labels != b.labels) > 0.003


@pytest.mark.parametrize(
    "change",
    [
        dict(size=64, fov=60.0, slices=20, spacing=0.3, top=5.0),
        dict(size=64, slices=8, spacing=4.0, top=-60.0),
        dict(size=64, slices=12, spacing=3.0, top=260.0),
        dict(size=64, slices=12, spacing=3.0, top=-330.0),
        dict(size=33, fov=250.0, slices=1, spacing=1.0, top=0.0),
        dict(size=64, slices=10, spacing=2.0, top=10.0, centre_mm=(400.0, 0.0)),
        dict(size=64, slices=30, spacing=2.0, top=90.0, thickness_mm=5.0),
    ],
)
def test_any_field_of_view_renders(change):
    plan = make_plan(acquisition(**change), rotation_deg=14.0, tilt_deg=-10.0, lordosis_deg=-15.0)
    scene = render(plan)
    assert np.isfinite(scene.hu).all()
    assert scene.hu.min() >= -1010


def test_thick_slices_average_thin_ones():
    thin = render(make_plan(acquisition(size=96, fov=96.0, slices=40, spacing=0.5, top=9.75))).hu
    thick = render(make_plan(acquisition(size=96, fov=96.0, slices=5, spacing=4.0, top=8.0))).hu
    mean = thin.reshape(5, 8, 96, 96).mean(axis=1)
    assert np.corrcoef(mean.ravel(), thick.ravel())[0, 1] > 0.985
    assert abs(mean.mean() - thick.mean()) < 10


def test_grid_counts_whole_slices():
    grid = Grid(acquisition(slices=10, spacing=3.0))
    assert grid.sub > 1
    assert len(grid.z) == 10 * grid.sub
    box = grid.box(np.array([-10, -10, 60.0]), np.array([10, 10, 70.0]))
    assert box is not None
    assert box[0].start % grid.sub == 0
    assert box[0].stop % grid.sub == 0
    assert grid.box(np.array([500, 0, 0.0]), np.array([510, 10, 10.0])) is None


def test_older_bone_is_less_dense():
    q = acquisition(size=96, fov=96.0, slices=20, spacing=1.0, top=10.0)
    young = render(make_plan(q, trabecular_hu=380.0))
    old = render(make_plan(q, trabecular_hu=150.0, cortical_hu=900.0))
    assert young.hu[young.labels == 4].mean() > 1.3 * old.hu[old.labels == 4].mean()
