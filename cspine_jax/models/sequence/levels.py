"""A transformer over the seven cervical levels: each vertebra is judged knowing the others, and so is the patient.

Fractures come in neighbours: in the RSNA studies a broken vertebra makes those next to it several times as likely to be
broken. A token a level (its embedding and a learned one that says which level it is) and one for the patient exchange
information; attention between levels starts out falling with their distance, and learns how far to look.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cspine_jax.anatomy import NUM_VERTEBRAE, TARGETS
from cspine_jax.models.layers import Linear
from cspine_jax.models.sequence.transformer import TransformerEncoder


class LevelTransformer(nnx.Module):
    """Embeddings of C1..C7 `[B, 7, E]` -> tokens of patient, C1..C7 `[B, 8, C]`, in the order of `anatomy.TARGETS`."""

    def __init__(
        self,
        in_features: int,
        features: int = 256,
        *,
        heads: int = 4,
        depth: int = 2,
        dropout: float = 0.1,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        """Builds it.

        Args:
            in_features: E.
            features: C.
            heads: of attention.
            depth: blocks.
            dropout: see `TransformerEncoder`.
            dtype: type the blocks compute in; parameters and tokens are float32.
            rngs: randomness of the initial weights.
        """
        draw = nnx.initializers.normal(0.02)
        self.embed = Linear(in_features, features, dtype=jnp.float32, rngs=rngs)
        self.level = nnx.Param(draw(rngs.params(), (NUM_VERTEBRAE, features), jnp.float32))
        self.patient = nnx.Param(draw(rngs.params(), (features,), jnp.float32))
        slopes = 2.0 ** (-8.0 * jnp.arange(1, heads + 1) / heads)
        self.distance = nnx.Param(-slopes[:, None] * jnp.arange(NUM_VERTEBRAE, dtype=jnp.float32)[None])
        self.encoder = TransformerEncoder(
            features, heads=heads, depth=depth, positions=None, dropout=dropout, dtype=dtype, rngs=rngs
        )

    def bias(self) -> jax.Array:
        """Added to the attention scores, `[heads, 8, 8]`: a learned number a distance, none from or to the patient."""
        at = jnp.arange(NUM_VERTEBRAE)
        levels = self.distance[...][:, jnp.abs(at[:, None] - at[None])]
        return jnp.pad(levels, ((0, 0), (1, 0), (1, 0)))

    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        """Tokens that know of each other.

        Args:
            x: embeddings of the vertebrae `[B, 7, E]`.
            mask: `[B, 7]`, above 0 for the levels that are in the study, whatever (even NaN) the rest is; None for all.
            train: drop units.
            key: randomness of dropout, needed in training.

        Returns:
            Float32 `[B, 8, C]`: the patient, C1..C7; zero for an absent level.
        """
        B = x.shape[0]
        there = jnp.ones((B, NUM_VERTEBRAE), bool) if mask is None else mask > 0
        tokens = self.embed(jnp.where(there[..., None], x, 0.0)) + self.level[...][None]
        patient = jnp.broadcast_to(self.patient[...][None, None], (B, 1, tokens.shape[-1]))
        there = jnp.pad(there, ((0, 0), (len(TARGETS) - NUM_VERTEBRAE, 0)), constant_values=True)
        return self.encoder(jnp.concatenate([patient, tokens], axis=1), there, train, key, bias=self.bias())
