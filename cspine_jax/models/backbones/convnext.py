"""ConvNeXt (Liu et al. 2022), as torchvision builds it: 7x7 depthwise convolutions, layer normalisation, layer scale.

Normalisation eps 1e-6; kernels normal with deviation 0.02; layer scales 1e-6 at first. A level's side is that of the
level before, halved and rounded down, as the convolutions that lead there have neither overlap nor padding.
"""

import dataclasses
from itertools import islice, pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cspine_jax.models.backbones.base import OWN, Backbone, Options, linear_rates, run_blocks
from cspine_jax.models.layers import Conv, Keys, LayerNorm, Mlp, PatchEmbed, drop_path, global_pool

EPS = 1e-6
LAYER_SCALE = 1e-6

kernel_init = nnx.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class Config:
    """Blocks and width of each stage."""

    blocks: tuple[int, ...]
    widths: tuple[int, ...] = (96, 192, 384, 768)
    pooling: str = OWN
    dropout: float = 0.0
    drop_path: float = 0.1


NAMES = {
    "torchvision": (
        (r"^stem\.conv\.", "features.0.0."),
        (r"^stem\.norm\.", "features.0.1."),
        (r"^stages\.(\d+)\.", lambda m: f"features.{2 * int(m[1]) + 1}."),
        (r"^downs\.(\d+)\.norm\.", lambda m: f"features.{2 * int(m[1]) + 2}.0."),
        (r"^downs\.(\d+)\.conv\.", lambda m: f"features.{2 * int(m[1]) + 2}.1."),
        (r"\.conv_dw\.", ".block.0."),
        (r"^(features\.\d+\.\d+)\.norm\.", r"\1.block.2."),
        (r"\.mlp\.fc1\.", ".block.3."),
        (r"\.mlp\.fc2\.", ".block.5."),
        (r"^norm\.", "classifier.0."),
        (r"^head\.", "classifier.2."),
    ),
    "timm": (
        (r"^stem\.conv\.", "stem.0."),
        (r"^stem\.norm\.", "stem.1."),
        (r"^stages\.(\d+)\.", r"stages.\1.blocks."),
        (r"^downs\.(\d+)\.norm\.", lambda m: f"stages.{int(m[1]) + 1}.downsample.0."),
        (r"^downs\.(\d+)\.conv\.", lambda m: f"stages.{int(m[1]) + 1}.downsample.1."),
        (r"\.layer_scale$", ".gamma"),
        (r"^head\.", "head.fc."),
        (r"^norm\.", "head.norm."),
    ),
}
"""Rules from this module's parameter names to those of state dicts, see `pretrained.torch_name`."""

VARIANTS: dict[str, Config] = {
    "convnext_tiny": Config(blocks=(3, 3, 9, 3)),
    "convnext_small": Config(blocks=(3, 3, 27, 3), drop_path=0.4),
}


class Block(nnx.Module):
    """7x7 depthwise convolution, normalisation, MLP, a learned scale a channel, and a shortcut."""

    def __init__(self, features: int, layer: dict[str, Any]):
        self.conv_dw = Conv(features, features, 7, groups=features, bias=True, kernel_init=kernel_init, **layer)
        self.norm = LayerNorm(features, eps=EPS, dtype=layer["dtype"])
        self.mlp = Mlp(features, 4 * features, kernel_init=kernel_init, **layer)
        self.layer_scale = nnx.Param(jnp.full((features,), LAYER_SCALE, jnp.float32))

    def __call__(self, x: jax.Array, train: bool, rate: float, key: jax.Array | None) -> jax.Array:
        """`[B, H, W, C]` -> same."""
        y = self.mlp(self.norm(self.conv_dw(x)))
        y = y * self.layer_scale[...].astype(y.dtype)[None, None, None]
        return x + drop_path(y, rate, key, train)


class Down(nnx.Module):
    """Normalisation, then squares of 2x2 cells to one."""

    def __init__(self, in_features: int, out_features: int, layer: dict[str, Any]):
        self.norm = LayerNorm(in_features, eps=EPS, dtype=layer["dtype"])
        self.conv = Conv(in_features, out_features, 2, stride=2, padding=0, bias=True, kernel_init=kernel_init, **layer)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, in]` -> `[B, H // 2, W // 2, out]`."""
        return self.conv(self.norm(x))


class ConvNeXt(Backbone):
    """The pyramid spans 4, 8, 16, 32 pixels a cell; its own embedding is the mean of the coarsest, normalised."""

    def __init__(self, config: Config, options: Options):
        layer, widths = options.layer, config.widths
        self.drop_path = options.drop_path
        self.stem = PatchEmbed(options.in_channels, widths[0], 4, eps=EPS, kernel_init=kernel_init, **layer)
        self.stages = nnx.List(
            [nnx.List([Block(width, layer) for _ in range(n)]) for n, width in zip(config.blocks, widths, strict=True)]
        )
        self.downs = nnx.List([Down(a, b, layer) for a, b in pairwise(widths)])
        self.norm = LayerNorm(widths[-1], eps=EPS) if options.own_embedding else None
        self._finish(widths, tuple(4 * 2**k for k in range(len(widths))), options, head_init=kernel_init)

    def pyramid(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> list[jax.Array]:
        """Maps at 1/4, 1/8, 1/16, 1/32 of `[B, H, W, in]`, each side rounded down; H and W are 32 at least."""
        rates = iter(linear_rates(self.drop_path, sum(map(len, self.stages)), reached=True))
        keys = Keys(key)
        x, levels = self.stem(x), []
        for k, stage in enumerate(self.stages):
            x = x if k == 0 else self.downs[k - 1](x)
            x = run_blocks(stage, x, train, list(islice(rates, len(stage))), keys())
            levels.append(x)
        return levels

    def embed(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> jax.Array:
        """Float32 `[B, embedding_dim]`."""
        if self.norm is None:
            return super().embed(x, train, key)
        return self.norm(global_pool(self.features(x, train, key), "avg"))


build = ConvNeXt
