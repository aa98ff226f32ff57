"""Scores of masks against values computed by hand, and against brute force over all pairs of surface voxels."""

import numpy as np
import pytest

from cspine_jax.metrics import presence_scores, segmentation_scores
from cspine_jax.metrics.segmentation import centroids_mm, identified, named_right, summary
from cspine_jax.metrics.surfaces import dice, overlap


def cube(shape, *box):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*side) for side in box)] = True
    return mask


def surface(mask):
    """Voxels with a neighbour outside, by looking at all six."""
    padded = np.pad(mask, 1)
    out = []
    for place in np.argwhere(padded):
        steps = np.concatenate((np.eye(3, dtype=int), -np.eye(3, dtype=int)))
        if not all(padded[tuple(place + step)] for step in steps):
            out.append(place - 1)
    return np.array(out)


def brute_force(a, b, spacing, tolerance):
    points = [surface(mask) * np.array(spacing) for mask in (a, b)]
    distance = np.linalg.norm(points[0][:, None] - points[1][None], axis=2)
    there, back = distance.min(axis=1), distance.min(axis=0)
    close = ((there <= tolerance).sum() + (back <= tolerance).sum()) / (len(there) + len(back))
    return close, max(np.percentile(there, 95), np.percentile(back, 95))


def test_dice_by_hand():
    a, b = cube((4, 4, 4), (0, 2), (0, 2), (0, 2)), cube((4, 4, 4), (0, 2), (0, 2), (1, 3))
    assert dice(a, b) == pytest.approx(2 * 4 / 16) and dice(a, a) == 1
    assert dice(a, ~a) == 0 and np.isnan(dice(a & False, a & False))


@pytest.mark.parametrize(("axis", "spacing"), [(0, (3.0, 0.5, 0.5)), (1, (3.0, 0.5, 0.5)), (2, (1.0, 1.0, 0.7))])
def test_a_cube_moved_by_one_voxel(axis, spacing):
    """The faces across the move lie one spacing apart, more than the tolerance or less."""
    a = cube((12, 12, 12), (3, 9), (3, 9), (3, 9))
    b = np.roll(a, 1, axis)
    found = overlap(a, b, spacing)
    assert found.dice == pytest.approx(2 * 5 / 12)
    assert found.hd95 == pytest.approx(spacing[axis])
    close, hd95 = brute_force(a, b, spacing, 1.0)
    assert found.surface_dice == pytest.approx(close) and found.hd95 == pytest.approx(hd95)
    assert (found.surface_dice == 1) == (spacing[axis] <= 1)


@pytest.mark.parametrize("seed", range(8))
def test_surface_scores_agree_with_brute_force(seed):
    rng = np.random.default_rng(seed)
    shape, spacing = (9, 11, 13), tuple(rng.uniform(0.4, 3.0, 3))
    a, b = (rng.random(shape) < 0.3 for _ in range(2))
    if seed % 2:  # blobs instead of noise, one of them at the edge
        a = cube(shape, (0, 4), (2, 9), (3, 9))
        b = cube(shape, (1, 6), (1, 7), (0, 8))
    found = overlap(a, b, spacing, 1.0)
    close, hd95 = brute_force(a, b, spacing, 1.0)
    assert found.surface_dice == pytest.approx(close) and found.hd95 == pytest.approx(hd95)
    assert found.dice == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    assert overlap(b, a, spacing, 1.0) == pytest.approx(found)


def test_a_far_speck_moves_the_hausdorff_distance_only_beyond_five_percent():
    a = cube((30, 30, 30), (5, 12), (5, 12), (5, 12))  # 218 voxels of surface
    b = a.copy()
    b[28, 28, 20:28] = True
    assert overlap(a, b, (1, 1, 1)).hd95 == 0
    b[28, 28, 10:28] = True
    assert overlap(a, b, (1, 1, 1)).hd95 > 10


def test_empty_masks_are_not_filled_in():
    a, none = cube((4, 4, 4), (0, 2), (0, 2), (0, 2)), np.zeros((4, 4, 4), bool)
    assert np.isnan(overlap(none, none, (1, 1, 1))).all()
    found = overlap(a, none, (1, 1, 1))
    assert found.dice == found.surface_dice == 0 and np.isnan(found.hd95)


def stack(values, shape=(60, 12, 12), height=4):
    """One slab a value, `height` slices each."""
    labels = np.zeros(shape, np.uint8)
    for k, value in enumerate(values):
        labels[height * k : height * (k + 1), 3:9, 3:9] = value
    return labels


def test_levels_that_are_not_in_the_truth_have_no_score_and_missed_ones_score_nothing():
    truth, predicted = stack([3, 4, 5, 8]), stack([3, 4, 0, 8])
    found = segmentation_scores(truth, predicted, (1, 1, 1))
    np.testing.assert_array_equal(found.dice, [np.nan, np.nan, 1, 1, 0, np.nan, np.nan])
    np.testing.assert_array_equal(found.hd95_mm, [np.nan, np.nan, 0, 0, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(np.flatnonzero(found.identified == 1), [2, 3, 7])
    assert found.identified[4] == 0 and np.isnan(found.identified).sum() == 15
    assert found.false_levels == () and np.isnan(found.named_right[4])
    means = summary([found])
    assert means["dice"] == pytest.approx(2 / 3) and means["missed"] == 1 and means["level_accuracy"] == 1
    assert means["identification_rate"] == pytest.approx(2 / 3)
    assert means["identification_rate_all"] == pytest.approx(3 / 4) and means["no_false_level"] == 1


def test_a_false_level_is_named():
    found = segmentation_scores(stack([3, 4, 5]), stack([3, 4, 5, 6]), (1, 1, 1))
    assert found.false_levels == ("C6",) and np.isnan(found.dice[5])
    assert found.named_right[5] == 0 and summary([found])["no_false_level"] == 0
    assert summary([found])["level_accuracy"] == pytest.approx(3 / 4)


def test_names_off_by_one_are_not_identified():
    truth, predicted = stack([3, 4, 5]), stack([4, 5, 6])
    found = segmentation_scores(truth, predicted, (4.0, 1, 1))  # 16 mm apart: within 20 mm, but another is nearer
    np.testing.assert_array_equal(found.identified[2:5], [0, 0, 0])
    np.testing.assert_array_equal(found.named_right[3:6], [0, 0, 0])
    assert found.false_levels == ("C6",)


def test_identification_by_hand():
    truth = {1: np.array([0.0, 0, 0]), 2: np.array([15.0, 0, 0]), 3: np.array([60.0, 0, 0])}
    predicted = {1: np.array([0.0, 7, 0]), 2: np.array([7.0, 0, 0]), 3: np.array([60.0, 0, 21])}
    # C1 near, C2 8 mm off but C1's true centroid is 7 mm away, C3 21 mm off
    np.testing.assert_array_equal(identified(truth, predicted)[:4], [1, 0, 0, np.nan])
    np.testing.assert_array_equal(named_right(truth, predicted)[:4], [1, 0, 0, np.nan])
    np.testing.assert_array_equal(identified(truth, {})[:4], [0, 0, 0, np.nan])
    assert np.isnan(identified({}, predicted)).all() and named_right({}, predicted)[0] == 0


def test_centroids_are_in_mm():
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[2:4, 5, 6:9] = 7
    (place,) = centroids_mm(labels, (2.0, 0.5, 1.0)).values()
    np.testing.assert_allclose(place, (5.0, 2.5, 7.0))


def test_presence_by_hand():
    shown = np.zeros((4, 7))
    shown[1:3, 0] = 1
    p = np.zeros((4, 7))
    p[:, 0] = [0.1, 0.9, 0.4, 0.6]
    found = presence_scores(shown, p)
    assert found["accuracy"] == pytest.approx(26 / 28) and found["level_accuracy"][0] == 0.5
    assert found["level_auc"][0] == pytest.approx(3 / 4) and np.isnan(found["level_auc"][1:]).all()
    assert found["auc"] > 0.9


def test_masks_on_two_grids_are_refused():
    with pytest.raises(ValueError, match="one grid"):
        segmentation_scores(stack([1]), stack([1], shape=(61, 12, 12)), (1, 1, 1))
