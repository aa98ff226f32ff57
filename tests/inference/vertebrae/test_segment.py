import numpy as np
import pytest
from oracles import Oracle, make_volume, neck

from cspine_jax.inference.vertebrae import LEVELS
from cspine_jax.inference.vertebrae.result import ABSENT, CUT_OFF, VISIBLE
from cspine_jax.inference.vertebrae.segment import Segmenter
from cspine_jax.metrics import roc_auc

WINDOW = (32, 32, 32)


def segment(labels, spacing, corrupt=None, **kwargs):
    volume = make_volume(labels, spacing)
    oracle = Oracle(labels, volume, corrupt)
    return Segmenter(oracle.spine, oracle.refine, window=WINDOW, **kwargs)(volume)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def scores(labels, found, values):
    return [dice(labels == value, found.labels == value) for value in values]


@pytest.fixture(scope="module")
def truth():
    _, labels, spacing = neck()
    return labels, spacing


@pytest.fixture(scope="module")
def found(truth):
    return segment(*truth)


def test_right_networks_give_right_masks_on_the_grid_of_the_study(truth, found):
    labels, _ = truth
    assert found.labels.shape == labels.shape and found.labels.dtype == np.uint8
    assert min(scores(labels, found, range(1, 8))) > 0.97
    assert (
        found.naming_probability > 0.9
        and found.entropy < 0.5
        and set(found.seconds)
        == {
            "coarse",
            "naming",
            "fine",
            "masks",
        }
    )


def test_every_level_is_described_by_its_mask(truth, found):
    labels, spacing = truth
    levels = {v.name: v for v in found.levels}
    assert list(levels)[:7] == list(LEVELS[:7])
    last = max(v for v in np.unique(labels))
    for name, vertebra in levels.items():
        mask = found.labels == LEVELS.index(name) + 1
        where = np.argwhere(mask)
        touches = (where == 0).any() or (where == np.array(labels.shape) - 1).any()
        assert vertebra.state == (CUT_OFF if touches else VISIBLE)
        np.testing.assert_allclose(vertebra.centroid, where.mean(axis=0))
        np.testing.assert_allclose(vertebra.box, (where.min(axis=0), where.max(axis=0) + 1))
        z, y, x = vertebra.centroid  # the affine of `make_volume`
        np.testing.assert_allclose(
            vertebra.centroid_mm, (30 + x * spacing[2], -20 + y * spacing[1], 100 - z * spacing[0])
        )
        assert vertebra.volume_ml == pytest.approx(len(where) * np.prod(spacing) / 1000)
        assert vertebra.confidence > 0.8
    assert levels["C4"].state == VISIBLE and any("cut off" in line for line in found.warnings)
    assert LEVELS[last - 1] in levels or LEVELS[last - 2] in levels


def test_visibility_tells_the_slices_that_show_a_vertebra(truth, found):
    labels, _ = truth
    shown = np.stack([(labels == value).any(axis=(1, 2)) for value in range(1, 8)], axis=1)
    assert found.visibility.shape == shown.shape and found.visibility.dtype == np.float32
    assert found.visibility.min() >= 0 and found.visibility.max() <= 1
    assert roc_auc(shown.ravel(), found.visibility.ravel()) > 0.998
    assert ((found.visibility >= 0.5) == shown).mean() > 0.985


def test_half_a_vertebra_with_the_wrong_level_is_set_right(truth):
    labels, spacing = truth

    def corrupt(p, o):
        lower = np.argwhere(p.argmax(axis=-1) == 4)
        lower = lower[lower[:, 0] > np.median(lower[:, 0])]
        part = p[tuple(lower.T)]
        part[:, [4, 5]] = part[:, [5, 4]]
        p = p.copy()
        p[tuple(lower.T)] = part
        return p, o

    assert min(scores(labels, segment(labels, spacing, corrupt), range(1, 8))) > 0.97


def test_a_run_of_vertebrae_off_by_one_with_unsure_probabilities_is_set_right(truth):
    labels, spacing = truth

    def corrupt(p, o):
        p = p.copy()
        for value in (6, 5, 4):
            own = p.argmax(axis=-1) == value
            level = p[own][:, value]
            p[own, value], p[own, value + 1] = 0.4 * level, 0.6 * level
        return p, o

    found = segment(labels, spacing, corrupt)
    assert min(scores(labels, found, range(1, 8))) > 0.97


def test_noise_leaves_no_bone_where_none_is(truth):
    labels, spacing = truth

    def corrupt(p, o):
        rng = np.random.default_rng(0)
        p, o = p.copy(), o.copy()
        for place in rng.permutation(np.argwhere(p[..., 0] > 0.95))[:60]:
            p[tuple(place)] = np.eye(20)[rng.integers(1, 20)]
        return p, o + rng.normal(0, 2, o.shape).astype(np.float32)

    found = segment(labels, spacing, corrupt)
    assert min(scores(labels, found, range(1, 8))) > 0.97
    assert not set(np.unique(found.labels)) - set(np.unique(labels))


def test_a_vertebra_the_coarse_network_missed_is_absent_and_its_neighbours_keep_their_names(truth):
    labels, spacing = truth

    def corrupt(p, o):
        p = p.copy()
        p[p[..., 5] > 0.02] = np.eye(20)[0]
        return p, o

    found = segment(labels, spacing, corrupt)
    assert {v.name: v.state for v in found.levels}["C5"] == ABSENT
    assert any(line.startswith("C5 not found between") for line in found.warnings)
    assert min(scores(labels, found, (1, 2, 3, 7))) > 0.97 and min(scores(labels, found, (4, 6))) > 0.9
    assert found.visibility[:, 4].max() < 0.3


@pytest.mark.parametrize("cut", [(0.0, 0.42), (0.3, 0.7), (0.5, 0.95)])
def test_a_part_of_a_neck_names_no_level_outside_it(truth, cut):
    labels, spacing = truth
    part = np.ascontiguousarray(labels[slice(*(int(c * len(labels)) for c in cut))])
    found = segment(part, spacing)
    there = set(np.unique(part))
    assert set(np.unique(found.labels)) <= there
    whole = [v for v in there - {0} if v < 8 and v not in np.unique(part[[0, -1]])]
    assert whole and min(scores(part, found, whole)) > 0.97
    states = {v.name: v.state for v in found.levels}
    for value in range(1, 8):
        if value not in there:
            assert states[LEVELS[value - 1]] == ABSENT and found.visibility[:, value - 1].max() < 0.2
        elif value in whole:
            assert states[LEVELS[value - 1]] == VISIBLE


def test_a_study_without_a_spine_says_so():
    labels = np.zeros((20, 24, 24), np.uint8)
    found = segment(labels, (2.0, 2.0, 2.0))
    assert not found.labels.any() and not found.visibility.any() and found.visibility.shape == (20, 7)
    assert [v.state for v in found.levels] == [ABSENT] * 7 and [v.confidence for v in found.levels] == [1.0] * 7
    assert found.warnings == ("no vertebra found: all levels are absent",)


def test_the_window_batch_and_overlap_hardly_matter(truth, found):
    other = segment(*truth, overlap=0.5, batch=3)
    assert (other.labels != found.labels).mean() < 1e-4


@pytest.mark.parametrize("spacing", [(5.0, 0.6, 0.6), (0.5, 3.0, 3.0)])
def test_coarse_slices_and_coarse_pixels(spacing):
    _, fine, at = neck()
    step = [s / a for s, a in zip(spacing, at, strict=True)]
    rows = [
        np.minimum((np.arange(int(n * a / s)) * f).astype(int), n - 1)
        for n, a, s, f in zip(fine.shape, at, spacing, step, strict=True)
    ]
    labels = np.ascontiguousarray(fine[np.ix_(*rows)])
    found = segment(labels, spacing)
    assert min(scores(labels, found, range(2, 7))) > 0.9
