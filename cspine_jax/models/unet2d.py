"""The UNet (Ronneberger et al. 2015) for slices of any size.

As in the paper: two 3x3 convolutions a level, 2x2 max-pooling down, 2x2 up-convolutions, skips by concatenation, a 1x1
convolution to the classes. Unlike it: convolutions keep the size (padded by zeros), so the output covers the whole
image and no tiles are needed, and batch normalisation follows each of them. An image whose sides are no multiple of
2^levels is padded at its far edges, and the output is cropped.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cspine_jax.models.conv import max_pool
from cspine_jax.models.layers import BatchNorm, Conv


class Double(nnx.Module):
    """Twice: 3x3 convolution, batch normalisation, ReLU."""

    def __init__(self, in_features: int, features: int, *, dtype: Any, rngs: nnx.Rngs):
        self.conv1 = Conv(in_features, features, 3, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(features, dtype=dtype)
        self.conv2 = Conv(features, features, 3, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm(features, dtype=dtype)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[B, H, W, in]` -> `[B, H, W, features]`."""
        x = jax.nn.relu(self.bn1(self.conv1(x), train))
        return jax.nn.relu(self.bn2(self.conv2(x), train))


class UpConv(nnx.Module):
    """The 2x2 up-convolution: each cell becomes four, by a matrix product of its own."""

    def __init__(self, in_features: int, features: int, *, dtype: Any, rngs: nnx.Rngs):
        self.conv = Conv(in_features, 4 * features, 1, bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, in]` -> `[B, 2 H, 2 W, features]`."""
        B, H, W, _ = x.shape
        y = self.conv(x).reshape(B, H, W, 2, 2, -1)
        return jnp.transpose(y, (0, 1, 3, 2, 4, 5)).reshape(B, 2 * H, 2 * W, -1)


class UNet2D(nnx.Module):
    """`[B, H, W, in]` -> logits `[B, H, W, num_classes]`."""

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        width: int = 64,
        levels: int = 4,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        """Builds it.

        Args:
            in_channels: channels of the image (slices of a stack).
            num_classes: C, background included.
            width: channels at full resolution; doubled a level. The paper's is 64.
            levels: halvings. The paper's are 4.
            dtype: type computed in; parameters and logits are float32.
            rngs: randomness of the initial weights.
        """
        self.levels = levels
        widths = [width * 2**k for k in range(levels + 1)]
        sizes = zip([in_channels, *widths[:-1]], widths, strict=True)
        self.down = nnx.List([Double(i, o, dtype=dtype, rngs=rngs) for i, o in sizes])
        steps = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nnx.List([UpConv(i, o, dtype=dtype, rngs=rngs) for i, o in steps])
        self.join = nnx.List([Double(2 * o, o, dtype=dtype, rngs=rngs) for _, o in steps])
        self.head = Conv(width, num_classes, 1, bias=True, dtype=jnp.float32, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> jax.Array:
        """Float32 logits of every pixel; `key` is not used (nothing is dropped)."""
        del key
        H, W = x.shape[1:3]
        x = pad_to_multiple(x, 2**self.levels)
        skips = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else max_pool(x, 2, 2), train)
            skips.append(x)
        for up, join, skip in zip(self.up, self.join, skips[-2::-1], strict=True):
            x = join(jnp.concatenate([skip, up(x)], axis=-1), train)
        return self.head(x)[:, :H, :W]


def pad_to_multiple(x: jax.Array, multiple: int) -> jax.Array:
    """Zeros (windowed air) at the far edges of the last two axes before the channels, up to a multiple."""
    edges = [(0, 0)] * (x.ndim - 3) + [(0, -n % multiple) for n in x.shape[-3:-1]] + [(0, 0)]
    return jnp.pad(x, edges)
