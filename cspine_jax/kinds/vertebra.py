"""Document B's vertebra detection on slices, Types 1 and 2."""

from pathlib import Path
from typing import Any

import numpy as np

from cspine_jax.config import Config
from cspine_jax.evaluation import SplitPredictions, evaluate_presence, format_table
from cspine_jax.kinds.kind import Trained
from cspine_jax.kinds.on_records import OF_STACKS, OnRecords
from cspine_jax.kinds.slice_csv import write_slice_table
from cspine_jax.metrics.clinical import unweighted
from cspine_jax.training.vertebra_task import VertebraTask
from cspine_jax.training.workdir import say
from cspine_jax.training.writer import read_lines


class Vertebra(OnRecords):
    """Stacks of slices in (Type 2: and where they are), the vertebrae that they show out."""

    of_the_model = (*OF_STACKS, "loss.positive_weight")

    masked = True

    def __init__(self, config: Config):
        super().__init__(config, VertebraTask(config), "vertebra")

    def evaluate(self, model: Trained) -> dict[str, Any]:
        """Validation chooses the threshold, test gives the figures.

        Writes `W/evaluation/{slices.csv,metrics.json,report.html}`.
        """
        data, config = self.data, self.config
        metrics = evaluate_presence(
            {part: self._split(model, self.studies(part)) for part in ("validation", "test")},
            config.eval,
            model.workdir / "evaluation",
            phantom=data.phantom,
            model_type=config.model.type,
            history=read_lines(model.workdir / "metrics.jsonl"),
            facts=self.facts(model, f"Type {config.model.type}, {config.model.backbone}"),
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
        found = model.run(self.in_order(studies))
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
