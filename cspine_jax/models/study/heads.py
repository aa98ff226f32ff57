"""What comes after the sequence: pooling over what is there, batch normalisation of what is there, gold's head."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from cspine_jax.models.layers import BatchNorm, Linear, at_least_float32, dropout


class MaskedBatchNorm(BatchNorm):
    """Batch normalisation whose statistics, in training, are those of the elements under a mask."""

    def __call__(self, x: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        """Normalises a channel.

        Args:
            x: `[..., C]`.
            train: use and record the batch's statistics.
            mask: `[...]`, above 0 for what counts (the leading axes suffice); None for everything.

        Returns:
            Same shape; what the mask leaves out is normalised like the rest, and finite if it was.
        """
        if not train or mask is None:
            return super().__call__(x, train)
        axes = tuple(range(x.ndim - 1))
        wide = x.astype(at_least_float32(x))
        used = jnp.broadcast_to(jnp.expand_dims(mask > 0, tuple(range(mask.ndim, x.ndim))), (*x.shape[:-1], 1))
        count = jnp.maximum(used.sum(), 1).astype(wide.dtype)
        mean = jnp.where(used, wide, 0.0).sum(axes) / count
        centred = wide - jnp.expand_dims(mean, axes)
        var = jnp.where(used, centred * centred, 0.0).sum(axes) / count
        self._record(mean, var * (count / jnp.maximum(count - 1, 1)))
        scale = jnp.expand_dims(self.scale[...] * lax.rsqrt(var + self.eps), axes)
        return (centred * scale + jnp.expand_dims(self.bias[...], axes)).astype(self.dtype or x.dtype)


class SliceHead(nnx.Module):
    """Gold's head: Linear, batch normalisation, dropout, leaky ReLU (slope 0.1), Linear; float32 logits."""

    def __init__(
        self, in_features: int, out_features: int = 1, *, hidden: int = 256, dropout: float = 0.3, rngs: nnx.Rngs
    ):
        self.dropout = dropout
        self.hidden = Linear(in_features, hidden, dtype=jnp.float32, rngs=rngs)
        self.bn = MaskedBatchNorm(hidden)
        self.out = Linear(hidden, out_features, dtype=jnp.float32, rngs=rngs)

    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        """`[..., in]` -> `[..., out]`; `mask` `[...]` says which elements enter the batch statistics."""
        x = self.bn(self.hidden(x), train, mask)
        return self.out(jax.nn.leaky_relu(dropout(x, self.dropout, key, train), 0.1))


def masked_pool(x: jax.Array, mask: jax.Array | None, kind: str) -> jax.Array:
    """Pools a sequence over what is there, in float32.

    Args:
        x: `[B, T, C]`.
        mask: `[B, T]`, above 0 for what counts, whatever (even NaN) the rest is; None for everything.
        kind: "avg", "max" or "avgmax" (both, side by side).

    Returns:
        `[B, C]`, or `[B, 2 C]` for "avgmax"; zero where nothing counts.

    Raises:
        ValueError: the kind is unknown.
    """
    if kind not in ("avg", "max", "avgmax"):
        raise ValueError(f"pooling={kind!r}: must be avg, max or avgmax")
    x = x.astype(at_least_float32(x))
    used = jnp.ones((*x.shape[:2], 1), bool) if mask is None else (mask > 0)[..., None]
    pooled = []
    if kind != "max":
        pooled.append(jnp.where(used, x, 0.0).sum(1) / jnp.maximum(used.sum(1), 1))
    if kind != "avg":
        pooled.append(jnp.where(used.any(1), jnp.where(used, x, -jnp.inf).max(1), 0.0))
    return jnp.concatenate(pooled, axis=-1)
