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
from cspine_jax.data.batches import Batch, batches_for
from cspine_jax.data.folds import assign_folds
from cspine_jax.data.source import SliceTable
from cspine_jax.errors import ConfigError, DataError


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


def train_records(
    table: SliceTable, config: DataConfig, studies: np.ndarray | None = None, *, task: str = "fracture"
) -> np.ndarray:
    """int64 [n], the records one epoch goes through: those of `studies` on which anything is known.

    Args:
        table: the records.
        config: `fracture_target`, and the folds that decide the training studies where `studies` is None.
        studies: study numbers.
        task: decides what has to be known, see `batches`.

    Raises:
        DataError: the studies differ in size, or lack the vertebra probabilities that `data.vertebra_probs` promises.
    """
    studies = split_studies(table, config)["train"] if studies is None else studies
    source, records = batches_for(task, table, config, training=True), table.records_of(studies)
    records = records[source.known[records]]
    if records.size:
        source.check(records)
    return records


def train_batches(
    table: SliceTable,
    config: DataConfig,
    seed: int,
    *,
    studies: np.ndarray | None = None,
    task: str = "fracture",
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
        task: what the batches hold, see `batches`.
        shard_index: which process this is.
        shard_count: how many processes there are.

    Returns:
        An iterator of batches as `Batches.read` makes them. `get_state()` is a small JSON-ready dict; after
        `set_state` of it the iterator gives exactly the batches that had not been given yet.

    Raises:
        DataError: the studies differ in size, nothing is known about them, or `positive_fraction` asks for slices that
            do not exist.
    """
    source = batches_for(task, table, config, training=True)
    records = table.records_of(split_studies(table, config)["train"] if studies is None else studies)
    records = records[source.known[records]]
    if not records.size:
        raise DataError(f"{table.path}: no {source.needs} is known for any training slice")
    source.check(records)
    per_process = _share(config.batch_size, shard_count, "batch_size")
    start = int(np.random.SeedSequence(seed).generate_state(1)[0])

    def endless(part: Any, stream: int) -> grain.MapDataset:
        return grain.MapDataset.source(part).shuffle(seed=(start + stream * 2**31) % 2**32).repeat()

    if config.positive_fraction > 0:
        positive = source.positive[records]
        if positive.all() or not positive.any():
            raise DataError(
                f"{table.path}: {positive.sum()} of {positive.size} training slices show {source.shows}, so "
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
    table: SliceTable,
    config: DataConfig,
    studies: np.ndarray,
    *,
    task: str = "fracture",
    shard_index: int = 0,
    shard_count: int = 1,
) -> "EvalBatches":
    """All slices of `studies` in order, once each: study after study, superior slice first.

    Args:
        table: the records.
        config: depth, stride, eval_batch_size (of all processes together), targets, workers, prefetch.
        studies: study numbers.
        task: what the batches hold, see `batches`.
        shard_index: which process this is.
        shard_count: how many processes there are; all get the same number of batches.

    Returns:
        A sized iterable of batches. The last one repeats its last slice with `valid` False.
    """
    source = batches_for(task, table, config)
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


def _share(batch_size: int, shard_count: int, name: str) -> int:
    if batch_size % shard_count:
        raise ConfigError(f"data.{name}={batch_size}: must be a multiple of the {shard_count} processes")
    return batch_size // shard_count


def _read_options(config: DataConfig) -> grain.ReadOptions:
    threads = config.workers or min(4, os.cpu_count() or 1)
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(config.prefetch, threads))
