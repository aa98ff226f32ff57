"""Batches of a view: shuffled without end, resumable to the batch; or in order, once."""

from typing import Protocol

import grain
import numpy as np

from cspine_jax.config import DataConfig
from cspine_jax.data.batches import Batch
from cspine_jax.data.loader import EvalBatches, in_order, read_options, share_of, shuffled
from cspine_jax.errors import DataError

JITTER = 3
"""Random numbers that a training example gets for where it is cut out."""


class View(Protocol):
    """Examples of a data set."""

    shows: str
    """What a positive one shows, for messages."""

    def items(self, studies: np.ndarray, train: bool) -> np.ndarray:
        """int64 [n]: the examples of some studies; in training only those of which something is known."""
        ...

    def positive(self, items: np.ndarray) -> np.ndarray:
        """Bool [n]: those that `study.fractured_fraction` is about."""
        ...

    def read(self, items: np.ndarray, valid: np.ndarray, jitter: np.ndarray | None = None) -> Batch:
        """A batch.

        Args:
            items: int [B].
            valid: bool [B], False on padding.
            jitter: float [B, 3] in 0..1, for training; None for the example as it is.
        """
        ...


def shuffled_batches(
    view: View,
    studies: np.ndarray,
    config: DataConfig,
    seed: int,
    *,
    fraction: float = 0.0,
    shard_index: int = 0,
    shard_count: int = 1,
) -> grain.DatasetIterator[Batch]:
    """Endless training batches; every epoch has another order, which depends on the seed alone.

    Args:
        view: of the data.
        studies: study numbers.
        config: batch_size (of all processes together), workers, prefetch.
        seed: of order and jitter.
        fraction: share of positive examples in the batches; 0 leaves them as frequent as they are.
        shard_index: which process this is; it gets its rows of the same global batches.
        shard_count: how many processes there are.

    Returns:
        An iterator. `get_state()` is a small JSON-ready dict; after `set_state` of it the iterator gives exactly the
        batches that had not been given yet.

    Raises:
        DataError: there is nothing to learn from, or `fraction` cannot be kept.
    """
    items = view.items(studies, True)
    if not items.size:
        raise DataError(f"none of {len(studies)} training studies has anything to learn from")
    positive = view.positive(items)
    if fraction > 0:
        prevalence(positive, view.shows, fraction)
    per_process = share_of(config.batch_size, shard_count, "batch_size")
    low = shard_index * per_process

    def read(rows: np.ndarray, rng: np.random.Generator) -> Batch:
        jitter = rng.random((len(rows), JITTER))  # of the global batch, so that the number of processes changes nothing
        if fraction > 0:  # they come in a fixed turn, and mixup blends neighbours
            rows = rng.permutation(rows)
        own = slice(low, low + per_process)
        return view.read(rows[own], np.ones(per_process, bool), jitter[own])

    batches = shuffled(items, positive, fraction, seed).batch(config.batch_size).random_map(read, seed=seed)
    return iter(batches.to_iter_dataset(read_options(config)))


def prevalence(positive: np.ndarray, shows: str, fraction: float) -> float:
    """Share of positive training examples, bool [n] (see `View.positive`, `View.shows`).

    Raises:
        DataError: all or none are, so that `fraction` of a batch cannot be.
    """
    if positive.all() or not positive.any():
        raise DataError(
            f"{positive.sum()} of {positive.size} training examples show {shows}, so "
            f"study.fractured_fraction={fraction} cannot be kept; set it to 0"
        )
    return float(positive.mean())


def ordered_batches(
    view: View, studies: np.ndarray, config: DataConfig, *, shard_index: int = 0, shard_count: int = 1
) -> EvalBatches:
    """All examples of `studies` once, in order; the last batch is padded. Arguments as `shuffled_batches`."""
    items = view.items(studies, False)
    return in_order(items, view.read, config, shard_index=shard_index, shard_count=shard_count)
