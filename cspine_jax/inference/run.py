"""A finished training run, loaded once and asked about many studies."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cspine_jax.anatomy import NUM_VERTEBRAE, TARGETS
from cspine_jax.config import Config, from_dict
from cspine_jax.data.resize import resize_hu
from cspine_jax.errors import ConfigError, DataError
from cspine_jax.inference.calibration import unweighted
from cspine_jax.training.checkpoint import Checkpoints
from cspine_jax.training.sharding import place
from cspine_jax.training.slice_task import SliceTask
from cspine_jax.training.state import abstract_state

LEVELS = ("presence", "slice", "vertebra", "patient")


@dataclasses.dataclass(frozen=True)
class Card:
    """What the run's own evaluation says about reading its answers.

    Attributes:
        thresholds: of "presence", "slice", "vertebra" and "patient", by best F1 on the run's validation studies.
        prevalence: `[8]` in the validation studies; stands in the submission where the model has no answer.
        evaluated: False where the run has no `evaluation/metrics.json`: all of the above are then 0.5.
        phantom: the model has only seen synthetic studies.
    """

    thresholds: dict[str, float]
    prevalence: np.ndarray
    evaluated: bool
    phantom: bool


class SliceRun:
    """A Type 3 slice model with the lowest validation loss of its run.

    Args:
        workdir: what `launch.py --workdir` was given: `config.json`, `checkpoints/` and, once evaluated,
            `evaluation/metrics.json`.
        batch: slices predicted at once; 0 for the run's `data.eval_batch_size`.

    Raises:
        DataError: it is not the folder of a run, or its checkpoint cannot be read.
        ConfigError: the run's model is not of Type 3, so it cannot do without given vertebra probabilities.
    """

    def __init__(self, workdir: str | Path, batch: int = 0):
        self.workdir = Path(workdir)
        self.config = _read_config(self.workdir)
        if self.config.model.type != 3:
            raise ConfigError(
                f"{self.workdir}: model.type={self.config.model.type} reads vertebra probabilities that a new study "
                "does not bring; give the workdir of a Type 3 run"
            )
        self.card = _read_card(self.workdir, self.config)
        self._batch = batch or self.config.data.eval_batch_size
        self._placement = place()
        task = SliceTask(self.config)
        params, stats = abstract_state(lambda: task.init(jax.random.key(0)), self._placement)
        with Checkpoints(self.workdir / "checkpoints") as checkpoints:
            self._params, self._stats, self.step = checkpoints.load_model(params, stats)

        def predict(params: Any, stats: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
            return task.predict(params, stats, _without_truth(batch))[3]

        self._predict = jax.jit(predict, out_shardings=self._placement.replicated)

    def slices(self, hu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities of every slice of a study.

        Args:
            hu: int16 `[D, H, W]`, superior slice first, any in-plane size: resized as the run's records were.

        Returns:
            Clinical probabilities (the loss weight of positives undone): fracture `[D, 7]`, vertebra `[D, 7]`.
        """
        data = self.config.data
        if data.size:
            hu = resize_hu(hu, data.size)
        steps = (np.arange(data.depth) - data.depth // 2) * data.stride
        fracture, vertebra = [], []
        for start in range(0, len(hu), self._batch):
            rows = np.minimum(np.arange(start, start + self._batch), len(hu) - 1)  # the last batch is padded
            near = np.clip(rows[:, None] + steps[None, :], 0, len(hu) - 1)
            batch = {"image": hu[near], "valid": np.arange(start, start + self._batch) < len(hu)}
            out = jax.device_get(self._predict(self._params, self._stats, self._placement.put(batch)))
            valid = int(batch["valid"].sum())
            fracture.append(out["fracture_prob"][:valid])
            vertebra.append(out["vertebra_prob"][:valid])
        weight = self.config.loss.positive_weight
        return unweighted(np.concatenate(fracture), weight), unweighted(np.concatenate(vertebra), weight)


def _without_truth(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The columns `SliceTask.predict` reads for its loss, which is thrown away here: all unknown."""
    one = jnp.zeros(len(batch["valid"]))
    seven = jnp.zeros((len(batch["valid"]), NUM_VERTEBRAE))
    wide = dict.fromkeys(("presence", "fracture", "fracture_known", "vertebra_probs"), seven)
    return {**batch, **wide, **dict.fromkeys(("presence_known", "slice_fracture", "slice_known"), one)}


def _read_json(path: Path, fix: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; {fix}") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); {fix}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a JSON object; {fix}")
    return content


def _read_config(workdir: Path) -> Config:
    fix = "give the --workdir of a finished `launch.py` run"
    values = _read_json(workdir / "config.json", fix)
    if not (workdir / "checkpoints").is_dir():
        raise DataError(f"{workdir / 'checkpoints'}: no such folder; {fix}")
    return from_dict(values)


def _read_card(workdir: Path, config: Config) -> Card:
    path = workdir / "evaluation" / "metrics.json"
    folder = config.data.manual_dir
    if not path.exists():
        phantom = not folder or (Path(folder) / "phantom.json").exists()
        return Card(dict.fromkeys(LEVELS, 0.5), np.full(len(TARGETS), 0.5), False, phantom)
    fix = "run `launch.py --mode=evaluate` again"
    metrics = _read_json(path, fix)
    try:
        return Card(
            {level: float(metrics["thresholds"][level]["value"]) for level in LEVELS},
            np.array([metrics["prevalence"][name] for name in TARGETS], np.float64),
            True,
            bool(metrics["phantom"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: {error!r} where thresholds, prevalence and phantom belong; {fix}") from error
