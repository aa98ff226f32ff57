"""RegNet-Y (Radosavovic et al. 2020): residual bottlenecks of grouped convolutions with squeeze-and-excitation.

Depths and widths are those that the paper's rule gives: widths w_0 + w_a k of block k, rounded to powers of w_m times
w_0, then to multiples of the group width. Kernels are He-normal by fan-out, the head normal with deviation 0.01.
"""

import dataclasses
from itertools import islice
from typing import Any

import jax
from flax import nnx

from cspine_jax.models.backbones.base import Backbone, Options, linear_rates, run_blocks
from cspine_jax.models.layers import ConvNorm, Keys, SqueezeExcite, drop_path


@dataclasses.dataclass(frozen=True)
class Config:
    """A variant.

    Attributes:
        blocks: residual blocks a stage.
        widths: channels of each stage.
        group_width: channels of a group of the 3x3 convolutions.
        stem: channels of the first convolution.
    """

    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    group_width: int
    stem: int = 32
    pooling: str = "avg"
    dropout: float = 0.0
    drop_path: float = 0.0


VARIANTS: dict[str, Config] = {
    "regnet_y_8gf": Config(blocks=(2, 4, 10, 1), widths=(224, 448, 896, 2016), group_width=56),
}

NAMES = {
    "torchvision": (
        (r"^head\.", "fc."),
        (r"^stages\.(\d+)\.(\d+)\.", lambda m: f"trunk_output.block{int(m[1]) + 1}.block{int(m[1]) + 1}-{m[2]}."),
        (r"\.(a|b|c|se)\.", r".f.\1."),
        (r"\.conv\.", ".0."),
        (r"\.bn\.", ".1."),
    ),
    "timm": (
        (r"^head\.", "head.fc."),
        (r"^stages\.(\d+)\.(\d+)\.", lambda m: f"s{int(m[1]) + 1}.b{int(m[2]) + 1}."),
        (r"\.([abc])\.", lambda m: f".conv{'abc'.index(m[1]) + 1}."),
        (r"\.proj\.", ".downsample."),
    ),
}
"""Rules from this module's parameter names to those of state dicts, see `pretrained.torch_name`."""


class Block(nnx.Module):
    """1x1, grouped 3x3, gate, 1x1, and a shortcut, which is projected where the shape changes.

    The bottleneck is as wide as its output; the gate squeezes to a quarter of the block's input.
    """

    def __init__(self, in_features: int, features: int, *, stride: int, group_width: int, layer: dict[str, Any]):
        self.a = ConvNorm(in_features, features, 1, **layer)
        self.b = ConvNorm(features, features, 3, stride=stride, groups=features // group_width, **layer)
        self.se = SqueezeExcite(features, in_features // 4, **layer)
        self.c = ConvNorm(features, features, 1, activation=None, **layer)
        self.proj = (
            None
            if stride == 1 and in_features == features
            else ConvNorm(in_features, features, 1, stride=stride, activation=None, **layer)
        )

    def __call__(self, x: jax.Array, train: bool, rate: float, key: jax.Array | None) -> jax.Array:
        """`[B, H, W, in]` -> `[B, H / stride, W / stride, features]`; `rate` of stochastic depth of the branch."""
        y = self.c(self.se(self.b(self.a(x, train), train)), train)
        shortcut = x if self.proj is None else self.proj(x, train)
        return jax.nn.relu(shortcut + drop_path(y, rate, key, train))


class RegNet(Backbone):
    """Stem, four stages; the pyramid spans 2 (stem), 4, 8, 16, 32 pixels a cell."""

    def __init__(self, config: Config, options: Options):
        self.drop_path = options.drop_path
        self.stem = ConvNorm(options.in_channels, config.stem, 3, stride=2, **options.layer)
        channels = (config.stem, *config.widths)
        shared = {"group_width": config.group_width, "layer": options.layer}
        stages = []
        for width, features, count in zip(channels, config.widths, config.blocks, strict=False):
            blocks = [Block(width, features, stride=2, **shared)]
            stages.append(nnx.List(blocks + [Block(features, features, stride=1, **shared) for _ in range(1, count)]))
        self.stages = nnx.List(stages)
        reductions = tuple(2 ** (k + 1) for k in range(len(channels)))
        self._finish(channels, reductions, options, head_init=nnx.initializers.normal(0.01))

    def pyramid(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> list[jax.Array]:
        """Maps at 1/2, 1/4, 1/8, 1/16, 1/32 of `[B, H, W, in]`, sizes rounded up."""
        rates, keys = iter(linear_rates(self.drop_path, sum(map(len, self.stages)), reached=True)), Keys(key)
        levels = [self.stem(x, train)]
        for stage in self.stages:
            levels.append(run_blocks(stage, levels[-1], train, list(islice(rates, len(stage))), keys()))
        return levels


build = RegNet
