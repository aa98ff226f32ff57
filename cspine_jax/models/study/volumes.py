"""What the 3D networks share: volumes whose depth is padded, and boxes of voxels folded into channels."""

import jax
import jax.numpy as jnp

Box = tuple[int, int, int]
"""Voxels of a box along z, y and x."""


def clear_padding(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """`[B, D, H, W, C]` with zeros where `mask` `[B, D]` is not above 0, whatever (even NaN) was there."""
    return x if mask is None else jnp.where((mask > 0)[:, :, None, None, None], x, jnp.zeros((), x.dtype))


def fold(x: jax.Array, box: Box) -> jax.Array:
    """Boxes of voxels become channels, zeros filling up what is not whole.

    Args:
        x: `[B, D, H, W, C]`.
        box: (t, p, q).

    Returns:
        `[B, ceil(D / t), ceil(H / p), ceil(W / q), t p q C]`; channel `((dz p + dy) q + dx) C + c` is channel c of the
        voxel (dz, dy, dx) of its box.
    """
    t, p, q = box
    x = jnp.pad(x, ((0, 0), *((0, -size % side) for size, side in zip(x.shape[1:4], box, strict=True)), (0, 0)))
    B, D, H, W, C = x.shape
    x = x.reshape(B, D // t, t, H // p, p, W // q, q, C)
    return jnp.transpose(x, (0, 1, 3, 5, 2, 4, 6, 7)).reshape(B, D // t, H // p, W // q, t * p * q * C)


def fold_mask(mask: jax.Array, t: int) -> jax.Array:
    """`[B, D]` -> bool `[B, ceil(D / t)]`: whether any of t slices is there."""
    B, D = mask.shape
    return (jnp.pad(mask, ((0, 0), (0, -D % t))) > 0).reshape(B, -1, t).any(-1)
