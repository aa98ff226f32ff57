"""Batches from records: shuffled stacks for training, whole studies in order for evaluation.

The unit of work of a loader thread is a batch, not a slice: the indices are shuffled and batched as plain integers, and
one call reads the batch. Slices that stacks share are then read once, and the cost of Python is paid once a batch.
"""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from cspine_jax.config import DataConfig
from cspine_jax.data.folds import assign_folds
from cspine_jax.data.source import SliceTable
from cspine_jax.data.targets import require_probabilities, slice_targets, vertebra_probabilities
from cspine_jax.errors import ConfigError, DataError

Batch = dict[str, np.ndarray]


def split_studies(table: SliceTable, config: DataConfig) -> dict[str, np.ndarray]:
    """The studies of each part.

    Fold `config.fold` tests, the next one validates, the others train. Studies without labels are in none. With another
    `num_folds` than the records were built with, the labelled studies are dealt anew by the same rule.

    Returns:
        int32 arrays of study numbers under "train", "validation" and "test"; the first `limit_studies` of each.

    Raises:
        DataError: a part is empty.
    """
    labelled = np.flatnonzero(table.has_labels)
    folds = table.folds[labelled]
    if folds.size and folds.max() + 1 != config.num_folds:
        folds = assign_folds(table.uids[labelled].tolist(), table.labels[labelled], config.num_folds)
    test, validation = folds == config.fold, folds == (config.fold + 1) % config.num_folds
    parts = {"train": ~(test | validation), "validation": validation, "test": test}
    chosen = {name: labelled[part][: config.limit_studies or None].astype(np.int32) for name, part in parts.items()}
    for name, studies in chosen.items():
        if not studies.size:
            raise DataError(
                f"{table.path}: no study is left for {name}: {labelled.size} labelled studies in {config.num_folds} "
                f"folds (data.fold={config.fold}); use more studies or fewer folds"
            )
    return chosen


def train_records(table: SliceTable, config: DataConfig, studies: np.ndarray | None = None) -> np.ndarray:
    """int64 [n], the records one epoch goes through: those of `studies` on which anything is known.

    Args:
        table: the records.
        config: `fracture_target`, and the folds that decide the training studies where `studies` is None.
        studies: study numbers.
    """
    studies = split_studies(table, config)["train"] if studies is None else studies
    return _known(slice_targets(table, config.fracture_target), table.records_of(studies))


def _known(targets: Batch, records: np.ndarray) -> np.ndarray:
    known = (targets["presence_known"] > 0) | (targets["slice_known"] > 0) | (targets["fracture_known"] > 0).any(1)
    return records[known[records]]


def train_batches(
    table: SliceTable,
    config: DataConfig,
    seed: int,
    *,
    studies: np.ndarray | None = None,
    shard_index: int = 0,
    shard_count: int = 1,
) -> grain.DatasetIterator[Batch]:
    """Endless shuffled batches; every epoch has another order.

    The order depends on the seed alone. With several processes each takes its part of the same global batches, so
    their number changes nothing either.

    Args:
        table: the records.
        config: depth, stride, batch_size (of all processes together), targets, positive_fraction, workers, prefetch.
        seed: of the order.
        studies: study numbers; None for the training part of `split_studies`.
        shard_index: which process this is.
        shard_count: how many processes there are.

    Returns:
        An iterator of batches as `Batches.read` makes them. `get_state()` is a small JSON-ready dict; after
        `set_state` of it the iterator gives exactly the batches that had not been given yet.

    Raises:
        DataError: the studies differ in size, nothing is known about them, or `positive_fraction` asks for slices that
            do not exist.
    """
    source = Batches(table, config)
    records = train_records(table, config, studies)
    if not records.size:
        raise DataError(f"{table.path}: no label, mask or box is known for any training slice")
    source.check(records)
    per_process = _share(config.batch_size, shard_count, "batch_size")
    start = int(np.random.SeedSequence(seed).generate_state(1)[0])

    def endless(part: Any, stream: int) -> grain.MapDataset:
        return grain.MapDataset.source(part).shuffle(seed=(start + stream * 2**31) % 2**32).repeat()

    if config.positive_fraction > 0:
        positive = source.targets["slice_fracture"][records] > 0
        if positive.all() or not positive.any():
            raise DataError(
                f"{table.path}: {positive.sum()} of {positive.size} training slices show a fracture, so "
                f"data.positive_fraction={config.positive_fraction} cannot be kept; set it to 0"
            )
        share = config.positive_fraction
        indices = grain.MapDataset.mix(
            [endless(records[positive], 0), endless(records[~positive], 1)], weights=[share, 1 - share]
        )
    else:
        indices = endless(records, 0)
    low = shard_index * per_process
    batches = indices.batch(config.batch_size).map(lambda rows: source.read(rows[low : low + per_process]))
    return iter(batches.to_iter_dataset(_read_options(config)))


def eval_batches(
    table: SliceTable, config: DataConfig, studies: np.ndarray, *, shard_index: int = 0, shard_count: int = 1
) -> "EvalBatches":
    """All slices of `studies` in order, once each: study after study, superior slice first.

    Args:
        table: the records.
        config: depth, stride, eval_batch_size (of all processes together), targets, workers, prefetch.
        studies: study numbers.
        shard_index: which process this is.
        shard_count: how many processes there are; all get the same number of batches.

    Returns:
        A sized iterable of batches. The last one repeats its last slice with `valid` False.
    """
    source = Batches(table, config)
    records = table.records_of(studies)
    source.check(records)
    size = config.eval_batch_size
    per_process = _share(size, shard_count, "eval_batch_size")
    total = -(-len(records) // size)
    padded = np.concatenate([records, np.repeat(records[-1:], total * size - len(records))])
    valid = np.arange(total * size) < len(records)
    low = shard_index * per_process

    def read(number: int) -> Batch:
        rows = slice(number * size + low, number * size + low + per_process)
        return source.read(padded[rows], valid[rows])

    return EvalBatches(grain.MapDataset.range(total).map(read), _read_options(config))


@dataclasses.dataclass(frozen=True)
class EvalBatches:
    """Batches that can be counted and gone through again and again."""

    dataset: grain.MapDataset
    options: grain.ReadOptions

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.dataset.to_iter_dataset(self.options))


class Batches:
    """Makes a batch from record numbers: pixels from the records, everything else from tables in memory."""

    def __init__(self, table: SliceTable, config: DataConfig):
        if table.pixels.channels:
            raise DataError(f"{table.path}: these records are stacks already; build with radius 0 to make batches")
        self.table, self.config = table, config
        self.targets = slice_targets(table, config.fracture_target)
        self.targets["vertebra_probs"] = vertebra_probabilities(table, config.vertebra_probs)
        self.labels = table.labels.astype(np.float32)

    def check(self, records: np.ndarray) -> None:
        """Refuses records that cannot share a batch or lack their vertebra probabilities."""
        self.table.check_shape(self.table.study[records])
        require_probabilities(self.table, self.targets["vertebra_probs"], records, self.config.vertebra_probs)

    def read(self, records: np.ndarray, valid: np.ndarray | None = None) -> Batch:
        """A batch.

        Args:
            records: int [B].
            valid: bool [B]; None for all True.

        Returns:
            `image` int16 [B, D, H, W] HU, superior slice first; `presence`, `fracture`, `fracture_known` and
            `vertebra_probs` float32 [B, 7]; `presence_known`, `slice_fracture`, `slice_known` float32 [B]; `labels`
            float32 [B, 8]; `study` int32 [B]; `index` int32 [B], position in the study; `valid` bool [B].
        """
        study = self.table.study[records]
        batch = {name: values[records] for name, values in self.targets.items()}
        return batch | {
            "image": self.table.read_stacks(records, self.config.depth, self.config.stride),
            "labels": self.labels[study],
            "study": study,
            "index": self.table.index[records],
            "valid": np.ones(len(records), bool) if valid is None else valid,
        }


def _share(batch_size: int, shard_count: int, name: str) -> int:
    if batch_size % shard_count:
        raise ConfigError(f"data.{name}={batch_size}: must be a multiple of the {shard_count} processes")
    return batch_size // shard_count


def _read_options(config: DataConfig) -> grain.ReadOptions:
    threads = config.workers or min(4, os.cpu_count() or 1)
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(config.prefetch, threads))
