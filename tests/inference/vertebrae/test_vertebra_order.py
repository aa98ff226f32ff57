import dataclasses
import itertools

import numpy as np
import pytest
from oracles import coarse, neck

from cspine_jax.inference.vertebrae import LEVELS
from cspine_jax.inference.vertebrae.instances import Instances, find_instances
from cspine_jax.inference.vertebrae.order import DISTANCE_MM, best_naming, costs, name_instances


def column(levels, probabilities=None, *, top_mm=60.0, ml=10.0, at_top=False, shift=0, scale=1.0) -> Instances:
    """Vertebrae at their usual distances; `shift` moves what the network says, `probabilities` [n, 19] replaces it."""
    n = len(levels)
    depth = np.concatenate(([0.0], np.cumsum(DISTANCE_MM)))[levels] * scale
    centroid = np.zeros((n, 3))
    centroid[:, 0] = top_mm + depth - depth[0]
    if probabilities is None:
        probabilities = np.full((n, 19), 0.005)
        probabilities[np.arange(n), np.asarray(levels) + shift] = 0.91
    flags = np.zeros(n, bool)
    first = flags.copy()
    first[0] = at_top
    return Instances(
        np.zeros((1, 1, 1), np.int16), centroid, np.full(n, ml), np.log(probabilities), first, flags, flags.copy()
    )


def every_naming(node, start, edge, drop):
    """(levels, cost) of all namings, by counting them out."""
    n, count = node.shape
    for names in itertools.product(range(-1, count), repeat=n):
        kept = [i for i in range(n) if names[i] >= 0]
        if any(names[a] >= names[b] for a, b in itertools.pairwise(kept)):
            continue
        cost = sum(drop[i] for i in range(n) if names[i] < 0) + sum(node[i, names[i]] for i in kept)
        cost += start[kept[0], names[kept[0]]] if kept else 0
        cost += sum(edge[a, b, names[a], names[b]] for a, b in itertools.pairwise(kept))
        yield np.array(names), cost


@pytest.mark.parametrize("seed", range(6))
def test_the_program_agrees_with_counting_out_every_naming(seed):
    rng = np.random.default_rng(seed)
    n, count = (4, 5) if seed % 2 else (3, 6)
    node, start, drop = rng.gamma(1, 2, (n, count)), rng.gamma(1, 1, (n, count)), rng.gamma(1, 2, n)
    edge = rng.gamma(1, 1, (n, n, count, count))
    edge[:, :, np.arange(count)[:, None] >= np.arange(count)[None, :]] = np.inf
    edge[np.arange(n)[:, None] >= np.arange(n)[None, :]] = np.inf
    found = best_naming(node, start, edge, drop)
    names, cost = zip(*every_naming(node, start, edge, drop), strict=True)
    names, weight = np.array(names), np.exp(-np.array(cost))
    weight /= weight.sum()
    np.testing.assert_array_equal(found.levels, names[weight.argmax()])
    assert found.probability == pytest.approx(weight.max())
    assert found.entropy == pytest.approx(-(weight * np.log(weight)).sum())
    for i in range(n):
        wanted = np.bincount(names[:, i] % (count + 1), weight, minlength=count + 1)  # -1 is the last column
        np.testing.assert_allclose(found.marginals[i], wanted, atol=1e-12)
    for shift, answer in zip((-1, 1), found.shifted, strict=True):
        moved = np.where(found.levels >= 0, found.levels + shift, -1)
        same = (names == moved).all(axis=1) & (names.max() >= moved.max()) & not_off(found.levels, shift)
        assert answer == pytest.approx(weight[same].sum())
    np.testing.assert_allclose(found.confidence, found.marginals[np.arange(n), found.levels])


def not_off(levels, shift):
    return (levels[levels >= 0] + shift >= 0).all()


def test_a_full_neck_is_named_with_certainty():
    found = name_instances(column(range(10)))
    assert found.levels.tolist() == list(range(10)) and found.confidence.min() > 0.99 and found.entropy < 0.1
    np.testing.assert_allclose(found.absence()[:10], 0, atol=0.01)
    np.testing.assert_allclose(found.absence()[10:], 1, atol=0.01)


@pytest.mark.parametrize("scale", [0.7, 0.85, 1.2])
def test_small_and_large_people_are_named_all_the_same(scale):
    assert name_instances(column(range(9), scale=scale)).levels.tolist() == list(range(9))


def test_a_run_of_levels_that_was_taken_for_the_next_is_set_right():
    p = np.full((9, 19), 0.01)
    for i in range(9):
        right, wrong = (0.4, 0.5) if 3 <= i < 7 else (0.8, 0.1)  # C4..C7 look more like C5..T1
        p[i, i], p[i, i + 1] = right, wrong
    found = name_instances(column(range(9), p / p.sum(axis=1, keepdims=True)))
    assert found.levels.tolist() == list(range(9)) and found.confidence.min() > 0.9


def test_where_no_level_looks_like_itself_the_place_where_the_spine_begins_decides():
    unsure = np.full((8, 19), 1 / 19)
    with_room = name_instances(column(range(8), unsure, top_mm=80))
    assert with_room.levels.tolist() == list(range(8))
    cut = name_instances(column(range(3, 8), np.full((5, 19), 1 / 19), top_mm=4, at_top=True))
    assert cut.probability < 0.3 and cut.entropy > 1  # nobody can know, and it says so
    assert max(cut.shifted) > 0.05


def test_unsure_names_share_the_probability_with_their_neighbours():
    p = np.full((4, 19), 1e-3)
    for i in range(4):
        p[i, i + 3], p[i, i + 4] = 0.55, 0.45
    found = name_instances(column([3, 4, 5, 6], p / p.sum(axis=1, keepdims=True), top_mm=5, at_top=True))
    assert found.levels.tolist() == [3, 4, 5, 6]
    higher, lower = found.shifted
    assert lower == pytest.approx(found.probability * (0.45 / 0.55) ** 4, rel=0.1) and higher < 1e-3
    assert 0.5 < found.confidence.min() < 0.8


def test_a_missing_vertebra_is_skipped_where_the_distance_says_so():
    kept = [0, 1, 2, 4, 5, 6, 7]
    found = name_instances(column(kept))
    assert found.levels.tolist() == kept and found.absence()[3] > 0.99
    unsure = np.exp(column(kept).log_levels) + 0.2
    found = name_instances(column(range(7), unsure / unsure.sum(axis=1, keepdims=True)))  # at neighbours' distances
    assert np.all(np.diff(found.levels) == 1)


def test_a_speck_between_two_vertebrae_is_dropped_and_a_whole_vertebra_is_not():
    good = column(range(8))
    half = [(good.centroid_mm[3] + good.centroid_mm[4]) / 2]
    extra = dataclasses.replace(
        good,
        centroid_mm=np.concatenate((good.centroid_mm[:4], half, good.centroid_mm[4:])),
        volume_ml=np.insert(good.volume_ml, 4, 0.8),
        log_levels=np.insert(good.log_levels, 4, good.log_levels[4], axis=0),
        **{name: np.insert(getattr(good, name), 4, False) for name in ("at_top", "at_bottom", "at_side")},
    )
    found = name_instances(extra)
    assert found.levels.tolist() == [0, 1, 2, 3, -1, 4, 5, 6, 7]
    assert found.marginals[4, -1] > 0.99 and found.confidence[4] == found.marginals[4, -1]
    assert -1 not in name_instances(column(range(8), np.full((8, 19), 1 / 19))).levels


def test_a_shortened_distance_next_to_a_cut_vertebra_costs_nothing():
    instances = column(range(2, 8), top_mm=4, at_top=True)
    instances.centroid_mm[0, 0] += 8  # only its lower half is in the image
    _, _, edge, _ = costs(instances)
    assert edge[0, 1, 2, 3] == 0 and edge[1, 2, 3, 4] == pytest.approx(0)
    assert name_instances(instances).levels.tolist() == list(range(2, 8))
    instances.centroid_mm[0, 0] = instances.centroid_mm[1, 0] - 3  # no neighbour is this near, whatever is left of it
    _, _, edge, _ = costs(instances)
    assert edge[0, 1, 2, 3] == pytest.approx(np.log(3 / (0.4 * DISTANCE_MM[2])) ** 2 / (2 * 0.2**2))


def test_no_instance_no_name():
    empty = column([0])
    empty = Instances(*(getattr(empty, f.name)[:0] for f in dataclasses.fields(empty)))
    found = name_instances(empty)
    assert len(found.levels) == 0 and found.probability == 1 and found.entropy == 0
    np.testing.assert_array_equal(found.absence(), np.ones(19))


@pytest.mark.parametrize("cut", [(0.0, 0.45), (0.3, 0.75), (0.5, 1.0)])
def test_part_of_a_neck_names_only_what_is_in_it(cut):
    _, labels, spacing = neck()
    part = labels[int(cut[0] * len(labels)) : int(cut[1] * len(labels))]
    probabilities, offsets, grid = coarse(part, spacing)
    found = find_instances(probabilities, offsets, grid.spacing_mm)
    names = {int(level) + 1 for level in name_instances(found).levels if level >= 0}
    there = set(np.unique(part)) - {0}
    assert names <= there
    assert {v for v in there if (part == v).sum() * np.prod(spacing) > 2500} <= names  # all but slivers


def test_levels_are_the_mask_values_less_one():
    assert LEVELS[0] == "C1" and LEVELS[6] == "C7" and LEVELS[18] == "T12" and len(DISTANCE_MM) == 18
