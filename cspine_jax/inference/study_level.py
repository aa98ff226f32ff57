"""What all trained models share that answer on a study as a whole: loaded once, asked as their run was evaluated."""

from pathlib import Path

import jax
import numpy as np

from cspine_jax.data.batches import Batch
from cspine_jax.data.views import View
from cspine_jax.inference.loaded import load
from cspine_jax.training.crops_task import study_level_task
from cspine_jax.training.evaluate import run_pass
from cspine_jax.training.sharding import place
from cspine_jax.training.step import Once, evaluator
from cspine_jax.training.weights_file import digest_of

BY_TRUE_MASKS = "thresholds were chosen on what true masks show; this study's vertebrae are as they were found"
"""Said of a model that reads masks, and was evaluated with true ones."""

STILL_DRAWN = (
    "fractures were drawn more often in training than they are; its evaluation, of an older version, leaves that in: "
    "probabilities are too high; run `launch.py --mode=evaluate` again"
)
"""Said of a model whose drawing of examples is not undone, see `metrics.clinical.undrawn`."""


class StudyLevelRun:
    """A model of crops or of whole studies, with the best checkpoint of its run, and the views of its evaluation.

    Args:
        source: as `loaded.load` takes it.
        task: "crops" or "study".

    Attributes:
        name: the source.
        config: of the run.
        card: what its evaluation says.
        step: of the checkpoint.
        digest: of its weights.

    Raises:
        DataError: as `loaded.load`.
    """

    def __init__(self, source: str | Path, task: str):
        self._placement = place(jax.devices()[:1])  # a study is too small to be divided
        loaded = load(source, task, self._placement)
        self.name, self.config, self.card, self.step = str(source), loaded.config, loaded.card, loaded.step
        self.task = study_level_task(self.config)
        self._params, self._stats = jax.device_put((loaded.params, loaded.stats), self._placement.replicated)
        self.digest = digest_of(self._params, self._stats)
        self._steps: dict[tuple[int, ...], tuple[Once, Once]] = {}

    @property
    def reservations(self) -> list[str]:
        """What must be known of its answers, because of how it was trained and evaluated."""
        drawn = self.config.study.fractured_fraction > 0 and self.card.drawn_odds is None
        return [STILL_DRAWN] if drawn and self.card.evaluated else []

    def ask(self, view: View, batch: int) -> tuple[np.ndarray, np.ndarray | None, list[dict[str, np.ndarray]]]:
        """Asks it about the only study of a view's records.

        Args:
            view: of the records.
            batch: examples at once.

        Returns:
            Clinical probabilities float64 [8] (NaN where a level was not in the picture), mean of all looks at it;
            their standard deviation of the levels [7], None without other views; tables of examples, one a look.
        """
        batches = _batches(view, batch)
        looks = self.config.eval.tta if self.card.tta is None else self.card.tta
        plain, varied = self._steps_for(batches[0]["image"].shape)
        found = [self._pass(plain, batches)]
        for number in range(looks):
            column = np.full(batch, number, np.int32)
            found.append(self._pass(varied, [{**each, "view": column} for each in batches]))
        targets = np.stack([self.task.study_targets(each)[1][0] for each in found])
        return targets.mean(0), targets.std(0)[1:] if looks else None, found

    def _steps_for(self, shape: tuple[int, ...]) -> tuple[Once, Once]:
        """What answers on pictures of a shape as they are, and on other views of them; compiled at the first."""
        if shape not in self._steps:
            look = self.task.look if self.config.study.where_weight else None
            self._steps[shape] = (
                evaluator(self.task, self._placement, look),
                evaluator(self.task, self._placement),
            )
        return self._steps[shape]

    def _pass(self, step: Once, batches: list[Batch]) -> dict[str, np.ndarray]:
        done = run_pass(step, self._params, self._stats, batches, self._placement)
        assert done is not None  # only a stop gives a pass up
        return self.task.clinical(done[1], self.card.drawn_odds or 1.0)


def _batches(view: View, batch: int) -> list[Batch]:
    """All examples, the last batch padded."""
    items = view.items(np.arange(1), False)
    rows = [np.arange(start, start + batch) for start in range(0, len(items), batch)]
    return [view.read(items[np.minimum(at, len(items) - 1)], at < len(items)) for at in rows]
