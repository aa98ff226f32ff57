"""ShuffleNetV2 (Ma et al. 2018) as torchvision builds it: half of the channels pass, half change, all interleave.

Kernels are torch's default, uniform within 1 / sqrt(fan-in). There is no residual branch that could be dropped: a rate
of stochastic depth has no effect.
"""

import dataclasses
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cspine_jax.models.backbones.base import Backbone, Options, run_blocks
from cspine_jax.models.conv import max_pool
from cspine_jax.models.layers import ConvNorm, torch_default


@dataclasses.dataclass(frozen=True)
class Config:
    """A variant.

    Attributes:
        stem: channels of the first convolution.
        widths: channels a stage.
        last: channels of the last, 1x1 convolution.
        blocks: blocks a stage.
    """

    stem: int
    widths: tuple[int, ...]
    last: int
    blocks: tuple[int, ...] = (4, 8, 4)
    pooling: str = "avg"
    dropout: float = 0.0
    drop_path: float = 0.0


VARIANTS: dict[str, Config] = {"shufflenet_v2_x2_0": Config(stem=24, widths=(244, 488, 976), last=2048)}


def _branch_part(m: re.Match) -> str:
    """Torchvision counts activations too: only the first convolution of the second branch has one that counts."""
    branch, conv, kind = m.groups()
    place = 2 * int(conv) + (branch == "2" and conv != "0") + (kind == "bn")
    return f".branch{branch}.{place}."


NAMES = {
    "torchvision": (
        (r"^head\.", "fc."),
        (r"^stages\.(\d+)\.", lambda m: f"stage{int(m[1]) + 2}."),
        (r"\.branch(\d)\.(\d)\.(conv|bn)\.", _branch_part),
        (r"\.conv\.", ".0."),
        (r"\.bn\.", ".1."),
    )
}
"""Rules from this module's parameter names to those of state dicts, see `pretrained.torch_name`."""


def interleave(a: jax.Array, b: jax.Array) -> jax.Array:
    """Channels a0, b0, a1, b1, ... of two maps `[B, H, W, C]`: the shuffle of two groups, at the price of a copy."""
    return jnp.stack([a, b], axis=-1).reshape(*a.shape[:-1], -1)


class Block(nnx.Module):
    """Two branches, interleaved; at stride 1 the first is half of the input as it is."""

    def __init__(self, in_features: int, features: int, *, stride: int, layer: dict[str, Any]):
        unit = partial(ConvNorm, kernel_init=torch_default, **layer)
        half = features // 2
        width = in_features if stride > 1 else half
        depthwise = partial(unit, kernel=3, stride=stride, activation=None)
        self.branch1 = nnx.List([depthwise(width, width, groups=width), unit(width, half, 1)]) if stride > 1 else None
        self.branch2 = nnx.List([unit(width, half, 1), depthwise(half, half, groups=half), unit(half, half, 1)])

    def __call__(self, x: jax.Array, train: bool, rate: float, key: jax.Array | None) -> jax.Array:
        """`[B, H, W, in]` -> `[B, H / stride, W / stride, features]`."""
        del rate, key
        a, b = (x, x) if self.branch1 is not None else jnp.split(x, 2, axis=-1)
        for conv in self.branch1 or ():
            a = conv(a, train)
        for conv in self.branch2:
            b = conv(b, train)
        return interleave(a, b)


class ShuffleNetV2(Backbone):
    """Stem, pooling, three stages, 1x1 convolution; the pyramid spans 2 (stem), 4 (pooled), 8, 16, 32 pixels a cell."""

    def __init__(self, config: Config, options: Options):
        unit = partial(ConvNorm, kernel_init=torch_default, **options.layer)
        self.conv1 = unit(options.in_channels, config.stem, 3, stride=2)
        stages, width = [], config.stem
        for features, count in zip(config.widths, config.blocks, strict=True):
            blocks = [Block(width, features, stride=2, layer=options.layer)]
            blocks += [Block(features, features, stride=1, layer=options.layer) for _ in range(1, count)]
            stages.append(nnx.List(blocks))
            width = features
        self.stages = nnx.List(stages)
        self.conv5 = unit(width, config.last, 1)
        channels = (config.stem, config.stem, *config.widths[:-1], config.last)
        self._finish(channels, tuple(2 ** (k + 1) for k in range(len(channels))), options, head_init=torch_default)

    def pyramid(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> list[jax.Array]:
        """Maps at 1/2, 1/4, 1/8, 1/16, 1/32 of `[B, H, W, in]`, sizes rounded up."""
        x = self.conv1(x, train)
        levels = [x]
        x = max_pool(x, 3, 2, 1)
        for stage in self.stages:
            levels.append(x)
            x = run_blocks(stage, x, train, [0.0] * len(stage), key)
        return [*levels, self.conv5(x, train)]


build = ShuffleNetV2
