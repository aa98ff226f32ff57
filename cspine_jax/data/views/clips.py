"""Clips of a study about one of its vertebrae, as the fourth team cut them: some slices, maybe a window in the plane.

A vertebra's label counts where enough of it is inside: with less than `study.clip_visible` of its voxels it is unknown,
or negative, as that team had it.
"""

import numpy as np

from cspine_jax.anatomy import NUM_VERTEBRAE
from cspine_jax.config import DataConfig, StudyConfig
from cspine_jax.data.batches import Batch
from cspine_jax.data.source import SliceTable
from cspine_jax.data.views.patients import known_targets
from cspine_jax.data.views.slices import masks, stacks


class ClipView:
    """Clips of the masked studies of a `SliceTable`; item 7 s + j - 1 is about C_j of study s.

    Args:
        table: the records.
        data: depth and stride of the stack at each position.
        study: `clip_*`, `every`, `with_mask`.
    """

    shows = "a fractured vertebra"

    def __init__(self, table: SliceTable, data: DataConfig, study: StudyConfig):
        self.table, self.data, self.study = table, data, study
        self.step = max(1, study.every)
        pixels = table.shapes[table.study].prod(1)[:, None]
        self.area = np.where(table.has_mask[table.study, None], table.area_fraction * pixels, 0.0)
        self.volume = np.zeros((len(table.uids), NUM_VERTEBRAE))
        np.add.at(self.volume, table.study, self.area)

    def items(self, studies: np.ndarray, train: bool) -> np.ndarray:
        """A clip about each vertebra that the masks of the studies show; in training of those with labels."""
        studies = np.asarray(studies, np.int64)
        if train:
            studies = studies[self.table.has_labels[studies]]
        items = studies[:, None] * NUM_VERTEBRAE + np.arange(NUM_VERTEBRAE)[None]
        return items[self.volume[studies] > 0]

    def positive(self, items: np.ndarray) -> np.ndarray:
        """Those about a fractured vertebra."""
        study, level = np.divmod(items, NUM_VERTEBRAE)
        return self.table.labels[study, level + 1] > 0

    def read(self, items: np.ndarray, valid: np.ndarray, jitter: np.ndarray | None = None) -> Batch:
        """A batch; jitter moves a clip by up to half of itself along each axis.

        Returns:
            `image` int16 [B, T, h, w, D] HU, `there` bool [B, T] (False beyond the study's ends), `targets` and
            `targets_known` float32 [B, 8], `inside` float32 [B, 7] (share of each vertebra in the clip), `study` int32
            [B], `level` int32 [B] 1..7 (which it is about), `valid` bool [B]; `with_mask` also `mask` uint8
            [B, T, h, w], 0..7.
        """
        table, T = self.table, self.study.clip_depth
        study, level = np.divmod(np.asarray(items), NUM_VERTEBRAE)
        shift = np.zeros((len(items), 3)) if jitter is None else jitter - 0.5
        reach = (np.arange(T) - T // 2) * self.step
        rows, there = np.zeros((len(items), T), np.int64), np.zeros((len(items), T), bool)
        for k, (s, j) in enumerate(zip(study, level, strict=True)):
            first, count = int(table.first[s]), int(table.count[s])
            middle = int(_mean(self.area[first : first + count, j])) + round(shift[k, 0] * T * self.step)
            at = middle + reach
            there[k] = (at >= 0) & (at < count)
            rows[k] = first + np.clip(at, 0, count - 1)
        image, mask = stacks(table, rows, self.data), masks(table, rows)
        image, mask = self._in_plane(image, mask, level, shift)
        visible = np.where(there[:, :, None, None], mask, 0)
        voxels = np.stack([(visible == j + 1).sum((1, 2, 3)) for j in range(NUM_VERTEBRAE)], axis=1) * self.step
        inside = np.divide(voxels, self.volume[study], out=np.zeros(voxels.shape), where=self.volume[study] > 0)
        targets, known = self._targets(study, inside)
        batch = {
            "image": image,
            "there": there,
            "targets": targets,
            "targets_known": known,
            "inside": np.minimum(inside, 1.0).astype(np.float32),
            "study": study.astype(np.int32),
            "level": (level + 1).astype(np.int32),
            "valid": valid,
        }
        return {**batch, "mask": mask} if self.study.with_mask else batch

    def _targets(self, study: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels of what is in the clip, and which of them are known; float32 [B, 8] each."""
        labels, seen = self.table.labels[study].astype(np.float32), inside >= self.study.clip_visible
        seen &= inside > 0
        shown = labels[:, 1:] * seen
        targets = np.concatenate([shown.max(1, keepdims=True), shown], axis=1).astype(np.float32)
        known = known_targets(targets, seen, self.table.has_labels[study])
        # A fractured vertebra of which too little is shown may show its fracture or not; the patient is unknown too.
        cut = ((labels[:, 1:] > 0) & (inside > 0) & ~seen).any(1)
        known[:, 0] *= (targets[:, 0] > 0) | ~cut
        if self.study.clip_labels == "negative":
            known = np.broadcast_to(self.table.has_labels[study][:, None], known.shape).astype(np.float32)
        return targets, known

    def _in_plane(
        self, image: np.ndarray, mask: np.ndarray, level: np.ndarray, shift: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The window of `clip_size` about the vertebra, inside the image."""
        H, W = image.shape[2:4]
        h, w = (min(n, self.study.clip_size or n) for n in (H, W))
        if (h, w) == (H, W):
            return image, mask
        cut_image, cut_mask = [], []
        for k, j in enumerate(level):
            area = (mask[k] == j + 1).sum(0)
            top = _start(_mean(area.sum(1)) + shift[k, 1] * h, h, H)
            left = _start(_mean(area.sum(0)) + shift[k, 2] * w, w, W)
            cut_image.append(image[k, :, top : top + h, left : left + w])
            cut_mask.append(mask[k, :, top : top + h, left : left + w])
        return np.stack(cut_image), np.stack(cut_mask)


def _mean(weights: np.ndarray) -> float:
    """Mean position by weight; the middle where all are 0."""
    total = weights.sum()
    return float((weights * np.arange(len(weights))).sum() / total) if total else (len(weights) - 1) / 2


def _start(middle: float, size: int, whole: int) -> int:
    return int(np.clip(round(middle - size / 2), 0, whole - size))
