"""Document B's fracture detection on slices, Types 1, 2 and 3."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from cspine_jax.config import Config
from cspine_jax.data.loader import eval_batches, train_batches, train_records
from cspine_jax.data.source import SliceTable
from cspine_jax.evaluation import SplitPredictions, evaluate, format_table
from cspine_jax.inference.calibration import unweighted
from cspine_jax.kinds.kind import Kind, Trained, shard
from cspine_jax.kinds.records import Records, find_records
from cspine_jax.kinds.slice_csv import write_slice_table
from cspine_jax.training.slice_task import SliceTask
from cspine_jax.training.task import Loaders
from cspine_jax.training.workdir import say
from cspine_jax.training.writer import read_lines


class Fracture(Kind):
    """Stacks of slices in; fractures, and with Type 3 vertebrae, out."""

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
        self.task = SliceTask(config)

    @functools.cached_property
    def data(self) -> Records:
        """The records."""
        return find_records(self.config.data)

    def prepare(self) -> None:
        """Finds or makes the records."""
        _ = self.data

    def loaders(self) -> Loaders:
        """Shuffled slices of the training studies; all slices of the validation studies."""
        data, config = self.data, self.config.data
        return Loaders(
            train=lambda: train_batches(data.table, config, self.config.seed, studies=data.parts["train"], **shard()),
            train_examples=len(train_records(data.table, config, data.parts["train"])),
            validation=lambda: eval_batches(data.table, config, data.parts["validation"], **shard()),
        )

    def about(self, loaders: Loaders) -> str:
        """Studies of each part, and slices."""
        cut, table = self.config.data.presence_from_probs, self.data.table
        bare = int((~table.has_mask[self.data.parts["train"]]).sum())
        labels = f" ({bare} studies without a mask take their levels from v >= {cut:g})" if cut else ""
        return f"{self.data.counts} studies; {loaders.train_examples} training slices{labels}"

    def evaluate(self, model: Trained) -> dict[str, Any]:
        """Validation chooses thresholds, test gives the figures.

        Writes `W/evaluation/{predictions.csv,slices.csv,metrics.json,report.html}`.
        """
        data, config = self.data, self.config
        predictions = {
            part: split_predictions(data.table, data.parts[part], self._run(model, data.parts[part]))
            for part in ("validation", "test")
        }
        metrics = evaluate(
            predictions,
            config.eval,
            model.workdir / "evaluation",
            phantom=data.phantom,
            history=read_lines(model.workdir / "metrics.jsonl"),
            read_slice=data.read_slice,
            model_type=config.model.type,
            fracture_target=config.data.fracture_target,
            positive_weight=config.loss.positive_weight,
            window=(config.augment.window_level, config.augment.window_width),
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
        """Predicts every slice of every study in the records.

        Returns:
            `W/predictions/slices.csv`, see `slice_csv`. All are clinical probabilities (the loss weight of positives
            undone); C1..C7 are there for Type 3 only.
        """
        found, weight = self._run(model, np.arange(len(self.data.table.uids))), self.config.loss.positive_weight
        vertebra = unweighted(found["vertebra_prob"], weight) if self.config.model.type == 3 else None
        return write_slice_table(model.workdir, self.data, found, vertebra, unweighted(found["fracture_prob"], weight))

    def _run(self, model: Trained, studies: np.ndarray) -> dict[str, np.ndarray]:
        return model.run(eval_batches(self.data.table, self.config.data, studies, **shard()))


def split_predictions(table: SliceTable, studies: np.ndarray, found: dict[str, np.ndarray]) -> SplitPredictions:
    """The evaluation's view of one part.

    Args:
        table: the records.
        studies: study numbers of the part.
        found: table of `run_pass` over them.
    """
    position = np.full(len(table.uids), -1)
    position[studies] = np.arange(len(studies))
    return SplitPredictions(
        uids=[str(uid) for uid in table.uids[studies]],
        study=position[found["study"]],
        index=found["index"],
        fracture=found["fracture_prob"],
        vertebra=found["vertebra_prob"],
        labels=np.where(table.has_labels[studies, None], table.labels[studies], np.nan),
        **{name: found[name] for name in ("presence", "presence_known", "slice_fracture", "slice_known")},
    )
