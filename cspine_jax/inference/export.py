"""Training runs -> weights files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cspine_jax import __version__
from cspine_jax.config import Config, from_dict, to_dict
from cspine_jax.config.study import STUDY_LEVEL
from cspine_jax.data.crops.layout import TRUE_MASKS
from cspine_jax.errors import DataError
from cspine_jax.inference.loaded import load
from cspine_jax.inference.weights import TASKS
from cspine_jax.training.checkpoint import load_best
from cspine_jax.training.learnt import learnt_from
from cspine_jax.training.sharding import place
from cspine_jax.training.weights_file import FRACTURE, Card, halves, is_weights_file, write
from cspine_jax.training.workdir import read_json


def export(spine: str | Path, refine: str | Path, out: str | Path, *, name: str, facts: Mapping[str, Any]) -> Card:
    """Joins the best checkpoints of two runs in one file.

    Args:
        spine: work folder of a run of task "spine".
        refine: work folder of a run of task "refine".
        out: the `.npz` to write; its card goes beside it as `.json`.
        name: of the weights.
        facts: more for the card, e.g. figures on held-out studies.

    Returns:
        The card.

    Raises:
        DataError: a folder holds no such run.
    """
    arrays: dict[str, np.ndarray] = {}
    networks: dict[str, Any] = {}
    phantom = True
    for kind, workdir in (("spine", Path(spine)), ("refine", Path(refine))):
        config = _run_config(kind, workdir)
        params, stats, step = load_best(TASKS[kind](config), workdir, place())
        arrays |= halves(kind, params, stats)
        phantom &= learnt_from(workdir, config).phantom
        metrics = workdir / "evaluation" / "metrics.json"
        figures = json.loads(metrics.read_text(encoding="utf-8")) if metrics.is_file() else {}
        networks[kind] = {
            "config": _public(config),
            "step": step,
            "parameters": int(sum(x.size for x in jax.tree.leaves(params))),
            "figures": {key: figures[key] for key in ("data", "studies", "dice") if key in figures},
        }
    note = (
        "Vertebrae by research weights trained on synthetic studies (phantoms) only; not for clinical use."
        if phantom
        else "Vertebrae by research weights; not for clinical use."
    )
    versions = {"cspine_jax": __version__, "jax": jax.__version__}
    card = Card(name, note, phantom, {**networks, **facts}, versions)
    write(Path(out), arrays, card)
    return card


def export_fracture(run: str | Path, out: str | Path, *, name: str, facts: Mapping[str, Any]) -> Card:
    """Writes the best checkpoint of a run that finds fractures as a file of half precision.

    Args:
        run: work folder of an evaluated run on slices, crops of vertebrae or whole studies.
        out: the `.npz` to write; its card goes beside it as `.json`.
        name: of the weights.
        facts: more for the card.

    Returns:
        The card.

    Raises:
        DataError: the folder holds no evaluated run.
    """
    if is_weights_file(run):
        raise DataError(f"{run}: a weights file already; give the --workdir of a run")
    loaded = load(run)
    config, card = loaded.config, loaded.card
    if not card.evaluated:
        raise DataError(f"{run}: no evaluation/metrics.json, so no thresholds; run `launch.py --mode=evaluate` first")
    unsaid = "field_mm" if config.task != "crops" and card.field_mm is None else ""
    if config.study.fractured_fraction and config.task in STUDY_LEVEL and card.drawn_odds is None:
        unsaid = "drawn_odds"
    if unsaid:
        raise DataError(
            f"{run}: no {unsaid} in evaluation/metrics.json, which is of an older version; run `launch.py "
            "--mode=evaluate` again"
        )
    network = {
        "config": _public(config),
        "step": loaded.step,
        "parameters": int(sum(x.size for x in jax.tree.leaves(loaded.params))),
        "thresholds": card.thresholds,
        "prevalence": card.prevalence.tolist(),
        "field_mm": card.field_mm,
        "slice_mm": card.slice_mm,
        "tta": card.tta,
        "drawn_odds": card.drawn_odds,
        "phantom_seeds": learnt_from(Path(run), config).phantom_seeds,
    }
    what = "synthetic studies (phantoms) only" if card.phantom else "the data of its run"
    note = f"Fractures by research weights trained on {what}; not for clinical use."
    versions = {"cspine_jax": __version__, "jax": jax.__version__}
    written = Card(name, note, card.phantom, {FRACTURE: network, **facts}, versions)
    write(Path(out), halves(FRACTURE, loaded.params, loaded.stats), written)
    return written


def _public(config: Config) -> dict[str, Any]:
    """The configuration without the folders of the machine it ran on."""
    values = to_dict(config)
    start = "another run" if config.train.freeze_encoder else ""  # a frozen encoder is from somewhere
    masks, probs = values["crops"]["masks"], values["data"]["vertebra_probs"]
    return {
        **values,
        "crops": {**values["crops"], "masks": masks if masks == TRUE_MASKS else "segmented"},
        "data": {
            **values["data"],
            "root": "data",
            "data_dir": "",
            "manual_dir": "",
            "vertebra_probs": probs if probs in ("mask", "none") else "predicted",
        },
        "model": {**values["model"], "pretrained": ""},
        "train": {**values["train"], "init_from": start},
    }


def _run_config(kind: str, workdir: Path) -> Config:
    path = workdir / "config.json"
    config = from_dict(read_json(path, "give the --workdir of a `launch.py` run"))
    if config.task != kind:
        raise DataError(f"{path}: a run of task {config.task!r}, not {kind!r}; give the --workdir of that one")
    return config
