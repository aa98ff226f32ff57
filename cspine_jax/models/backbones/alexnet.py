"""AlexNet as torchvision builds it (Krizhevsky 2014, "One weird trick"): five convolutions, two hidden layers.

Kernels are uniform within 1 / sqrt(fan-in). Windows are not padded at the far edge, so maps are a little smaller than
H / r: 224 pixels give 55, 27, 13, 6 cells a side.
"""

import dataclasses

import jax
from flax import nnx

from cspine_jax.models.backbones.base import Backbone, Options, require_size
from cspine_jax.models.conv import adaptive_avg_pool, max_pool
from cspine_jax.models.layers import Conv, Keys, Linear, at_least_float32, dropout, flatten_chw, torch_default


@dataclasses.dataclass(frozen=True)
class Config:
    """A variant.

    Attributes:
        widths: channels of the five convolutions.
        grid: side of the grid of cells that the hidden layers see.
        hidden: width of each of the two hidden layers, the family's own embedding.
        dropout: before either hidden layer; the head has none in front of it.
    """

    widths: tuple[int, int, int, int, int] = (64, 192, 384, 256, 256)
    grid: int = 6
    hidden: int = 4096
    pooling: str = "own"
    dropout: float = 0.5
    drop_path: float = 0.0


VARIANTS: dict[str, Config] = {"alexnet": Config()}

NAMES = {
    "torchvision": (
        (r"^convs\.(\d)\.", lambda m: f"features.{(0, 3, 6, 8, 10)[int(m[1])]}."),
        (r"^hidden\.(\d)\.", lambda m: f"classifier.{(1, 4)[int(m[1])]}."),
        (r"^head\.", "classifier.6."),
    )
}
"""Rules from this module's parameter names to those of state dicts, see `pretrained.torch_name`."""


class AlexNet(Backbone):
    """The pyramid is the map before each pooling, at 1/4, 1/8, 1/16, and the last one pooled, at 1/32."""

    def __init__(self, config: Config, options: Options):
        layer = {"kernel_init": torch_default, **options.layer}
        a, b, c, d, e = config.widths
        self.grid = config.grid
        self.convs = nnx.List(
            [
                Conv(options.in_channels, a, 11, stride=4, padding=2, bias=True, **layer),
                Conv(a, b, 5, bias=True, **layer),
                Conv(b, c, 3, bias=True, **layer),
                Conv(c, d, 3, bias=True, **layer),
                Conv(d, e, 3, bias=True, **layer),
            ]
        )
        cells, hidden = e * config.grid**2, config.hidden
        layers = [Linear(cells, hidden, **layer), Linear(hidden, hidden, **layer)] if options.own_embedding else []
        self.hidden = nnx.List(layers)
        self.hidden_dropout = options.dropout
        self._finish((a, b, e, e), (4, 8, 16, 32), options, hidden, torch_default)
        if options.own_embedding:
            self.dropout = 0.0

    def pyramid(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> list[jax.Array]:
        """Maps at 1/4, 1/8, 1/16, 1/32 of `[B, H, W, in]`; H and W at least 63.

        Raises:
            ConfigError: the image is smaller.
        """
        del train, key
        require_size(x, 63, "alexnet")
        levels = []
        for k, conv in enumerate(self.convs):
            x = jax.nn.relu(conv(x))
            if k in (0, 1, 4):
                levels.append(x)
                x = max_pool(x, 3, 2)
        return [*levels, x]

    def embed(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> jax.Array:
        """The embedding, float32 `[B, embedding_dim]`."""
        if not self.hidden:
            return super().embed(x, train, key)
        keys = Keys(key)
        y = flatten_chw(adaptive_avg_pool(self.features(x, train), self.grid))
        for layer in self.hidden:
            y = jax.nn.relu(layer(dropout(y, self.hidden_dropout, keys(), train)))
        return y.astype(at_least_float32(y))


build = AlexNet
