"""An image network applied to every slice of a sequence: the 2D half of the 2.5D models."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from cspine_jax.models import create
from cspine_jax.models.layers import Keys, Linear, at_least_float32, global_pool

REDUCTION = 8
"""Pixels a cell of the map of breaks: a break is a line some pixels long."""

MAP_FEATURES = 128
"""Features of its cells."""

FIRST_BIAS = -4.0
"""Of that map's logits before training: a cell in fifty is inside a box."""


class SliceEncoder(nnx.Module):
    """`[B, T, H, W, C]` -> embeddings `[B, T, E]` by one backbone that all slices share.

    Padding. In evaluation each slice is by itself, so padding cannot reach another; its embedding is zero. In training
    batch normalisation mixes slices, so the padded ones are first replaced by the same study's own, in turn: only real
    slices enter the statistics (some twice), and nothing moves between the shards of a batch. A study without any
    valid slice is left as it is.

    With `where` there is a map of logits besides, of whether a cell shows a break, which boxes can teach (`losses.
    where_loss`). Its cells join what the backbone sees there at every scale from theirs on (as in feature pyramids, Lin
    et al. 2017). The embedding then ends with what is found: the features of the cells, weighed by the map's softmax,
    and the map's maximum. A break fills a few pixels, which the mean over a picture hides.
    """

    def __init__(
        self,
        backbone: str,
        *,
        in_channels: int,
        pooling: str | None = None,
        drop_path: float | None = None,
        chunk: int | None = None,
        where: bool = False,
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
            where: look for breaks on a map, too; `pooling` None is then "avg".
            dtype: type the backbone computes in; parameters and embeddings are float32.
            rngs: randomness of the initial weights.
        """
        self.chunk = chunk
        self.still = False  # set: works as in evaluation, whatever it is told
        self.pooling = pooling or "avg"
        self.backbone = create(
            backbone,
            in_channels=in_channels,
            num_outputs=0,
            pooling=self.pooling if where else pooling,
            drop_path=drop_path,
            dtype=dtype,
            rngs=rngs,
        )
        self.level = max(k for k, r in enumerate(self.backbone.reductions) if k == 0 or r <= REDUCTION)
        self.where = BreakMap(self.backbone.channels[self.level :], rngs=rngs) if where else None
        self.out_features = self.backbone.embedding_dim + where * (MAP_FEATURES + 1)

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
        return self.look(image, mask, train, key)[0]

    def look(
        self, image: jax.Array, mask: jax.Array | None = None, train: bool = False, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Embeddings as above, and the map of breaks: float32 logits `[B, T, h, w]`, of no meaning on padding, or None.

        A cell of the map is `REDUCTION` pixels high and wide, or as near as the backbone has a level.
        """
        train = train and not self.still
        if mask is not None and train:
            image = fill_padding(image, mask)
        y, found = (
            self._look(image, train, key) if self.chunk is None else self._by_chunks(image, self.chunk, train, key)
        )
        return y if mask is None else jnp.where((mask > 0)[..., None], y, 0.0), found

    def _look(self, image: jax.Array, train: bool, key: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
        B, T = image.shape[:2]
        flat = image.reshape(B * T, *image.shape[2:])
        if self.where is None:
            return self.backbone.embed(flat, train, key).reshape(B, T, -1), None
        levels = self.backbone.pyramid(flat, train, key)  # and not `embed` as well, which would record statistics twice
        found, features = self.where(levels[self.level :])
        share = jax.nn.softmax(found, axis=(1, 2))
        seen = jnp.einsum("bhw,bhwc->bc", share, features)
        y = jnp.concatenate([global_pool(levels[-1], self.pooling), seen, found.max((1, 2))[:, None]], axis=-1)
        return y.reshape(B, T, -1), found.reshape(B, T, *found.shape[1:])

    def _by_chunks(
        self, image: jax.Array, size: int, train: bool, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        B, T = image.shape[:2]
        count = -(-T // size)
        image = jnp.take(image, jnp.arange(count * size) % T, axis=1)
        chunks = jnp.moveaxis(image.reshape(B, count, size, *image.shape[2:]), 1, 0)
        keys = None if key is None else jax.random.split(key, count)
        graph, stats, rest = nnx.split(self, nnx.BatchStat, ...)

        @jax.checkpoint
        def step(stats: nnx.State, each: tuple[jax.Array, jax.Array | None]) -> tuple[nnx.State, Any]:
            encoder = nnx.merge(graph, stats, rest, copy=True)
            seen = encoder._look(each[0], train, each[1])
            return nnx.state(encoder, nnx.BatchStat), seen

        stats, seen = lax.scan(step, stats, (chunks, keys))
        if train:
            nnx.update(self, stats)
        return jax.tree.map(lambda y: jnp.moveaxis(y, 0, 1).reshape(B, count * size, *y.shape[3:])[:, :T], seen)


class BreakMap(nnx.Module):
    """Maps of a backbone, the finest `[B, h, w, C]` first, to a logit for each of the finest's cells."""

    def __init__(self, channels: Sequence[int], *, rngs: nnx.Rngs):
        """Builds it for maps of so many channels, each map half as high and wide as the one before."""
        self.sides = nnx.List([Linear(count, MAP_FEATURES, dtype=jnp.float32, rngs=rngs) for count in channels])
        self.out = Linear(MAP_FEATURES, 1, dtype=jnp.float32, rngs=rngs)
        self.out.bias = nnx.Param(jnp.full((1,), FIRST_BIAS, jnp.float32))

    def __call__(self, levels: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Logits `[B, h, w]`: whether a break is there; and the cells' features `[B, h, w, MAP_FEATURES]`."""
        joined = self.sides[-1](_wide(levels[-1]))
        for side, level in zip(self.sides[-2::-1], levels[-2::-1], strict=True):
            joined = side(_wide(level)) + enlarged(joined, level.shape[1], level.shape[2])
        features = jax.nn.relu(joined)
        return self.out(features)[..., 0], features


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(at_least_float32(x))


def enlarged(x: jax.Array, height: int, width: int) -> jax.Array:
    """`[B, h, w, C]` -> `[B, height, width, C]`: cells repeated by the power of two that fits best.

    Then cut, or the last ones once more, where the backbone rounds its sizes another way.
    """
    for axis, size in ((1, height), (2, width)):
        x = jnp.repeat(x, 2 ** round(math.log2(size / x.shape[axis])), axis=axis)
        short = [(0, 0)] * x.ndim
        short[axis] = (0, max(0, size - x.shape[axis]))
        x = lax.slice_in_dim(jnp.pad(x, short, "edge"), 0, size, axis=axis)
    return x


class SliceModel(nnx.Module):
    """A network whose `encoder` sees slices, and whose `_answer` is drawn from their embeddings alone."""

    encoder: SliceEncoder

    def __call__(
        self, image: jax.Array, mask: jax.Array | None = None, train: bool = False, key: jax.Array | None = None
    ) -> Any:
        """The answer.

        Args:
            image: crops, 0..1, `[B, T, H, W, C]`, from top to bottom.
            mask: bool `[B, T]`, false on padding and on absent vertebrae; None for none.
            train: use and record batch statistics, drop units.
            key: randomness of dropout, needed in training.

        Returns:
            Float32 logits as the class says; of no meaning where masked.
        """
        return self.look(image, mask, train, key)[0]

    def look(
        self, image: jax.Array, mask: jax.Array | None = None, train: bool = False, key: jax.Array | None = None
    ) -> tuple[Any, jax.Array | None]:
        """The answer, and the map of breaks `[B, T, h, w]` of `SliceEncoder.look`."""
        keys = Keys(key)
        embedding, found = self.encoder.look(image, mask, train, keys())
        return self._answer(embedding, mask, train, keys), found

    def _answer(self, embedding: jax.Array, mask: jax.Array | None, train: bool, keys: Keys) -> Any:
        """Logits, of embeddings `[B, T, E]`."""
        raise NotImplementedError


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
