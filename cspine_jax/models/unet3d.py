"""3D residual UNet (Cicek et al. 2016; residual units as in Milletari et al. 2016), fast enough for a laptop.

Two things make it so. The volume enters packed: eight voxels of 2 x 2 x 2 are the channels of one coarser voxel, so
the costliest level runs on an eighth of the voxels and the last layer unpacks again (sub-pixel convolution, Shi et
al. 2016). And halving and doubling are packing and repeating, with 1 x 1 x 1 convolutions around them.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cspine_jax.models.layers import BatchNorm
from cspine_jax.models.layers3d import PACK, Conv3d, double, pack, unpack

MOMENTUM = 0.03  # few volumes a batch: statistics over about thirty steps


class Unit(nnx.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, in_features: int, features: int, size: int = 3, *, dtype: Any, rngs: nnx.Rngs):
        self.conv = Conv3d(in_features, features, size, dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(features, momentum=MOMENTUM, dtype=dtype)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[B, D, H, W, in]` -> `[B, D, H, W, features]`."""
        return jax.nn.relu(self.bn(self.conv(x), train))


class Residual(nnx.Module):
    """Two 3 x 3 x 3 convolutions and the identity."""

    def __init__(self, features: int, *, dtype: Any, rngs: nnx.Rngs):
        self.first = Unit(features, features, dtype=dtype, rngs=rngs)
        self.conv = Conv3d(features, features, 3, dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(features, momentum=MOMENTUM, dtype=dtype)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Same shape out."""
        return jax.nn.relu(x + self.bn(self.conv(self.first(x, train)), train))


class UNet3d(nnx.Module):
    """`[B, d, h, w, in]` -> logits, where d, h and w are multiples of `multiple`.

    Args:
        in_features: channels in.
        out_features: channels out.
        widths: features of each level, finest first.
        unpacked: the output has twice the input's resolution along each axis.
        light: only a convolution in and one out at the finest level, where most of the time goes; the residual blocks
            begin one level below. For tasks that need context more than detail.
        dtype: type computed in (parameters, batch-norm statistics and logits are float32).
        rngs: randomness of the initial weights.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        widths: Sequence[int],
        *,
        unpacked: bool = False,
        light: bool = False,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        def make(kind: type, *args: Any) -> Any:
            return kind(*args, dtype=dtype, rngs=rngs)

        self.unpacked = unpacked
        self.multiple = PACK ** (len(widths) - 1)
        self.stem = make(Unit, in_features, widths[0])
        self.light = light
        self.encoder = nnx.List([make(Residual, width) for width in widths[light:]])
        pairs = list(itertools.pairwise(widths))
        self.down = nnx.List([make(Unit, PACK**3 * fine, coarse, 1) for fine, coarse in pairs])
        self.up = nnx.List([make(Unit, coarse, fine, 1) for fine, coarse in pairs])
        self.merge = nnx.List([make(Unit, 2 * fine, fine) for fine, _ in pairs])
        self.decoder = nnx.List([make(Unit, fine, fine) for fine, _ in pairs[light:]])
        self.head = Conv3d(
            widths[0], out_features * (PACK**3 if unpacked else 1), 1, bias=True, dtype=jnp.float32, rngs=rngs
        )

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits, float32.

        Args:
            x: `[B, d, h, w, in]`.
            train: use and record the batch's statistics.

        Returns:
            `[B, d, h, w, out]`, or `[B, 2d, 2h, 2w, out]` where `unpacked`.

        Raises:
            ValueError: a side is not a multiple of `multiple`.
        """
        if any(side % self.multiple for side in x.shape[1:4]):
            raise ValueError(f"volume of {x.shape[1:4]} voxels: each side must be a multiple of {self.multiple}")
        x = self.stem(x, train)
        skips, first = [], int(self.light)
        for level in range(len(self.down) + 1):
            if level:
                x = self.down[level - 1](pack(x), train)
            if level >= first:
                x = self.encoder[level - first](x, train)
            skips.append(x)
        for level in reversed(range(len(self.up))):
            x = double(self.up[level](x, train))
            x = self.merge[level](jnp.concatenate([skips[level], x], axis=-1), train)
            if level >= first:
                x = self.decoder[level - first](x, train)
        x = self.head(x)
        return unpack(x) if self.unpacked else x
