"""What every backbone shares: a pyramid of feature maps, a pooled embedding, a separable head."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cspine_jax.models.layers import Linear, dropout, global_pool


class Backbone(nnx.Module):
    """Base of the image networks. A family implements `pyramid` and calls `_finish` at the end of its `__init__`.

    Attributes:
        channels: C of each pyramid level, finest first.
        reductions: how many input pixels one cell of each level spans.
        embedding_dim: width E of the pooled embedding.
        head: `Linear(E, num_outputs)`, or None when `num_outputs` is 0.
    """

    channels: tuple[int, ...]
    reductions: tuple[int, ...]
    embedding_dim: int

    def _finish(
        self,
        channels: tuple[int, ...],
        reductions: tuple[int, ...],
        *,
        num_outputs: int,
        features_only: bool,
        pooling: str,
        dropout: float,
        rngs: nnx.Rngs,
    ) -> None:
        self.channels = channels
        self.reductions = reductions
        self.pooling = pooling
        self.dropout = dropout
        self.features_only = features_only
        self.embedding_dim = channels[-1] * (2 if pooling == "avgmax" else 1)
        headless = features_only or num_outputs == 0
        self.head = None if headless else Linear(self.embedding_dim, num_outputs, dtype=jnp.float32, rngs=rngs)

    def pyramid(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> list[jax.Array]:
        """Feature maps `[B, H / r, W / r, C]` for r in `reductions`, C in `channels`, of an image `[B, H, W, in]`."""
        raise NotImplementedError

    def features(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> jax.Array:
        """The coarsest feature map `[B, H', W', C]`."""
        return self.pyramid(x, train, key)[-1]

    def embed(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> jax.Array:
        """The pooled embedding, float32 `[B, embedding_dim]`."""
        return global_pool(self.features(x, train, key), self.pooling)

    def __call__(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> Any:
        """Logits float32 `[B, num_outputs]`; the pyramid if `features_only`; the embedding without a head.

        Args:
            x: image `[B, H, W, in_channels]`.
            train: use (and record) batch statistics and drop units.
            key: randomness of dropout; needed in training when the rate is above 0.
        """
        if self.features_only:
            return self.pyramid(x, train, key)
        trunk, top = (None, None) if key is None else jax.random.split(key)
        embedding = self.embed(x, train, trunk)
        return embedding if self.head is None else self.head(dropout(embedding, self.dropout, top, train))
