"""VGG with batch normalisation (Simonyan and Zisserman 2015) as torchvision builds it: 3x3 convolutions, 2x2 pooling.

Kernels of convolutions are He-normal by fan-out, those of the hidden layers and the head normal with deviation 0.01.
Nine tenths of the parameters are in the hidden layers, which only the family's own embedding has.
"""

import dataclasses
import re
from typing import Any

import jax
from flax import nnx

from cspine_jax.models.backbones.base import Backbone, Options, require_size
from cspine_jax.models.conv import adaptive_avg_pool, max_pool
from cspine_jax.models.layers import BatchNorm, Conv, Linear, at_least_float32, dropout, flatten_chw


@dataclasses.dataclass(frozen=True)
class Config:
    """A variant.

    Attributes:
        blocks: convolutions before each pooling.
        widths: their channels.
        grid: side of the grid of cells that the hidden layers see.
        hidden: width of each of the two hidden layers, the family's own embedding.
        dropout: after either hidden layer.
    """

    blocks: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    grid: int = 7
    hidden: int = 4096
    pooling: str = "own"
    dropout: float = 0.5
    drop_path: float = 0.0


VARIANTS: dict[str, Config] = {"vgg16_bn": Config(blocks=(2, 2, 3, 3, 3))}


def _feature(m: re.Match) -> str:
    """Torchvision counts convolutions, normalisations, activations and poolings in one row."""
    stage, unit = int(m[1]), int(m[2])
    before = sum(3 * count + 1 for count in VARIANTS["vgg16_bn"].blocks[:stage])
    return f"features.{before + 3 * unit + (m[3] == 'bn')}."


NAMES = {
    "torchvision": (
        (r"^stages\.(\d)\.(\d)\.(conv|bn)\.", _feature),
        (r"^hidden\.(\d)\.", lambda m: f"classifier.{3 * int(m[1])}."),
        (r"^head\.", "classifier.6."),
    )
}
"""Rules from this module's parameter names to those of state dicts, see `pretrained.torch_name`."""


class Unit(nnx.Module):
    """3x3 convolution with a bias (of no use before a normalisation, but published), normalisation, ReLU."""

    def __init__(self, in_features: int, features: int, layer: dict[str, Any]):
        self.conv = Conv(in_features, features, 3, bias=True, **layer)
        self.bn = BatchNorm(features, dtype=layer["dtype"])

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[B, H, W, in]` -> `[B, H, W, features]`."""
        return jax.nn.relu(self.bn(self.conv(x), train))


class VGG(Backbone):
    """The pyramid is the map before each pooling, at 1/1, 1/2, 1/4, 1/8, 1/16, and the last one pooled, at 1/32."""

    def __init__(self, config: Config, options: Options):
        self.grid = config.grid
        stages, width = [], options.in_channels
        for count, features in zip(config.blocks, config.widths, strict=True):
            units = [Unit(width if k == 0 else features, features, options.layer) for k in range(count)]
            stages.append(nnx.List(units))
            width = features
        self.stages = nnx.List(stages)
        normal = nnx.initializers.normal(0.01)
        cells, hidden, layer = width * config.grid**2, config.hidden, {"kernel_init": normal, **options.layer}
        layers = [Linear(cells, hidden, **layer), Linear(hidden, hidden, **layer)] if options.own_embedding else []
        self.hidden = nnx.List(layers)
        reductions = tuple(2**k for k in range(len(stages) + 1))
        self._finish((*config.widths, width), reductions, options, hidden, normal)

    def pyramid(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> list[jax.Array]:
        """Maps at 1/1, 1/2, 1/4, 1/8, 1/16, 1/32 of `[B, H, W, in]`, sizes rounded down; H and W at least 32.

        Raises:
            ConfigError: the image is smaller.
        """
        del key
        require_size(x, 2 ** len(self.stages), "vgg16_bn")
        levels = []
        for stage in self.stages:
            for unit in stage:
                x = unit(x, train)
            levels.append(x)
            x = max_pool(x, 2, 2)
        return [*levels, x]

    def embed(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> jax.Array:
        """The embedding, float32 `[B, embedding_dim]`."""
        if not self.hidden:
            return super().embed(x, train, key)
        y = flatten_chw(adaptive_avg_pool(self.features(x, train), self.grid))
        for k, layer in enumerate(self.hidden):
            y = jax.nn.relu(layer(dropout(y, self.dropout, key, train and k > 0)))
        return y.astype(at_least_float32(y))


build = VGG
