"""Sequences of slices to model input: window, augmentation and mask channel, on the device.

All slices of a sequence move together, as the channels of one stack do (`augment`): they are neighbours in one neck,
and one set of sampling positions then serves them all. K-means (`denoise`) looks at each position by itself, so that
padding changes nothing. The mask moves along and is read at the nearest pixel, so that a mask of 0 and 1 stays one; and
so do boxes, as the pixels inside.
"""

import jax
import jax.numpy as jnp

from cspine_jax.augment import prepare_pair, window
from cspine_jax.config import AugmentConfig

_BOX_BIT = 4
"""Of the labels that move with the picture: 0..15 is the mask, 16 is inside a box."""

BONE_MARGIN = 0.03
"""How far round the mask `bone_only` shows, as a share of the side: room for the edge and for neighbouring slices."""

SOFT_TISSUE_HU = 40.0
"""What `bone_only` puts elsewhere."""


def prepare_sequence(
    image: jax.Array,
    mask: jax.Array | None,
    there: jax.Array,
    key: jax.Array | None,
    config: AugmentConfig,
    train: bool,
    *,
    mask_scale: float = 1.0,
    box: jax.Array | None = None,
) -> jax.Array:
    """Raw sequences to model input.

    Args:
        image: int16 [B, T, H, W, K] HU, K neighbouring slices at each of T positions.
        mask: uint8 [B, T, H, W], labels of the middle slices, or None for no mask channel.
        there: bool [B, T], False on padding.
        key: random key; read only when `train`.
        config: window and strengths.
        train: False windows and crops only.
        mask_scale: what a label of 1 becomes.
        box: float32 [B, T, 4], top, left, bottom, right in pixels (pixel k is from k to k + 1); none where all are 0.
            Needs a mask.

    Returns:
        float32 [B, T, H', W', K (+ 1) (+ 1)], windowed, then the mask (its label values, scaled), then 1 inside the
        boxes and 0 elsewhere; zeros on padding.
    """
    B, T, height, width, K = image.shape
    stack = jnp.transpose(image, (0, 1, 4, 2, 3)).reshape(B, T * K, height, width)
    if box is not None:
        assert mask is not None
        mask = mask | (inside_boxes(box, height, width).astype(mask.dtype) << _BOX_BIT)
    x, labels = prepare_pair(stack, mask, key, config, train, stacks=T)
    x = x.reshape(*x.shape[:3], T, K)
    if labels is not None:
        moved = jnp.transpose(labels, (0, 2, 3, 1))[..., None]
        bone = moved & ((1 << _BOX_BIT) - 1)
        if train and key is not None:
            tissue = window(jnp.float32(SOFT_TISSUE_HU), config)
            x = bone_only(x, bone, jax.random.fold_in(key, 5), config.bone_only, tissue)
        x = jnp.concatenate([x, mask_scale * bone.astype(x.dtype)], axis=-1)
        if box is not None:
            x = jnp.concatenate([x, (moved >> _BOX_BIT).astype(x.dtype)], axis=-1)
    x = jnp.transpose(x, (0, 3, 1, 2, 4))
    if train and key is not None:
        x = cut_out(x, jax.random.fold_in(key, 3), config.cutout)
        x = shuffle_slices(x, there, _order(key), config.slice_shuffle)
    return jnp.where(there[:, :, None, None, None], x, 0.0)


def inside_boxes(box: jax.Array, height: int, width: int) -> jax.Array:
    """Bool [..., height, width]: which pixels have their centre in a rectangle [..., 4], see `prepare_sequence`."""
    top, left, bottom, right = jnp.moveaxis(box[..., None], -2, 0)
    rows, columns = jnp.arange(height) + 0.5, jnp.arange(width) + 0.5
    rows, columns = (x.reshape((1,) * (box.ndim - 1) + (-1,)) for x in (rows, columns))
    down, across = (top < rows) & (rows < bottom), (left < columns) & (columns < right)
    return down[..., :, None] & across[..., None, :]


def follow_slices(targets: jax.Array, there: jax.Array, key: jax.Array, config: AugmentConfig) -> jax.Array:
    """Targets of slices [B, T], in the order in which `prepare_sequence` with the same `key` puts them to train."""
    return shuffle_slices(targets, there, _order(key), config.slice_shuffle)


def _order(key: jax.Array) -> jax.Array:
    return jax.random.fold_in(key, 4)


def cut_out(x: jax.Array, key: jax.Array, largest: float) -> jax.Array:
    """Blanks a box in half of the sequences, the same in all slices and channels (T. DeVries and G. Taylor 2017).

    Args:
        x: [B, T, H, W, C].
        key: random key.
        largest: of the box's sides, each drawn uniformly up to it, as a share of the image's; 0 returns `x`.

    Returns:
        Same shape; 0 in the box, whose centre is anywhere in the image.
    """
    if not largest:
        return x
    B, _, H, W, _ = x.shape
    draw = jax.random.uniform(key, (5, B))
    blank = draw[4] < 0.5
    rows, columns = (
        jnp.abs((jnp.arange(n) + 0.5)[None] / n - draw[axis][:, None]) < 0.5 * largest * draw[2 + axis][:, None]
        for axis, n in enumerate((H, W))
    )
    inside = rows[:, :, None] & columns[:, None, :] & blank[:, None, None]
    return jnp.where(inside[:, None, :, :, None], 0.0, x)


def bone_only(x: jax.Array, mask: jax.Array, key: jax.Array, share: float, elsewhere: jax.Array) -> jax.Array:
    """Shows nothing but the masked bone of some sequences.

    Swelling betrays most fractures from afar, and a network that finds it has nothing more to learn from them.

    Args:
        x: [B, H, W, T, K].
        mask: int [B, H, W, T, 1], above 0 in bone.
        key: random key.
        share: of sequences; 0 returns `x`.
        elsewhere: value further than `BONE_MARGIN` from the bone of the same position.

    Returns:
        Same shape.
    """
    if not share:
        return x
    reach = 2 * round(BONE_MARGIN * max(x.shape[1:3])) + 1
    near = (mask > 0).astype(x.dtype)
    for side in ((1, reach, 1, 1, 1), (1, 1, reach, 1, 1)):
        near = jax.lax.reduce_window(near, 0.0, jax.lax.max, side, (1,) * 5, "SAME")
    chosen = jax.random.uniform(key, (len(x), 1, 1, 1, 1)) < share
    return jnp.where(chosen & (near == 0.0), elsewhere.astype(x.dtype), x)


def shuffle_slices(x: jax.Array, there: jax.Array, key: jax.Array, share: float) -> jax.Array:
    """Puts the slices of some sequences in random order; padding stays where it is.

    Args:
        x: [B, T, ...].
        there: bool [B, T], False on padding.
        key: random key.
        share: of sequences; 0 returns `x`.

    Returns:
        Same shape.
    """
    if not share:
        return x
    B, T = there.shape
    shuffled, chosen = jax.random.split(key)
    own = jnp.broadcast_to(jnp.arange(T, dtype=jnp.float32)[None], (B, T))
    # the slices that are there, in their order and in a random one; the k-th of the first is replaced by the second's
    ordered = jnp.argsort(jnp.where(there, own, T + own), axis=1)
    drawn = jnp.argsort(jnp.where(there, jax.random.uniform(shuffled, (B, T)), T + own), axis=1)
    source = jnp.zeros((B, T), jnp.int32)
    source = jax.vmap(lambda row, at, value: row.at[at].set(value))(source, ordered, drawn.astype(jnp.int32))
    chosen = jax.random.uniform(chosen, (B, 1)) < share
    source = jnp.where(chosen, source, jnp.arange(T, dtype=jnp.int32)[None])
    return jax.vmap(lambda row, at: row[at])(x, source)
