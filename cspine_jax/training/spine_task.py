"""Coarse 3D segmentation: the level of every voxel and a vote for its vertebra's centre."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cspine_jax.anatomy import NUM_LABELS
from cspine_jax.losses import segmentation_loss
from cspine_jax.models.layers3d import PACK, pack
from cspine_jax.models.spine import OFFSET_UNIT_MM, SpineNet
from cspine_jax.training.task import Parts
from cspine_jax.training.volume_task import VolumeTask, class_weights, overlap


class SpineTask(VolumeTask):
    """Task "spine". Outputs of `predict`: `common`, `all` float32 `[B, 20]` voxels, `vote_mm` `[B]` mean error."""

    def _build(self, key: jax.Array) -> SpineNet:
        return SpineNet(self._config.volume, dtype=self._dtype, rngs=nnx.Rngs(key))

    def _judge(
        self, model: SpineNet, x: jax.Array, labels: jax.Array, valid: jax.Array, train: bool, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, Parts, dict[str, jax.Array]]:
        out = model(x, train)
        coarse = majority(labels)
        known = valid.astype(jnp.float32)
        config = self._config.volume
        weights = class_weights(NUM_LABELS, config.background_weight)
        total, weight, parts = segmentation_loss(out["logits"], coarse, known, self._config.loss.segmentation, weights)
        step_mm = PACK * config.spacing_mm
        truth, bone = centre_offsets(coarse, step_mm)
        error = jnp.abs(out["offsets"] - truth)
        each = (jnp.where(bone[..., None], error, 0.0).sum((1, 2, 3, 4))) / jnp.maximum(3 * bone.sum((1, 2, 3)), 1)
        votes = (each * known).sum()
        parts = {**parts, "vote_mm": (votes, weight)}
        total = total + config.offset_weight * votes / OFFSET_UNIT_MM
        common, both = overlap(out["logits"].argmax(-1), coarse, NUM_LABELS)
        return total, weight, parts, {"common": common, "all": both, "vote_mm": each}

    def metrics(self, table: dict[str, np.ndarray]) -> dict[str, float]:
        """Mean Dice of C1..C7 over all validation voxels, `dice_c1_c7`."""
        return dice_figures(table)


def dice_figures(table: dict[str, np.ndarray]) -> dict[str, float]:
    """`dice_c1_c7` (mean over C1..C7) from the voxel counts of a pass; NaN where none of a level was seen."""
    common, both = table["common"].sum(0), table["all"].sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        dice = 2 * common / both
    cervical = dice[1:8]
    return {"dice_c1_c7": float(np.nanmean(cervical)) if np.isfinite(cervical).any() else float("nan")}


def majority(labels: jax.Array) -> jax.Array:
    """int32 `[B, D/2, H/2, W/2]`: the commonest label of each 2 x 2 x 2 voxels (the lowest on a tie)."""
    groups = pack(labels[..., None])
    counts = (groups[..., :, None] == groups[..., None, :]).sum(-1)
    return jnp.take_along_axis(groups, counts.argmax(-1)[..., None], axis=-1)[..., 0]


def centre_offsets(labels: jax.Array, step_mm: float) -> tuple[jax.Array, jax.Array]:
    """Vectors from each voxel to the centroid of what is visible of its vertebra.

    Args:
        labels: int `[B, d, h, w]`, 0 background.
        step_mm: spacing of the grid.

    Returns:
        float32 `[B, d, h, w, 3]` in mm (z, y, x), meaningless on background; bool `[B, d, h, w]`, True on vertebrae.
    """
    B, *shape = labels.shape
    axes = [jnp.arange(n, dtype=jnp.float32) for n in shape]
    grid = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), -1)
    one_hot = jax.nn.one_hot(labels.reshape(B, -1), NUM_LABELS, dtype=jnp.float32)
    mass = one_hot.sum(1)
    centroid = jnp.einsum("bnc,nk->bck", one_hot, grid.reshape(-1, 3)) / jnp.maximum(mass, 1.0)[..., None]
    own = jnp.take_along_axis(centroid, labels.reshape(B, -1, 1), axis=1).reshape(B, *shape, 3)
    return (own - grid[None]) * step_mm, labels > 0
