"""Gold's form of segmenter: a 2D encoder inflated to 3D, and a UNet decoder over the volume.

The kernels of a 2D network get a depth of 3: the 2D kernel three times, divided by three (Carreira and Zisserman 2017).
On a volume that does not change along z the encoder then answers, away from the first and last slices, exactly as the
2D network does, so weights trained on pictures carry over; training makes the three differ. 1x1 kernels stay as they
are. Strides and pooling act in the plane only: stacks are a few to a few dozen slices, coarser than their pixels.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cspine_jax.errors import ConfigError
from cspine_jax.models import create
from cspine_jax.models.backbones.resnet import ResNet
from cspine_jax.models.conv import conv2d
from cspine_jax.models.layers import BatchNorm, Conv, he_normal_out
from cspine_jax.models.unet2d import pad_to_multiple
from cspine_jax.models.unet_encoder import decoder_plan, enlarge

DEPTH = 3


class InflatedConv(nnx.Module):
    """Convolution `[B, D, H, W, in]` -> `[B, D, H', W', out]` with kernels `[k, kh, kw, in, out]`, k = 1 or 3."""

    def __init__(self, conv: Conv):
        """Inflates `conv`."""
        self.stride, self.padding, self.groups, self.dtype = conv.stride, conv.padding, conv.groups, conv.dtype
        self.kernel = nnx.Param(thicken(conv.kernel[...]))
        self.bias = None if conv.bias is None else nnx.Param(conv.bias[...])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Zeros beyond the first and last slices."""
        dtype = self.dtype or x.dtype
        y = conv_planes(x.astype(dtype), self.kernel[...].astype(dtype), self.stride, self.padding, self.groups)
        return y if self.bias is None else y + self.bias[...].astype(dtype)[None, None, None, None]


def thicken(kernel: Any) -> Any:
    """Inflates `[kh, kw, in, out]`, of jax or numpy, to `[3, kh, kw, in, out]`; if 1x1, to `[1, 1, 1, in, out]`."""
    depth = 1 if kernel.shape[:2] == (1, 1) else DEPTH
    return (kernel[None] / depth).repeat(depth, axis=0)


def conv_planes(
    x: jax.Array,
    kernel: jax.Array,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    groups: int = 1,
) -> jax.Array:
    """3D cross-correlation that keeps the depth: neighbouring planes become channels of a 2D convolution.

    Args:
        x: `[B, D, H, W, C]`.
        kernel: `[k, kh, kw, C / groups, O]`, k odd.
        stride: in y and x.
        padding: zeros on both sides in y and x; k // 2 in z.
        groups: channel groups.

    Returns:
        `[B, D, H', W', O]`.
    """
    B, D, H, W, C = x.shape
    k, kh, kw, width, features = kernel.shape
    padded = jnp.pad(x, ((0, 0), (k // 2, k // 2), (0, 0), (0, 0), (0, 0))).reshape(B, -1, H, W, groups, width)
    planes = jnp.concatenate([padded[:, i : i + D] for i in range(k)], axis=-1).reshape(B * D, H, W, k * C)
    flat = jnp.transpose(kernel, (1, 2, 0, 3, 4)).reshape(kh, kw, k * width, features)
    y = conv2d(planes, flat, stride, padding, groups)
    return y.reshape(B, D, *y.shape[1:])


class Step(nnx.Module):
    """3x3x3 convolution, batch normalisation, ReLU."""

    def __init__(self, in_features: int, features: int, *, dtype: Any, rngs: nnx.Rngs):
        self.kernel = nnx.Param(he_normal_out(rngs.params(), (DEPTH, 3, 3, in_features, features), jnp.float32))
        self.bn = BatchNorm(features, dtype=dtype)
        self.dtype = dtype

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[B, D, H, W, in]` -> `[B, D, H, W, features]`."""
        dtype = self.dtype or x.dtype
        y = conv_planes(x.astype(dtype), self.kernel[...].astype(dtype), padding=(1, 1))
        return jax.nn.relu(self.bn(y, train))


class InflatedUNet(nnx.Module):
    """`[B, D, H, W, in]` -> logits `[B, D, H, W, num_classes]`."""

    def __init__(
        self,
        backbone: str = "resnet18",
        *,
        in_channels: int = 1,
        num_classes: int,
        width: int = 16,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        """Builds it.

        Args:
            backbone: a ResNet of `models.names()`.
            in_channels: channels of a voxel.
            num_classes: C, background included.
            width: decoder channels at full resolution; doubled at each coarser one, up to 16 times.
            dtype: type computed in; parameters and logits are float32.
            rngs: randomness of the initial weights.

        Raises:
            ConfigError: the backbone is not a ResNet.
        """
        encoder = create(backbone, in_channels=in_channels, features_only=True, dtype=dtype, rngs=rngs)
        if not isinstance(encoder, ResNet):
            raise ConfigError(f"model.backbone={backbone!r}: only ResNets are inflated; use resnet18d or resnet50")
        self.encoder = inflate(encoder)
        self.plan = decoder_plan(encoder.reductions)
        channels = dict(zip(encoder.reductions, encoder.channels, strict=True))
        features, steps = encoder.channels[-1], []
        for reduction in self.plan:
            out = width * min(reduction, 16)
            steps.append(Step(features + channels.get(reduction, 0), out, dtype=dtype, rngs=rngs))
            features = out
        self.steps = nnx.List(steps)
        self.head = Conv(features, num_classes, 1, bias=True, dtype=jnp.float32, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> jax.Array:
        """Float32 logits of every voxel; `key` for an encoder that drops units in training."""
        H, W = x.shape[2:4]
        x = pad_to_multiple(x, self.encoder.reductions[-1])
        full = x.shape[2:4]
        maps = self.encoder.pyramid(x, train, key)
        skips = dict(zip(self.encoder.reductions, maps, strict=True))
        y = maps[-1]
        for reduction, step in zip(self.plan, self.steps, strict=True):
            size = (full[0] // reduction, full[1] // reduction)
            y = _slicewise(lambda planes, size=size: enlarge(planes, size), y)
            skip = skips.get(reduction)
            y = step(y if skip is None else jnp.concatenate([skip, y], axis=-1), train)
        return _slicewise(self.head, y)[:, :, :H, :W]


def inflate(encoder: ResNet) -> ResNet:
    """Replaces every convolution of a network by its inflated form; the rest takes leading axes in any number."""
    modules = [module for _, module in nnx.iter_modules(encoder)]
    for module in modules:
        for name, value in list(vars(module).items()):
            if isinstance(value, Conv):
                setattr(module, name, InflatedConv(value))
    return encoder


def _slicewise(function: Any, x: jax.Array) -> jax.Array:
    """Applies a function of `[N, H, W, C]` to every slice of `[B, D, H, W, C]`."""
    y = function(x.reshape(-1, *x.shape[2:]))
    return y.reshape(*x.shape[:2], *y.shape[1:])
