"""Two training runs -> one weights file."""

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
from cspine_jax.inference.weights import CARD, TASKS, Card, flatten
from cspine_jax.training.checkpoint import Checkpoints
from cspine_jax.training.sharding import place
from cspine_jax.training.state import abstract_state
from cspine_jax.training.workdir import write_text


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
        task = TASKS[kind](config)
        params, stats = abstract_state(lambda task=task: task.init(jax.random.key(0)), place())
        with Checkpoints(workdir / "checkpoints") as checkpoints:
            params, stats, step = checkpoints.load_model(params, stats)
        for part, tree in (("params", params), ("stats", stats)):
            arrays |= {k: np.asarray(x, np.float16) for k, x in flatten(tree, f"{kind}/{part}").items()}
        phantom &= not config.data.manual_dir or (Path(config.data.manual_dir) / "phantom.json").is_file()
        metrics = workdir / "evaluation" / "metrics.json"
        figures = json.loads(metrics.read_text(encoding="utf-8")) if metrics.is_file() else {}
        networks[kind] = {
            "config": to_dict(config),
            "step": step,
            "parameters": int(sum(x.size for x in jax.tree.leaves(params))),
            "figures": {key: figures[key] for key in ("data", "studies", "dice") if key in figures},
        }
    lost = [key for key, x in arrays.items() if not np.isfinite(x).all()]
    if lost:
        raise DataError(f"{lost[0]}: values beyond half precision; train with weight decay")
    note = (
        "Vertebrae by research weights trained on synthetic studies (phantoms) only; not for clinical use."
        if phantom
        else "Vertebrae by research weights; not for clinical use."
    )
    versions = {"cspine_jax": __version__, "jax": jax.__version__}
    card = Card(name, note, phantom, {**networks, **facts}, versions)
    text = json.dumps(dataclasses.asdict(card), indent=1)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as file:
        np.savez_compressed(file, **{CARD: np.frombuffer(text.encode(), np.uint8)}, **arrays)  # type: ignore[arg-type]
    write_text(out.with_suffix(".json"), text + "\n")
    return card


def _run_config(kind: str, workdir: Path) -> Config:
    path = workdir / "config.json"
    try:
        config = from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}; give the --workdir of a `launch.py` run") from error
    if config.task != kind:
        raise DataError(f"{path}: a run of task {config.task!r}, not {kind!r}; give the --workdir of that one")
    return config
