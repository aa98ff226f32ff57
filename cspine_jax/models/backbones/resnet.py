"""ResNet (He et al. 2016), as torchvision builds it: stride on the 3x3 of a bottleneck, module names the same.

Batch normalisation eps 1e-5 and momentum 0.1; kernels He-normal by fan-out.
"""

import dataclasses
from typing import Any

import jax
from flax import nnx

from cspine_jax.models.backbones.base import Backbone, Options
from cspine_jax.models.conv import max_pool
from cspine_jax.models.layers import BatchNorm, Conv


@dataclasses.dataclass(frozen=True)
class Config:
    """Residual blocks a stage and their kind."""

    blocks: tuple[int, ...]
    bottleneck: bool
    width: int = 64
    pooling: str = "avg"
    dropout: float = 0.0
    drop_path: float = 0.0


NAMES = {
    "torchvision": (
        (r"^layers\.(\d+)\.", lambda m: f"layer{int(m[1]) + 1}."),
        (r"\.downsample\.conv\.", ".downsample.0."),
        (r"\.downsample\.bn\.", ".downsample.1."),
        (r"^head\.", "fc."),
    )
}
"""Rules from this module's parameter names to those of state dicts, see `pretrained.torch_names`."""

VARIANTS: dict[str, Config] = {
    "resnet18": Config(blocks=(2, 2, 2, 2), bottleneck=False),
    "resnet50": Config(blocks=(3, 4, 6, 3), bottleneck=True),
}


class Downsample(nnx.Module):
    """Shortcut where shape changes: strided 1x1 convolution and batch normalisation."""

    def __init__(self, in_features: int, out_features: int, *, stride: int, dtype: Any, rngs: nnx.Rngs):
        self.conv = Conv(in_features, out_features, 1, stride=stride, dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(out_features, dtype=dtype)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[B, H, W, in]` -> `[B, H / stride, W / stride, out]`."""
        return self.bn(self.conv(x), train)


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, in_features: int, features: int, *, stride: int, dtype: Any, rngs: nnx.Rngs):
        self.conv1 = Conv(in_features, features, 3, stride=stride, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(features, dtype=dtype)
        self.conv2 = Conv(features, features, 3, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm(features, dtype=dtype)
        self.downsample = (
            None
            if stride == 1 and in_features == features
            else Downsample(in_features, features, stride=stride, dtype=dtype, rngs=rngs)
        )

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[B, H, W, in]` -> `[B, H / stride, W / stride, features]`."""
        y = jax.nn.relu(self.bn1(self.conv1(x), train))
        y = self.bn2(self.conv2(y), train)
        return jax.nn.relu(y + (x if self.downsample is None else self.downsample(x, train)))


class Bottleneck(nnx.Module):
    """1x1 reduction, 3x3 (strided), 1x1 expansion by four, and a shortcut."""

    expansion = 4

    def __init__(self, in_features: int, features: int, *, stride: int, dtype: Any, rngs: nnx.Rngs):
        out = features * self.expansion
        self.conv1 = Conv(in_features, features, 1, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(features, dtype=dtype)
        self.conv2 = Conv(features, features, 3, stride=stride, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm(features, dtype=dtype)
        self.conv3 = Conv(features, out, 1, dtype=dtype, rngs=rngs)
        self.bn3 = BatchNorm(out, dtype=dtype)
        self.downsample = (
            None
            if stride == 1 and in_features == out
            else Downsample(in_features, out, stride=stride, dtype=dtype, rngs=rngs)
        )

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[B, H, W, in]` -> `[B, H / stride, W / stride, 4 features]`."""
        y = jax.nn.relu(self.bn1(self.conv1(x), train))
        y = jax.nn.relu(self.bn2(self.conv2(y), train))
        y = self.bn3(self.conv3(y), train)
        return jax.nn.relu(y + (x if self.downsample is None else self.downsample(x, train)))


class ResNet(Backbone):
    """Stem, four stages; the pyramid spans 2 (stem), 4, 8, 16, 32 pixels a cell."""

    def __init__(self, config: Config, options: Options):
        block = Bottleneck if config.bottleneck else BasicBlock
        layer = options.layer
        self.conv1 = Conv(options.in_channels, config.width, 7, stride=2, **layer)
        self.bn1 = BatchNorm(config.width, dtype=options.dtype)
        channels = [config.width]
        stages = []
        for stage, count in enumerate(config.blocks):
            features, stride = config.width * 2**stage, 1 if stage == 0 else 2
            blocks = []
            for i in range(count):
                width = channels[-1] if i == 0 else features * block.expansion
                blocks.append(block(width, features, stride=stride if i == 0 else 1, **layer))
            channels.append(features * block.expansion)
            stages.append(nnx.List(blocks))
        self.layers = nnx.List(stages)
        self._finish(tuple(channels), tuple(2 ** (k + 1) for k in range(len(channels))), options)

    def pyramid(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> list[jax.Array]:
        """Maps at 1/2, 1/4, 1/8, 1/16, 1/32 of `[B, H, W, in]`."""
        del key
        levels = [jax.nn.relu(self.bn1(self.conv1(x), train))]
        x = max_pool(levels[0], 3, 2, 1)
        for stage in self.layers:
            for block in stage:
                x = block(x, train)
            levels.append(x)
        return levels


build = ResNet
