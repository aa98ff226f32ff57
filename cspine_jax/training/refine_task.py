"""Fine 3D segmentation: from a rough, faulty map of the vertebrae to their exact shape.

In training the rough map is made from the truth and spoilt as a coarse network spoils it: moved boundaries, missing
pieces, pieces given to the neighbour. So the fine network can be trained beside the coarse one, and is not tied to it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.scipy.ndimage import map_coordinates

from cspine_jax.anatomy import NUM_LABELS
from cspine_jax.augment3d import smooth_field
from cspine_jax.losses import segmentation_loss
from cspine_jax.models.layers3d import PACK
from cspine_jax.models.spine import NUM_COLOURS, RefineNet, colour_of
from cspine_jax.training.task import Parts
from cspine_jax.training.volume_task import VolumeTask, class_weights, overlap

ROUGH = 4
"""Voxels of the rough map per fine voxel, along each axis."""


class RefineTask(VolumeTask):
    """Task "refine". Outputs of `predict`: `common`, `all` float32 `[B, 4]` voxels of background and the colours."""

    def _build(self, key: jax.Array) -> RefineNet:
        return RefineNet(self._config.volume, dtype=self._dtype, rngs=nnx.Rngs(key))

    def _judge(
        self, model: RefineNet, x: jax.Array, labels: jax.Array, valid: jax.Array, train: bool, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, Parts, dict[str, jax.Array]]:
        logits = model(x, rough_colours(labels, key), train)["logits"]
        truth = colour_of(labels)
        known = valid.astype(jnp.float32)
        weights = class_weights(1 + NUM_COLOURS, self._config.volume.background_weight)
        total, weight, parts = segmentation_loss(logits, truth, known, self._config.loss.segmentation, weights)
        common, both = overlap(logits.argmax(-1), truth, 1 + NUM_COLOURS)
        return total, weight, parts, {"common": common, "all": both}

    def metrics(self, table: dict[str, np.ndarray]) -> dict[str, float]:
        """Dice over the three colours, all validation voxels together: `dice_colours`."""
        common, both = table["common"].sum(0)[1:], table["all"].sum(0)[1:]
        return {"dice_colours": float(2 * common.sum() / both.sum()) if both.sum() else float("nan")}


def rough_colours(labels: jax.Array, key: jax.Array | None) -> jax.Array:
    """Rough probability of each colour, on a grid half as fine as `labels`.

    Args:
        labels: int `[B, D, H, W]`, sides multiples of 4.
        key: how to spoil it; None spoils nothing.

    Returns:
        float32 `[B, D/2, H/2, W/2, 3]`.
    """
    B, *fine = labels.shape
    shape = tuple(n // ROUGH for n in fine)
    axes = [jnp.arange(n, dtype=jnp.float32) * ROUGH + (ROUGH - 1) / 2 for n in shape]
    at = jnp.broadcast_to(jnp.stack(jnp.meshgrid(*axes, indexing="ij"))[None], (B, 3, *shape))
    if key is None:
        rough = jax.vmap(lambda v, p: map_coordinates(v, list(p), order=0, mode="nearest"))(labels, at)
        colours = jax.nn.one_hot(colour_of(rough) - 1, NUM_COLOURS)
    else:
        strength, move, neighbour, lose, fade = jax.random.split(key, 5)
        amount = jax.random.uniform(strength, (3, B, 1, 1, 1))
        moved = at + 3.0 * amount[0][:, None] * smooth_field(move, B, shape, 3, knots=8)
        rough = jax.vmap(lambda v, p: map_coordinates(v, list(p), order=0, mode="nearest"))(labels, moved)
        shift = smooth_field(neighbour, B, shape, 1, knots=6)[:, 0]
        wrong = jnp.where(jnp.abs(shift) > 2.6 - 1.4 * amount[1], jnp.sign(shift), 0.0).astype(jnp.int32)
        rough = jnp.where(rough > 0, jnp.clip(rough + wrong, 1, NUM_LABELS - 1), 0)
        gone = smooth_field(lose, B, shape, 1, knots=8)[:, 0] > 2.6 - 1.2 * amount[2]
        colours = jax.nn.one_hot(jnp.where(gone, 0, colour_of(rough)) - 1, NUM_COLOURS)
        colours = colours * jax.random.uniform(fade, (B, 1, 1, 1, 1), minval=0.6, maxval=1.0)
    half = tuple(n // PACK for n in fine)
    return jax.image.resize(colours, (B, *half, NUM_COLOURS), "linear")
