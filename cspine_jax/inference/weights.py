"""Weights of the two segmentation networks in one small file, and the ones that come with the package.

The file is a plain `.npz` that numpy reads without running anything from it: float16 arrays, and the card as JSON.
"""

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cspine_jax import xla
from cspine_jax.config import Config, from_dict
from cspine_jax.errors import ConfigError, DataError
from cspine_jax.training.refine_task import RefineTask
from cspine_jax.training.spine_task import SpineTask
from cspine_jax.training.volume_task import VolumeTask

SHIPPED, SHIPPED_FRACTURE = "vertebrae.npz", "fracture.npz"
TASKS: dict[str, type[VolumeTask]] = {"spine": SpineTask, "refine": RefineTask}
CARD = "card.json"

Network = Callable[[Any], dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Card:
    """Where weights come from and what they are for.

    Attributes:
        name: of the weights.
        note: what every output made with them must say.
        phantom: they have only seen synthetic studies.
        networks: for "spine" and "refine": configuration, step, training data, figures.
        versions: of the software that wrote them.
        digest: of the file they were read from, not written in it.
    """

    name: str
    note: str
    phantom: bool
    networks: dict[str, Any]
    versions: dict[str, str]
    digest: str = ""


def load(path: str | Path | None = None) -> tuple[Network, Network, Card]:
    """Loads the pair of networks.

    Args:
        path: a file that `cspine weights export` wrote; None for the weights that come with the package.

    Returns:
        `spine`: packed image `[B, d, h, w, 8]` -> {"logits" `[B, d, h, w, 20]`, "offsets" `[B, d, h, w, 3]` in mm};
        `refine`: `[B, d, h, w, 11]` -> {"logits" `[B, 2d, 2h, 2w, 4]`}; both compiled once a shape; and the card.

    Raises:
        DataError: the file is not there, or not such a file.
    """
    arrays, card = read(path)
    return network_of("spine", arrays, card), network_of("refine", arrays, card), card


def read(path: str | Path | None = None, shipped: str = SHIPPED) -> tuple[dict[str, np.ndarray], Card]:
    """The arrays (`spine/params/...`, `refine/stats/...`) and the card of a weights file; see `load`.

    Args:
        path: the file; None for one that comes with the package.
        shipped: which of those.
    """
    name = str(path) if path else shipped
    try:
        source = Path(path) if path else resources.files("cspine_jax.weights").joinpath(shipped)
        content = source.read_bytes()
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files if key != CARD}
            values = json.loads(bytes(file[CARD]).decode())
        card = Card(**values, digest=digest([content]))
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or error}; give a file of `cspine weights export`") from error
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        # numpy's own words advise to unpickle the file
        raise DataError(
            f"{name}: not a weights file ({type(error).__name__} while reading); give one of `cspine weights export`"
        ) from error
    return arrays, card


def digest(parts: Iterable[bytes]) -> str:
    """Twelve hexadecimal digits that tell weights from others."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:12]


def digest_of(*trees: Any) -> str:
    """`digest` of arrays in memory."""
    return digest(np.asarray(x).tobytes() for x in jax.tree.leaves(jax.device_get(trees)))


def network_of(kind: str, arrays: Mapping[str, np.ndarray], card: Card) -> Network:
    """One of the two networks, ready to be called with numpy arrays.

    Raises:
        DataError: arrays are missing, left over or misshapen.
    """
    task = TASKS[kind](_config(kind, card))
    shapes = jax.eval_shape(lambda: task.init(jax.random.key(0)))
    params, stats = jax.device_put(trees(kind, shapes, arrays, card.name))
    run = xla.jit(task.packed)
    return lambda image: run(params, stats, image)


def trees(kind: str, shapes: Any, arrays: Mapping[str, np.ndarray], name: str) -> tuple[Any, Any]:
    """(params, statistics) of one network out of a file's arrays, float32.

    Args:
        kind: "spine", "refine" or "fracture": the arrays' prefix.
        shapes: the two trees as the network wants them (`jax.eval_shape`).
        arrays: of the file.
        name: of the weights, for messages.

    Raises:
        DataError: arrays are missing, left over or misshapen.
    """
    made = []
    for part, tree in zip(("params", "stats"), shapes, strict=True):
        wanted = flatten(tree, f"{kind}/{part}")
        there = {key: x for key, x in arrays.items() if key.startswith(f"{kind}/{part}/")}
        wrong = sorted({*wanted} ^ {*there}) or [k for k, x in wanted.items() if x.shape != there[k].shape]
        if wrong:
            raise DataError(f"{name}: {len(wrong)} arrays of {kind} do not fit its network, e.g. {wrong[0]}")
        made.append(jax.tree.unflatten(jax.tree.structure(tree), [there[key].astype(np.float32) for key in wanted]))
    return made[0], made[1]


def flatten(tree: Any, prefix: str) -> dict[str, Any]:
    """`{"prefix/a/b": leaf}` in the order of the tree's leaves."""
    return {
        "/".join([prefix, *(str(getattr(key, "key", key)) for key in path)]): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def _config(kind: str, card: Card) -> Config:
    try:
        return from_dict(card.networks[kind]["config"])
    except (KeyError, TypeError, ConfigError) as error:
        raise DataError(f"{card.name}: its card does not describe the {kind} network ({error})") from error
