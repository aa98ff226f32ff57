import dataclasses

import numpy as np
import pytest

from cspine_jax.phantom.plan import Fracture
from cspine_jax.phantom.sample import sample_study
from cspine_jax.phantom.scene import render


def neck(**fracture):
    """A neck with one C4 burst (or none), 1.3 mm pixels."""
    plan = sample_study(1, 2, size=128, scale=0.2, fov=0.8)
    values = dict(level=3, kind="body_burst", side=0, gap_mm=1.5, step_mm=0.5, displacement_mm=0.0)
    broken = Fracture(**(values | {"conspicuity": 1.0, "seed": 3} | fracture))
    return dataclasses.replace(plan, fractures=(broken,))


@pytest.fixture(scope="module")
def calm():
    return render(neck())


@pytest.fixture(scope="module")
def swollen():
    return render(neck(swelling_mm=12.0))


def test_swelling_leaves_bones_and_labels(calm, swollen):
    np.testing.assert_array_equal(calm.labels, swollen.labels)
    np.testing.assert_array_equal(calm.fractures, swollen.fractures)
    inside = (calm.labels > 0) & (calm.hu > 400)
    np.testing.assert_array_equal(calm.hu[inside], swollen.hu[inside])


def test_swelling_is_at_the_broken_level_and_in_front(calm, swollen):
    changed = np.abs(swollen.hu - calm.hu) > 60
    planes = np.flatnonzero(changed.any((1, 2)))
    body = np.flatnonzero((calm.labels == 4).any((1, 2)))
    assert planes.size and body[0] - 12 < planes.min() and planes.max() < body[-1] + 12
    assert not changed[: max(body[0] - 12, 0)].any()
    rows = np.nonzero(changed)[1]
    assert np.quantile(rows, 0.9) < np.nonzero(calm.labels == 4)[1].mean()


def test_more_swelling_moves_more(calm, swollen):
    slight = render(neck(swelling_mm=5.0))
    moved = [np.abs(scene.hu - calm.hu).sum() for scene in (slight, swollen)]
    assert 0 < moved[0] < moved[1]


def test_an_injury_behind_swells_less_in_front(calm):
    behind = render(neck(kind="lamina", side=1, swelling_mm=12.0))
    bare = render(neck(kind="lamina", side=1))
    front = np.nonzero(calm.labels == 4)[1].min()
    ahead = [np.abs(a.hu - b.hu)[:, :front].sum() for a, b in ((behind, bare), (render(neck(swelling_mm=12.0)), calm))]
    assert 0 < ahead[0] < ahead[1]
