"""MobileNetV3 (Howard et al. 2019) as torchvision builds it: inverted residuals, some with gates, some with hard-swish.

Batch normalisation eps 1e-3 and momentum 0.01; kernels He-normal by fan-out, matrices normal with deviation 0.01.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
from flax import nnx

from cspine_jax.models.backbones.base import Backbone, Options, linear_rates, run_blocks
from cspine_jax.models.layers import ConvNorm, Keys, Linear, SqueezeExcite, drop_path, global_pool


class Row(NamedTuple):
    """A block, as in the paper's table 1.

    Attributes:
        kernel: side of the depthwise kernel.
        width: hidden channels.
        features: output channels.
        squeezed: channels between the two layers of the gate; 0 for none.
        activation: of all but the projection.
        stride: 1 or 2.
    """

    kernel: int
    width: int
    features: int
    squeezed: int = 0
    activation: Callable[[jax.Array], jax.Array] = jax.nn.relu
    stride: int = 1


@dataclasses.dataclass(frozen=True)
class Config:
    """A variant.

    Attributes:
        stem: channels of the first convolution.
        rows: the blocks.
        last: channels of the last, 1x1 convolution.
        hidden: width of the layer between pooling and head, the family's own embedding.
    """

    stem: int
    rows: tuple[Row, ...]
    last: int
    hidden: int
    pooling: str = "own"
    dropout: float = 0.2
    drop_path: float = 0.0


_swish = jax.nn.hard_swish

_LARGE = (
    Row(3, 16, 16),
    Row(3, 64, 24, stride=2),
    Row(3, 72, 24),
    Row(5, 72, 40, 24, stride=2),
    Row(5, 120, 40, 32),
    Row(5, 120, 40, 32),
    Row(3, 240, 80, 0, _swish, stride=2),
    Row(3, 200, 80, 0, _swish),
    Row(3, 184, 80, 0, _swish),
    Row(3, 184, 80, 0, _swish),
    Row(3, 480, 112, 120, _swish),
    Row(3, 672, 112, 168, _swish),
    Row(5, 672, 160, 168, _swish, stride=2),
    Row(5, 960, 160, 240, _swish),
    Row(5, 960, 160, 240, _swish),
)

VARIANTS: dict[str, Config] = {"mobilenet_v3_large": Config(stem=16, rows=_LARGE, last=960, hidden=1280)}

NAMES = {
    "torchvision": (
        (r"^hidden\.", "classifier.0."),
        (r"^head\.", "classifier.3."),
        (r"\.layers\.", ".block."),
        (r"^layers\.", "features."),
        (r"\.conv\.", ".0."),
        (r"\.bn\.", ".1."),
    )
}
"""Rules from this module's parameter names to those of state dicts, see `pretrained.torch_name`."""


class InvertedResidual(nnx.Module):
    """1x1 expansion, depthwise convolution, gate, 1x1 projection; a shortcut where the shape stays."""

    def __init__(
        self,
        in_features: int,
        width: int,
        features: int,
        kernel: int,
        *,
        stride: int,
        unit: Callable[..., ConvNorm],
        gate: SqueezeExcite | None = None,
    ):
        """Builds it.

        Args:
            in_features: channels of the input.
            width: hidden channels; where they are as many as the input's there is no expansion.
            features: channels of the output.
            kernel: side of the depthwise kernel.
            stride: of the depthwise convolution.
            unit: `ConvNorm` with the family's normalisation and activation.
            gate: on the hidden channels.
        """
        expand = [] if width == in_features else [unit(in_features, width, 1)]
        depthwise = unit(width, width, kernel, stride=stride, groups=width)
        project = unit(width, features, 1, activation=None)
        layers: list[Any] = [*expand, depthwise, *([] if gate is None else [gate]), project]
        self.layers = nnx.List(layers)
        self.residual = stride == 1 and in_features == features

    def __call__(self, x: jax.Array, train: bool, rate: float, key: jax.Array | None) -> jax.Array:
        """`[B, H, W, in]` -> `[B, H / stride, W / stride, features]`; `rate` of stochastic depth of the branch."""
        y = x
        for layer in self.layers:
            y = layer(y) if isinstance(layer, SqueezeExcite) else layer(y, train)
        return x + drop_path(y, rate, key, train) if self.residual else y


class MobileNetV3(Backbone):
    """Stem, blocks, 1x1 convolution; the pyramid spans 2, 4, 8, 16, 32 pixels a cell.

    A level is the last map of its resolution. The family's own embedding is a layer on the pooled map.
    """

    def __init__(self, config: Config, options: Options):
        self.drop_path = options.drop_path
        unit = partial(ConvNorm, eps=1e-3, momentum=0.01, **options.layer)
        squeeze = partial(SqueezeExcite, gate=jax.nn.hard_sigmoid, **options.layer)
        width, channels, starts, blocks = config.stem, [], [0], []
        for row in config.rows:
            if row.stride > 1:
                channels.append(width)
                starts.append(len(blocks))
            blocks.append(
                InvertedResidual(
                    width,
                    row.width,
                    row.features,
                    row.kernel,
                    stride=row.stride,
                    unit=partial(unit, activation=row.activation),
                    gate=squeeze(row.width, row.squeezed) if row.squeezed else None,
                )
            )
            width = row.features
        self.starts = (*starts, len(blocks))
        stem = unit(options.in_channels, config.stem, 3, stride=2, activation=_swish)
        self.layers = nnx.List([stem, *blocks, unit(width, config.last, 1, activation=_swish)])
        normal = nnx.initializers.normal(0.01)
        own = options.own_embedding
        self.hidden = Linear(config.last, config.hidden, kernel_init=normal, rngs=options.rngs) if own else None
        reductions = tuple(2 ** (k + 1) for k in range(len(starts)))
        self._finish((*channels, config.last), reductions, options, config.hidden, normal)

    def pyramid(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> list[jax.Array]:
        """Maps at 1/2, 1/4, 1/8, 1/16, 1/32 of `[B, H, W, in]`, sizes rounded up."""
        stem, *blocks, last = self.layers
        rates, keys = linear_rates(self.drop_path, len(blocks)), Keys(key)
        x = stem(x, train)
        levels = []
        for start, stop in pairwise(self.starts):
            x = run_blocks(blocks[start:stop], x, train, rates[start:stop], keys())
            levels.append(x)
        return [*levels[:-1], last(x, train)]

    def embed(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> jax.Array:
        """The embedding, float32 `[B, embedding_dim]`."""
        if self.hidden is None:
            return super().embed(x, train, key)
        return _swish(self.hidden(global_pool(self.features(x, train, key), "avg")))


build = MobileNetV3
