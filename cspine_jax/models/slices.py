"""Document B's slice models: a backbone on a stack of slices, PReLU heads for fracture and vertebrae.

Fracture detection. Type 1: image -> one fracture probability a slice. Type 2: image and vertebra probabilities ->
fracture per vertebra. Type 3: image -> fracture per vertebra and, as a second output, the vertebra probabilities.
Vertebra detection. Type 1: image -> 7 probabilities. Type 2: image and metadata (where the slice is) -> the same.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from cspine_jax.anatomy import NUM_VERTEBRAE
from cspine_jax.config import ModelConfig
from cspine_jax.models import create
from cspine_jax.models.layers import Linear, PReLU, dropout

M = TypeVar("M", bound=nnx.Module)


class Head(nnx.Module):
    """Linear, PReLU, dropout, Linear; float32 logits."""

    def __init__(self, in_features: int, hidden: int, out_features: int, *, dropout: float, rngs: nnx.Rngs):
        self.dropout = dropout
        self.hidden = Linear(in_features, hidden, dtype=jnp.float32, rngs=rngs)
        self.prelu = PReLU()
        self.out = Linear(hidden, out_features, dtype=jnp.float32, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> jax.Array:
        """`[B, in]` -> logits `[B, out]`."""
        return self.out(dropout(self.prelu(self.hidden(x)), self.dropout, key, train))


class LevelHead(nnx.Module):
    """A head for the fracture of each vertebra: what all levels share, plus what is particular to one.

    A broken C3 is rare (4% of the RSNA studies) but breaks like a C5: with one common logit every fracture teaches all
    seven outputs, and each level only has to learn how it differs. The particular part starts near nothing.
    """

    def __init__(self, in_features: int, hidden: int, dropout: float, rngs: nnx.Rngs):
        self.common = Head(in_features, hidden, 1, dropout=dropout, rngs=rngs)
        self.own = Head(in_features, hidden, NUM_VERTEBRAE, dropout=dropout, rngs=rngs)
        self.own.out.kernel[...] = 0.1 * self.own.out.kernel[...]

    def __call__(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> jax.Array:
        """`[B, in]` -> logits `[B, 7]`."""
        common, own = (None, None) if key is None else jax.random.split(key)
        return self.common(x, train, common) + self.own(x, train, own)


class SliceModel(nnx.Module):
    """A slice model of Type 1, 2 or 3 over any backbone."""

    def __init__(self, config: ModelConfig, depth: int, *, rngs: nnx.Rngs, dtype: Any = None):
        """Builds it.

        Args:
            config: type, backbone, dropout, hidden width of the heads.
            depth: D slices of a stack: the image's channels.
            rngs: randomness of the initial weights.
            dtype: type the backbone computes in (jnp.bfloat16 for mixed precision); parameters, heads are float32.
        """
        self.type = config.type
        self.backbone = create(
            config.backbone, in_channels=depth, num_outputs=0, pooling="avgmax", dtype=dtype, rngs=rngs
        )
        width = self.backbone.embedding_dim

        def head(in_features: int, out_features: int) -> Head:
            return Head(in_features, config.hidden, out_features, dropout=config.dropout, rngs=rngs)

        evidence = width + (NUM_VERTEBRAE if self.type == 2 else 0)
        self.fracture = (
            head(evidence, 1) if self.type == 1 else LevelHead(evidence, config.hidden, config.dropout, rngs)
        )
        self.vertebra = head(width, NUM_VERTEBRAE) if self.type == 3 else None

    def __call__(
        self,
        image: jax.Array,
        vertebra_probs: jax.Array | None = None,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Logits of a batch of stacks.

        Args:
            image: windowed stacks `[B, H, W, D]`, 0..1.
            vertebra_probs: `[B, 7]`, read by Type 2 only, which cannot do without.
            train: use (and record) batch statistics, drop units.
            key: randomness of dropout, needed in training.

        Returns:
            `fracture`: float32 logits `[B, 7]` (Type 1: `[B, 1]`); `vertebra`: float32 logits `[B, 7]` (Type 3 only).

        Raises:
            ValueError: Type 2 without `vertebra_probs`.
        """
        keys = [None] * 3 if key is None else list(jax.random.split(key, 3))
        embedding = self.backbone.embed(image, train, keys[0])
        evidence = embedding
        if self.type == 2:
            if vertebra_probs is None:
                raise ValueError("a Type 2 model reads vertebra_probs [B, 7]: pass the batch's")
            evidence = jnp.concatenate([embedding, vertebra_probs.astype(embedding.dtype)], axis=-1)
        outputs = {"fracture": self.fracture(evidence, train, keys[1])}
        if self.vertebra is not None:
            outputs["vertebra"] = self.vertebra(embedding, train, keys[2])
        return outputs


class VertebraModel(nnx.Module):
    """Document B's vertebra detection of Type 1 or 2 over any backbone."""

    def __init__(self, config: ModelConfig, depth: int, num_metadata: int, *, rngs: nnx.Rngs, dtype: Any = None):
        """Builds it.

        Args:
            config: type, backbone, dropout, hidden width of the head.
            depth: D slices of a stack: the image's channels.
            num_metadata: M numbers a slice that Type 2 reads beside the image.
            rngs: randomness of the initial weights.
            dtype: type the backbone computes in; parameters and head are float32.
        """
        self.type = config.type
        self.backbone = create(
            config.backbone, in_channels=depth, num_outputs=0, pooling="avgmax", dtype=dtype, rngs=rngs
        )
        width = self.backbone.embedding_dim + (num_metadata if self.type == 2 else 0)
        self.vertebra = Head(width, config.hidden, NUM_VERTEBRAE, dropout=config.dropout, rngs=rngs)

    def __call__(
        self,
        image: jax.Array,
        metadata: jax.Array | None = None,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Float32 logits `[B, 7]` of windowed stacks `[B, H, W, D]`; `metadata` `[B, M]` is read by Type 2 only.

        Raises:
            ValueError: Type 2 without `metadata`.
        """
        keys = [None] * 2 if key is None else list(jax.random.split(key))
        evidence = self.backbone.embed(image, train, keys[0])
        if self.type == 2:
            if metadata is None:
                raise ValueError("a Type 2 model reads metadata [B, M]: pass the batch's")
            evidence = jnp.concatenate([evidence, metadata.astype(evidence.dtype)], axis=-1)
        return self.vertebra(evidence, train, keys[1])


def init_model(build: Callable[[nnx.Rngs], M], key: jax.Array) -> tuple[nnx.GraphDef[M], nnx.State]:
    """Builds a module with all of its arrays made in one compiled program (eager initialisation takes many seconds).

    Args:
        build: makes the module from its `Rngs`, e.g. `lambda rngs: SliceModel(config, 5, rngs=rngs)`.
        key: seed of the weights.

    Returns:
        `(graphdef, state)`: `nnx.merge(graphdef, state)` is the module; `state` is a pytree of arrays, to be split
        further with `nnx.split_state(state, nnx.Param, ...)`.
    """
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    state = jax.jit(lambda k: nnx.state(build(nnx.Rngs(k))))(key)
    return graphdef, state
