"""Made-up out-of-fold tables of several models on the same studies."""

import numpy as np

from cspine_jax.evaluation.compare import join_folds


def truth(studies=120, seed=0):
    """(uids, labels [S, 8], fold [S])."""
    rng = np.random.default_rng(seed)
    levels = (rng.random((studies, 7)) < 0.12).astype(float)
    labels = np.concatenate([levels.max(1, keepdims=True), levels], axis=1)
    return [f"1.2.{k:04d}" for k in range(studies)], labels, np.arange(studies) % 5


def probabilities(labels, noise=1.5, seed=1):
    rng = np.random.default_rng(seed)
    return 1 / (1 + np.exp(-(3 * (labels - 0.6) + noise * rng.normal(size=labels.shape))))


def model(name, uids, fold, p, **more):
    return join_folds(
        name, {int(k): ([uids[i] for i in np.flatnonzero(fold == k)], p[fold == k]) for k in np.unique(fold)}, **more
    )
