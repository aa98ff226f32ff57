import dataclasses

import numpy as np
import pytest
from oracles import centroids, coarse, neck
from scipy import ndimage

from cspine_jax.inference.vertebrae.instances import find_instances, settle

SPACING = (4.0, 4.0, 4.0)


@pytest.fixture(scope="module")
def answers():
    _, labels, spacing = neck()
    return coarse(labels, spacing)


def truth_of(instances, grid):
    """Mask value of each instance: that of the true centroid nearest to its own, which must be within 6 mm."""
    _, labels, spacing = neck()
    true = centroids(labels, spacing)
    values = []
    for centroid in instances.centroid_mm:
        place = centroid + np.array(grid.origin) * spacing
        distance = {value: np.linalg.norm(place - other) for value, other in true.items()}
        value = min(distance, key=distance.get)
        assert distance[value] < 6
        values.append(value)
    return values


def whole(labels):
    edge = np.unique(labels[[0, -1]])
    return [v for v in np.unique(labels) if v and v not in edge]


def test_every_whole_vertebra_is_one_instance_and_they_run_from_head_to_feet(answers):
    _, labels, _ = neck()
    probabilities, offsets, grid = answers
    found = find_instances(probabilities, offsets, grid.spacing_mm)
    values = truth_of(found, grid)
    assert values == sorted(set(values)) and set(whole(labels)) <= set(values)
    assert [found.log_levels[i].argmax() + 1 for i in range(len(found))] == values
    np.testing.assert_allclose(np.exp(found.log_levels).sum(axis=1), 1)
    assert not found.at_top.any() and found.at_bottom[-1]
    for i in range(len(found)):
        assert found.volume_ml[i] == pytest.approx((1 - probabilities[found.index == i + 1][:, 0]).sum() * 0.064)


def test_scattered_votes_and_voxels_named_wrong_do_not_change_the_instances(answers):
    probabilities, offsets, grid = answers
    rng = np.random.default_rng(0)
    noisy = offsets + rng.normal(0, 3, offsets.shape).astype(np.float32)
    wrong = probabilities.copy()
    wrong[..., 1:] = np.roll(wrong[..., 1:], 1, axis=-1)  # every level off by one: instances know no names
    a, b = (find_instances(p, o, grid.spacing_mm) for p, o in ((probabilities, offsets), (wrong, noisy)))
    assert truth_of(a, grid) == truth_of(b, grid)
    both = (a.index > 0) & (b.index > 0)
    assert (a.index[both] == b.index[both]).mean() > 0.9


def test_settling_gives_voxels_back_to_the_vertebra_they_look_like(answers):
    probabilities, offsets, grid = answers
    truth = probabilities[..., 1:].argmax(axis=-1) + 1
    found = find_instances(probabilities, offsets, grid.spacing_mm)
    levels = np.array(truth_of(found, grid)) - 1

    def right(index):
        named = np.concatenate(([-1], levels))[index]
        return (named[index > 0] + 1 == truth[index > 0]).mean()

    rng = np.random.default_rng(0)
    mixed = np.where(
        found.index > 0, np.clip(found.index + rng.choice([-1, 0, 1], found.index.shape), 1, len(found)), 0
    )
    stray = ndimage.gaussian_filter(rng.normal(0, 1, offsets.shape), (1, 1, 1, 0))  # arch-sized, as networks err
    noisy = offsets + (6.0 / stray.std() * stray).astype(np.float32)
    mixed = dataclasses.replace(found, index=mixed.astype(np.int16))
    assert right(mixed.index) < 0.5
    assert right(settle(mixed, levels, probabilities, noisy, grid.spacing_mm)) > 0.99
    look_alike = np.full_like(probabilities, 0.05)  # then the votes alone decide
    assert right(settle(mixed, levels, look_alike, offsets, grid.spacing_mm)) > 0.97


def test_settling_leaves_instances_without_a_name_alone(answers):
    probabilities, offsets, grid = answers
    found = find_instances(probabilities, offsets, grid.spacing_mm)
    levels = np.arange(len(found))
    levels[2] = -1
    wrong = np.roll(probabilities, 1, axis=-1)
    settled = settle(found, levels, wrong, offsets, grid.spacing_mm)
    np.testing.assert_array_equal(settled == 3, found.index == 3)
    for few in (np.full(len(found), -1), np.where(np.arange(len(found)) == 1, 4, -1)):
        np.testing.assert_array_equal(settle(found, few, wrong, offsets, grid.spacing_mm), found.index)


def test_specks_are_no_instances_but_a_large_lump_is_left_for_the_naming(answers):
    probabilities, offsets, grid = answers
    clean = find_instances(probabilities, offsets, grid.spacing_mm)
    noisy, votes = probabilities.copy(), offsets.copy()
    empty = np.argwhere(probabilities[..., 0] > 0.9)
    for z, y, x in np.random.default_rng(1).permutation(empty)[:40]:
        noisy[z, y, x] = 0.0
        noisy[z, y, x, 5] = 1.0
        votes[z, y, x] = 0.0
    found = find_instances(noisy, votes, grid.spacing_mm)
    assert truth_of(found, grid) == truth_of(clean, grid)
    lump = (slice(2, 5), slice(2, 5), slice(2, 5))  # 27 voxels, 1.7 ml
    noisy[lump] = np.eye(20)[5]
    votes[lump] = (np.array([3.0, 3.0, 3.0]) - np.argwhere(np.ones((3, 3, 3))).reshape(3, 3, 3, 3) - 2) * 4.0
    assert len(find_instances(noisy, votes, grid.spacing_mm)) == len(clean) + 1


def test_a_detached_part_of_an_instance_is_cleaned_away():
    probabilities, offsets = np.zeros((12, 12, 12, 20)), np.zeros((12, 12, 12, 3))
    probabilities[..., 0] = 1
    z, y, x = np.meshgrid(*(np.arange(12),) * 3, indexing="ij")
    for box in ((slice(2, 6), slice(2, 6), slice(2, 6)), (slice(8, 9), slice(3, 4), slice(3, 6))):
        probabilities[box] = 0
        probabilities[box][..., 3] = 1
    offsets[...] = 4.0 * (np.array([3.5, 3.5, 3.5]) - np.stack([z, y, x], -1))
    found = find_instances(probabilities, offsets, SPACING)
    assert len(found) == 1 and (found.index > 0).sum() == 64
    np.testing.assert_allclose(found.centroid_mm, [[14, 14, 14]], atol=1e-6)
    assert found.volume_ml[0] == pytest.approx(64 * 0.064)
    assert not (found.at_top[0] or found.at_bottom[0] or found.at_side[0])


@pytest.mark.parametrize(("box", "edges"), [((0, 4), (1, 0, 0)), ((8, 12), (0, 1, 0)), ((4, 8), (0, 0, 0))])
def test_instances_say_which_edge_they_reach(box, edges):
    probabilities, offsets = np.zeros((12, 12, 12, 20)), np.zeros((12, 12, 12, 3))
    probabilities[..., 0] = 1
    where = (slice(*box), slice(3, 8), slice(3, 8))
    probabilities[where] = np.eye(20)[3]
    found = find_instances(probabilities, offsets, SPACING)
    assert len(found) == 1
    assert (found.at_top[0], found.at_bottom[0], found.at_side[0]) == tuple(map(bool, edges))
    moved = np.roll(probabilities, -3, axis=2)
    assert find_instances(moved, offsets, SPACING).at_side[0]


@pytest.mark.parametrize(("first", "found"), [(0, 0), (9, 0), (5, 1)])
def test_a_sliver_at_the_first_or_last_slice_is_left_out(first, found):
    probabilities, offsets = np.zeros((12, 12, 12, 20)), np.zeros((12, 12, 12, 3))
    probabilities[..., 0] = 1
    box = slice(first, first + 3), slice(4, 7), slice(4, 7)  # 27 voxels, 1.7 ml
    probabilities[box] = np.eye(20)[3]
    offsets[box] = (np.array([1.0, 1.0, 1.0]) - np.argwhere(np.ones((3, 3, 3))).reshape(3, 3, 3, 3)) * 4.0
    instances = find_instances(probabilities, offsets, SPACING)
    assert len(instances) == found and instances.index.any() == bool(found)


def test_an_empty_image_has_no_instances():
    probabilities = np.zeros((4, 4, 4, 20))
    probabilities[..., 0] = 1
    found = find_instances(probabilities, np.zeros((4, 4, 4, 3)), SPACING)
    assert len(found) == 0 and not found.index.any() and found.log_levels.shape == (0, 19)
