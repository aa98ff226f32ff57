"""Document B's fracture detection on slices, Types 1, 2 and 3."""

from pathlib import Path
from typing import Any

import numpy as np

from cspine_jax.config import Config
from cspine_jax.data.source import SliceTable
from cspine_jax.evaluation import SplitPredictions, evaluate, format_table
from cspine_jax.kinds.kind import Trained
from cspine_jax.kinds.on_records import OF_STACKS, OnRecords
from cspine_jax.kinds.slice_csv import write_slice_table
from cspine_jax.metrics.clinical import unweighted
from cspine_jax.training.slice_task import SliceTask
from cspine_jax.training.task import Loaders
from cspine_jax.training.workdir import say
from cspine_jax.training.writer import read_lines


class Fracture(OnRecords):
    """Stacks of slices in; fractures, and with Type 3 vertebrae, out."""

    of_the_model = (*OF_STACKS, "loss.positive_weight")

    def __init__(self, config: Config):
        super().__init__(config, SliceTask(config), "fracture")

    def about(self, loaders: Loaders) -> str:
        """Studies of each part, slices, and where the levels of studies without a mask are from."""
        cut, train = self.config.data.presence_from_probs, self.data.parts["train"]
        bare = int((~self.data.table.has_mask[train]).sum())
        labels = f" ({bare} studies without a mask take their levels from v >= {cut:g})" if cut else ""
        return super().about(loaders) + labels

    def evaluate(self, model: Trained) -> dict[str, Any]:
        """Validation chooses thresholds, test gives the figures.

        Writes `W/evaluation/{predictions.csv,validation.csv,slices.csv,metrics.json,report.html}`.
        """
        data, config = self.data, self.config
        predictions = {
            part: split_predictions(data.table, data.parts[part], model.run(self.in_order(data.parts[part])))
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
            facts=self.facts(model, f"Type {config.model.type}, {config.model.backbone}"),
            seen=data.table.seen,
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
        found = model.run(self.in_order(np.arange(len(self.data.table.uids))))
        weight = self.config.loss.positive_weight
        vertebra = unweighted(found["vertebra_prob"], weight) if self.config.model.type == 3 else None
        return write_slice_table(model.workdir, self.data, found, vertebra, unweighted(found["fracture_prob"], weight))


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
