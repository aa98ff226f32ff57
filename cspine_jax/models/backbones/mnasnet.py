"""MNASNet-B1 (Tan et al. 2019) as torchvision builds it: inverted residuals without gates.

Running statistics move by 1 - 0.9997 a step, as published: for its first thousands of steps a network trained from
scratch is evaluated with those of its start. Kernels He-normal by fan-out, the head uniform within sqrt(3 / outputs).
"""

import dataclasses
from functools import partial
from itertools import islice
from typing import NamedTuple

import jax
from flax import nnx

from cspine_jax.models.backbones.base import Backbone, Options, linear_rates, run_blocks
from cspine_jax.models.backbones.mobilenet import InvertedResidual
from cspine_jax.models.layers import ConvNorm, Keys


class Stage(NamedTuple):
    """Blocks of one width; the first of them has the stride.

    Attributes:
        kernel: side of the depthwise kernels.
        stride: 1 or 2.
        expand: hidden channels over input channels of each block.
        features: output channels.
        blocks: how many.
    """

    kernel: int
    stride: int
    expand: int
    features: int
    blocks: int


@dataclasses.dataclass(frozen=True)
class Config:
    """A variant.

    Attributes:
        stem: channels of the strided and of the separable convolution in front.
        stages: the blocks.
        last: channels of the last, 1x1 convolution.
        momentum: of batch statistics.
    """

    stem: tuple[int, int]
    stages: tuple[Stage, ...]
    last: int = 1280
    momentum: float = 1 - 0.9997
    pooling: str = "avg"
    dropout: float = 0.2
    drop_path: float = 0.0


_B1_3 = (
    Stage(3, 2, 3, 32, 3),
    Stage(5, 2, 3, 56, 3),
    Stage(5, 2, 6, 104, 3),
    Stage(3, 1, 6, 128, 2),
    Stage(5, 2, 6, 248, 4),
    Stage(3, 1, 6, 416, 1),
)

VARIANTS: dict[str, Config] = {"mnasnet1_3": Config(stem=(40, 24), stages=_B1_3)}

NAMES = {
    "torchvision": (
        (r"^head\.", "classifier.1."),
        (r"^last\.(conv|bn)\.", lambda m: f"layers.{14 + (m[1] == 'bn')}."),
        (r"^stem\.", "layers."),
        (r"^stages\.(\d+)\.", lambda m: f"layers.{8 + int(m[1])}."),
        (r"\.(\d+)\.(conv|bn)\.", lambda m: f".{3 * int(m[1]) + (m[2] == 'bn')}."),
    )
}
"""Rules from this module's parameter names to those of state dicts, see `pretrained.torch_name`."""


class MNASNet(Backbone):
    """Stem, stages, 1x1 convolution; the pyramid spans 2, 4, 8, 16, 32 pixels a cell.

    A level is the last map of its resolution.
    """

    def __init__(self, config: Config, options: Options):
        self.drop_path = options.drop_path
        unit = partial(ConvNorm, momentum=config.momentum, **options.layer)
        first, width = config.stem
        strided = unit(options.in_channels, first, 3, stride=2)
        separable = [unit(first, first, 3, groups=first), unit(first, width, 1, activation=None)]
        self.stem = nnx.List([strided, *separable])
        self.strides = tuple(stage.stride for stage in config.stages)
        stages, channels = [], []
        for kernel, stride, expand, features, count in config.stages:
            if stride > 1:
                channels.append(width)
            blocks = []
            for k in range(count):
                step = stride if k == 0 else 1
                blocks.append(InvertedResidual(width, expand * width, features, kernel, stride=step, unit=unit))
                width = features
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.last = unit(width, config.last, 1)
        channels.append(config.last)
        reductions = tuple(2 ** (k + 1) for k in range(len(channels)))
        uniform = nnx.initializers.variance_scaling(1.0, "fan_out", "uniform")
        self._finish(tuple(channels), reductions, options, head_init=uniform)

    def pyramid(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> list[jax.Array]:
        """Maps at 1/2, 1/4, 1/8, 1/16, 1/32 of `[B, H, W, in]`, sizes rounded up."""
        rates, keys = iter(linear_rates(self.drop_path, sum(map(len, self.stages)))), Keys(key)
        for conv in self.stem:
            x = conv(x, train)
        levels = []
        for stage, stride in zip(self.stages, self.strides, strict=True):
            if stride > 1:
                levels.append(x)
            x = run_blocks(stage, x, train, list(islice(rates, len(stage))), keys())
        return [*levels, self.last(x, train)]


build = MNASNet
