"""A trained slice model, loaded once and asked about many studies: a run's own folder, or a weights file."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cspine_jax import xla
from cspine_jax.anatomy import NUM_VERTEBRAE, PATIENT, TARGETS
from cspine_jax.config import Config, from_dict
from cspine_jax.config.study import STUDY_LEVEL
from cspine_jax.data.resize import resize_hu
from cspine_jax.errors import ConfigError, DataError
from cspine_jax.inference import weights
from cspine_jax.metrics.clinical import unweighted
from cspine_jax.metrics.scorecard import POOLED
from cspine_jax.training.checkpoint import load_best
from cspine_jax.training.learnt import learnt_from_phantoms, read_learnt
from cspine_jax.training.sharding import place
from cspine_jax.training.slice_task import SliceTask
from cspine_jax.training.workdir import read_json

LEVELS = ("presence", "slice", "vertebra", "patient")


@dataclasses.dataclass(frozen=True)
class Card:
    """What the run's own evaluation says about reading its answers.

    Attributes:
        thresholds: of "presence", "slice", "vertebra" and "patient", by best F1 on the run's validation studies; of a
            study-level model the last two.
        prevalence: `[8]` in the validation studies; stands in the submission where the model has no answer.
        evaluated: False where the run has no `evaluation/metrics.json`: all of the above are then 0.5.
        phantom: the model has only seen synthetic studies.
        field_mm: side of the square it saw in training (median), None where that is not known.
        slice_mm: distance of its slices in training (median), None where that is not known.
        tta: views of the evaluation, None where it does not say.
        drawn_odds: see `metrics.clinical.drawn_odds`, of a study-level model; None where that is not known. An older
            evaluation does not say, and its thresholds are of outputs without it.
    """

    thresholds: dict[str, float]
    prevalence: np.ndarray
    evaluated: bool
    phantom: bool
    field_mm: float | None = None
    slice_mm: float | None = None
    tta: int | None = None
    drawn_odds: float | None = None


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What a folder or a file holds of a model: configuration, card, step, and the two trees of arrays."""

    config: Config
    card: Card
    step: int
    params: Any
    stats: Any


class SliceRun:
    """A slice model of any Type.

    Args:
        source: what `launch.py --workdir` was given (`config.json`, `checkpoints/` and, once evaluated,
            `evaluation/metrics.json`): its best checkpoint; or a file of `cspine weights export --fracture`; or None
            for the one that comes with the package.
        batch: slices predicted at once; 0 for the run's `data.eval_batch_size`.

    Raises:
        DataError: it is not the folder of a run, or its checkpoint cannot be read.
    """

    digest = ""
    """Tells its weights from others."""

    def __init__(self, source: str | Path | None = None, batch: int = 0):
        if source is None or str(source).endswith(".npz"):
            loaded = from_file(source)
        else:
            loaded = from_folder(Path(source))
        self.name = str(source) if source else "the package's own weights"
        self.config, self.card, self.step = loaded.config, loaded.card, loaded.step
        self._batch = batch or self.config.data.eval_batch_size
        self._placement = place()
        self._params, self._stats = jax.device_put((loaded.params, loaded.stats), self._placement.replicated)
        self.digest = weights.digest_of(loaded.params, loaded.stats)
        task = SliceTask(self.config)

        def predict(params: Any, stats: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
            return task.predict(params, stats, _without_truth(batch))[3]  # it brings `vertebra_probs`

        self._predict = xla.jit(predict, out_shardings=self._placement.replicated)

    @property
    def needs_vertebrae(self) -> str:
        """Why it cannot do without the vertebrae from elsewhere; empty where it can, as Type 3."""
        number = self.config.model.type
        return "" if number == 3 else f"is of Type {number}, which does not find vertebrae itself"

    @property
    def facts(self) -> dict[str, Any]:
        """What findings say of the model."""
        return {"type": self.config.model.type, "backbone": self.config.model.backbone}

    def slices(
        self, hu: np.ndarray, vertebra_probs: np.ndarray | None = None, stride: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities of every slice of a study.

        Args:
            hu: int16 `[D, H, W]`, superior slice first, any in-plane size: resized as the run's records were.
            vertebra_probs: float `[D, 7]`, v_ij from elsewhere; read by Type 2, passed through by Types 1 and 2.
            stride: slices of this study between two slices of the run's records.

        Returns:
            Clinical probabilities (the loss weight of positives undone): fracture `[D, 7]` (Type 1: its one value in
            all seven), vertebra `[D, 7]`.

        Raises:
            ConfigError: a Type 1 or 2 model without `vertebra_probs`.
        """
        if self.needs_vertebrae and vertebra_probs is None:
            raise ConfigError(
                f"{self.name}: model.type={self.config.model.type} does not find vertebrae itself; let the study be "
                "segmented (leave out --no_segment), or give a Type 3 run"
            )
        data = self.config.data
        if data.size:
            hu = resize_hu(hu, data.size)
        steps = (np.arange(data.depth) - data.depth // 2) * data.stride * stride
        given = np.zeros((len(hu), NUM_VERTEBRAE)) if vertebra_probs is None else vertebra_probs
        fracture, vertebra = [], []
        for start in range(0, len(hu), self._batch):
            rows = np.minimum(np.arange(start, start + self._batch), len(hu) - 1)  # the last batch is padded
            near = np.clip(rows[:, None] + steps[None, :], 0, len(hu) - 1)
            batch = {
                "image": hu[near],
                "valid": np.arange(start, start + self._batch) < len(hu),
                "vertebra_probs": given[rows].astype(np.float32),
            }
            out = jax.device_get(self._predict(self._params, self._stats, self._placement.put(batch)))
            valid = int(batch["valid"].sum())
            fracture.append(out["fracture_prob"][:valid])
            vertebra.append(out["vertebra_prob"][:valid])
        weight = self.config.loss.positive_weight
        f = unweighted(np.concatenate(fracture), weight)
        own = given if self.needs_vertebrae else unweighted(np.concatenate(vertebra), weight)
        return np.broadcast_to(f, (len(f), NUM_VERTEBRAE)), own


def _without_truth(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The columns `SliceTask.predict` reads for its loss, which is thrown away here: all unknown."""
    one = jnp.zeros(len(batch["valid"]))
    seven = jnp.zeros((len(batch["valid"]), NUM_VERTEBRAE))
    wide = dict.fromkeys(("presence", "fracture", "fracture_known"), seven)
    return {**batch, **wide, **dict.fromkeys(("presence_known", "slice_fracture", "slice_known"), one)}


def from_folder(workdir: Path) -> Loaded:
    """The best checkpoint of a run; see `SliceRun`."""
    config = read_config(workdir)
    if config.task != "fracture":
        reasons = {"study": "reads whole studies, not slices", "crops": "reads vertebrae, not slices"}
        reason = reasons.get(config.task, "finds no fractures")
        raise DataError(f"{workdir}: task={config.task!r} {reason}; give the --workdir of a fracture run")
    card = read_card(workdir, config)
    params, stats, step = load_best(SliceTask(config), workdir, place())
    return Loaded(config, card, step, params, stats)


def from_file(path: str | Path | None) -> Loaded:
    """A weights file, or that of the package; see `SliceRun`."""
    arrays, card = weights.read(path, weights.SHIPPED_FRACTURE)
    facts = card.networks.get("fracture")
    if not isinstance(facts, dict):
        raise DataError(f"{card.name}: weights of another kind; give a file of `cspine weights export --fracture`")
    try:
        config = from_dict(facts["config"])
        about = Card(
            {level: float(facts["thresholds"][level]) for level in LEVELS},
            np.array(facts["prevalence"], np.float64),
            True,
            card.phantom,
            facts["field_mm"],
            facts["slice_mm"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{card.name}: {error!r} missing in its card; export it again") from error
    task = SliceTask(config)
    params, stats = weights.trees("fracture", jax.eval_shape(lambda: task.init(jax.random.key(0))), arrays, card.name)
    return Loaded(config, about, int(facts["step"]), params, stats)


def read_config(workdir: Path) -> Config:
    """The configuration of a run that has checkpoints.

    Raises:
        DataError: it is not the folder of one.
    """
    fix = "give the --workdir of a finished `launch.py` run"
    values = read_json(workdir / "config.json", fix)
    if not (workdir / "checkpoints").is_dir():
        raise DataError(f"{workdir / 'checkpoints'}: no such folder; {fix}")
    return from_dict(values)


def read_card(workdir: Path, config: Config) -> Card:
    """What the run's evaluation says; see `Card`.

    Raises:
        DataError: it is damaged.
    """
    path = workdir / "evaluation" / "metrics.json"
    learnt = read_learnt(workdir)
    if not path.exists():
        phantom = learnt_from_phantoms(workdir, config)
        odds = None if learnt is None else learnt.drawn_odds
        return Card(dict.fromkeys(LEVELS, 0.5), np.full(len(TARGETS), 0.5), False, phantom, drawn_odds=odds)
    fix = "run `launch.py --mode=evaluate` again"
    metrics = read_json(path, fix)
    try:
        said = metrics["thresholds"]
        if config.task in STUDY_LEVEL:  # of the eight targets, and of the seven vertebrae together
            thresholds = {"vertebra": float(said[POOLED]), "patient": float(said[PATIENT])}
        else:
            thresholds = {level: float(said[level]["value"]) for level in LEVELS}
        prevalence = np.array([metrics["prevalence"][name] for name in TARGETS], np.float64)
        seen = metrics.get("seen", {})  # older evaluations do not say
        seen = {name: seen.get(name) for name in ("field_mm", "slice_mm", "tta", "drawn_odds")}
        phantom = bool(metrics["phantom"]) if learnt is None else learnt.phantom
        return Card(thresholds, prevalence, True, phantom, **seen)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: {error!r} where thresholds, prevalence and phantom belong; {fix}") from error
