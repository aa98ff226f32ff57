"""Every named fracture is a local, visible break of its vertebra; mimics are local and never recorded as fractures."""

import numpy as np
import pytest
from necks import ANATOMY, acquisition, make_plan

from cspine_jax.phantom.plan import DISTRACTOR_KINDS, FRACTURE_KINDS, Distractor, Fracture
from cspine_jax.phantom.scene import render
from cspine_jax.phantom.spine import posture


def around(level: int, **other):
    """An acquisition of one level at about 1 mm."""
    origin = posture(ANATOMY).vertebrae[level].origin
    return acquisition(
        size=100, fov=105.0, slices=44, spacing=1.4, top=float(origin[2]) + 31.0, centre_mm=(0.0, 14.0), **other
    )


def fracture(kind: str, level: int, **other) -> Fracture:
    values = dict(side=1, gap_mm=1.2, step_mm=0.8, displacement_mm=1.0, conspicuity=0.9, seed=4)
    return Fracture(level, kind, **(values | other))


@pytest.mark.parametrize("kind", FRACTURE_KINDS)
def test_fracture_is_a_dark_local_cleft_in_its_own_vertebra(kind):
    for level in {FRACTURE_KINDS[kind][0], FRACTURE_KINDS[kind][-1]}:
        q = around(level)
        whole = render(make_plan(q))
        broken = render(make_plan(q, [fracture(kind, level)]))
        cleft = broken.fractures > 0
        assert set(np.unique(broken.fractures)) == {0, level + 1}
        assert cleft.sum() >= 8
        assert broken.hu[cleft].mean() < whole.hu[cleft].mean() - 60
        # It runs through this vertebra ...
        assert np.mean(whole.labels[cleft] == level + 1) > 0.5
        # ... and nothing changes farther than a fragment's length away.
        changed = np.argwhere(np.abs(broken.hu - whole.hu) > 1e-3)
        spacing = np.array([q.spacing_mm, q.pixel_mm, q.pixel_mm])
        points = np.argwhere(cleft) * spacing
        far = [
            np.sqrt(((points - p * spacing) ** 2).sum(axis=1).min()) for p in changed[:: max(1, len(changed) // 400)]
        ]
        assert max(far) < 45.0
        assert np.mean(np.abs(broken.hu - whole.hu) > 1e-3) < 0.1
        # The rest of the picture keeps its brightness: nothing to see in a histogram.
        assert abs(float(broken.hu.mean() - whole.hu.mean())) < 3.0


def test_conspicuity_and_gap_decide_how_dark_a_cleft_is():
    q = around(4)
    whole = render(make_plan(q))

    def drop(**other) -> float:
        broken = render(make_plan(q, [fracture("lamina", 4, step_mm=0.0, displacement_mm=0.0, **other)]))
        assert (broken.fractures > 0).any()
        return float((whole.hu - broken.hu).sum())

    assert drop(conspicuity=1.0) > 1.5 * drop(conspicuity=0.4) > 0
    assert drop(gap_mm=2.0) > 1.5 * drop(gap_mm=0.6) > 0


def test_hard_fractures_on_coarse_grids_are_still_recorded():
    for kind, levels in FRACTURE_KINDS.items():
        level = levels[len(levels) // 2]
        origin = posture(ANATOMY).vertebrae[level].origin
        q = acquisition(size=64, fov=180.0, slices=24, spacing=3.0, top=float(origin[2]) + 36.0)
        hard = fracture(kind, level, gap_mm=0.4, step_mm=0.0, displacement_mm=0.0, conspicuity=0.3)
        assert (render(make_plan(q, [hard])).fractures == level + 1).any(), kind


def test_displacement_moves_bone():
    q = around(3)
    plain, moved = (
        render(make_plan(q, [fracture("spinous_process", 3, step_mm=0.0, displacement_mm=d)])) for d in (0.0, 4.0)
    )
    assert np.sum(plain.labels != moved.labels) > 50


def test_compression_lowers_the_body():
    q = around(4)
    whole = render(make_plan(q))
    broken = render(make_plan(q, [fracture("body_compression", 4, displacement_mm=3.0)]))
    frame = posture(ANATOMY).vertebrae[4]
    x, y, _ = frame.origin
    column = (
        slice(None),
        round((y - 4 - q.centre_mm[1]) / q.pixel_mm + (q.size - 1) / 2),
        round((x - q.centre_mm[0]) / q.pixel_mm + (q.size - 1) / 2),
    )
    assert (broken.labels[column] == 5).sum() < (whole.labels[column] == 5).sum()


def test_two_fractures_of_one_neck_are_recorded_apart():
    q = acquisition(size=96, slices=80, spacing=2.0, top=80.0)
    scene = render(make_plan(q, [fracture("dens_ii", 1), fracture("spinous_process", 6, seed=8)]))
    assert set(np.unique(scene.fractures)) == {0, 2, 7}


@pytest.mark.parametrize("kind", DISTRACTOR_KINDS)
def test_mimics_change_their_vertebra_but_are_no_fractures(kind):
    changed = 0
    for level in (0, 4):
        q = around(level)
        whole = render(make_plan(q))
        for side in (-1, 0, 1):
            scene = render(make_plan(q, distractors=[Distractor(kind, level, side, 21 + level)]))
            assert not scene.fractures.any()
            difference = np.abs(scene.hu - whole.hu) > 5
            assert difference.mean() < 0.02
            changed += bool(difference.any())
    assert changed >= 5
