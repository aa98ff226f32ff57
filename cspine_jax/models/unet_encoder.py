"""A UNet whose encoder is any backbone: its pyramid of feature maps is the skips; stacks of slices are its channels.

The decoder goes from the coarsest map to full resolution in steps of two: nearest-neighbour doubling, the skip of that
resolution where the backbone has one, two 3x3 convolutions. Below the finest skip there is none, as usual for encoders
that fold or stride their input at once.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cspine_jax.models import create
from cspine_jax.models.layers import Conv
from cspine_jax.models.unet2d import Double, pad_to_multiple


class EncoderUNet(nnx.Module):
    """`[B, H, W, in]` -> logits `[B, H, W, num_classes]`."""

    def __init__(
        self, backbone: str, *, in_channels: int, num_classes: int, width: int = 16, dtype: Any = None, rngs: nnx.Rngs
    ):
        """Builds it.

        Args:
            backbone: one of `models.names()`.
            in_channels: D slices of a stack.
            num_classes: C, background included.
            width: decoder channels at full resolution; doubled at each coarser one, up to 16 times.
            dtype: type computed in; parameters and logits are float32.
            rngs: randomness of the initial weights.
        """
        self.encoder = create(backbone, in_channels=in_channels, features_only=True, dtype=dtype, rngs=rngs)
        self.plan = decoder_plan(self.encoder.reductions)
        channels = dict(zip(self.encoder.reductions, self.encoder.channels, strict=True))
        features, steps = self.encoder.channels[-1], []
        for reduction in self.plan:
            out = width * min(reduction, 16)
            steps.append(Double(features + channels.get(reduction, 0), out, dtype=dtype, rngs=rngs))
            features = out
        self.steps = nnx.List(steps)
        self.head = Conv(features, num_classes, 1, bias=True, dtype=jnp.float32, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> jax.Array:
        """Float32 logits of every pixel; `key` for an encoder that drops units in training."""
        H, W = x.shape[1:3]
        x = pad_to_multiple(x, self.encoder.reductions[-1])
        full = x.shape[1:3]
        maps = self.encoder.pyramid(x, train, key)
        skips = dict(zip(self.encoder.reductions, maps, strict=True))
        y = maps[-1]
        for reduction, step in zip(self.plan, self.steps, strict=True):
            skip = skips.get(reduction)
            size = (full[0] // reduction, full[1] // reduction) if skip is None else skip.shape[1:3]
            y = enlarge(y, (size[0], size[1]))
            y = step(y if skip is None else jnp.concatenate([skip.astype(y.dtype), y], axis=-1), train)
        return self.head(y)[:, :H, :W]


def decoder_plan(reductions: tuple[int, ...]) -> tuple[int, ...]:
    """Resolutions the decoder goes through, in input pixels a cell, coarsest first, ending with 1.

    Every skip finer than the coarsest map, and halvings in between: (4, 8, 16) -> (8, 4, 2, 1).
    """
    plan, at = [], reductions[-1]
    while at > 1:
        finer = [r for r in reductions if r < at]
        at = max([*finer, at // 2]) if finer else at // 2
        plan.append(at)
    return tuple(plan)


def enlarge(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """`[B, H, W, C]` -> `[B, *size, C]` by nearest neighbours."""
    B, H, W, C = x.shape
    if size == (2 * H, 2 * W):
        doubled = jnp.broadcast_to(x[:, :, None, :, None], (B, H, 2, W, 2, C))
        return doubled.reshape(B, 2 * H, 2 * W, C)
    return jax.image.resize(x, (B, *size, C), "nearest")
