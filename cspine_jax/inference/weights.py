"""The two segmentation networks out of a weights file, compiled."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cspine_jax import xla
from cspine_jax.training import weights_file
from cspine_jax.training.refine_task import RefineTask
from cspine_jax.training.spine_task import SpineTask
from cspine_jax.training.volume_task import VolumeTask
from cspine_jax.training.weights_file import Card

SHIPPED = "package:vertebrae"
TASKS: dict[str, type[VolumeTask]] = {"spine": SpineTask, "refine": RefineTask}

Network = Callable[[Any], dict[str, jax.Array]]


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
    arrays, card = weights_file.read(path or SHIPPED)
    return network_of("spine", arrays, card), network_of("refine", arrays, card), card


def network_of(kind: str, arrays: Mapping[str, np.ndarray], card: Card) -> Network:
    """One of the two networks, ready to be called with numpy arrays.

    Raises:
        DataError: arrays are missing, left over or misshapen.
    """
    task = TASKS[kind](weights_file.config_of(kind, card))
    shapes = jax.eval_shape(lambda: task.init(jax.random.key(0)))
    params, stats = jax.device_put(weights_file.trees(kind, shapes, arrays, card.name))
    run = xla.jit(task.packed)
    return lambda image: run(params, stats, image)
