"""What an experiment asks of a kind of task."""

import abc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from cspine_jax import __version__
from cspine_jax.config import Config
from cspine_jax.training.sharding import Placement
from cspine_jax.training.task import Batch, Loaders, Task


@dataclass(frozen=True)
class Trained:
    """The best checkpoint of a run, ready to predict.

    Attributes:
        workdir: W.
        step: of the checkpoint.
        params: on the devices.
        stats: on the devices.
        run: runs the task's `predict` over host batches of one shape. Gives the host table of every output and every
            batch column of at most two axes, [N, ...], padding removed.
        run_views: the same of so many test-time augmentations in one pass, for tasks that have them; column `view` says
            which a row is of.
        placement: the devices.
    """

    workdir: Path
    step: int
    params: Any
    stats: Any
    run: Callable[[Iterable[Batch]], dict[str, np.ndarray]]
    run_views: Callable[[Iterable[Batch], int], dict[str, np.ndarray]]
    placement: Placement

    @property
    def facts(self) -> dict[str, str]:
        """What a report says of model and software."""
        return {
            "work folder": str(self.workdir),
            "parameters": f"{sum(x.size for x in jax.tree.leaves(self.params)):,}",
            "checkpoint": f"step {self.step}",
            "software": f"cspine_jax {__version__}, jax {jax.__version__}, {jax.devices()[0].device_kind}",
        }


PICTURES = ("augment.window_", "augment.crop", "augment.denoise", "augment.background_hu")
"""What makes a model's picture of HU, in training and in use."""


class Kind(abc.ABC):
    """One value of `config.task`: its network and loss, its data, its evaluation and its predictions.

    Attributes:
        of_the_model: fields (and groups) of the configuration that a trained model cannot be used without keeping.
        task: what is learnt.
        config: the configuration.
    """

    of_the_model: ClassVar[tuple[str, ...]]
    task: Task
    config: Config

    @property
    @abc.abstractmethod
    def phantom(self) -> bool:
        """The data are synthetic."""

    @property
    def drawn_odds(self) -> float:
        """By how much drawing raises the odds of a positive example in training, as far as the answers undo that."""
        return 1.0

    @abc.abstractmethod
    def prepare(self) -> None:
        """Finds or makes the data; called once, before anything below."""

    @abc.abstractmethod
    def loaders(self) -> Loaders:
        """Batches to train on and to validate with (this process's share of them), and how many there are."""

    @abc.abstractmethod
    def about(self, loaders: Loaders) -> str:
        """What is trained on, in a few words: "3 train, 1 validation, 1 test studies; 900 training slices"."""

    @abc.abstractmethod
    def evaluate(self, model: Trained) -> dict[str, Any]:
        """Writes `W/evaluation/`, prints the table. Returns the content of `metrics.json`."""

    @abc.abstractmethod
    def predict(self, model: Trained) -> Path:
        """Predicts all of the data into `W/predictions/` and returns what it wrote."""


def shard() -> dict[str, Any]:
    """Which share of each batch this process reads, as the loaders take it."""
    return {"shard_index": jax.process_index(), "shard_count": jax.process_count()}
