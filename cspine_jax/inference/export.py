"""Training runs -> weights files."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cspine_jax import __version__
from cspine_jax.config import Config, from_dict, to_dict
from cspine_jax.errors import DataError
from cspine_jax.inference.run import from_folder
from cspine_jax.inference.weights import CARD, TASKS, Card, flatten
from cspine_jax.training.checkpoint import load_best
from cspine_jax.training.learnt import learnt_from_phantoms
from cspine_jax.training.sharding import place
from cspine_jax.training.workdir import read_json, write_text


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
        arrays |= _halves(kind, params, stats)
        phantom &= learnt_from_phantoms(workdir, config)
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
    _write(Path(out), arrays, card)
    return card


def export_fracture(
    run: str | Path,
    out: str | Path,
    *,
    name: str,
    field_mm: float | None,
    slice_mm: float | None,
    facts: Mapping[str, Any],
) -> Card:
    """Writes the best checkpoint of a fracture run as a file of half precision.

    Args:
        run: work folder of an evaluated run of task "fracture".
        out: the `.npz` to write; its card goes beside it as `.json`.
        name: of the weights.
        field_mm: side of the square the run saw (median of its records), None if not known.
        slice_mm: distance of its slices, None if not known.
        facts: more for the card.

    Returns:
        The card.

    Raises:
        DataError: the folder holds no evaluated run.
    """
    loaded = from_folder(Path(run))
    if not loaded.card.evaluated:
        raise DataError(f"{run}: no evaluation/metrics.json, so no thresholds; run `launch.py --mode=evaluate` first")
    network = {
        "config": _public(loaded.config),
        "step": loaded.step,
        "parameters": int(sum(x.size for x in jax.tree.leaves(loaded.params))),
        "thresholds": loaded.card.thresholds,
        "prevalence": loaded.card.prevalence.tolist(),
        "field_mm": field_mm,
        "slice_mm": slice_mm,
    }
    what = "synthetic studies (phantoms) only" if loaded.card.phantom else "the data of its run"
    note = f"Fractures by research weights trained on {what}; not for clinical use."
    versions = {"cspine_jax": __version__, "jax": jax.__version__}
    card = Card(name, note, loaded.card.phantom, {"fracture": network, **facts}, versions)
    _write(Path(out), _halves("fracture", loaded.params, loaded.stats), card)
    return card


def _halves(kind: str, params: Any, stats: Any) -> dict[str, np.ndarray]:
    """The arrays of one network as they are written."""
    return {
        name: np.asarray(x, np.float16)
        for part, tree in (("params", params), ("stats", stats))
        for name, x in flatten(tree, f"{kind}/{part}").items()
    }


def _public(config: Config) -> dict[str, Any]:
    """The configuration without the folders of the machine it ran on."""
    values = to_dict(config)
    return {
        **values,
        "data": {**values["data"], "root": "data", "data_dir": "", "manual_dir": ""},
        "model": {**values["model"], "pretrained": ""},
        "train": {**values["train"], "init_from": ""},
    }


def _write(out: Path, arrays: Mapping[str, np.ndarray], card: Card) -> None:
    lost = [key for key, x in arrays.items() if not np.isfinite(x).all()]
    if lost:
        raise DataError(f"{lost[0]}: values beyond half precision; train with weight decay")
    about = {name: value for name, value in dataclasses.asdict(card).items() if name != "digest"}
    text = json.dumps(about, indent=1)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as file:
        np.savez_compressed(file, **{CARD: np.frombuffer(text.encode(), np.uint8)}, **arrays)  # type: ignore[arg-type]
    write_text(out.with_suffix(".json"), text + "\n")


def _run_config(kind: str, workdir: Path) -> Config:
    path = workdir / "config.json"
    config = from_dict(read_json(path, "give the --workdir of a `launch.py` run"))
    if config.task != kind:
        raise DataError(f"{path}: a run of task {config.task!r}, not {kind!r}; give the --workdir of that one")
    return config
