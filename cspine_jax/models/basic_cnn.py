"""A small residual CNN that two CPU cores can train: dense 3x3 convolutions only, pooled by mean and maximum.

The image is folded 2x2 into channels first (no pixel is lost, unlike in a strided stem: a fracture gap is a pixel
wide), and most of the work is done at a quarter and an eighth of the resolution.
"""

import dataclasses
from typing import Any

import jax
from flax import nnx

from cspine_jax.models.backbone import Backbone
from cspine_jax.models.layers import BatchNorm, Conv


@dataclasses.dataclass(frozen=True)
class Config:
    """Width of the stem and, per stage, width and residual blocks; each stage halves the resolution."""

    stem: int = 24
    widths: tuple[int, ...] = (32, 64, 128)
    blocks: tuple[int, ...] = (1, 1, 1)
    pooling: str = "avgmax"
    dropout: float = 0.0


VARIANTS: dict[str, Config] = {"basic_cnn": Config()}


class Unit(nnx.Module):
    """3x3 convolution, batch normalisation."""

    def __init__(self, in_features: int, out_features: int, *, stride: int = 1, dtype: Any, rngs: nnx.Rngs):
        self.conv = Conv(in_features, out_features, 3, stride=stride, dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(out_features, dtype=dtype)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[B, H, W, in]` -> `[B, H / stride, W / stride, out]`."""
        return self.bn(self.conv(x), train)


class Block(nnx.Module):
    """Two units and a shortcut."""

    def __init__(self, features: int, *, dtype: Any, rngs: nnx.Rngs):
        self.first = Unit(features, features, dtype=dtype, rngs=rngs)
        self.second = Unit(features, features, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[B, H, W, C]` -> same."""
        return jax.nn.relu(x + self.second(jax.nn.relu(self.first(x, train)), train))


class Stage(nnx.Module):
    """A strided unit that halves the resolution, then residual blocks."""

    def __init__(self, in_features: int, out_features: int, blocks: int, *, dtype: Any, rngs: nnx.Rngs):
        self.down = Unit(in_features, out_features, stride=2, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([Block(out_features, dtype=dtype, rngs=rngs) for _ in range(blocks)])

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[B, H, W, in]` -> `[B, H / 2, W / 2, out]`."""
        x = jax.nn.relu(self.down(x, train))
        for block in self.blocks:
            x = block(x, train)
        return x


def fold_pixels(x: jax.Array) -> jax.Array:
    """`[B, H, W, C]` -> `[B, H / 2, W / 2, 4 C]`: each 2x2 square becomes channels. H and W must be even."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 2, w // 2, 4 * c)


class BasicCNN(Backbone):
    """See the module's docstring; the pyramid spans 2, 4, 8, 16 pixels a cell."""

    def __init__(
        self,
        config: Config,
        *,
        in_channels: int,
        num_outputs: int,
        features_only: bool,
        pooling: str,
        dropout: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.stem = Unit(4 * in_channels, config.stem, dtype=dtype, rngs=rngs)
        ins = (config.stem, *config.widths)
        self.stages = nnx.List(
            [Stage(i, o, n, dtype=dtype, rngs=rngs) for i, o, n in zip(ins, config.widths, config.blocks, strict=False)]
        )
        self._finish(
            ins,
            tuple(2 ** (k + 1) for k in range(len(ins))),
            num_outputs=num_outputs,
            features_only=features_only,
            pooling=pooling,
            dropout=dropout,
            rngs=rngs,
        )

    def pyramid(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> list[jax.Array]:
        """Maps at 1/2, 1/4, ... of `[B, H, W, in]`; H and W even."""
        del key
        levels = [jax.nn.relu(self.stem(fold_pixels(x), train))]
        for stage in self.stages:
            levels.append(stage(levels[-1], train))
        return levels


build = BasicCNN
