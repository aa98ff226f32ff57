"""What the kinds of task on slices share: records, batches of them, and what a report says of both."""

import functools
from typing import Any

import numpy as np

from cspine_jax.config import Config
from cspine_jax.data.loader import eval_batches, train_batches, train_records
from cspine_jax.errors import DataError
from cspine_jax.kinds.kind import PICTURES, Kind, Trained, shard
from cspine_jax.kinds.records import Records, find_records
from cspine_jax.training.task import Loaders, Task

OF_STACKS = ("task", "data.size", "data.depth", "data.stride", "model.", *PICTURES)
"""`Kind.of_the_model` of networks that read stacks of slices."""


class OnRecords(Kind):
    """A task on the slices of records.

    Args:
        config: the configuration.
        task: what is learnt.
        batches: what its batches hold, see `data.batches`.
    """

    masked = False
    """Only studies with a mask are learnt from and measured on."""

    def __init__(self, config: Config, task: Task, batches: str):
        self.config, self.task, self._batches = config, task, batches

    @functools.cached_property
    def data(self) -> Records:
        """The records."""
        return find_records(self.config.data)

    @property
    def phantom(self) -> bool:
        """See `Kind`."""
        return self.data.phantom

    def prepare(self) -> None:
        """Finds or makes the records.

        Raises:
            DataError: masks are needed, and a part has none.
        """
        for part in self.data.parts:
            if not self.studies(part).size:
                raise DataError(
                    f"{self.data.table.path}: no {part} study has a mask to learn vertebrae from; use more studies or "
                    "another data.fold"
                )

    def studies(self, part: str) -> np.ndarray:
        """The studies of a part that count: all, or those with a mask."""
        return self.data.masked(part) if self.masked else self.data.parts[part]

    def loaders(self) -> Loaders:
        """Shuffled slices of the training studies; all slices of the validation studies."""
        table, config, train = self.data.table, self.config, self.studies("train")
        options = {"studies": train, "task": self._batches}
        return Loaders(
            train=lambda: train_batches(table, config.data, config.seed, **options, **shard()),
            train_examples=len(train_records(table, config.data, **options)),
            validation=lambda: self.in_order(self.studies("validation")),
        )

    def in_order(self, studies: np.ndarray) -> Any:
        """Batches of all slices of some studies, once each."""
        return eval_batches(self.data.table, self.config.data, studies, task=self._batches, **shard())

    def about(self, loaders: Loaders) -> str:
        """Studies of each part, and slices."""
        counts = ", ".join(f"{len(self.studies(part))} {part}" for part in self.data.parts)
        return f"{counts} studies{' with a mask' if self.masked else ''}; {loaders.train_examples} training slices"

    def facts(self, model: Trained, network: str) -> dict[str, str]:
        """What a report says of data and model."""
        data, config = self.data, self.config
        return {
            "experiment": config.name,
            "records": str(data.table.path),
            "studies": data.counts,
            "model": f"{network}, {config.data.depth} slices of {config.data.size or 'native'} px",
            "seed": str(config.seed),
            **model.facts,
        }
