"""Names for vertebrae: one exact dynamic program over the whole study instead of a vote voxel by voxel.

A naming gives each instance, from head to feet, a level below that of the one before it, or drops the instance as no
vertebra. Its cost is in nats, so that exp(-cost) are the relative probabilities of namings:

- what the network saw: -log of the mean (geometric) probability of the level in the instance's voxels. One vertebra
  counts as one observation however many voxels it has: they are all wrong together.
- spacing: the distance D between two neighbours against the distance E their levels have in a neck of middle size,
  (log D/E)^2 / (2 SPACING_SIGMA^2). A vertebra that is cut off has its centroid shifted towards the rest: next to one,
  a distance may be as short as `CUT_SHARE` of E at no cost.
- `SKIP` for each level left out between two neighbours: the network rarely misses a vertebra between two others.
- `HIDDEN` for each level above the first one that should lie inside the image and was not found. It is what names
  a neck in which no level looks like itself: where the spine begins, C1 is.
- `DROP_PER_ML` of volume for an instance that is dropped: specks are cheap, whole vertebrae are not, and at the edge
  of the image a small piece is what a vertebra looks like (`DROP_CUT`).

The costs add up along the chain, so the best naming (Viterbi) and the probability of each name over all namings
(forward-backward) are exact; there are 20 names and never more than some thirty instances.
"""

import dataclasses

import numpy as np
from scipy.special import logsumexp

from cspine_jax.inference.vertebrae import LEVELS
from cspine_jax.inference.vertebrae.instances import Instances

DISTANCE_MM = np.array(
    [17.0, 20.5, 16.5, 16.0, 16.0, 17.0, 17.5, 19.0, 20.0, 20.5, 21.0, 21.5, 22.0, 22.5, 23.0, 23.5, 24.5, 26.0]
)
"""Between the centroids of whole vertebrae (arch and processes included), C1 to C2 first, adults."""

SPACING_SIGMA = 0.2
"""Of log D/E: size of the person (0.1), posture and disc height (0.1), centroids of coarse masks (0.1)."""

CUT_SHARE = 0.4

SKIP = 4.6
HIDDEN = 1.5
DROP_PER_ML = 1.0
DROP_MIN, DROP_CUT, DROP_MAX = 0.5, 3.0, 10.0

HIDDEN_MARGIN_MM = 12.0
"""A level whose centroid would lie at least this far inside the image should have been found."""

_DEPTH_MM = np.concatenate(([0.0], np.cumsum(DISTANCE_MM)))  # of each level below C1


@dataclasses.dataclass(frozen=True, eq=False)
class Naming:
    """Names of n instances.

    Attributes:
        levels: int [n]; level of each instance, -1 where it was dropped.
        marginals: float64 [n, 20]; probability of each level over all namings, and of being dropped (last).
        probability: of this naming among all.
        entropy: of the distribution over namings, nats; 0 = certain.
        shifted: probability of the same naming one level higher (towards the head) and one lower: the usual mistake.
    """

    levels: np.ndarray
    marginals: np.ndarray
    probability: float
    entropy: float
    shifted: tuple[float, float]

    @property
    def confidence(self) -> np.ndarray:
        """float64 [n]; probability of the name that was given."""
        return self.marginals[np.arange(len(self.levels)), self.levels]

    def absence(self) -> np.ndarray:
        """float64 [19]; probability that no instance is this level."""
        return np.clip(1 - self.marginals[:, :-1].sum(axis=0), 0, 1)


def name_instances(instances: Instances) -> Naming:
    """Finds the best naming and how sure it is.

    Args:
        instances: sorted from head to feet.
    """
    return best_naming(*costs(instances))


def costs(instances: Instances) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The terms above.

    Returns:
        node [n, L]: of a name, by what the network saw;
        start [n, L]: of being the first;
        edge [n, n, L, L]: of instance j named M following i named L as the next that is not dropped, j > i, M > L
            (infinite elsewhere);
        drop [n].
    """
    n, count = len(instances), len(LEVELS)
    top = np.maximum(instances.centroid_mm[:, 0], 0)
    depth = _DEPTH_MM[:, None] - _DEPTH_MM[None, :]  # [L, M]: mm of L below M
    # Level M above L would have its centroid at top - depth; it is missing where that is inside the image.
    above = np.tril(np.ones((count, count), bool), -1)  # M above L
    inside = top[:, None, None] - depth[None] >= HIDDEN_MARGIN_MM  # [n, L, M]
    start = HIDDEN * (inside & above[None]).sum(axis=2).astype(np.float64)
    start[instances.at_top] = 0.0  # the image begins here: what is above is outside
    edge = np.full((n, n, count, count), np.inf)
    lower, upper = np.meshgrid(np.arange(count), np.arange(count))  # [L, M] holds M and L
    ordered = lower > upper
    expected = np.where(ordered, -depth, 1.0)
    skipped = SKIP * np.maximum(lower - upper - 1, 0)
    cut = instances.at_top | instances.at_bottom | instances.at_side
    for i in range(n):
        for j in range(i + 1, n):
            distance = max(float(np.linalg.norm(instances.centroid_mm[j] - instances.centroid_mm[i])), 1.0)
            off = np.log(distance / expected)
            if cut[i] or cut[j]:
                off = np.where(off < 0, np.minimum(off - np.log(CUT_SHARE), 0.0), off)
            edge[i, j] = np.where(ordered, skipped + off**2 / (2 * SPACING_SIGMA**2), np.inf)
    drop = np.clip(DROP_PER_ML * instances.volume_ml, np.where(cut, DROP_CUT, DROP_MIN), DROP_MAX)
    return -instances.log_levels, start, edge, drop


def best_naming(node: np.ndarray, start: np.ndarray, edge: np.ndarray, drop: np.ndarray) -> Naming:
    """Viterbi and forward-backward over the costs of `costs`, for any number of levels L; exact."""
    n, count = node.shape
    dropped = np.concatenate(([0.0], np.cumsum(drop)))  # cost of dropping the first k
    if n == 0:
        return Naming(np.zeros(0, int), np.zeros((0, count + 1)), 1.0, 0.0, (0.0, 0.0))
    first = -(dropped[:n, None] + start + node)  # [n, L] log weight of chains that begin here
    last = -(dropped[n] - dropped[1:])  # [n] of dropping all that follow
    with np.errstate(invalid="ignore"):
        between = dropped[None, :n] - dropped[1:, None]  # [i, j] dropped in between, j > i
        link = -(edge + between[:, :, None, None] + node[None, :, None, :])  # [i, j, L, M] includes node j
    link = np.where(np.isfinite(edge), link, -np.inf)
    forward, best = first.copy(), first.copy()
    come = np.full((n, count, 2), -1)
    for j in range(1, n):
        step = forward[:j, :, None] + link[:j, j]  # [i, L, M]
        forward[j] = np.logaddexp(forward[j], logsumexp(step.reshape(-1, count), axis=0))
        step = (best[:j, :, None] + link[:j, j]).reshape(-1, count)
        winner = step.argmax(axis=0)
        better = step[winner, np.arange(count)] > best[j]
        best[j] = np.where(better, step[winner, np.arange(count)], best[j])
        come[j][better] = np.stack(np.unravel_index(winner, (j, count)), axis=1)[better]
    backward = np.repeat(last[:, None], count, axis=1)
    for i in range(n - 2, -1, -1):
        step = link[i, i + 1 :] + backward[i + 1 :, None, :]  # [j, L, M]
        backward[i] = np.logaddexp(backward[i], logsumexp(step, axis=(0, 2)))
    none = -float(dropped[n])
    total = float(np.logaddexp(none, logsumexp(forward + last[:, None])))
    marginals = np.exp(forward + backward - total)
    levels, score = _trace(best + last[:, None], come, none)
    return Naming(
        levels=levels,
        marginals=np.concatenate((marginals, np.clip(1 - marginals.sum(axis=1, keepdims=True), 0, 1)), axis=1),
        probability=float(np.exp(score - total)),
        entropy=_entropy(first, link, last, forward, backward, none, total),
        shifted=(
            _probability(levels, -1, first, link, last, total),
            _probability(levels, 1, first, link, last, total),
        ),
    )


def _trace(ends: np.ndarray, come: np.ndarray, none: float) -> tuple[np.ndarray, float]:
    levels = np.full(len(ends), -1)
    if ends.max() < none:
        return levels, none
    j, level = np.unravel_index(int(ends.argmax()), ends.shape)
    while j >= 0:
        levels[j] = level
        j, level = come[j, level]
    return levels, float(ends.max())


def _probability(
    levels: np.ndarray, shift: int, first: np.ndarray, link: np.ndarray, last: np.ndarray, total: float
) -> float:
    """Of the naming `levels + shift`, 0 where a level falls off the end."""
    kept = np.flatnonzero(levels >= 0)
    moved = levels[kept] + shift
    if not len(kept) or moved.min() < 0 or moved.max() >= first.shape[1]:
        return 0.0
    score = first[kept[0], moved[0]] + last[kept[-1]]
    for a in range(len(kept) - 1):
        score += link[kept[a], kept[a + 1], moved[a], moved[a + 1]]
    return float(np.exp(score - total))


def _entropy(
    first: np.ndarray,
    link: np.ndarray,
    last: np.ndarray,
    forward: np.ndarray,
    backward: np.ndarray,
    none: float,
    total: float,
) -> float:
    """Log Z - E[score]: the expectation of each term under its own marginal."""

    def expected(terms: np.ndarray, logs: np.ndarray) -> float:
        there = np.isfinite(logs)
        return float((np.exp(logs[there] - total) * terms[there]).sum())

    mean = expected(first, first + backward) + expected(
        link, forward[:, None, :, None] + link + backward[None, :, None]
    )
    ends = np.repeat(last[:, None], first.shape[1], axis=1)
    mean += expected(ends, forward + ends) + float(np.exp(none - total)) * none
    return max(total - mean, 0.0)
