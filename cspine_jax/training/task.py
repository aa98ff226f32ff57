"""What the loop needs to know of a task, and what a task may ask of the data."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import jax
import numpy as np

Batch = dict[str, Any]
"""Host arrays with a leading batch axis of fixed length; `valid` bool [B] is False on padding."""

Parts = dict[str, tuple[jax.Array, jax.Array]]
"""Named scalars to log, each as (sum, weight), so that shards and batches add up."""


class Task(Protocol):
    """A thing that can be learnt. Every method but `metrics` is traced by jax: pure, no host work."""

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Returns (params, stats): trained arrays, and running statistics (batch norm), as plain nested dicts."""
        ...

    def loss(self, params: Any, stats: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, Parts, Any]:
        """Training mode. Returns (loss sum, weight, parts, new stats)."""
        ...

    def predict(
        self, params: Any, stats: Any, batch: Batch
    ) -> tuple[jax.Array, jax.Array, Parts, dict[str, jax.Array]]:
        """Evaluation mode. Returns (loss sum, weight, parts, outputs [B, ...])."""
        ...

    def metrics(self, table: dict[str, np.ndarray]) -> dict[str, float]:
        """Figures of a whole pass, on the host.

        Args:
            table: outputs of `predict` and every batch column of at most two axes, [N, ...], padding removed.
        """
        ...


class OnBackbone(Protocol):
    """A task on an image network of `models`, for which weights are published."""

    def pretrained(self) -> dict[tuple[Any, ...], np.ndarray]:
        """Arrays of the weights that `config.model.pretrained` names, by their paths in the trees of `Task.init`.

        On the host; they may be more than those trees have.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Loaders:
    """Where a run gets its batches.

    Attributes:
        train: makes an endless iterator of training batches with `get_state()` (JSON-ready) and `set_state(state)`.
        train_examples: examples in one epoch.
        validation: makes one pass over the validation examples, the last batch padded.
    """

    train: Callable[[], Iterator[Batch]]
    train_examples: int
    validation: Callable[[], Iterable[Batch]]
