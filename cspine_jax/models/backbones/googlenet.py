"""GoogLeNet with batch normalisation (Szegedy et al. 2015; Ioffe and Szegedy 2015) as torchvision builds it.

Its branches of "5x5" convolutions are 3x3, as in all published weights. Kernels are normal with deviation 0.01; batch
normalisation has eps 1e-3. Poolings round sizes up where a last window has any pixel. Torchvision's `transform_input`
maps ImageNet's normalisation of three colours to another one: normalise the input as the weights want instead.
"""

import dataclasses
from functools import partial
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cspine_jax.models.backbones.base import Backbone, Options, require_size
from cspine_jax.models.conv import adaptive_avg_pool, max_pool
from cspine_jax.models.layers import ConvNorm, Keys, Linear, at_least_float32, dropout, flatten_chw, global_pool


@dataclasses.dataclass(frozen=True)
class Config:
    """A variant.

    Attributes:
        blocks: of each stage, the channels of each block's branches: 1x1; reduction and 3x3; again; after pooling.
        auxiliary: blocks, counted through all stages, whose output an auxiliary head sees.
        auxiliary_dropout: before the last layer of an auxiliary head, if there is dropout before the head at all.
    """

    blocks: tuple[tuple[tuple[int, int, int, int, int, int], ...], ...]
    auxiliary: tuple[int, ...]
    auxiliary_dropout: float = 0.7
    pooling: str = "avg"
    dropout: float = 0.2
    drop_path: float = 0.0


VARIANTS: dict[str, Config] = {
    "googlenet": Config(
        blocks=(
            ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
            (
                (192, 96, 208, 16, 48, 64),
                (160, 112, 224, 24, 64, 64),
                (128, 128, 256, 24, 64, 64),
                (112, 144, 288, 32, 64, 64),
                (256, 160, 320, 32, 128, 128),
            ),
            ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
        ),
        auxiliary=(2, 5),
    )
}

NAMES = {
    "torchvision": (
        (r"^stages\.(\d)\.(\d)\.", lambda m: f"inception{int(m[1]) + 3}{'abcde'[int(m[2])]}."),
        (r"\.branch4\.", ".branch4.1."),
        (r"^auxiliary\.(\d)\.", lambda m: f"aux{int(m[1]) + 1}."),
        (r"^head\.", "fc."),
    )
}
"""Rules from this module's parameter names to those of state dicts, see `pretrained.torch_name`."""

_normal = nnx.initializers.normal(0.01)


def _unit(layer: dict[str, Any]) -> partial[ConvNorm]:
    return partial(ConvNorm, eps=1e-3, kernel_init=_normal, **layer)


class Inception(nnx.Module):
    """Four branches side by side: 1x1; 1x1 and 3x3; the same again; 3x3 maximum and 1x1."""

    def __init__(self, in_features: int, widths: tuple[int, int, int, int, int, int], layer: dict[str, Any]):
        unit = _unit(layer)
        one, reduced, three, reduced_again, three_again, pooled = widths
        self.branch1 = unit(in_features, one, 1)
        self.branch2 = nnx.List([unit(in_features, reduced, 1), unit(reduced, three, 3)])
        self.branch3 = nnx.List([unit(in_features, reduced_again, 1), unit(reduced_again, three_again, 3)])
        self.branch4 = unit(in_features, pooled, 1)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[B, H, W, in]` -> `[B, H, W, out]`."""
        branches = [self.branch1(x, train)]
        for reduce, convolve in (self.branch2, self.branch3):
            branches.append(convolve(reduce(x, train), train))
        branches.append(self.branch4(max_pool(x, 3, 1, 1), train))
        return jnp.concatenate(branches, axis=-1)


class Auxiliary(nnx.Module):
    """A classifier on an early map: means of 4x4 cells, 1x1 convolution, a hidden layer."""

    def __init__(self, in_features: int, num_outputs: int, rate: float, layer: dict[str, Any]):
        self.dropout = rate
        self.conv = _unit(layer)(in_features, 128, 1)
        self.fc1 = Linear(128 * 4 * 4, 1024, kernel_init=_normal, **layer)
        self.fc2 = Linear(1024, num_outputs, kernel_init=_normal, rngs=layer["rngs"])

    def __call__(self, x: jax.Array, train: bool, key: jax.Array | None) -> jax.Array:
        """`[B, H, W, in]` -> float32 logits `[B, num_outputs]`."""
        y = flatten_chw(self.conv(adaptive_avg_pool(x, 4), train))
        y = dropout(jax.nn.relu(self.fc1(y)), self.dropout, key, train)
        return self.fc2(y.astype(at_least_float32(y)))


def halve(x: jax.Array, window: int) -> jax.Array:
    """Maximum pooling of stride 2 with torch's ceil_mode: `[B, H, W, C]` -> `[B, ceil((H - window) / 2) + 1, .., C]`.

    Zeros at the far edge stand for pixels that are not there: x is never negative, being what a ReLU let through.
    """
    edges = [(0, (side - window) % 2) for side in x.shape[1:3]]
    return max_pool(jnp.pad(x, [(0, 0), *edges, (0, 0)]), window, 2)


class GoogLeNet(Backbone):
    """The pyramid spans 2 (stem), 4, 8, 16, 32 pixels a cell; sizes are H / 2 rounded up, then down, down, down, up."""

    def __init__(self, config: Config, options: Options):
        layer, unit = options.layer, _unit(options.layer)
        self.conv1 = unit(options.in_channels, 64, 7, stride=2)
        self.conv2 = unit(64, 64, 1)
        self.conv3 = unit(64, 192, 3)
        stages, widths, channels = [], [192], [64, 192]
        for blocks in config.blocks:
            stage = []
            for branches in blocks:
                stage.append(Inception(widths[-1], branches, layer))
                widths.append(branches[0] + branches[2] + branches[4] + branches[5])
            stages.append(nnx.List(stage))
            channels.append(widths[-1])
        self.stages = nnx.List(stages)
        self._finish(tuple(channels), (2, 4, 8, 16, 32), options, head_init=_normal)
        self.seen = config.auxiliary if options.aux_heads and self.head is not None else ()
        rate = config.auxiliary_dropout if options.dropout > 0 else 0.0
        self.auxiliary = nnx.List([Auxiliary(widths[k + 1], options.num_outputs, rate, layer) for k in self.seen])

    def _maps(self, x: jax.Array, train: bool) -> tuple[list[jax.Array], list[list[jax.Array]]]:
        """The two maps of the stem, and the output of every block of each stage."""
        require_size(x, 15, "googlenet")
        stem = [self.conv1(x, train)]
        stem.append(self.conv3(self.conv2(halve(stem[0], 3), train), train))
        x, maps = stem[-1], []
        for k, stage in enumerate(self.stages):
            x = halve(x, 3 if k < 2 else 2)
            maps.append([])
            for block in stage:
                x = block(x, train)
                maps[-1].append(x)
        return stem, maps

    def pyramid(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> list[jax.Array]:
        """Maps at 1/2, 1/4, 1/8, 1/16, 1/32 of `[B, H, W, in]`; H and W at least 15.

        Raises:
            ConfigError: the image is smaller.
        """
        del key
        stem, maps = self._maps(x, train)
        return [*stem, *(stage[-1] for stage in maps)]

    def with_auxiliary(
        self, x: jax.Array, train: bool = False, key: jax.Array | None = None
    ) -> tuple[Any, list[jax.Array]]:
        """As the base class has it."""
        if not self.seen:
            return super().with_auxiliary(x, train, key)
        trunk, top = (None, None) if key is None else jax.random.split(key)
        maps = list(chain(*self._maps(x, train)[1]))
        keys = Keys(trunk)
        logits = [head(maps[k], train, keys()) for head, k in zip(self.auxiliary, self.seen, strict=True)]
        return self._answer(global_pool(maps[-1], self.pooling), train, top), logits


build = GoogLeNet
