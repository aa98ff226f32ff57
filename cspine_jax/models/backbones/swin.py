"""Swin Transformer (Liu et al. 2021), as torchvision builds it: attention in windows that every other block shifts.

Normalisation eps 1e-5; matrices and position biases normal with deviation 0.02. Any image of 4 pixels a side or more
will do: maps are padded to whole windows (the zeros take part, as in the reference), and an axis that one window
covers is not shifted.
"""

import dataclasses
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cspine_jax.models.attention import EncoderBlock, SelfAttention
from cspine_jax.models.backbones.base import Backbone, Options, linear_rates, run_blocks
from cspine_jax.models.layers import Keys, LayerNorm, Linear, PatchEmbed, torch_default

EPS = 1e-5
APART = -100.0
"""Added to the score of two cells that only the cyclic shift made neighbours."""

kernel_init = nnx.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class Config:
    """Pairs of blocks (plain and shifted windows) and heads of each stage.

    Attributes:
        pairs: of blocks, a stage.
        heads: of attention, a stage.
        width: channels of the first stage, doubled at each later one.
        window: cells of one side of a window.
    """

    pairs: tuple[int, ...]
    heads: tuple[int, ...]
    width: int
    window: int = 7
    pooling: str = "avg"
    dropout: float = 0.0
    drop_path: float = 0.2


NAMES = {
    "torchvision": (
        (r"^stem\.conv\.", "features.0.0."),
        (r"^stem\.norm\.", "features.0.2."),
        (r"^merges\.(\d+)\.", lambda m: f"features.{2 * int(m[1]) + 2}."),
        (
            r"^stages\.(\d+)\.(\d+)\.(plain|shifted)\.",
            lambda m: f"features.{2 * int(m[1]) + 1}.{2 * int(m[2]) + (m[3] == 'shifted')}.",
        ),
        (r"\.mlp\.fc1\.", ".mlp.0."),
        (r"\.mlp\.fc2\.", ".mlp.3."),
    )
}
"""Rules from this module's parameter names to those of state dicts, see `pretrained.torch_name`."""

VARIANTS: dict[str, Config] = {
    "swin_s": Config(pairs=(1, 1, 9, 1), heads=(3, 6, 12, 24), width=96, drop_path=0.3),
}


def windows(x: Any, side: int) -> Any:
    """`[B, H, W, C]` -> `[B, H W / side^2, side^2, C]`: whole windows, row by row."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // side, side, w // side, side, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, -1, side * side, c)


def unwindowed(x: jax.Array, side: int, size: tuple[int, int]) -> jax.Array:
    """The inverse of `windows`, for a map of `size` (H, W)."""
    b, _, _, c = x.shape
    h, w = size
    x = x.reshape(b, h // side, w // side, side, side, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h, w, c)


def position_index(side: int) -> np.ndarray:
    """Row of the bias table for each pair of cells of a window: int `[side^2, side^2]`, by their offset in y and x."""
    y, x = (grid.ravel() for grid in np.mgrid[:side, :side])
    dy, dx = (axis[:, None] - axis[None] + side - 1 for axis in (y, x))
    return dy * (2 * side - 1) + dx


def shift_bias(size: tuple[int, int], side: int, shift: tuple[int, int]) -> np.ndarray:
    """`APART` for pairs of cells of a window that come from opposite edges of the map, 0 for others.

    Args:
        size: (H, W) of the map, whole windows.
        side: of a window.
        shift: cells by which the map was rolled, in y and x.

    Returns:
        float32 `[windows, 1, side^2, side^2]`, the axis of 1 for heads.
    """
    y, x = (np.digitize(np.arange(n), (n - side, n - s)) for n, s in zip(size, shift, strict=True))
    region = windows((3 * y[:, None] + x[None])[None, :, :, None], side)[0, :, :, 0]
    return np.where(region[:, None, :, None] == region[:, None, None], 0.0, APART).astype(np.float32)


class WindowAttention(SelfAttention):
    """Attention within windows of `side` x `side` cells, with a learned bias for each offset between two cells."""

    def __init__(self, features: int, heads: int, side: int, layer: dict[str, Any]):
        super().__init__(features, heads, qkv_init=kernel_init, proj_init=kernel_init, **layer)
        self.side = side
        table = kernel_init(layer["rngs"].params(), (heads, (2 * side - 1) ** 2), jnp.float32)
        self.relative_position_bias_table = nnx.Param(table)

    def __call__(self, x: jax.Array, *, shifted: bool) -> jax.Array:
        """`[B, H, W, C]` -> same; `shifted` moves the windows by half their side."""
        side, (h, w) = self.side, x.shape[1:3]
        x = jnp.pad(x, ((0, 0), (0, -h % side), (0, -w % side), (0, 0)))
        size = (x.shape[1], x.shape[2])
        down, right = (side // 2 if shifted and n > side else 0 for n in size)
        bias = self.relative_position_bias_table[...][:, position_index(side)]
        if down or right:
            x = jnp.roll(x, (-down, -right), (1, 2))
            bias = bias[None] + shift_bias(size, side, (down, right))
        x = unwindowed(super().__call__(windows(x, side), bias=bias), side, size)
        return jnp.roll(x, (down, right), (1, 2))[:, :h, :w]


class Pair(nnx.Module):
    """A block on plain windows and one on shifted windows: what a stage repeats."""

    def __init__(self, features: int, heads: int, side: int, layer: dict[str, Any]):
        def block() -> EncoderBlock:
            attn = WindowAttention(features, heads, side, layer)
            return EncoderBlock(attn, features, 4 * features, eps=EPS, mlp_init=kernel_init, **layer)

        self.plain, self.shifted = block(), block()

    def __call__(self, x: jax.Array, train: bool, rate: tuple[float, float], key: jax.Array | None) -> jax.Array:
        """`[B, H, W, C]` -> same; `rate` of stochastic depth is one a block."""
        keys = Keys(key)
        x = self.plain(x, train, rate[0], keys(), shifted=False)
        return self.shifted(x, train, rate[1], keys(), shifted=True)


class Merge(nnx.Module):
    """Squares of 2x2 cells to one: their vectors put together, normalised, and halved in width by a matrix."""

    def __init__(self, features: int, layer: dict[str, Any]):
        self.norm = LayerNorm(4 * features, eps=EPS, dtype=layer["dtype"])
        self.reduction = Linear(4 * features, 2 * features, bias=False, kernel_init=kernel_init, **layer)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C]` -> `[B, ceil(H / 2), ceil(W / 2), 2 C]`; an odd edge meets zeros."""
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        b, h, w, c = x.shape
        x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(x.reshape(b, h // 2, w // 2, 4 * c)))


class Swin(Backbone):
    """The pyramid spans 4, 8, 16, 32 pixels a cell; the coarsest map is normalised."""

    def __init__(self, config: Config, options: Options):
        layer = options.layer
        channels = tuple(config.width * 2**k for k in range(len(config.pairs)))
        self.drop_path = options.drop_path
        self.stem = PatchEmbed(options.in_channels, config.width, 4, eps=EPS, kernel_init=torch_default, **layer)
        self.stages = nnx.List(
            [
                nnx.List([Pair(features, heads, config.window, layer) for _ in range(count)])
                for count, heads, features in zip(config.pairs, config.heads, channels, strict=True)
            ]
        )
        self.merges = nnx.List([Merge(features, layer) for features in channels[:-1]])
        self.norm = LayerNorm(channels[-1], eps=EPS, dtype=options.dtype)
        self._finish(channels, tuple(4 * 2**k for k in range(len(channels))), options, head_init=kernel_init)

    def pyramid(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> list[jax.Array]:
        """Maps at 1/4 (rounded down), then halves (rounded up), of `[B, H, W, in]`."""
        rates = iter(linear_rates(self.drop_path, 2 * sum(map(len, self.stages)), reached=True))
        keys = Keys(key)
        x, levels = self.stem(x), []
        for k, stage in enumerate(self.stages):
            x = x if k == 0 else self.merges[k - 1](x)
            pairs = list(islice(zip(rates, rates, strict=True), len(stage)))
            x = run_blocks(stage, x, train, pairs, keys())
            levels.append(x)
        return [*levels[:-1], self.norm(x)]


build = Swin
