"""Stratified group folds: a study is in one fold, and every fold has its share of patients and levels."""

import hashlib
from collections.abc import Sequence

import numpy as np


def assign_folds(uids: Sequence[str], labels: np.ndarray, num_folds: int) -> np.ndarray:
    """Deals studies into folds by iterative stratification.

    The rarest label still to be dealt goes first; each of its studies goes to the fold that lacks most of that label,
    then to the emptiest fold, then to the one a hash of the uid picks. Fold sizes differ by one study at most.

    The result depends on the set of (uid, labels) alone, not on their order or on the machine.

    Args:
        uids: [S] study identifiers, all different.
        labels: [S, L] 0/1, here patient_overall and C1..C7.
        num_folds: how many folds.

    Returns:
        int32 [S], the fold of each study.

    Source: Sechidis, Tsoumakas and Vlahavas, "On the stratification of multi-label data", ECML PKDD 2011.
    """
    count = len(uids)
    labels = np.asarray(labels, bool).reshape(count, -1)
    hashes = [int.from_bytes(hashlib.sha256(uid.encode()).digest()[:8], "big") for uid in uids]
    order = sorted(range(count), key=hashes.__getitem__)

    # One more label for the studies that have none, so that negatives are spread like any other group.
    labels = np.concatenate([labels, ~labels.any(1, keepdims=True)], axis=1)
    room = np.full(num_folds, count // num_folds)
    room[: count % num_folds] += 1
    wanted = labels.sum(0)[None, :] / num_folds * np.ones((num_folds, 1))
    folds = np.full(count, -1, np.int32)
    left = labels.sum(0)
    while left.any():
        label = min(np.flatnonzero(left), key=lambda column: (left[column], column))
        for study in order:
            if folds[study] >= 0 or not labels[study, label]:
                continue
            open_folds = np.flatnonzero(room > 0)
            turn = hashes[study] % num_folds
            best = max(
                open_folds, key=lambda fold: (round(wanted[fold, label], 6), room[fold], (fold - turn) % num_folds)
            )
            folds[study] = best
            room[best] -= 1
            wanted[best] -= labels[study]
            left -= labels[study]
    return folds
