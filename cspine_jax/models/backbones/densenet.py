"""DenseNet-BC (Huang et al. 2017) as torchvision builds it: every layer sees the outputs of all layers before it.

Kernels of convolutions are He-normal by fan-in. Every layer normalises all that it sees anew, so work and traffic grow
with the square of a block's depth whatever the form: one growing concatenation is as fast on a CPU, forward and
backward, as statistics shared between layers or slices of one buffer, and far faster than a product per part.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cspine_jax.models.backbones.base import Backbone, Options, require_size
from cspine_jax.models.conv import avg_pool, max_pool
from cspine_jax.models.layers import BatchNorm, Conv, ConvNorm, torch_default


@dataclasses.dataclass(frozen=True)
class Config:
    """A variant.

    Attributes:
        blocks: layers of each dense block.
        width: channels of the stem.
        growth: channels that each layer adds.
        bottleneck: channels between the two convolutions of a layer, in growths.
    """

    blocks: tuple[int, ...]
    width: int = 64
    growth: int = 32
    bottleneck: int = 4
    pooling: str = "avg"
    dropout: float = 0.0
    drop_path: float = 0.0


VARIANTS: dict[str, Config] = {"densenet121": Config(blocks=(6, 12, 24, 16))}

_RULES = (
    (r"^stem\.conv\.", "features.conv0."),
    (r"^stem\.bn\.", "features.norm0."),
    (r"^blocks\.(\d)\.(\d+)\.", lambda m: f"features.denseblock{int(m[1]) + 1}.denselayer{int(m[2]) + 1}."),
    (r"^transitions\.(\d)\.", lambda m: f"features.transition{int(m[1]) + 1}."),
    (r"^norm\.", "features.norm5."),
    (r"^head\.", "classifier."),
)
NAMES = {
    "torchvision": _RULES,
    "timm": _RULES,
    "torchvision_file": (*_RULES, (r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2")),
}
"""Rules from this module's parameter names to those of state dicts, see `pretrained.torch_name`.

Files that torchvision published have the dotted names of the networks of its first versions.
"""

he_normal_in = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")


class DenseLayer(nnx.Module):
    """Normalisation, ReLU, 1x1 convolution; normalisation, ReLU, 3x3 convolution."""

    def __init__(self, in_features: int, config: Config, layer: dict[str, Any]):
        width = config.bottleneck * config.growth
        self.norm1 = BatchNorm(in_features, dtype=layer["dtype"])
        self.conv1 = Conv(in_features, width, 1, kernel_init=he_normal_in, **layer)
        self.norm2 = BatchNorm(width, dtype=layer["dtype"])
        self.conv2 = Conv(width, config.growth, 3, kernel_init=he_normal_in, **layer)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[B, H, W, in]` -> `[B, H, W, growth]`."""
        y = self.conv1(jax.nn.relu(self.norm1(x, train)))
        return self.conv2(jax.nn.relu(self.norm2(y, train)))


class Transition(nnx.Module):
    """Normalisation and ReLU; then a 1x1 convolution and means of 2x2 cells."""

    def __init__(self, in_features: int, out_features: int, layer: dict[str, Any]):
        self.norm = BatchNorm(in_features, dtype=layer["dtype"])
        self.conv = Conv(in_features, out_features, 1, kernel_init=he_normal_in, **layer)

    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """`[B, H, W, in]` -> the same, normalised, and `[B, H // 2, W // 2, out]`.

        Means are taken before the convolution: it is linear, and a quarter of the cells are a quarter of the work.
        """
        x = jax.nn.relu(self.norm(x, train))
        return x, self.conv(avg_pool(x, 2, 2))


class DenseNet(Backbone):
    """The pyramid spans 2 (stem), 4, 8, 16, 32 pixels a cell; a level is a block's output, normalised, after ReLU."""

    def __init__(self, config: Config, options: Options):
        layer = options.layer
        self.stem = ConvNorm(options.in_channels, config.width, 7, stride=2, kernel_init=he_normal_in, **layer)
        blocks, transitions, channels, width = [], [], [config.width], config.width
        for k, count in enumerate(config.blocks):
            layers = []
            for _ in range(count):
                layers.append(DenseLayer(width, config, layer))
                width += config.growth
            blocks.append(nnx.List(layers))
            channels.append(width)
            if k + 1 < len(config.blocks):
                transitions.append(Transition(width, width // 2, layer))
                width //= 2
        self.blocks = nnx.List(blocks)
        self.transitions = nnx.List(transitions)
        self.norm = BatchNorm(width, dtype=options.dtype)
        reductions = tuple(2 ** (k + 1) for k in range(len(channels)))
        self._finish(tuple(channels), reductions, options, head_init=torch_default)

    def pyramid(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> list[jax.Array]:
        """Maps at 1/2, 1/4, 1/8, 1/16, 1/32 of `[B, H, W, in]`; H and W at least 29.

        Sizes are rounded up to 1/4, down from there.

        Raises:
            ConfigError: the image is smaller.
        """
        del key
        require_size(x, 29, "densenet121")
        levels = [self.stem(x, train)]
        x = max_pool(levels[0], 3, 2, 1)
        for k, block in enumerate(self.blocks):
            for layer in block:
                x = jnp.concatenate([x, layer(x, train)], axis=-1)
            if k < len(self.transitions):
                level, x = self.transitions[k](x, train)
                levels.append(level)
        return [*levels, jax.nn.relu(self.norm(x, train))]


build = DenseNet
