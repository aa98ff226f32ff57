"""Which vertebrae are fractured: the joint distribution of seven levels that the real label table implies.

The published table gives the prevalence of each level, of each pair, and how many vertebrae are fractured in a study.
Of all distributions over the 2^7 patterns that agree with those three, the one with maximum entropy is taken: it adds
no structure the table does not have. Iterative proportional fitting (Deming & Stephan 1940) finds it in milliseconds.
"""

import functools
import json
from importlib import resources

import numpy as np

from cspine_jax.anatomy import NUM_VERTEBRAE, VERTEBRAE

PATTERNS = ((np.arange(2**NUM_VERTEBRAE)[:, None] >> np.arange(NUM_VERTEBRAE)[None, :]) & 1).astype(bool)
"""bool [128, 7]: pattern k has level j fractured where bit j of k is set."""


@functools.cache
def statistics() -> dict:
    """The aggregate figures of the RSNA 2022 training tables (`statistics.json` beside this file)."""
    return json.loads(resources.files("cspine_jax.phantom").joinpath("statistics.json").read_text())


@functools.cache
def pattern_probabilities() -> np.ndarray:
    """Probability of each pattern of `PATTERNS`.

    Returns:
        float64 [128], sums to 1. Its level prevalences, pair prevalences and count histogram are the table's.
    """
    table = statistics()
    total = table["studies"]
    pairs = [[table["cooccurrence_counts"][a][b] / total for b in VERTEBRAE] for a in VERTEBRAE]
    count = PATTERNS.sum(1)
    per_count = {k: table["fractured_vertebrae_per_study"].get(str(k), 0) / total for k in range(NUM_VERTEBRAE + 1)}
    # Each constraint: the patterns inside, and the probability they must sum to (the rest follows).
    inside = [(count == k, p) for k, p in per_count.items()]
    inside += [(PATTERNS[:, i] & PATTERNS[:, j], pairs[i][j]) for i in range(NUM_VERTEBRAE) for j in range(i + 1)]
    p = np.full(len(PATTERNS), 1 / len(PATTERNS))
    for _ in range(2000):
        before = p
        for member, share in inside:
            now = p[member].sum()
            p = np.where(member, p * (share / now if now else 0.0), p * ((1 - share) / (1 - now)))
        if np.abs(p - before).max() < 1e-12:
            break
    return p / p.sum()


def sample_levels(uniform: float) -> tuple[int, ...]:
    """The fractured levels (0 = C1) of one study.

    Args:
        uniform: a number in [0, 1), the only randomness.

    Returns:
        Sorted levels; empty for a study without fracture.
    """
    pattern = np.searchsorted(np.cumsum(pattern_probabilities()), uniform, side="right")
    return tuple(int(level) for level in np.flatnonzero(PATTERNS[min(pattern, len(PATTERNS) - 1)]))


def quantile(percentiles: dict[str, float], uniform: float) -> float:
    """Inverse distribution function through a table of percentiles.

    Args:
        percentiles: `{"0": minimum, "25": ..., "100": maximum}`; other keys (`mean`) are ignored.
        uniform: a number in [0, 1].

    Returns:
        The value below which a share `uniform` lies, linear between the table's points.
    """
    points = sorted((float(k), v) for k, v in percentiles.items() if k.replace(".", "").isdigit())
    return float(np.interp(100 * uniform, [k for k, _ in points], [v for _, v in points]))
