"""A trained model and what its evaluation says of it: a run's own folder, or a weights file."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from cspine_jax.anatomy import PATIENT, TARGETS
from cspine_jax.config import Config, from_dict
from cspine_jax.config.study import FINDS_FRACTURES, STUDY_LEVEL
from cspine_jax.errors import DataError
from cspine_jax.metrics.scorecard import POOLED
from cspine_jax.training.checkpoint import load_best
from cspine_jax.training.learnt import learnt_from, read_learnt
from cspine_jax.training.sharding import Placement, place
from cspine_jax.training.weights_file import (
    config_of_fracture,
    fracture_task,
    is_weights_file,
    read_card_alone,
    read_fracture,
)
from cspine_jax.training.workdir import read_json

READS = {"fracture": "slices", "crops": "crops of vertebrae", "study": "whole studies"}
"""What models of a task are shown."""

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


def load(source: str | Path, task: str = "", placement: Placement | None = None) -> Loaded:
    """A model that finds fractures, of any recipe.

    Args:
        source: what `launch.py --workdir` was given (`config.json`, `checkpoints/` and, once evaluated,
            `evaluation/metrics.json`): its best checkpoint; or a file of `cspine weights export --fracture`, or the
            name of one that comes with the package ("package:gold").
        task: which it has to be of; empty for any.
        placement: the devices a checkpoint is read to; None for all.

    Raises:
        DataError: it is neither, or of another task, or cannot be read.
    """
    config = config_of(source)
    if config.task not in FINDS_FRACTURES:
        raise DataError(f"{source}: task={config.task!r} finds no fractures; give the --workdir of a fracture run")
    if task and config.task != task:
        raise DataError(
            f"{source}: task={config.task!r} reads {READS[config.task]}, not {READS[task]}; give another run"
        )
    return _from_file(source) if is_weights_file(source) else _from_folder(Path(source), config, placement)


def _from_folder(workdir: Path, config: Config, placement: Placement | None) -> Loaded:
    workdir = workdir.expanduser()
    card = read_card(workdir, config)
    params, stats, step = load_best(fracture_task(config), workdir, placement or place())
    return Loaded(config, card, step, params, stats)


def _from_file(source: str | Path) -> Loaded:
    stored = read_fracture(source)
    facts, levels = stored.facts, LEVELS[-2:] if stored.config.task in STUDY_LEVEL else LEVELS
    try:
        prevalence = np.array(facts["prevalence"], np.float64)
        if prevalence.shape != (len(TARGETS),):
            raise ValueError("prevalence")
        about = Card(
            {level: float(facts["thresholds"][level]) for level in levels},
            prevalence,
            True,
            stored.card.phantom,
            _number(facts["field_mm"]),
            _number(facts["slice_mm"]),
            None if facts.get("tta") is None else int(facts["tta"]),
            _number(facts.get("drawn_odds")),
        )
        step = int(facts["step"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{source}: {error!r} missing or odd in its card; export it again") from error
    return Loaded(stored.config, about, step, stored.params, stored.stats)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def config_of(source: str | Path) -> Config:
    """The configuration of a model; argument and errors as `load`."""
    if is_weights_file(source):
        return config_of_fracture(read_card_alone(source))
    return read_config(Path(source).expanduser())


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
        phantom = learnt_from(workdir, config).phantom
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
