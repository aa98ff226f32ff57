"""The whole study at 4 mm through the `spine` network."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from cspine_jax.ct import Volume
from cspine_jax.ct.regrid import regrid
from cspine_jax.inference.vertebrae import LEVELS
from cspine_jax.inference.vertebrae.grids import PADDING, Grid, normalise, pack, regridded
from cspine_jax.inference.vertebrae.sliding import slide

SPACING_MM = 2.0
"""Of the image; packed, the network's grid has twice this."""

MULTIPLE = 16
"""Sides are padded to a multiple of this: what the network needs, and few shapes to compile."""

WINDOW = (80, 64, 64)
"""Larger studies (a neck has at most 75 x 64 x 64 voxels of 4 mm) are seen through windows of this size."""

MOST_VOXELS = 2 * 80 * 64 * 64

Spine = Callable[[Any], dict[str, Any]]
"""image [B, d, h, w, 8] -> {"logits" [B, d, h, w, 20], "offsets" [B, d, h, w, 3] in mm}; sides multiples of 16."""


def see_spine(spine: Spine, volume: Volume) -> tuple[np.ndarray, np.ndarray, Grid]:
    """Runs the coarse network.

    Args:
        spine: see `Spine`.
        volume: the study.

    Returns:
        Probabilities float32 [d, h, w, 20], offsets float32 [d, h, w, 3], and their grid.
    """
    grid = regridded(volume.shape, volume.spacing_mm, SPACING_MM).packed()
    image = pack(normalise(regrid(volume.hu, volume.spacing_mm, SPACING_MM)))

    def both(x: Any) -> jnp.ndarray:
        out = spine(x)
        return jnp.concatenate((out["logits"], out["offsets"]), axis=-1)

    window = tuple(-(-n // MULTIPLE) * MULTIPLE for n in grid.shape)
    if np.prod(window) > MOST_VOXELS:
        window = WINDOW
    out = slide(both, image, window, overlap=0.25, fill=PADDING)
    count = 1 + len(LEVELS)
    return softmax(out[..., :count]), out[..., count:], grid


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in place."""
    logits -= logits.max(axis=-1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=-1, keepdims=True)
    return logits
