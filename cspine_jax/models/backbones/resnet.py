"""ResNet (He et al. 2016) and ResNeXt (Xie et al. 2017) as torchvision builds them, ResNet-D (He et al. 2019) as timm.

The stride of a bottleneck is on its 3x3. The D form has a stem of three 3x3 convolutions, shortcuts that average before
they project, and residual branches that start at zero. Kernels are He-normal by fan-out. Maps may have any number of
leading axes, `[..., H, W, C]`, so that `inflated` can run the same network on volumes.
"""

import dataclasses
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cspine_jax.models.backbones.base import Backbone, Options, linear_rates, run_blocks
from cspine_jax.models.conv import max_pool
from cspine_jax.models.layers import ConvNorm, Keys, drop_path, torch_default


@dataclasses.dataclass(frozen=True)
class Config:
    """A variant.

    Attributes:
        blocks: residual blocks a stage.
        bottleneck: blocks of 1x1, 3x3, 1x1 convolutions, the last expanding by four, instead of two 3x3.
        width: channels of the stem and of the first stage's blocks; doubled at each later stage.
        groups: of a bottleneck's 3x3.
        base_width: channels of a group of that 3x3 where a block's `features` are 64.
        d: the D form.
    """

    blocks: tuple[int, ...]
    bottleneck: bool
    width: int = 64
    groups: int = 1
    base_width: int = 64
    d: bool = False
    pooling: str = "avg"
    dropout: float = 0.0
    drop_path: float = 0.0

    @property
    def expansion(self) -> int:
        """Output channels of a block over its `features`."""
        return 4 if self.bottleneck else 1


VARIANTS: dict[str, Config] = {
    "resnet18": Config(blocks=(2, 2, 2, 2), bottleneck=False),
    "resnet18d": Config(blocks=(2, 2, 2, 2), bottleneck=False, d=True),
    "resnet50": Config(blocks=(3, 4, 6, 3), bottleneck=True),
    "resnext50_32x4d": Config(blocks=(3, 4, 6, 3), bottleneck=True, groups=32, base_width=4),
}

_RULES = (
    (r"^head\.", "fc."),
    (r"^stem\.conv\.", "conv1."),
    (r"^stem\.(convs\.2\.)?bn\.", "bn1."),
    (r"^stem\.convs\.(\d+)\.(conv|bn)\.", lambda m: f"conv1.{3 * int(m[1]) + (m[2] == 'bn')}."),
    (r"^layers\.(\d+)\.", lambda m: f"layer{int(m[1]) + 1}."),
    (r"\.convs\.(\d+)\.(conv|bn)\.", lambda m: f".{m[2]}{int(m[1]) + 1}."),
    (r"\.downsample\.(conv|bn)\.", lambda m: f".downsample.{int(m[1] == 'bn')}."),
    (r"\.downsample\.project\.(conv|bn)\.", lambda m: f".downsample.{1 + (m[1] == 'bn')}."),
)
NAMES = {"torchvision": _RULES, "timm": _RULES}
"""Rules from this module's parameter names to those of state dicts, see `pretrained.torch_name`."""


def halve(x: jax.Array) -> jax.Array:
    """Means of 2x2 cells, `[..., H, W, C]` -> `[..., ceil(H / 2), ceil(W / 2), C]`; cells cut by the far edge average
    what they have (torch's ceil_mode without count_include_pad).
    """
    edges = [(0, 0)] * (x.ndim - 3) + [(0, x.shape[-3] % 2), (0, x.shape[-2] % 2), (0, 0)]
    x = jnp.pad(x, edges, mode="edge")
    x = x[..., ::2, :, :] + x[..., 1::2, :, :]
    return (x[..., ::2, :] + x[..., 1::2, :]) / 4


class AverageProjection(nnx.Module):
    """The D form's shortcut where shape changes: 2x2 means if it strides, 1x1 convolution, batch normalisation."""

    def __init__(self, in_features: int, out_features: int, *, stride: int, layer: dict[str, Any]):
        self.stride = stride
        self.project = ConvNorm(in_features, out_features, 1, activation=None, **layer)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[..., H, W, in]` -> `[..., H / stride, W / stride, out]`."""
        return self.project(x if self.stride == 1 else halve(x), train)


class DeepStem(nnx.Module):
    """The D form's stem: three 3x3 convolutions, the first of stride 2, the first two of half the width."""

    def __init__(self, in_channels: int, features: int, layer: dict[str, Any]):
        half = features // 2
        first = ConvNorm(in_channels, half, 3, stride=2, **layer)
        self.convs = nnx.List([first, ConvNorm(half, half, 3, **layer), ConvNorm(half, features, 3, **layer)])

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[..., H, W, in]` -> `[..., H / 2, W / 2, features]`."""
        for conv in self.convs:
            x = conv(x, train)
        return x


class Block(nnx.Module):
    """Two or three convolutions and a shortcut, which is projected where the shape changes."""

    def __init__(self, in_features: int, features: int, *, stride: int, config: Config, layer: dict[str, Any]):
        out = features * config.expansion
        last = {"activation": None, "scale": 0.0 if config.d else 1.0, **layer}
        if config.bottleneck:
            width = features * config.base_width // 64 * config.groups
            first = ConvNorm(in_features, width, 1, **layer)
            middle = ConvNorm(width, width, 3, stride=stride, groups=config.groups, **layer)
            self.convs = nnx.List([first, middle, ConvNorm(width, out, 1, **last)])
        else:
            first = ConvNorm(in_features, features, 3, stride=stride, **layer)
            self.convs = nnx.List([first, ConvNorm(features, out, 3, **last)])
        if stride == 1 and in_features == out:
            self.downsample = None
        elif config.d:
            self.downsample = AverageProjection(in_features, out, stride=stride, layer=layer)
        else:
            self.downsample = ConvNorm(in_features, out, 1, stride=stride, activation=None, **layer)

    def __call__(self, x: jax.Array, train: bool, rate: float, key: jax.Array | None) -> jax.Array:
        """`[..., H, W, in]` -> `[..., H / stride, W / stride, out]`; `rate` of stochastic depth of the branch."""
        y = x
        for conv in self.convs:
            y = conv(y, train)
        shortcut = x if self.downsample is None else self.downsample(x, train)
        return jax.nn.relu(shortcut + drop_path(y, rate, key, train))


class ResNet(Backbone):
    """Stem, stages; the pyramid spans 2 (stem), 4, 8, 16, 32 pixels a cell."""

    def __init__(self, config: Config, options: Options):
        self.drop_path = options.drop_path
        layer = options.layer
        self.stem = (
            DeepStem(options.in_channels, config.width, layer)
            if config.d
            else ConvNorm(options.in_channels, config.width, 7, stride=2, **layer)
        )
        channels = [config.width]
        stages = []
        for stage, count in enumerate(config.blocks):
            features, stride = config.width * 2**stage, 1 if stage == 0 else 2
            blocks = [Block(channels[-1], features, stride=stride, config=config, layer=layer)]
            channels.append(features * config.expansion)
            blocks += [Block(channels[-1], features, stride=1, config=config, layer=layer) for _ in range(1, count)]
            stages.append(nnx.List(blocks))
        self.layers = nnx.List(stages)
        reductions = tuple(2 ** (k + 1) for k in range(len(channels)))
        self._finish(tuple(channels), reductions, options, head_init=torch_default)

    def pyramid(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> list[jax.Array]:
        """Maps at 1/2, 1/4, 1/8, 1/16, 1/32 of `[..., H, W, in]`, sizes rounded up."""
        rates, keys = iter(linear_rates(self.drop_path, sum(map(len, self.layers)), reached=True)), Keys(key)
        levels = [self.stem(x, train)]
        x = max_pool(levels[0].reshape(-1, *levels[0].shape[-3:]), 3, 2, 1)
        x = x.reshape(*levels[0].shape[:-3], *x.shape[1:])
        for stage in self.layers:
            x = run_blocks(stage, x, train, list(islice(rates, len(stage))), keys())
            levels.append(x)
        return levels


build = ResNet
