"""What the coarse network says -> vertebrae one by one, before any has a name.

Every voxel of bone votes for the centroid of its vertebra; the votes of one vertebra fall together, those of its
neighbours a disc away, whatever level the voxels were taken for. (Votes for object centres: Leibe et al. 2008,
"Robust object detection with interleaved categorization and segmentation".)
"""

import dataclasses

import numpy as np
from scipy import ndimage

from cspine_jax.inference.vertebrae import LEVELS

FOREGROUND = 0.3
"""Probability of any vertebra from which a voxel votes. Arches and processes fill less than half a voxel of 4 mm."""

VOTE_BIN_MM = 2.0
VOTE_SIGMA_MM = 2.5
"""Smoothing of the votes: about the scatter of one vertebra's, well below the distance of two."""

PEAK_DISTANCE_MM = 9.0
"""Peaks closer together are one vertebra: centroids of adult necks lie 13 to 24 mm apart, children's 9 and more."""

REACH_MM = 15.0
"""A vote further than this from every peak belongs to none."""

MIN_ML = 0.5
"""Less is no vertebra."""

MIN_CUT_ML = 2.0
"""At the first or last slice less is too little to tell a vertebra, or which, from what lies beyond."""

MIN_PART_ML = 0.25
"""A smaller part of an instance, apart from the rest, is noise. Larger ones are arches: at 4 mm they come apart."""

MIN_PROBABILITY = 1e-3
"""Floor of a voxel's probability of a level: a single sure voxel must not rule out what all others say."""


MOST_INSTANCES = 40
"""A whole spine has 26 vertebrae; more peaks than this are noise, and the naming would take minutes over them."""


VOTE_ERROR_MM = 5.0
"""Of one voxel's vote, when its name is weighed against it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Instances:
    """n vertebrae without names, sorted from head to feet.

    Attributes:
        index: int16 [d, h, w]; 0 background, i + 1 where instance i is.
        centroid_mm: float64 [n, 3]; mean vote, mm (z, y, x) from the centre of voxel (0, 0, 0).
        volume_ml: float64 [n]; sum of foreground probabilities.
        log_levels: float64 [n, 19]; mean log probability of each level over the instance's voxels, given that they are
            bone; logsumexp over levels is 0.
        at_top: bool [n]; it reaches the first slice.
        at_bottom: bool [n]; it reaches the last slice.
        at_side: bool [n]; it reaches the first or last row or column.
    """

    index: np.ndarray
    centroid_mm: np.ndarray
    volume_ml: np.ndarray
    log_levels: np.ndarray
    at_top: np.ndarray
    at_bottom: np.ndarray
    at_side: np.ndarray

    def __len__(self) -> int:
        return len(self.centroid_mm)


def find_instances(probabilities: np.ndarray, offsets: np.ndarray, spacing_mm: tuple[float, float, float]) -> Instances:
    """Groups the voxels of bone by what they vote for.

    Args:
        probabilities: float [d, h, w, 20]; background, C1..C7, T1..T12; sums to 1.
        offsets: float [d, h, w, 3]; mm (z, y, x) from each voxel to the centroid of its vertebra.
        spacing_mm: voxel size.

    Returns:
        The instances; none where nothing is foreground.
    """
    bone = 1 - probabilities[..., 0]
    voxels = np.argwhere(bone > FOREGROUND)  # [m, 3]
    where = tuple(voxels.T)
    weights = bone[where].astype(np.float64)
    spacing = np.asarray(spacing_mm, np.float64)
    votes = voxels * spacing + offsets[where]
    owner = _group(votes, weights, weights * spacing.prod() / 1000)
    index = np.zeros(bone.shape, np.int16)
    index[where] = owner + 1
    _clean(index, MIN_PART_ML * 1000 / spacing.prod())
    owner = index[where] - 1
    return _describe(index, voxels, owner, votes, weights, probabilities, spacing)


def settle(
    instances: Instances,
    levels: np.ndarray,
    probabilities: np.ndarray,
    offsets: np.ndarray,
    spacing_mm: tuple[float, float, float],
) -> np.ndarray:
    """Gives each voxel of the named instances to the one that suits its vote and its own level best.

    Votes alone tell neighbouring arches apart badly: they lie further from their own centroid than vertebrae lie from
    each other. Once the instances have names, what level a voxel looks like says it too. The most probable k by
    p(level of k | voxel) exp(-|vote - centroid of k|^2 / (2 VOTE_ERROR_MM^2)).

    Args:
        instances: what `find_instances` found.
        levels: int [n]; of each instance, -1 for none.
        probabilities: float [d, h, w, 20], see `find_instances`.
        offsets: float [d, h, w, 3].
        spacing_mm: voxel size.

    Returns:
        int16 [d, h, w], as `Instances.index`; voxels of instances without a name keep them.
    """
    named = np.flatnonzero(levels >= 0)
    index = instances.index.copy()
    if len(named) < 2:
        return index
    where = np.nonzero(np.isin(index, named + 1))
    spacing = np.asarray(spacing_mm, np.float64)
    votes = np.stack(where, axis=-1) * spacing + offsets[where]
    bone = probabilities[where]
    score = np.empty((len(named), len(votes)), np.float32)
    for row, k in zip(score, named, strict=True):
        away = ((votes - instances.centroid_mm[k]) ** 2).sum(axis=1)
        row[:] = np.log(np.maximum(bone[:, 1 + levels[k]], MIN_PROBABILITY)) - away / (2 * VOTE_ERROR_MM**2)
    index[where] = named[score.argmax(axis=0)] + 1
    _clean(index, MIN_PART_ML * 1000 / spacing.prod())
    return index


def _group(votes: np.ndarray, weights: np.ndarray, volumes_ml: np.ndarray) -> np.ndarray:
    """Instance of each vote, -1 for none; instances below `MIN_ML` give their votes to the others."""
    peaks = _peaks(votes, weights)
    distance = np.empty((len(peaks), len(votes)), np.float32)
    for row, peak in zip(distance, peaks, strict=True):
        row[:] = np.linalg.norm(votes - peak, axis=1)
    while len(distance):
        owner = np.where(distance.min(axis=0) <= REACH_MM, distance.argmin(axis=0), -1)
        volume = np.bincount(owner[owner >= 0], volumes_ml[owner >= 0], minlength=len(distance))
        if volume.min() >= MIN_ML:
            return owner
        distance = np.delete(distance, int(volume.argmin()), axis=0)
    return np.full(len(votes), -1)


def _peaks(votes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[n, 3] mm: local maxima of the smoothed votes, the strongest of any closer than `PEAK_DISTANCE_MM`."""
    if not len(votes):
        return np.zeros((0, 3))
    margin = 4 * VOTE_SIGMA_MM
    low = votes.min(axis=0) - margin
    shape = tuple(np.ceil((votes.max(axis=0) + margin - low) / VOTE_BIN_MM).astype(int) + 1)
    bins = np.rint((votes - low) / VOTE_BIN_MM).astype(int)
    counts = np.bincount(np.ravel_multi_index(tuple(bins.T), shape), weights, minlength=int(np.prod(shape)))
    smooth = ndimage.gaussian_filter(counts.reshape(shape).astype(np.float32), VOTE_SIGMA_MM / VOTE_BIN_MM)
    height = 0.02 * smooth.max()  # far below the weakest vertebra; the volume decides in the end
    found = np.argwhere((smooth == ndimage.maximum_filter(smooth, 3)) & (smooth > height))
    found = found[np.argsort(-smooth[tuple(found.T)], kind="stable")] * VOTE_BIN_MM + low
    kept: list[np.ndarray] = []
    for peak in found:
        if all(np.linalg.norm(peak - other) >= PEAK_DISTANCE_MM for other in kept):
            kept.append(peak)
            if len(kept) == MOST_INSTANCES:
                break
    return np.array(kept)


def _clean(index: np.ndarray, fewest: float) -> None:
    """Takes parts of less than `fewest` voxels out of each instance, in place; never its largest."""
    for number, box in enumerate(ndimage.find_objects(index), start=1):
        if box is None:
            continue
        parts, _ = ndimage.label(index[box] == number, np.ones((3, 3, 3)))  # type: ignore[misc]
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        small = (sizes < fewest) & (np.arange(len(sizes)) != sizes.argmax())
        small[0] = False
        index[box][small[parts]] = 0


def _worth_naming(
    owner: np.ndarray, weights: np.ndarray, slices: np.ndarray, last: int, spacing: np.ndarray
) -> np.ndarray:
    """The instances but for slivers at the first and last slice."""
    kept = []
    for number in np.unique(owner[owner >= 0]):
        own = owner == number
        at_edge = slices[own].min() == 0 or slices[own].max() == last
        if not at_edge or weights[own].sum() * spacing.prod() / 1000 >= MIN_CUT_ML:
            kept.append(int(number))
    return np.array(kept, int)


def _describe(
    index: np.ndarray,
    voxels: np.ndarray,
    owner: np.ndarray,
    votes: np.ndarray,
    weights: np.ndarray,
    probabilities: np.ndarray,
    spacing: np.ndarray,
) -> Instances:
    """Sums up each instance, and numbers them from head to feet."""
    numbers = _worth_naming(owner, weights, voxels[:, 0], index.shape[0] - 1, spacing)
    count = len(numbers)
    centroid, volume, logs = np.zeros((count, 3)), np.zeros(count), np.zeros((count, len(LEVELS)))
    reach = np.zeros((count, 3), bool)
    last = np.array(index.shape) - 1
    for i, number in enumerate(numbers):
        own = owner == number
        weight, place = weights[own], voxels[own]
        centroid[i] = weight @ votes[own] / weight.sum()
        volume[i] = weight.sum() * spacing.prod() / 1000
        levels = probabilities[tuple(place.T)][:, 1:].astype(np.float64)  # [k, 19]
        levels = np.maximum(levels / levels.sum(axis=1, keepdims=True), MIN_PROBABILITY)
        logs[i] = weight @ np.log(levels / levels.sum(axis=1, keepdims=True)) / weight.sum()
        logs[i] -= np.log(np.exp(logs[i]).sum())
        low, high = place.min(axis=0), place.max(axis=0)
        reach[i] = low[0] == 0, high[0] == last[0], bool((low[1:] == 0).any() or (high[1:] == last[1:]).any())
    order = np.argsort(centroid[:, 0], kind="stable")
    rank = np.zeros(int(index.max()) + 1, np.int16)  # slivers become background
    rank[numbers[order] + 1] = np.arange(1, count + 1)
    return Instances(rank[index], centroid[order], volume[order], logs[order], *(reach[order, k] for k in range(3)))
