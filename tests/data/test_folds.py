"""Folds are balanced in studies, patients and levels, and depend on the set of studies alone."""

import numpy as np
import pytest

from cspine_jax.data.folds import assign_folds

PREVALENCE = (0.07, 0.14, 0.04, 0.05, 0.08, 0.14, 0.19)  # C1..C7 of RSNA 2022, roughly


def studies(count, seed=0):
    levels = np.random.default_rng(seed).random((count, 7)) < PREVALENCE
    return [f"1.2.{number}" for number in range(count)], np.concatenate([levels.any(1)[:, None], levels], 1)


@pytest.mark.parametrize(("count", "num_folds"), [(2019, 5), (160, 5), (60, 5), (33, 4), (5, 3)])
def test_every_fold_has_its_share(count, num_folds):
    uids, labels = studies(count)
    folds = assign_folds(uids, labels, num_folds)
    sizes = np.bincount(folds, minlength=num_folds)
    assert sizes.max() - sizes.min() <= 1
    positives = np.array([labels[folds == fold].sum(0) for fold in range(num_folds)])
    spread = positives.max(0) - positives.min(0)
    assert (spread <= 1).all(), positives


def test_a_random_deal_would_not_pass():
    _, labels = studies(2019)
    folds = np.random.default_rng(0).permutation(2019) % 5
    positives = np.array([labels[folds == fold].sum(0) for fold in range(5)])
    assert (positives.max(0) - positives.min(0)).max() > 5


def test_order_does_not_matter():
    uids, labels = studies(100)
    order = np.random.default_rng(1).permutation(100)
    folds = assign_folds(uids, labels, 5)
    shuffled = assign_folds([uids[i] for i in order], labels[order], 5)
    np.testing.assert_array_equal(shuffled, folds[order])


def test_negatives_alone():
    folds = assign_folds([str(i) for i in range(7)], np.zeros((7, 8)), 3)
    assert sorted(np.bincount(folds)) == [2, 2, 3]
