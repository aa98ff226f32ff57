"""Inception v3 (Szegedy et al. 2016) as torchvision builds it; convolutions and poolings that stride are not padded.

299 pixels give maps of 147, 71, 35, 17, 8 cells a side: the windows of cells do not reach the very edge of the image.
Kernels are normal with deviation 0.1 (0.01 and 0.001 at the end of the auxiliary head); batch normalisation has eps
1e-3. Torchvision's `transform_input` maps ImageNet's normalisation of three colours to another one: normalise the input
as the weights want instead.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cspine_jax.models.backbones.base import Backbone, Options, require_size
from cspine_jax.models.conv import avg_pool, max_pool
from cspine_jax.models.layers import ConvNorm, Linear, global_pool


@dataclasses.dataclass(frozen=True)
class Config:
    """A variant.

    Attributes:
        pooled: channels of the pooling branch of the blocks at 1/8.
        factored: channels inside the 7x1 and 1x7 branches of the blocks at 1/16.
    """

    pooled: tuple[int, ...] = (32, 64, 64)
    factored: tuple[int, ...] = (128, 160, 160, 192)
    pooling: str = "avg"
    dropout: float = 0.5
    drop_path: float = 0.0


VARIANTS: dict[str, Config] = {"inception_v3": Config()}

_RULES = (
    (r"^(conv2d|mixed)_", lambda m: f"{m[1].capitalize()}_"),
    (r"^auxiliary\.", "AuxLogits."),
    (r"^head\.", "fc."),
)
NAMES = {"torchvision": _RULES, "timm": _RULES}
"""Rules from this module's parameter names to those of state dicts, see `pretrained.torch_name`."""


def _unit(layer: dict[str, Any], deviation: float = 0.1) -> partial[ConvNorm]:
    return partial(ConvNorm, eps=1e-3, kernel_init=nnx.initializers.normal(deviation), **layer)


def _pooled(unit: ConvNorm, x: jax.Array, train: bool) -> jax.Array:
    """A 1x1 unit on means of 3x3 cells, taken after its convolution: that is linear, and has fewer channels."""
    return jax.nn.relu(unit.bn(avg_pool(unit.conv(x), 3, 1, 1), train))


class InceptionA(nnx.Module):
    """1x1; 5x5; two 3x3; means: `[B, H, W, in]` -> `[B, H, W, 224 + pooled]`."""

    def __init__(self, in_features: int, pooled: int, layer: dict[str, Any]):
        unit = _unit(layer)
        self.branch1x1 = unit(in_features, 64, 1)
        self.branch5x5_1 = unit(in_features, 48, 1)
        self.branch5x5_2 = unit(48, 64, 5)
        self.branch3x3dbl_1 = unit(in_features, 64, 1)
        self.branch3x3dbl_2 = unit(64, 96, 3)
        self.branch3x3dbl_3 = unit(96, 96, 3)
        self.branch_pool = unit(in_features, pooled, 1)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """See the class."""
        y = self.branch3x3dbl_2(self.branch3x3dbl_1(x, train), train)
        branches = [
            self.branch1x1(x, train),
            self.branch5x5_2(self.branch5x5_1(x, train), train),
            self.branch3x3dbl_3(y, train),
            _pooled(self.branch_pool, x, train),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionB(nnx.Module):
    """Strided: 3x3; two 3x3; maximum: `[B, H, W, in]` -> `[B, (H - 1) // 2, (W - 1) // 2, 480 + in]`."""

    def __init__(self, in_features: int, layer: dict[str, Any]):
        unit = _unit(layer)
        self.branch3x3 = unit(in_features, 384, 3, stride=2, padding=0)
        self.branch3x3dbl_1 = unit(in_features, 64, 1)
        self.branch3x3dbl_2 = unit(64, 96, 3)
        self.branch3x3dbl_3 = unit(96, 96, 3, stride=2, padding=0)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """See the class."""
        y = self.branch3x3dbl_2(self.branch3x3dbl_1(x, train), train)
        branches = [self.branch3x3(x, train), self.branch3x3dbl_3(y, train), max_pool(x, 3, 2)]
        return jnp.concatenate(branches, axis=-1)


class InceptionC(nnx.Module):
    """1x1; 7x7 and twice 7x7, each as 1x7 and 7x1; means: `[B, H, W, in]` -> `[B, H, W, 768]`."""

    def __init__(self, in_features: int, features: int, layer: dict[str, Any]):
        unit = _unit(layer)
        self.branch1x1 = unit(in_features, 192, 1)
        self.branch7x7_1 = unit(in_features, features, 1)
        self.branch7x7_2 = unit(features, features, (1, 7))
        self.branch7x7_3 = unit(features, 192, (7, 1))
        self.branch7x7dbl_1 = unit(in_features, features, 1)
        self.branch7x7dbl_2 = unit(features, features, (7, 1))
        self.branch7x7dbl_3 = unit(features, features, (1, 7))
        self.branch7x7dbl_4 = unit(features, features, (7, 1))
        self.branch7x7dbl_5 = unit(features, 192, (1, 7))
        self.branch_pool = unit(in_features, 192, 1)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """See the class."""
        y = self.branch7x7_2(self.branch7x7_1(x, train), train)
        z = self.branch7x7dbl_2(self.branch7x7dbl_1(x, train), train)
        z = self.branch7x7dbl_4(self.branch7x7dbl_3(z, train), train)
        branches = [
            self.branch1x1(x, train),
            self.branch7x7_3(y, train),
            self.branch7x7dbl_5(z, train),
            _pooled(self.branch_pool, x, train),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionD(nnx.Module):
    """Strided: 3x3; 7x7 and 3x3; maximum: `[B, H, W, in]` -> `[B, (H - 1) // 2, (W - 1) // 2, 512 + in]`."""

    def __init__(self, in_features: int, layer: dict[str, Any]):
        unit = _unit(layer)
        self.branch3x3_1 = unit(in_features, 192, 1)
        self.branch3x3_2 = unit(192, 320, 3, stride=2, padding=0)
        self.branch7x7x3_1 = unit(in_features, 192, 1)
        self.branch7x7x3_2 = unit(192, 192, (1, 7))
        self.branch7x7x3_3 = unit(192, 192, (7, 1))
        self.branch7x7x3_4 = unit(192, 192, 3, stride=2, padding=0)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """See the class."""
        y = self.branch3x3_2(self.branch3x3_1(x, train), train)
        z = self.branch7x7x3_2(self.branch7x7x3_1(x, train), train)
        z = self.branch7x7x3_4(self.branch7x7x3_3(z, train), train)
        return jnp.concatenate([y, z, max_pool(x, 3, 2)], axis=-1)


class InceptionE(nnx.Module):
    """1x1; 3x3 and twice 3x3, each ending in 1x3 beside 3x1; means: `[B, H, W, in]` -> `[B, H, W, 2048]`."""

    def __init__(self, in_features: int, layer: dict[str, Any]):
        unit = _unit(layer)
        self.branch1x1 = unit(in_features, 320, 1)
        self.branch3x3_1 = unit(in_features, 384, 1)
        self.branch3x3_2a = unit(384, 384, (1, 3))
        self.branch3x3_2b = unit(384, 384, (3, 1))
        self.branch3x3dbl_1 = unit(in_features, 448, 1)
        self.branch3x3dbl_2 = unit(448, 384, 3)
        self.branch3x3dbl_3a = unit(384, 384, (1, 3))
        self.branch3x3dbl_3b = unit(384, 384, (3, 1))
        self.branch_pool = unit(in_features, 192, 1)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """See the class."""
        y = self.branch3x3_1(x, train)
        z = self.branch3x3dbl_2(self.branch3x3dbl_1(x, train), train)
        branches = [
            self.branch1x1(x, train),
            self.branch3x3_2a(y, train),
            self.branch3x3_2b(y, train),
            self.branch3x3dbl_3a(z, train),
            self.branch3x3dbl_3b(z, train),
            _pooled(self.branch_pool, x, train),
        ]
        return jnp.concatenate(branches, axis=-1)


class Auxiliary(nnx.Module):
    """A classifier on the map at 1/16: means of 5x5 cells, 1x1 and 5x5 convolution, means of what is left."""

    def __init__(self, in_features: int, num_outputs: int, layer: dict[str, Any]):
        self.conv0 = _unit(layer)(in_features, 128, 1)
        self.conv1 = _unit(layer, 0.01)(128, 768, 5, padding=0)
        normal = nnx.initializers.normal(0.001)
        self.fc = Linear(768, num_outputs, kernel_init=normal, rngs=layer["rngs"])

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[B, H, W, in]`, H and W at least 17 -> float32 logits `[B, num_outputs]`."""
        y = self.conv1(self.conv0(avg_pool(x, 5, 3), train), train)
        return self.fc(global_pool(y, "avg"))


class InceptionV3(Backbone):
    """The pyramid spans 2, 4 (stem), 8, 16, 32 pixels a cell: the last map of each resolution."""

    def __init__(self, config: Config, options: Options):
        layer, unit = options.layer, _unit(options.layer)
        self.conv2d_1a_3x3 = unit(options.in_channels, 32, 3, stride=2, padding=0)
        self.conv2d_2a_3x3 = unit(32, 32, 3, padding=0)
        self.conv2d_2b_3x3 = unit(32, 64, 3)
        self.conv2d_3b_1x1 = unit(64, 80, 1)
        self.conv2d_4a_3x3 = unit(80, 192, 3, padding=0)
        b, c, d = config.pooled
        self.mixed_5b = InceptionA(192, b, layer)
        self.mixed_5c = InceptionA(224 + b, c, layer)
        self.mixed_5d = InceptionA(224 + c, d, layer)
        self.mixed_6a = InceptionB(224 + d, layer)
        b, c, d, e = config.factored
        width = 480 + 224 + config.pooled[-1]
        self.mixed_6b = InceptionC(width, b, layer)
        self.mixed_6c = InceptionC(768, c, layer)
        self.mixed_6d = InceptionC(768, d, layer)
        self.mixed_6e = InceptionC(768, e, layer)
        self.mixed_7a = InceptionD(768, layer)
        self.mixed_7b = InceptionE(512 + 768, layer)
        self.mixed_7c = InceptionE(2048, layer)
        channels = (64, 192, 224 + config.pooled[-1], 768, 2048)
        self._finish(channels, (2, 4, 8, 16, 32), options, head_init=nnx.initializers.normal(0.1))
        wanted = options.aux_heads and self.head is not None
        self.auxiliary = Auxiliary(768, options.num_outputs, layer) if wanted else None

    def pyramid(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> list[jax.Array]:
        """Maps at 1/2, 1/4, 1/8, 1/16, 1/32 of `[B, H, W, in]`; H and W at least 75.

        Raises:
            ConfigError: the image is smaller.
        """
        del key
        require_size(x, 75, "inception_v3")
        x = self.conv2d_2a_3x3(self.conv2d_1a_3x3(x, train), train)
        levels = [self.conv2d_2b_3x3(x, train)]
        x = self.conv2d_3b_1x1(max_pool(levels[-1], 3, 2), train)
        levels.append(self.conv2d_4a_3x3(x, train))
        x = max_pool(levels[-1], 3, 2)
        stages = (
            (self.mixed_5b, self.mixed_5c, self.mixed_5d),
            (self.mixed_6a, self.mixed_6b, self.mixed_6c, self.mixed_6d, self.mixed_6e),
            (self.mixed_7a, self.mixed_7b, self.mixed_7c),
        )
        for stage in stages:
            for block in stage:
                x = block(x, train)
            levels.append(x)
        return levels

    def with_auxiliary(
        self, x: jax.Array, train: bool = False, key: jax.Array | None = None
    ) -> tuple[Any, list[jax.Array]]:
        """As the base class has it; H and W at least 299.

        Raises:
            ConfigError: the image is smaller.
        """
        if self.auxiliary is None:
            return super().with_auxiliary(x, train, key)
        require_size(x, 299, "the auxiliary head of inception_v3")
        trunk, top = (None, None) if key is None else jax.random.split(key)
        levels = self.pyramid(x, train, trunk)
        answer = self._answer(global_pool(levels[-1], self.pooling), train, top)
        return answer, [self.auxiliary(levels[-2], train)]


build = InceptionV3
