"""One vertebra an example: what gold's Type 1, silver and bronze learn from."""

import numpy as np

from cspine_jax.data.batches import Batch
from cspine_jax.data.crops import CropTable
from cspine_jax.data.views.slice_labels import slice_boxes, slice_labels


class VertebraView:
    """Crops of a `CropTable`; items are its records.

    Args:
        table: the records.
        labels: of slices, as `config.study.slice_labels`.
        shown: positions of an example in training, as `config.study.train_positions`.
    """

    shows = "a fractured vertebra"

    def __init__(self, table: CropTable, labels: str = "copy", shown: int = 0):
        self.table, self.labels, self.shown = table, labels, shown

    def items(self, studies: np.ndarray, train: bool) -> np.ndarray:
        """All crops of the studies, C1 first; in training those of studies with labels."""
        records = self.table.record[studies].ravel()
        records = records[records >= 0]
        return records[self.table.has_labels[self.table.study[records]]] if train else records

    def positive(self, items: np.ndarray) -> np.ndarray:
        """Those of a fractured vertebra."""
        return self._labels(items) > 0

    def _labels(self, items: np.ndarray) -> np.ndarray:
        return self.table.labels[self.table.study[items], self.table.level[items]]

    def read(self, items: np.ndarray, valid: np.ndarray, jitter: np.ndarray | None = None) -> Batch:
        """A batch; with jitter, P below is `shown`, from a random position on.

        Returns:
            `image` int16 [B, P, H, W, K] HU, `mask` uint8 [B, P, H, W] 0/1, `targets` and `targets_known` float32 [B],
            `slice_targets` float32 [B, P] (as well known), `box` float32 [B, P, 4] and `where_known` float32 [B] of
            `slice_boxes`, `study` int32 [B], `level` int32 [B] 1..7, `valid` bool [B].
        """
        image, mask = self.table.read(items)
        study, P = self.table.study[items], image.shape[1]
        boxes = slice_boxes(self.table, items)
        own, at = np.arange(len(items))[:, None], np.arange(P)[None]
        if jitter is not None and 0 < self.shown < P:  # evenly spaced, from a random one on
            at = ((np.arange(self.shown) + jitter[:, :1]) * P / self.shown).astype(int)
        return {
            "image": image[own, at],
            "mask": mask[own, at],
            "targets": self._labels(items).astype(np.float32),
            "slice_targets": slice_labels(self.table, items, self.labels)[own, at],
            "targets_known": self.table.has_labels[study].astype(np.float32),
            "box": boxes["box"][own, at],
            "where_known": boxes["where_known"],
            "study": study.astype(np.int32),
            "level": self.table.level[items].astype(np.int32),
            "valid": valid,
        }
