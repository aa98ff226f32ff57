"""A small residual CNN that two CPU cores can train: dense convolutions only, pooled by mean and maximum.

Squares of `fold` x `fold` pixels are first folded into channels and mixed by one matrix product, which keeps what a
strided stem would skip (a fracture gap is a pixel wide) and costs next to nothing; the 3x3 convolutions then work where
a CPU is fast: on small maps with many channels.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cspine_jax.models.backbones.base import Backbone, Options
from cspine_jax.models.layers import ConvNorm


@dataclasses.dataclass(frozen=True)
class Config:
    """Stages: the first works on folded pixels, each later one halves the resolution; then residual blocks.

    Attributes:
        fold: pixels of one side of a square that becomes channels.
        widths: channels a stage.
        blocks: residual blocks a stage.
    """

    fold: int = 4
    widths: tuple[int, ...] = (48, 64, 128)
    blocks: tuple[int, ...] = (0, 1, 1)
    pooling: str = "avgmax"
    dropout: float = 0.0
    drop_path: float = 0.0


VARIANTS: dict[str, Config] = {"basic_cnn": Config()}


class Block(nnx.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, features: int, layer: dict[str, Any]):
        self.first = ConvNorm(features, features, 3, **layer)
        self.second = ConvNorm(features, features, 3, activation=None, **layer)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[B, H, W, C]` -> same."""
        return jax.nn.relu(x + self.second(self.first(x, train), train))


class Stage(nnx.Module):
    """A convolution that changes width and resolution, then residual blocks."""

    def __init__(
        self, in_features: int, out_features: int, kernel: int, stride: int, blocks: int, layer: dict[str, Any]
    ):
        self.down = ConvNorm(in_features, out_features, kernel, stride=stride, **layer)
        self.blocks = nnx.List([Block(out_features, layer) for _ in range(blocks)])

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[B, H, W, in]` -> `[B, H / stride, W / stride, out]`."""
        x = self.down(x, train)
        for block in self.blocks:
            x = block(x, train)
        return x


def fold_pixels(x: jax.Array, fold: int) -> jax.Array:
    """`[B, H, W, C]` -> `[B, H / fold, W / fold, fold^2 C]`; what does not fill a square is padded with zeros."""
    b, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (0, -h % fold), (0, -w % fold), (0, 0)))
    h, w = x.shape[1] // fold, x.shape[2] // fold
    return x.reshape(b, h, fold, w, fold, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h, w, fold * fold * c)


class BasicCNN(Backbone):
    """See the module's docstring; the pyramid spans fold, 2 fold, 4 fold pixels a cell."""

    def __init__(self, config: Config, options: Options):
        self.fold = config.fold
        stages, width = [], options.in_channels * config.fold**2
        for k, (features, blocks) in enumerate(zip(config.widths, config.blocks, strict=True)):
            kernel, stride = (1, 1) if k == 0 else (3, 2)
            stages.append(Stage(width, features, kernel, stride, blocks, options.layer))
            width = features
        self.stages = nnx.List(stages)
        self._finish(config.widths, tuple(config.fold * 2**k for k in range(len(stages))), options)

    def pyramid(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> list[jax.Array]:
        """Maps at 1/4, 1/8, 1/16 (by default) of `[B, H, W, in]`."""
        del key
        x = fold_pixels(x, self.fold)
        levels = []
        for stage in self.stages:
            x = stage(x, train)
            levels.append(x)
        return levels


build = BasicCNN
