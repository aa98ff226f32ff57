"""A whole study as one sequence of slices: what the classifier, the 3D transformer and the 3D CNN learn from."""

import numpy as np

from cspine_jax.anatomy import NUM_VERTEBRAE
from cspine_jax.config import DataConfig, StudyConfig
from cspine_jax.data.batches import Batch
from cspine_jax.data.source import SliceTable
from cspine_jax.data.views.patients import PatientView, known_targets


class SlicesView(PatientView[SliceTable]):
    """Studies of a `SliceTable`, of one length T; items are study numbers.

    Args:
        table: the records.
        data: depth and stride of the stack at each position.
        study: `slices`, or `every` and `max_slices`; `with_mask`.
        rounded: with `every`, T is a multiple of so much, but no more than `max_slices`.
    """

    def __init__(self, table: SliceTable, data: DataConfig, study: StudyConfig, rounded: int = 1):
        self.table, self.data, self.study = table, data, study
        self.shown = shown_levels(table)
        self.length = study.slices
        if study.every:
            longest = -(-int(table.count.max()) // (study.every * rounded)) * rounded
            self.length = min(longest, study.max_slices or longest)

    def positions(self, count: int) -> np.ndarray:
        """int64 [n], n <= T: which of a study's `count` slices are seen, superior first."""
        if not self.study.every:
            return np.linspace(0, count - 1, self.length).round().astype(np.int64)
        chosen = np.arange(0, count, self.study.every)
        if len(chosen) > self.length:
            chosen = chosen[np.linspace(0, len(chosen) - 1, self.length).round().astype(np.int64)]
        return chosen

    def read(self, items: np.ndarray, valid: np.ndarray, jitter: np.ndarray | None = None) -> Batch:
        """A batch.

        A level that the study's own mask does not show is unknown; where there is no mask all are taken to be there.

        Returns:
            `image` int16 [B, T, H, W, D] HU, `there` bool [B, T] (padding repeats the last slice), `targets` and
            `targets_known` float32 [B, 8], `study` int32 [B], `valid` bool [B]; `with_mask` also `mask` uint8
            [B, T, H, W], 0..7.
        """
        del jitter  # evenly spaced, in training too
        table, T = self.table, self.length
        rows, there = np.zeros((len(items), T), np.int64), np.zeros((len(items), T), bool)
        for k, study in enumerate(items):
            chosen = self.positions(int(table.count[study]))
            rows[k] = table.first[study] + np.pad(chosen, (0, T - len(chosen)), mode="edge")
            there[k, : len(chosen)] = True
        labels = table.labels[items].astype(np.float32)
        batch = {
            "image": stacks(table, rows, self.data),
            "there": there,
            "targets": labels,
            "targets_known": known_targets(labels, self.shown[items], table.has_labels[items]),
            "study": np.asarray(items, np.int32),
            "valid": valid,
        }
        return {**batch, "mask": masks(table, rows)} if self.study.with_mask else batch


def stacks(table: SliceTable, rows: np.ndarray, data: DataConfig) -> np.ndarray:
    """int16 [B, T, H, W, D] HU around records `rows` [B, T]."""
    image = table.read_stacks(rows.ravel(), data.depth, data.stride)
    return np.moveaxis(image, 1, -1).reshape(*rows.shape, *image.shape[2:], data.depth)


def masks(table: SliceTable, rows: np.ndarray) -> np.ndarray:
    """uint8 [B, T, H, W] of records `rows` [B, T]: 1..7 are C1..C7, all else is 0."""
    found = table.read_mask_stacks(rows.ravel(), 1)[:, 0]
    return np.where(found <= NUM_VERTEBRAE, found, 0).astype(np.uint8).reshape(*rows.shape, *found.shape[1:])


def shown_levels(table: SliceTable) -> np.ndarray:
    """Bool [S, 7]: the study's mask shows the vertebra, on any slice; True where there is no mask."""
    shown = np.zeros((len(table.uids), NUM_VERTEBRAE), bool)
    np.logical_or.at(shown, table.study, table.presence > 0)
    return shown | ~table.has_mask[:, None]
