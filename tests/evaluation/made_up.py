"""Made-up predictions with known truth: S studies of D slices, seven vertebrae down the stack, noisy probabilities."""

import csv

import numpy as np

from cspine_jax.evaluation import SplitPredictions

THICK = 8


def make_split(
    studies=8,
    slices=64,
    seed=0,
    noise=1.0,
    model_type=3,
    masked=1.0,
    boxed=1.0,
    positive=0.5,
    prefix="1.2.826.0.1.3680043.2",
) -> SplitPredictions:
    rng = np.random.default_rng(seed)
    labels = np.zeros((studies, 8))
    fractured = rng.random(studies) < positive
    levels = rng.random((studies, 7)) < 0.3
    levels[np.arange(studies), rng.integers(0, 7, studies)] = True
    labels[:, 1:] = levels & fractured[:, None]
    labels[:, 0] = fractured
    presence = np.zeros((studies, slices, 7))
    box = np.zeros((studies, slices))
    for s in range(studies):
        top = int(rng.integers(0, max(1, slices - 7 * (THICK - 1))))
        for j in range(7):
            first = top + j * (THICK - 1)
            presence[s, first : first + THICK, j] = 1
            if labels[s, 1 + j]:
                box[s, first + 2 : first + 6] = 1
    fracture = presence * labels[:, None, 1:] * box[:, :, None]

    def say(truth):
        return 1 / (1 + np.exp(-(4 * (truth - 0.5) + noise * rng.normal(size=truth.shape))))

    n = studies * slices
    f = say(fracture)
    v = say(presence) * (presence.any(axis=2, keepdims=True) * 0.96 + 0.02)
    if model_type == 1:
        f = say(box)[:, :, None]
    if model_type != 3:
        v = presence.astype(float)
    return SplitPredictions(
        uids=[f"{prefix}.{seed}.{1000003 * (s + 1)}" for s in range(studies)],
        study=np.repeat(np.arange(studies), slices),
        index=np.tile(np.arange(slices), studies),
        fracture=f.reshape(n, f.shape[2]),
        vertebra=v.reshape(n, 7),
        presence=presence.reshape(n, 7),
        presence_known=np.repeat(np.arange(studies) < masked * studies, slices),
        slice_fracture=box.reshape(n),
        slice_known=np.repeat((np.arange(studies) < boxed * studies) | (labels[:, 0] == 0), slices),
        labels=labels,
    )


def read_rows(path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))
