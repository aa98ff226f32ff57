"""Silver's network, as document C names it: EfficientNetV2-L a slice, a transformer encoder over the slices.

The crops and the slice logits are gold's; the transformer stands in place of the LSTM.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cspine_jax.models.layers import Keys, Linear, dropout
from cspine_jax.models.sequence.positions import Kind
from cspine_jax.models.sequence.transformer import TransformerEncoder
from cspine_jax.models.study.encoder import SliceEncoder, SliceModel


class TransformerSequence(SliceModel):
    """`[B, T, H, W, C]` -> a logit for each slice, `[B, T]`."""

    def __init__(
        self,
        backbone: str = "efficientnet_v2_l",
        *,
        in_channels: int = 6,
        features: int = 512,
        heads: int = 8,
        depth: int = 2,
        positions: Kind = "sinusoidal",
        dropout: float = 0.1,
        chunk: int | None = None,
        where: bool = False,
        remat: bool = False,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        """Builds it.

        Args:
            backbone: one of `models.names()`.
            in_channels: C.
            features: width of the transformer.
            heads: of attention.
            depth: blocks of the transformer.
            positions: see `sequence.positions`.
            dropout: rate in the transformer and before the last layer.
            chunk: slices at a time, see `SliceEncoder`.
            where: look for breaks on a map, see `SliceEncoder`.
            remat: see `TransformerEncoder`.
            dtype: type the backbone and the transformer compute in; parameters and logits are float32.
            rngs: randomness of the initial weights.
        """
        self.dropout = dropout
        self.encoder = SliceEncoder(backbone, in_channels=in_channels, chunk=chunk, where=where, dtype=dtype, rngs=rngs)
        self.embed = Linear(self.encoder.out_features, features, dtype=jnp.float32, rngs=rngs)
        self.transformer = TransformerEncoder(
            features,
            heads=heads,
            depth=depth,
            positions=positions,
            dropout=dropout,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )
        self.head = Linear(features, 1, dtype=jnp.float32, rngs=rngs)

    def _answer(self, embedding: jax.Array, mask: jax.Array | None, train: bool, keys: Keys) -> jax.Array:
        tokens = self.transformer(self.embed(embedding), mask, train, keys())
        return self.head(dropout(tokens, self.dropout, keys(), train))[..., 0]
