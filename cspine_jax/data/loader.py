"""Batches from records: shuffled stacks for training, whole studies in order for evaluation.

The unit of work of a loader thread is a batch, not a slice: the indices are shuffled and batched as plain integers, and
one call reads the batch. Slices that stacks share are then read once, and the cost of Python is paid once a batch.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import grain
import numpy as np

from cspine_jax.config import DataConfig
from cspine_jax.data.batches import Batch, batches_for
from cspine_jax.data.folds import assign_folds
from cspine_jax.data.source import SliceTable
from cspine_jax.errors import ConfigError, DataError


class Studies(Protocol):
    """What divides studies into parts: of a `SliceTable`, a `CropTable` or any other list of S studies."""

    @property
    def path(self) -> Path:
        """Where they are, for messages."""
        ...

    @property
    def uids(self) -> np.ndarray:
        """Str [S]."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """uint8 [S, 8]."""
        ...

    @property
    def has_labels(self) -> np.ndarray:
        """Bool [S]."""
        ...

    @property
    def folds(self) -> np.ndarray:
        """int32 [S], -1 without labels."""
        ...


def split_studies(table: Studies, config: DataConfig) -> dict[str, np.ndarray]:
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
    positive = source.positive[records]
    if config.positive_fraction > 0 and (positive.all() or not positive.any()):
        raise DataError(
            f"{table.path}: {positive.sum()} of {positive.size} training slices show {source.shows}, so "
            f"data.positive_fraction={config.positive_fraction} cannot be kept; set it to 0"
        )
    indices = shuffled(records, positive, config.positive_fraction, seed)
    per_process = share_of(config.batch_size, shard_count, "batch_size")
    low = shard_index * per_process
    batches = indices.batch(config.batch_size).map(lambda rows: source.read(rows[low : low + per_process]))
    return iter(batches.to_iter_dataset(read_options(config)))


def shuffled(items: np.ndarray, positive: np.ndarray, fraction: float, seed: int) -> grain.MapDataset:
    """Endless `items` in an order that the seed decides, another one every epoch.

    Args:
        items: int [n].
        positive: bool [n]; read where `fraction` > 0, and then neither all nor none.
        fraction: share of positive ones to draw; 0 draws them as they come.
        seed: of the order.
    """
    start = int(np.random.SeedSequence(seed).generate_state(1)[0])

    def endless(part: Any, stream: int) -> grain.MapDataset:
        return grain.MapDataset.source(part).shuffle(seed=(start + stream * 2**31) % 2**32).repeat()

    if fraction <= 0:
        return endless(items, 0)
    return grain.MapDataset.mix(
        [endless(items[positive], 0), endless(items[~positive], 1)], weights=[fraction, 1 - fraction]
    )


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
    return in_order(records, source.read, config, shard_index=shard_index, shard_count=shard_count)


def in_order(
    items: np.ndarray,
    read: Callable[[np.ndarray, np.ndarray], Batch],
    config: DataConfig,
    *,
    shard_index: int = 0,
    shard_count: int = 1,
) -> "EvalBatches":
    """Batches of `items`, once each, in order; the last one repeats its last item with `valid` False.

    Args:
        items: int [n].
        read: `(items [B], valid [B])` to a batch.
        config: eval_batch_size (of all processes together), workers, prefetch.
        shard_index: which process this is.
        shard_count: how many processes there are; all get the same number of batches.
    """
    size = config.eval_batch_size
    per_process = share_of(size, shard_count, "eval_batch_size")
    total = -(-len(items) // size)
    padded = np.concatenate([items, np.repeat(items[-1:], total * size - len(items))])
    valid = np.arange(total * size) < len(items)
    low = shard_index * per_process

    def batch(number: int) -> Batch:
        rows = slice(number * size + low, number * size + low + per_process)
        return read(padded[rows], valid[rows])

    return EvalBatches(grain.MapDataset.range(total).map(batch), read_options(config))


@dataclasses.dataclass(frozen=True)
class EvalBatches:
    """Batches that can be counted and gone through again and again."""

    dataset: grain.MapDataset
    options: grain.ReadOptions

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.dataset.to_iter_dataset(self.options))


def share_of(batch_size: int, shard_count: int, name: str) -> int:
    """Rows of each of `shard_count` processes; refuses what cannot be divided."""
    if batch_size % shard_count:
        raise ConfigError(f"data.{name}={batch_size}: must be a multiple of the {shard_count} processes")
    return batch_size // shard_count


def read_options(config: DataConfig) -> grain.ReadOptions:
    """Reader threads and batches ahead."""
    threads = config.workers or min(4, os.cpu_count() or 1)
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(config.prefetch, threads))
