"""What a batch of slices holds for each task: pixels from the records, everything else from tables in memory."""

from typing import ClassVar

import numpy as np

from cspine_jax.config import DataConfig
from cspine_jax.data.probabilities import vertebra_probabilities
from cspine_jax.data.slice_metadata import slice_metadata
from cspine_jax.data.source import SliceTable
from cspine_jax.data.targets import slice_targets
from cspine_jax.errors import ConfigError, DataError

Batch = dict[str, np.ndarray]


class Batches:
    """Batches for fracture detection; the base of the others.

    Attributes:
        columns: [N, ...] arrays, of which a batch gets the rows of its records.
        training: predicted vertebrae may stand in for a mask.
        known: bool [N], something to learn from is known of the slice.
        positive: bool [N], slices that `data.positive_fraction` is about.
        shows: what these show, for messages.
        needs: what has to be known of a study, for messages.
        with_masks: a batch has a `mask`: of the centre slice, or where `whole_stack` of every slice.
    """

    shows: ClassVar[str] = "a fracture"
    needs: ClassVar[str] = "label, mask or box"
    with_masks: ClassVar[bool] = False
    whole_stack: ClassVar[bool] = False

    def __init__(self, table: SliceTable, config: DataConfig, training: bool = False):
        if table.pixels.channels:
            raise DataError(f"{table.path}: these records are stacks already; build with radius 0 to make batches")
        self.table, self.config, self.training = table, config, training
        self.columns = self._columns()
        self.known, self.positive = self._rows()

    def _columns(self) -> Batch:
        config, table = self.config, self.table
        self._probabilities = vertebra_probabilities(table, config.vertebra_probs, config.in_sample_probs)
        v, cut = self._probabilities.values, config.presence_from_probs
        targets = slice_targets(table, config.fracture_target, v >= cut if cut and self.training else None)
        labels = table.labels[table.study].astype(np.float32)
        return {**targets, "vertebra_probs": v, "labels": labels}

    def _rows(self) -> tuple[np.ndarray, np.ndarray]:
        c = self.columns
        known = (c["presence_known"] > 0) | (c["slice_known"] > 0) | (c["fracture_known"] > 0).any(1)
        return known, c["slice_fracture"] > 0

    def check(self, records: np.ndarray) -> None:
        """Refuses records (int [n]) that cannot share a batch or lack their vertebra probabilities."""
        self.table.check_shape(self.table.study[records])
        self._probabilities.require(self.table, records)

    def read(self, records: np.ndarray, valid: np.ndarray | None = None) -> Batch:
        """A batch.

        Args:
            records: int [B].
            valid: bool [B]; None for all True.

        Returns:
            `image` int16 [B, D, H, W] HU, superior slice first; `study` int32 [B]; `index` int32 [B], position in the
            study; `valid` bool [B]; and the task's `columns`. For fractures `presence`, `fracture`, `fracture_known`
            and `vertebra_probs` float32 [B, 7]; `presence_known`, `slice_fracture`, `slice_known` float32 [B];
            `labels` float32 [B, 8].
        """
        batch = {name: values[records] for name, values in self.columns.items()}
        batch |= {
            "image": self.table.read_stacks(records, self.config.depth, self.config.stride),
            "study": self.table.study[records],
            "index": self.table.index[records],
            "valid": np.ones(len(records), bool) if valid is None else valid,
        }
        if self.with_masks:
            depth = self.config.depth if self.whole_stack else 1
            batch["mask"] = self.table.read_mask_stacks(records, depth, self.config.stride)
        return batch


class VertebraBatches(Batches):
    """For vertebra detection: `presence` float32 [B, 7], `presence_known` [B], `metadata` [B, 6]."""

    shows = "a cervical vertebra"
    needs = "mask"

    def _columns(self) -> Batch:
        masked = self.table.has_mask[self.table.study]
        presence = (self.table.presence > 0) & masked[:, None]
        return {
            "presence": presence.astype(np.float32),
            "presence_known": masked.astype(np.float32),
            "metadata": slice_metadata(self.table),
        }

    def _rows(self) -> tuple[np.ndarray, np.ndarray]:
        return self.columns["presence_known"] > 0, np.asarray(self.columns["presence"].any(1))

    def check(self, records: np.ndarray) -> None:
        """Refuses records (int [n]) that cannot share a batch."""
        self.table.check_shape(self.table.study[records])


class MaskBatches(Batches):
    """For segmentation: `mask` uint8 [B, 1, H, W] of the centre slice (1..19 are C1..T12), `mask_known` float32 [B]."""

    shows = "a cervical vertebra"
    needs = "mask"
    with_masks = True

    def _columns(self) -> Batch:
        return {"mask_known": self.table.has_mask[self.table.study].astype(np.float32)}

    def _rows(self) -> tuple[np.ndarray, np.ndarray]:
        known = self.columns["mask_known"] > 0
        return known, np.asarray((self.table.presence > 0).any(1) & known)

    def check(self, records: np.ndarray) -> None:
        """Refuses records (int [n]) that cannot share a batch."""
        self.table.check_shape(self.table.study[records])


class StackMaskBatches(MaskBatches):
    """For segmentation of whole stacks: `mask` uint8 [B, D, H, W] of every slice of the image."""

    whole_stack = True


_TASKS = {
    "fracture": Batches,
    "vertebra": VertebraBatches,
    "segment2d": MaskBatches,
    "segment_stack": StackMaskBatches,
}


def batches_for(task: str, table: SliceTable, config: DataConfig, training: bool = False) -> Batches:
    """The batches of a task on slices.

    Args:
        task: "fracture", "vertebra", "segment2d" or "segment_stack".
        table: the records.
        config: targets and probabilities.
        training: predicted vertebrae may stand in for a mask (`data.presence_from_probs`).

    Raises:
        ConfigError: it is not one.
    """
    if task not in _TASKS:
        raise ConfigError(f"task={task!r}: not a task on slices ({', '.join(_TASKS)})")
    return _TASKS[task](table, config, training)
