"""Document B's vertebra detection on slices, Types 1 and 2."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from cspine_jax.config import Config
from cspine_jax.data.loader import eval_batches, train_batches, train_records
from cspine_jax.errors import DataError
from cspine_jax.evaluation import SplitPredictions, evaluate_presence, format_table
from cspine_jax.inference.calibration import unweighted
from cspine_jax.kinds.kind import Kind, Trained, shard
from cspine_jax.kinds.records import Records, find_records
from cspine_jax.kinds.slice_csv import write_slice_table
from cspine_jax.training.task import Loaders
from cspine_jax.training.vertebra_task import VertebraTask
from cspine_jax.training.workdir import say
from cspine_jax.training.writer import read_lines

TASK = "vertebra"


class Vertebra(Kind):
    """Stacks of slices in (Type 2: and where they are), the vertebrae that they show out."""

    of_the_model = (
        "task",
        "data.size",
        "data.depth",
        "data.stride",
        "model.",
        "augment.window_",
        "augment.crop",
        "loss.positive_weight",
    )

    def __init__(self, config: Config):
        self.config = config
        self.task = VertebraTask(config)

    @functools.cached_property
    def data(self) -> Records:
        """The records."""
        return find_records(self.config.data)

    def prepare(self) -> None:
        """Finds or makes the records; refuses parts without any mask, which is the truth here."""
        for part in ("train", "validation", "test"):
            if not self.data.masked(part).size:
                raise DataError(
                    f"{self.data.table.path}: no {part} study has a mask to learn vertebrae from; use more studies or "
                    "another data.fold"
                )

    def loaders(self) -> Loaders:
        """Shuffled slices of the masked training studies; all slices of the masked validation studies."""
        table, config, seed = self.data.table, self.config.data, self.config.seed
        train, validation = self.data.masked("train"), self.data.masked("validation")
        return Loaders(
            train=lambda: train_batches(table, config, seed, studies=train, task=TASK, **shard()),
            train_examples=len(train_records(table, config, train, task=TASK)),
            validation=lambda: eval_batches(table, config, validation, task=TASK, **shard()),
        )

    def about(self, loaders: Loaders) -> str:
        """Studies with a mask of each part, and slices."""
        counts = ", ".join(f"{len(self.data.masked(part))} {part}" for part in self.data.parts)
        return f"{counts} studies with a mask; {loaders.train_examples} training slices"

    def evaluate(self, model: Trained) -> dict[str, Any]:
        """Validation chooses the threshold, test gives the figures.

        Writes `W/evaluation/{slices.csv,metrics.json,report.html}`.
        """
        data, config = self.data, self.config
        metrics = evaluate_presence(
            {part: self._split(model, self.data.masked(part)) for part in ("validation", "test")},
            config.eval,
            model.workdir / "evaluation",
            phantom=data.phantom,
            model_type=config.model.type,
            history=read_lines(model.workdir / "metrics.jsonl"),
            facts={
                "experiment": config.name,
                "records": data.table.path,
                "studies": data.counts,
                "model": f"Type {config.model.type}, {config.model.backbone}, {config.data.depth} slices of "
                f"{config.data.size or 'native'} px",
                "seed": config.seed,
                **model.facts,
            },
            title=config.name,
        )
        say("\n" + format_table(metrics) + "\n")
        say(f"report: {model.workdir / 'evaluation' / 'report.html'}")
        return metrics

    def predict(self, model: Trained) -> Path:
        """Predicts every slice of every study in the records, masked or not.

        Returns:
            `W/predictions/slices.csv`, see `slice_csv`: C1..C7 are clinical probabilities (the loss weight of
            positives undone).
        """
        found = self._run(model, np.arange(len(self.data.table.uids)))
        return write_slice_table(model.workdir, self.data, found, found["vertebra_prob"])

    def _run(self, model: Trained, studies: np.ndarray) -> dict[str, np.ndarray]:
        found = model.run(eval_batches(self.data.table, self.config.data, studies, task=TASK, **shard()))
        return {**found, "vertebra_prob": unweighted(found["vertebra_prob"], self.config.loss.positive_weight)}

    def _split(self, model: Trained, studies: np.ndarray) -> SplitPredictions:
        """The evaluation's view of some studies; nothing is asked of fractures."""
        table, found = self.data.table, self._run(model, studies)
        position = np.full(len(table.uids), -1)
        position[studies] = np.arange(len(studies))
        nothing = np.zeros(len(found["study"]))
        return SplitPredictions(
            uids=[str(uid) for uid in table.uids[studies]],
            study=position[found["study"]],
            index=found["index"],
            fracture=nothing[:, None],
            vertebra=found["vertebra_prob"],
            presence=found["presence"],
            presence_known=found["presence_known"],
            slice_fracture=nothing,
            slice_known=nothing,
            labels=np.where(table.has_labels[studies, None], table.labels[studies], np.nan),
        )
