"""Document A's classifiers: a whole study in, its eight targets out, over any backbone.

A study becomes an input as T slices evenly spaced from its first to its last, so that every scan, of 69 or of 1,082
slices, shows the same share of the neck at each position. Each slice passes through the shared backbone; the embeddings
are pooled over the valid slices (the mean says what is in view, the maximum keeps the one slice that shows a fracture)
and a linear layer gives the eight logits. The order of the slices does not matter.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cspine_jax.anatomy import TARGETS
from cspine_jax.models.layers import Linear, dropout
from cspine_jax.models.study.encoder import SliceEncoder
from cspine_jax.models.study.heads import masked_pool


class StudyClassifier(nnx.Module):
    """`[B, T, H, W, C]` -> logits `[B, 8]`."""

    def __init__(
        self,
        backbone: str,
        *,
        in_channels: int,
        pooling: str = "avgmax",
        dropout: float = 0.2,
        chunk: int | None = None,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        """Builds it.

        Args:
            backbone: one of `models.names()`; document A compares basic_cnn, inception_v3, resnet50, efficientnet_b5.
            in_channels: C.
            pooling: over the slices: "avg", "max" or "avgmax".
            dropout: rate before the last layer.
            chunk: slices at a time, see `SliceEncoder`.
            dtype: type the backbone computes in; parameters and logits are float32.
            rngs: randomness of the initial weights.
        """
        self.pooling = pooling
        self.dropout = dropout
        self.encoder = SliceEncoder(backbone, in_channels=in_channels, chunk=chunk, dtype=dtype, rngs=rngs)
        width = self.encoder.out_features * (2 if pooling == "avgmax" else 1)
        self.head = Linear(width, len(TARGETS), dtype=jnp.float32, rngs=rngs)

    def __call__(
        self, image: jax.Array, mask: jax.Array | None = None, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        """Logits of a batch of studies.

        Args:
            image: slices, 0..1, `[B, T, H, W, C]`.
            mask: bool `[B, T]`, false on padding; None for none.
            train: use and record batch statistics, drop units.
            key: randomness of dropout, needed in training.

        Returns:
            Float32 `[B, 8]`, in the order of `anatomy.TARGETS`.
        """
        trunk, top = (None, None) if key is None else jax.random.split(key)
        embedding = masked_pool(self.encoder(image, mask, train, trunk), mask, self.pooling)
        return self.head(dropout(embedding, self.dropout, top, train))
