"""What every backbone shares: a pyramid of feature maps, a pooled embedding, a separable head."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
from flax import nnx

from cspine_jax.errors import ConfigError
from cspine_jax.models.layers import Keys, Linear, dropout, global_pool, lecun_normal

OWN = "own"
"""Pooling of a family whose embedding is more than a pooled map: hidden layers (VGG), a class token (ViT)."""


class Draws:
    """The keys that an `nnx.Rngs` would give, in its order, but its counter is moved once, by `close`.

    `nnx.Rngs` moves it at every draw, which takes time quadratic in the number of draws while a function is traced:
    most of the time of building a large network.
    """

    def __init__(self, rngs: nnx.Rngs):
        self._stream = rngs.params
        self._key, self._first, self._drawn = self._stream.key[...], self._stream.count[...], 0

    def params(self) -> jax.Array:
        """The next key."""
        key = jax.random.fold_in(self._key, self._first + self._drawn)
        self._drawn += 1
        return key

    def close(self) -> None:
        """Tells the `nnx.Rngs` how many were drawn."""
        self._stream.count[...] += self._drawn


@dataclasses.dataclass(frozen=True)
class Options:
    """What a caller of `create` may choose for any family.

    Attributes:
        in_channels: channels of the image.
        num_outputs: logits; 0 for the bare embedding.
        features_only: answer the pyramid instead of logits; then there is neither head nor own embedding.
        pooling: "avg", "max", "avgmax", or "own" where a family has one.
        dropout: rate before the head.
        drop_path: rate of stochastic depth at the last block; rises linearly from the first.
        aux_heads: build the auxiliary classifiers of googlenet and inception_v3.
        dtype: type computed in; None for that of the input.
        rngs: randomness of the initial weights.
    """

    in_channels: int
    num_outputs: int
    features_only: bool
    pooling: str
    dropout: float
    drop_path: float
    aux_heads: bool
    dtype: Any
    rngs: Any  # `Draws`, which layers take for an `nnx.Rngs`

    @property
    def layer(self) -> dict[str, Any]:
        """What every layer takes: `Conv(..., **options.layer)`."""
        return {"dtype": self.dtype, "rngs": self.rngs}

    @property
    def own_embedding(self) -> bool:
        """Whether the layers of the family's own embedding are wanted."""
        return self.pooling == OWN and not self.features_only


def linear_rates(rate: float, count: int, *, reached: bool = False) -> list[float]:
    """Rates of stochastic depth of `count` blocks, 0 at the first.

    The last falls one step short of `rate`, as in torchvision's convolutional networks; or has it (`reached`), as in
    its ConvNeXt and Swin.
    """
    steps = max(count - 1, 1) if reached else count
    return [rate * k / steps for k in range(count)]


def run_blocks(
    blocks: Iterable[Any], x: jax.Array, train: bool, rates: Sequence[Any], key: jax.Array | None
) -> jax.Array:
    """Residual blocks one after another.

    Args:
        blocks: modules called as `block(x, train, rate, key)`.
        x: `[B, ...]`.
        train: training mode.
        rates: of stochastic depth, one a block.
        key: randomness of all of them.
    """
    keys = Keys(key)
    for block, rate in zip(blocks, rates, strict=True):
        x = block(x, train, rate, keys())
    return x


def require_size(x: jax.Array, least: int, what: str) -> None:
    """Refuses images `[B, H, W, C]` on which unpadded windows would leave a map without a cell, and so no numbers.

    Args:
        x: the image.
        least: smallest side allowed.
        what: needs it.

    Raises:
        ConfigError: a side is smaller.
    """
    h, w = x.shape[1:3]
    if min(h, w) < least:
        raise ConfigError(f"images of {h} x {w} pixels: {what} needs {least} x {least} or more; enlarge them")


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
        options: Options,
        embedding_dim: int | None = None,
        head_init: nnx.Initializer = lecun_normal,
    ) -> None:
        """Notes the shapes and builds the head; `embedding_dim` is that of the family's own embedding."""
        self.channels = channels
        self.reductions = reductions
        self.pooling = options.pooling
        self.dropout = options.dropout
        self.features_only = options.features_only
        own = embedding_dim if options.own_embedding and embedding_dim is not None else channels[-1]
        self.embedding_dim = own * (2 if options.pooling == "avgmax" else 1)
        headless = options.features_only or options.num_outputs == 0
        self.head = (
            None
            if headless
            # in the type of the embedding, which is float32 at least
            else Linear(self.embedding_dim, options.num_outputs, kernel_init=head_init, rngs=options.rngs)
        )

    def pyramid(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> list[jax.Array]:
        """Feature maps `[B, H / r, W / r, C]` for r in `reductions`, C in `channels`, of an image `[B, H, W, in]`."""
        raise NotImplementedError

    def features(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> jax.Array:
        """The coarsest feature map `[B, H', W', C]`."""
        return self.pyramid(x, train, key)[-1]

    def embed(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> jax.Array:
        """The embedding, float32 `[B, embedding_dim]`: the coarsest map, pooled. Families with their own extend it."""
        return global_pool(self.features(x, train, key), self.pooling)

    def __call__(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> Any:
        """Logits float32 `[B, num_outputs]`; the pyramid if `features_only`; the embedding without a head.

        Args:
            x: image `[B, H, W, in_channels]`.
            train: use (and record) batch statistics and drop units.
            key: randomness of dropout and stochastic depth; needed in training when a rate is above 0.
        """
        if self.features_only:
            return self.pyramid(x, train, key)
        trunk, top = (None, None) if key is None else jax.random.split(key)
        return self._answer(self.embed(x, train, trunk), train, top)

    def with_auxiliary(
        self, x: jax.Array, train: bool = False, key: jax.Array | None = None
    ) -> tuple[Any, list[jax.Array]]:
        """What `__call__` answers, and float32 logits `[B, num_outputs]` of each auxiliary head, finest map first.

        Families without auxiliary heads, and networks built without `aux_heads`, have none of the latter. A loss adds
        theirs at a lower weight: 0.3 in Szegedy et al. 2015, 0.4 in common trainings of Inception v3.
        """
        return self(x, train, key), []

    def _answer(self, embedding: jax.Array, train: bool, key: jax.Array | None) -> jax.Array:
        return embedding if self.head is None else self.head(dropout(embedding, self.dropout, key, train))
