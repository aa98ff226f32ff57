"""An image network applied to every slice of a sequence: the 2D half of the 2.5D models."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from cspine_jax.models import create


class SliceEncoder(nnx.Module):
    """`[B, T, H, W, C]` -> embeddings `[B, T, E]` by one backbone that all slices share.

    Padding. In evaluation each slice is by itself, so padding cannot reach another; its embedding is zero. In training
    batch normalisation mixes slices, so the padded ones are first replaced by the same study's own, in turn: only real
    slices enter the statistics (some twice), and nothing moves between the shards of a batch. A study without any
    valid slice is left as it is.
    """

    def __init__(
        self,
        backbone: str,
        *,
        in_channels: int,
        pooling: str | None = None,
        drop_path: float | None = None,
        chunk: int | None = None,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        """Builds it.

        Args:
            backbone: one of `models.names()`.
            in_channels: C.
            pooling: of the backbone's map, see `models.create`; None for the family's own.
            drop_path: stochastic depth; None for the variant's own.
            chunk: slices of each study that pass through the backbone at a time; None for all. Activations of one chunk
                only are in memory: the backward pass computes them again. Batch statistics are then of a chunk.
            dtype: type the backbone computes in; parameters and embeddings are float32.
            rngs: randomness of the initial weights.
        """
        self.chunk = chunk
        self.backbone = create(
            backbone,
            in_channels=in_channels,
            num_outputs=0,
            pooling=pooling,
            drop_path=drop_path,
            dtype=dtype,
            rngs=rngs,
        )
        self.out_features = self.backbone.embedding_dim

    def __call__(
        self, image: jax.Array, mask: jax.Array | None = None, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        """Embeddings of all slices.

        Args:
            image: `[B, T, H, W, C]`.
            mask: bool `[B, T]`, false on padding, whatever (even NaN) is in it.
            train: use and record batch statistics.
            key: randomness of stochastic depth.

        Returns:
            Float32 `[B, T, E]`, zero on padding.
        """
        if mask is not None and train:
            image = fill_padding(image, mask)
        y = self._embed(image, train, key) if self.chunk is None else self._by_chunks(image, self.chunk, train, key)
        return y if mask is None else jnp.where((mask > 0)[..., None], y, 0.0)

    def _embed(self, image: jax.Array, train: bool, key: jax.Array | None) -> jax.Array:
        B, T = image.shape[:2]
        return self.backbone.embed(image.reshape(B * T, *image.shape[2:]), train, key).reshape(B, T, -1)

    def _by_chunks(self, image: jax.Array, size: int, train: bool, key: jax.Array | None) -> jax.Array:
        B, T = image.shape[:2]
        count = -(-T // size)
        image = jnp.take(image, jnp.arange(count * size) % T, axis=1)
        chunks = jnp.moveaxis(image.reshape(B, count, size, *image.shape[2:]), 1, 0)
        keys = None if key is None else jax.random.split(key, count)
        graph, stats, rest = nnx.split(self, nnx.BatchStat, ...)

        @jax.checkpoint
        def step(stats: nnx.State, each: tuple[jax.Array, jax.Array | None]) -> tuple[nnx.State, jax.Array]:
            encoder = nnx.merge(graph, stats, rest, copy=True)
            y = encoder._embed(each[0], train, each[1])
            return nnx.state(encoder, nnx.BatchStat), y

        stats, y = lax.scan(step, stats, (chunks, keys))
        if train:
            nnx.update(self, stats)
        return jnp.moveaxis(y, 0, 1).reshape(B, count * size, -1)[:, :T]


def fill_padding(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Replaces each padded element by a valid one of the same row, taken in turn.

    Args:
        x: `[B, T, ...]`.
        mask: `[B, T]`, above 0 where valid. A row without any stays as it is.

    Returns:
        `[B, T, ...]`.
    """
    padded = mask <= 0
    valid_first = jnp.argsort(padded, axis=1, stable=True)
    count = jnp.maximum((~padded).sum(1, keepdims=True), 1)
    turn = (jnp.cumsum(padded, axis=1) - 1) % count
    stay = jnp.broadcast_to(jnp.arange(mask.shape[1])[None], mask.shape)
    source = jnp.where(padded & (~padded).any(1, keepdims=True), jnp.take_along_axis(valid_first, turn, axis=1), stay)
    return jax.vmap(lambda row, at: row[at])(x, source)
