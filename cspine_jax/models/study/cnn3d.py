"""A 3D residual network on a whole study: what document B wanted next; factorised to (2+1)D by option.

Boxes of voxels are folded into channels and mixed by one matrix product, in the plane before the first stage and along
all three axes between stages, which is fast on a CPU (see `layers3d`). (2+1)D (Tran et al. 2018) splits each 3x3x3
convolution in a 3x3 one in the plane and one of 3 along z with an activation between: fewer weights, more layers, and
fit for slices that are further apart than their pixels. Everything beyond a study's own slices is kept at zero, which
is what a convolution finds beyond the edge of an unpadded one, and out of the batch statistics.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cspine_jax.anatomy import TARGETS
from cspine_jax.models.inflated import conv_planes
from cspine_jax.models.layers import Linear, dropout, he_normal_out
from cspine_jax.models.layers3d import Conv3d
from cspine_jax.models.study.heads import MaskedBatchNorm, masked_pool
from cspine_jax.models.study.volumes import Box, clear_padding, fold, fold_mask

HALVES: Box = (2, 2, 2)


class Unit(nnx.Module):
    """A convolution, batch normalisation over what is there, maybe ReLU; zero where the mask is false."""

    def __init__(self, conv: Any, features: int, *, activation: bool = True, dtype: Any):
        self.conv = conv
        self.bn = MaskedBatchNorm(features, dtype=dtype)
        self.activation = activation

    def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
        """`[B, D, H, W, in]` -> `[B, D, H, W, features]`; mask `[B, D]`."""
        y = self.bn(self.conv(x), train, mask)
        return clear_padding(jax.nn.relu(y) if self.activation else y, mask)


class AxisConv(nnx.Module):
    """Half of a factorised convolution: 3x3 in the plane, or 3 along z; the shape stays."""

    def __init__(self, in_features: int, features: int, *, along_z: bool, dtype: Any, rngs: nnx.Rngs):
        self.dtype = dtype
        size = (3, 1, 1) if along_z else (1, 3, 3)
        self.kernel = nnx.Param(he_normal_out(rngs.params(), (*size, in_features, features), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, D, H, W, in]` -> `[B, D, H, W, features]`."""
        dtype = self.dtype or x.dtype
        padding = (self.kernel.shape[1] // 2, self.kernel.shape[2] // 2)
        return conv_planes(x.astype(dtype), self.kernel[...].astype(dtype), padding=padding)


class Block(nnx.Module):
    """Two 3x3x3 convolutions, each maybe factorised, and the identity."""

    def __init__(self, features: int, *, factorised: bool, dtype: Any, rngs: nnx.Rngs):
        layer = {"dtype": dtype, "rngs": rngs}
        middle = 9 * features // 4  # (2+1)D then has as many weights as 3D: 9 C M + 3 M C = 27 C^2
        convs = []
        for _ in range(2):
            if factorised:
                convs.append((AxisConv(features, middle, along_z=False, **layer), middle))
                convs.append((AxisConv(middle, features, along_z=True, **layer), features))
            else:
                convs.append((Conv3d(features, features, 3, **layer), features))
        self.units = nnx.List(
            [Unit(conv, width, activation=k < len(convs) - 1, dtype=dtype) for k, (conv, width) in enumerate(convs)]
        )

    def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
        """Same shape out."""
        y = x
        for unit in self.units:
            y = unit(y, mask, train)
        return jax.nn.relu(x + y)


class Stage(nnx.Module):
    """Boxes of voxels mixed to one each, then residual blocks."""

    def __init__(
        self, in_features: int, features: int, box: Box, blocks: int, *, factorised: bool, dtype: Any, rngs: nnx.Rngs
    ):
        self.box = box
        mix = Conv3d(math.prod(box) * in_features, features, 1, dtype=dtype, rngs=rngs)
        self.mix = Unit(mix, features, dtype=dtype)
        self.blocks = nnx.List([Block(features, factorised=factorised, dtype=dtype, rngs=rngs) for _ in range(blocks)])

    def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool) -> tuple[jax.Array, jax.Array | None]:
        """`[B, D, H, W, in]` -> `[B, D / t, H / p, W / q, features]`, rounded up, and its mask."""
        mask = None if mask is None else fold_mask(mask, self.box[0])
        x = self.mix(fold(x, self.box), mask, train)
        for block in self.blocks:
            x = block(x, mask, train)
        return x, mask


class CNN3D(nnx.Module):
    """`[B, D, H, W, C]` -> logits `[B, 8]`; D of any length, H and W any size."""

    def __init__(
        self,
        *,
        in_channels: int = 6,
        stem: Box = (1, 4, 4),
        widths: Sequence[int] = (32, 64, 128, 256),
        blocks: Sequence[int] = (1, 1, 2, 2),
        factorised: bool = False,
        pooling: str = "avgmax",
        dropout: float = 0.2,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        """Builds it.

        Args:
            in_channels: C of a voxel.
            stem: voxels folded together along z, y and x before the first stage; two of each before every other one.
            widths: features of the stages.
            blocks: residual blocks of the stages.
            factorised: (2+1)D convolutions in place of 3D ones.
            pooling: over the voxels of the last map: "avg", "max" or "avgmax".
            dropout: rate before the last layer.
            dtype: type computed in; parameters, batch statistics and logits are float32.
            rngs: randomness of the initial weights.
        """
        self.pooling, self.dropout = pooling, dropout
        self.stages = nnx.List(
            [
                Stage(before, width, HALVES if k else stem, count, factorised=factorised, dtype=dtype, rngs=rngs)
                for k, ((before, width), count) in enumerate(
                    zip(itertools.pairwise((in_channels, *widths)), blocks, strict=True)
                )
            ]
        )
        self.head = Linear(widths[-1] * (2 if pooling == "avgmax" else 1), len(TARGETS), dtype=jnp.float32, rngs=rngs)

    def __call__(
        self, image: jax.Array, mask: jax.Array | None = None, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        """Logits of a batch of studies.

        Args:
            image: volumes, 0..1, `[B, D, H, W, C]`.
            mask: bool `[B, D]`, false on padding, whatever (even NaN) is in it; None for none.
            train: use and record batch statistics, drop units.
            key: randomness of dropout, needed in training.

        Returns:
            Float32 `[B, 8]`, in the order of `anatomy.TARGETS`.
        """
        x, there = clear_padding(image, mask), mask
        for stage in self.stages:
            x, there = stage(x, there, train)
        B, _, h, w, C = x.shape
        there = None if there is None else jnp.repeat(there, h * w, axis=1)
        embedding = masked_pool(x.reshape(B, -1, C), there, self.pooling)
        return self.head(dropout(embedding, self.dropout, key, train))
