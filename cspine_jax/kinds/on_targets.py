"""What the kinds of study-level task share: the list of studies, and evaluation and prediction of the eight targets."""

import abc
import dataclasses
import functools
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from cspine_jax.anatomy import TARGETS
from cspine_jax.data.loader import EvalBatches
from cspine_jax.data.views import View, ordered_batches, prevalence, shuffled_batches
from cspine_jax.errors import DataError
from cspine_jax.evaluation.targets import TargetTable, evaluate_targets
from cspine_jax.kinds.kind import PICTURES, Kind, Trained, shard
from cspine_jax.metrics.clinical import drawn_odds
from cspine_jax.metrics.scorecard import format_scorecard, scorecard
from cspine_jax.metrics.target_table import SPREAD_FILE, write_spread, write_targets
from cspine_jax.training.learnt import read_learnt
from cspine_jax.training.study_task import StudyLevelTask
from cspine_jax.training.task import Loaders
from cspine_jax.training.workdir import say
from cspine_jax.training.writer import read_lines

NETWORK = (
    "task",
    "model.backbone",
    *PICTURES,
    *(
        f"study.{name}"
        for name in (
            *("model", "slices", "every", "max_slices", "with_mask", "clip_depth", "clip_size"),
            *("hidden", "layers", "features", "heads", "depth", "tubelet", "width", "stages", "blocks", "factorised"),
            "stem",
        )
    ),
    "study.fractured_fraction",
    "loss.positive_weight",
)
"""Fields that a trained study-level model cannot be used without keeping."""


@dataclasses.dataclass(frozen=True)
class Roster:
    """The studies that a model is asked about.

    Attributes:
        path: where their records are.
        uids: str [S].
        labels: uint8 [S, 8]; meaningless where `has_labels` is False.
        has_labels: bool [S].
        folds: int32 [S], -1 without labels.
        row: int64 [S], the study's number in the table of records; -1 where it has no record at all.
        left_out: reason -> StudyInstanceUIDs of studies that are not among them.
    """

    path: Path
    uids: np.ndarray
    labels: np.ndarray
    has_labels: np.ndarray
    folds: np.ndarray
    row: np.ndarray
    left_out: dict[str, list[str]]


class OnTargets(Kind):
    """A task whose answers are the eight targets of each study."""

    task: StudyLevelTask
    of_the_model: ClassVar[tuple[str, ...]] = NETWORK

    @property
    @abc.abstractmethod
    def roster(self) -> Roster:
        """The studies."""

    @property
    @abc.abstractmethod
    def parts(self) -> dict[str, np.ndarray]:
        """Positions in the roster of "train", "validation" and "test"."""

    @property
    @abc.abstractmethod
    def view(self) -> View:
        """The examples."""

    @property
    def seen(self) -> dict[str, float]:
        """Field of view and slice distance of the records, where they say; see `SliceTable.seen`."""
        return {}

    @abc.abstractmethod
    def network(self) -> str:
        """The model and what it sees, in a few words."""

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """Study numbers in the table of those of some studies that have a record."""
        rows = self.roster.row[positions]
        return rows[rows >= 0]

    def prepare(self) -> None:
        """Finds or makes the data.

        Raises:
            DataError: a part has nothing to show.
        """
        for part, positions in self.parts.items():
            if not self.view.items(self.rows(positions), part == "train").size:
                raise DataError(
                    f"{self.roster.path}: none of {len(positions)} {part} studies has anything to show; use more "
                    "studies or another data.fold"
                )

    def loaders(self) -> Loaders:
        """Shuffled examples of the training studies; all those of the validation studies."""
        config, train = self.config, self.rows(self.parts["train"])
        fraction = config.study.fractured_fraction
        return Loaders(
            train=lambda: shuffled_batches(self.view, train, config.data, config.seed, fraction=fraction, **shard()),
            train_examples=len(self.view.items(train, True)),
            validation=lambda: self.in_order(self.parts["validation"]),
        )

    @functools.cached_property
    def drawn_odds(self) -> float:
        """See `Kind`: `study.fractured_fraction` among the training examples."""
        fraction = self.config.study.fractured_fraction
        positive = self.view.positive(self.view.items(self.rows(self.parts["train"]), True))
        return drawn_odds(fraction, prevalence(positive, self.view.shows, fraction)) if fraction else 1.0

    def _odds(self, model: Trained) -> float:
        """What its outputs are to be rid of: as it was trained, whatever it is asked about now."""
        learnt = read_learnt(model.workdir)
        return self.drawn_odds if learnt is None else learnt.drawn_odds

    def in_order(self, positions: np.ndarray) -> EvalBatches:
        """Batches of all examples of some studies, once each."""
        return ordered_batches(self.view, self.rows(positions), self.config.data, **shard())

    def about(self, loaders: Loaders) -> str:
        """Studies of each part, and examples."""
        return f"{self._counts()} studies; {loaders.train_examples} training examples"

    def _counts(self) -> str:
        return ", ".join(f"{len(positions)} {part}" for part, positions in self.parts.items())

    def targets(self, model: Trained, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The answers for some studies.

        Returns:
            Clinical probabilities float64 [n, 8], NaN where not visible: with `eval.tta` the mean over the plain view
            and the others. Their standard deviation over these views for the vertebrae, [n, 7]; None without.
        """
        odds = self._odds(model)
        views = [self._table(model.run(self.in_order(positions)), positions, odds)]
        if count := self.config.eval.tta:
            found = model.run_views(self.in_order(positions), count)
            for view in range(count):
                of_view = {name: x[found["view"] == view] for name, x in found.items()}
                views.append(self._table(of_view, positions, odds))
        return np.mean(views, axis=0), np.std(views, axis=0)[:, 1:] if len(views) > 1 else None

    def _table(self, found: dict[str, np.ndarray], positions: np.ndarray, odds: float) -> np.ndarray:
        """Outputs of a pass as clinical probabilities, [n, 8]."""
        table = np.full((len(positions), len(TARGETS)), np.nan)
        if not found:
            return table
        studies, p = self.task.study_targets(self.task.clinical(found, odds))
        place = np.full(int(self.roster.row.max()) + 1, -1)
        rows = self.roster.row[positions]
        place[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
        table[place[studies]] = p
        return table

    def evaluate(self, model: Trained) -> dict[str, Any]:
        """Validation chooses thresholds, test gives the figures.

        Writes `W/evaluation/{predictions.csv,validation.csv,score_optimal.csv,metrics.json,report.html}`, and tta.csv
        with `eval.tta`.
        """
        config, roster = self.config, self.roster
        tables: dict[str, TargetTable] = {}
        for part in ("validation", "test"):
            p, spread = self.targets(model, self.parts[part])
            tables[part] = TargetTable(
                uids=[str(uid) for uid in roster.uids[self.parts[part]]],
                labels=roster.labels[self.parts[part]].astype(np.float64),
                probabilities=p,
                spread=spread,
            )
        out = model.workdir / "evaluation"
        metrics = evaluate_targets(
            tables,
            config.eval,
            out,
            phantom=self.phantom,
            history=read_lines(model.workdir / "metrics.jsonl"),
            facts={
                "experiment": config.name,
                "records": str(roster.path),
                "studies": self._counts(),
                "model": self.network(),
                "seed": str(config.seed),
                **model.facts,
            },
            left_out=roster.left_out,
            seen={**self.seen, "tta": config.eval.tta, "drawn_odds": self._odds(model)},
            title=config.name,
        )
        self._print(tables["test"], metrics)
        say(f"report: {out / 'report.html'}")
        return metrics

    def _print(self, test: TargetTable, metrics: dict[str, Any]) -> None:
        prevalence = np.array([metrics["prevalence"][name] for name in TARGETS])
        card = scorecard(
            test.labels, test.probabilities, thresholds=metrics["thresholds"], fill=prevalence, resamples=0
        )
        say(f"\n{format_scorecard(card)}\n")
        say(f"test: {len(test.uids)} studies ({metrics['data']}); intervals are in metrics.json and report.html")
        hidden = test.not_visible
        if hidden:
            missing = sum(map(len, hidden.values()))
            say(f"{missing} vertebrae in {len(hidden)} test studies not visible: empty in predictions.csv")
        for reason, uids in self.roster.left_out.items():
            say(f"{len(uids)} studies left out: {reason}")
        if self.phantom:
            say("Phantom (synthetic) studies: these figures say nothing of clinical accuracy.")

    def predict(self, model: Trained) -> Path:
        """Predicts every study.

        Returns:
            `W/predictions/predictions.csv`: StudyInstanceUID, part ("train", "validation", "test" or "none"),
            patient_overall, C1..C7; clinical probabilities, empty where a level is not visible. With `eval.tta`
            their spread lies beside it in tta.csv.
        """
        roster = self.roster
        names = np.full(len(roster.uids), "none", dtype=object)
        for part, positions in self.parts.items():
            names[positions] = part
        table, spread = self.targets(model, np.arange(len(roster.uids)))
        out = model.workdir / "predictions" / "predictions.csv"
        if jax.process_index() == 0:
            out.parent.mkdir(parents=True, exist_ok=True)
            uids = [str(uid) for uid in roster.uids]
            write_targets(out, uids, table, names)
            if spread is not None:
                write_spread(out.with_name(SPREAD_FILE), uids, spread)
        say(f"predictions: {out}")
        return out
