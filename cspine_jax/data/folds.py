"""Stratified group folds: a study is in one fold, and every fold has its share of patients and levels."""

import hashlib
import itertools
from collections.abc import Sequence

import numpy as np


def assign_folds(uids: Sequence[str], labels: np.ndarray, num_folds: int) -> np.ndarray:
    """Deals studies into folds of equal size and equal labels.

    Studies with the same labels are dealt like cards, one fold after the other; then pairs of studies change places as
    long as that brings the folds' label counts closer together (sum of squares). Fold sizes differ by one at most, and
    label counts usually too.

    The result depends on the set of (uid, labels) alone, not on their order or on the machine.

    Args:
        uids: [S] study identifiers, all different.
        labels: [S, L] 0/1, here patient_overall and C1..C7.
        num_folds: how many folds.

    Returns:
        int32 [S], the fold of each study.
    """
    if not len(uids):
        return np.zeros(0, np.int32)
    labels = np.asarray(labels, np.int64).reshape(len(uids), -1)
    hashes = [hashlib.sha256(uid.encode()).digest() for uid in uids]
    order = sorted(range(len(uids)), key=lambda study: (labels[study].tolist(), hashes[study]))
    folds = np.empty(len(uids), np.int32)
    folds[order] = np.arange(len(uids)) % num_folds
    patterns, pattern = np.unique(labels, axis=0, return_inverse=True)
    pattern = pattern.reshape(-1)
    while swap := _best_swap(folds, pattern, patterns, num_folds):
        (one, its_pattern), (other, other_pattern) = swap
        first = next(study for study in order if folds[study] == one and pattern[study] == its_pattern)
        second = next(study for study in order if folds[study] == other and pattern[study] == other_pattern)
        folds[first], folds[second] = other, one
    return folds


def _best_swap(
    folds: np.ndarray, pattern: np.ndarray, patterns: np.ndarray, num_folds: int
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """((fold, pattern), (fold, pattern)) of the two studies whose exchange evens the counts most; None if none does.

    With counts n_a, n_b of two folds, sending pattern p from a to b and q from b to a changes the sum of squares by
    2 (q - p) . (n_a - n_b) + 2 |q - p|^2.
    """
    have = np.zeros((num_folds, len(patterns)), np.int64)
    np.add.at(have, (folds, pattern), 1)
    counts = have @ patterns
    distance = ((patterns[:, None] - patterns[None, :]) ** 2).sum(-1)
    best, least = None, 0
    for a, b in itertools.combinations(range(num_folds), 2):
        along = patterns @ (counts[a] - counts[b])
        change = along[None, :] - along[:, None] + distance
        change = np.where((have[a] > 0)[:, None] & (have[b] > 0)[None, :], change, 0)
        p, q = np.unravel_index(change.argmin(), change.shape)
        if change[p, q] < least:
            best, least = ((a, int(p)), (b, int(q))), change[p, q]
    return best
