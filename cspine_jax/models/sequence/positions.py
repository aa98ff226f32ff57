"""Where an element stands in its sequence, as a vector to add to it: for sequences of any length, padded or not.

Positions are counted among the elements that are there, so that padding, wherever it stands, moves nothing.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from cspine_jax.errors import ConfigError

Kind = Literal["sinusoidal", "learned"]

LONGEST_PERIOD = 1e4


def sinusoids(at: jax.Array, features: int) -> jax.Array:
    """Sines and cosines of positions (Vaswani et al. 2017), periods from 2 pi to 2 pi 10,000.

    Args:
        at: positions, any shape.
        features: C, even.

    Returns:
        Float32 `[..., C]`, sines first.
    """
    half = features // 2
    rates = LONGEST_PERIOD ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = at.astype(jnp.float32)[..., None] * jnp.expand_dims(rates, tuple(range(at.ndim)))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class Positions(nnx.Module):
    """Mask `[B, T]` -> positions `[B, T, C]`.

    "sinusoidal" is a function of the count from the first element that is there: it knows distances in elements.
    "learned" is a table stretched over the sequence, the first element at its first row and the last at its last, with
    linear interpolation between: it knows the place in the study, however many slices the study has.
    """

    def __init__(self, kind: Kind, features: int, *, length: int = 128, rngs: nnx.Rngs):
        """Builds it.

        Args:
            kind: "sinusoidal" or "learned".
            features: C.
            length: rows of the learned table.
            rngs: randomness of the initial table.

        Raises:
            ConfigError: the kind is unknown, or sinusoids are to fill an odd number of features.
        """
        if kind not in ("sinusoidal", "learned"):
            raise ConfigError(f"positions={kind!r}: must be sinusoidal or learned")
        if kind == "sinusoidal" and features % 2:
            raise ConfigError(f"features={features}: must be even for sinusoidal positions")
        self.features = features
        self.table = (
            nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (length, features), jnp.float32))
            if kind == "learned"
            else None
        )

    def __call__(self, mask: jax.Array) -> jax.Array:
        """Float32 `[B, T, C]`; at elements that `mask` (bool `[B, T]`) leaves out, those of the last one before."""
        rank = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0).astype(jnp.float32)
        if self.table is None:
            return sinusoids(rank, self.features)
        rows = self.table.shape[0]
        at = rank * (rows - 1) / jnp.maximum(mask.sum(1, keepdims=True) - 1, 1)
        below = jnp.clip(jnp.floor(at).astype(jnp.int32), 0, max(rows - 2, 0))
        share = (at - below)[..., None]
        table = self.table[...]
        return table[below] * (1.0 - share) + table[jnp.minimum(below + 1, rows - 1)] * share
