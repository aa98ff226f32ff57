"""Bronze's classifier, as document C names it: an EfficientNetV2-S on each crop by itself.

The crops are gold's (S positions of a vertebra, six channels); no position knows of the others.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cspine_jax.models.layers import Keys, Linear, dropout
from cspine_jax.models.study.encoder import SliceEncoder, SliceModel


class CropClassifier(SliceModel):
    """`[B, S, H, W, C]` -> a logit for each crop, `[B, S]`."""

    def __init__(
        self,
        backbone: str = "efficientnet_v2_s",
        *,
        in_channels: int = 6,
        dropout: float = 0.2,
        chunk: int | None = None,
        where: bool = False,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        """Builds it.

        Args:
            backbone: one of `models.names()`.
            in_channels: C.
            dropout: rate before the last layer.
            chunk: crops of a vertebra at a time, see `SliceEncoder`.
            where: look for breaks on a map, see `SliceEncoder`.
            dtype: type the backbone computes in; parameters and logits are float32.
            rngs: randomness of the initial weights.
        """
        self.dropout = dropout
        self.encoder = SliceEncoder(backbone, in_channels=in_channels, chunk=chunk, where=where, dtype=dtype, rngs=rngs)
        self.head = Linear(self.encoder.out_features, 1, dtype=jnp.float32, rngs=rngs)

    def _answer(self, embedding: jax.Array, mask: jax.Array | None, train: bool, keys: Keys) -> jax.Array:
        return self.head(dropout(embedding, self.dropout, keys(), train))[..., 0]
