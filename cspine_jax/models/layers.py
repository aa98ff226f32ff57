"""Building blocks of the image networks: convolution, normalisation, pooling, gates, dropout.

Parameters are float32; `dtype` is the type computed in (None: that of the input). Arrays are `[B, H, W, C]`; padding
is symmetric, as in torch, unless it is "same" (TensorFlow's). `conv` holds the operations themselves.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.nn import initializers

from cspine_jax.models.conv import Size, conv2d, pair, product

lecun_normal = initializers.lecun_normal()
xavier_uniform = initializers.xavier_uniform()
he_normal_out = initializers.variance_scaling(2.0, "fan_out", "normal")
"""Convolution kernels in front of a ReLU: normal, variance 2 / fan-out (He et al. 2015)."""

torch_default = initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""Kernels of networks that set none: torch's own, uniform within 1 / sqrt(fan-in)."""


def at_least_float32(x: jax.Array) -> Any:
    """The type that statistics of x are taken in: float32, or x's own where it is wider."""
    return jnp.promote_types(x.dtype, jnp.float32)


def global_pool(x: jax.Array, kind: str) -> jax.Array:
    """Pools `[B, H, W, C]` over the image in float32.

    "avg" keeps what the image is about, "max" the strongest local evidence (a fracture fills a few pixels);
    "avgmax" concatenates both to `[B, 2 C]`.
    """
    x = x.astype(at_least_float32(x))
    if kind == "avg":
        return x.mean((1, 2))
    if kind == "max":
        return x.max((1, 2))
    if kind == "avgmax":
        return jnp.concatenate([x.mean((1, 2)), x.max((1, 2))], axis=-1)
    raise ValueError(f"pooling={kind!r}: must be avg, max or avgmax")


def flatten_chw(x: jax.Array) -> jax.Array:
    """`[B, H, W, C]` -> `[B, C H W]`, channels slowest, as networks born channels-first order what they flatten."""
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)


def dropout(x: jax.Array, rate: float, key: jax.Array | None, train: bool) -> jax.Array:
    """Inverted dropout; the identity in evaluation or at rate 0.

    Raises:
        ValueError: training at a rate above 0 without a key.
    """
    if not train or rate == 0.0:
        return x
    if key is None:
        raise ValueError(f"dropout at rate {rate} in training needs a key: call the module with key=...")
    return _inverted_dropout(x, rate, key, x.shape)


def drop_path(x: jax.Array, rate: jax.Array | float, key: jax.Array | None, train: bool) -> jax.Array:
    """Stochastic depth (Huang et al. 2016): drops a residual branch `[B, ...]` whole, example by example.

    Raises:
        ValueError: training at a rate above 0 without a key.
    """
    if not train or (isinstance(rate, float) and rate == 0.0):
        return x
    if key is None:
        raise ValueError(f"stochastic depth at rate {rate} in training needs a key: call the module with key=...")
    return _inverted_dropout(x, rate, key, (x.shape[0],) + (1,) * (x.ndim - 1))


def _inverted_dropout(x: jax.Array, rate: jax.Array | float, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    keep = jax.random.bernoulli(key, 1.0 - rate, shape)
    return jnp.where(keep, x / jnp.asarray(1.0 - rate, x.dtype), jnp.zeros((), x.dtype))


class Keys:
    """One key for each of the random operations of a forward pass, in the order in which they are traced.

    `keys = Keys(key)`, then `keys()` for each; all are None when `key` is.
    """

    def __init__(self, key: jax.Array | None):
        self._key, self._count = key, 0

    def __call__(self) -> jax.Array | None:
        """The next key."""
        self._count += 1
        return None if self._key is None else jax.random.fold_in(self._key, self._count)


class Conv(nnx.Module):
    """Convolution `[B, H, W, in]` -> `[B, H', W', out]`; see `conv2d`.

    `padding` None is kernel // 2 on both sides; "same" pads as TensorFlow does, so that H' = ceil(H / stride), with
    the odd zero at the far edge.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel: Size,
        *,
        stride: Size = 1,
        padding: Size | Literal["same"] | None = None,
        groups: int = 1,
        bias: bool = False,
        kernel_init: initializers.Initializer = he_normal_out,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        kh, kw = pair(kernel)
        self.stride = pair(stride)
        self.same = padding == "same"
        self.padding = (kh // 2, kw // 2) if padding is None else (0, 0) if padding == "same" else pair(padding)
        self.groups = groups
        self.dtype = dtype
        self.kernel = nnx.Param(kernel_init(rngs.params(), (kh, kw, in_features // groups, out_features), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((out_features,), jnp.float32)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, in]` -> `[B, H', W', out]`."""
        dtype = self.dtype or x.dtype
        if self.same:
            kh, kw = self.kernel.shape[:2]
            x = pad_same(x, (kh, kw), self.stride)
        y = conv2d(x.astype(dtype), self.kernel[...].astype(dtype), self.stride, self.padding, self.groups)
        return y if self.bias is None else y + self.bias[...].astype(dtype)[None, None, None]


def pad_same(x: jax.Array, window: tuple[int, int], stride: tuple[int, int]) -> jax.Array:
    """`[B, H, W, C]` with the zeros of TensorFlow's SAME padding: ceil(H / stride) windows fit exactly."""
    edges = [(0, 0)]
    for size, k, s in zip(x.shape[1:3], window, stride, strict=True):
        missing = max((-(-size // s) - 1) * s + k - size, 0)
        edges.append((missing // 2, missing - missing // 2))
    return jnp.pad(x, [*edges, (0, 0)])


class BatchNorm(nnx.Module):
    """Batch normalisation with torch's conventions: running = (1 - momentum) running + momentum batch, unbiased.

    Statistics are float32 and over the whole (sharded) batch; Ioffe and Szegedy 2015.
    """

    def __init__(
        self, features: int, *, eps: float = 1e-5, momentum: float = 0.1, dtype: Any = None, scale: float = 1.0
    ):
        self.eps = eps
        self.momentum = momentum
        self.dtype = dtype
        self.scale = nnx.Param(jnp.full((features,), scale, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((features,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((features,), jnp.float32))

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """`[B, H, W, C]` or `[B, C]`, normalised a channel; `train` uses and records the batch's statistics."""
        if train:
            axes = tuple(range(x.ndim - 1))
            wide = x.astype(at_least_float32(x))
            mean = wide.mean(axes)
            var = jnp.maximum((wide * wide).mean(axes) - mean * mean, 0.0)
            count = x.size // x.shape[-1]
            self._record(mean, var * (count / max(count - 1, 1)))
        else:
            mean, var = self.mean[...], self.var[...]
        scale = self.scale[...] * lax.rsqrt(var + self.eps)
        shift = self.bias[...] - mean * scale
        axes = tuple(range(x.ndim - 1))
        y = x.astype(at_least_float32(x)) * jnp.expand_dims(scale, axes) + jnp.expand_dims(shift, axes)
        return y.astype(self.dtype or x.dtype)

    def _record(self, mean: jax.Array, var: jax.Array) -> None:
        m = self.momentum
        self.mean[...] = (1 - m) * self.mean[...] + m * lax.stop_gradient(mean)
        self.var[...] = (1 - m) * self.var[...] + m * lax.stop_gradient(var)


class ConvNorm(nnx.Module):
    """Convolution without bias, batch normalisation, activation: the unit that most networks are made of."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel: Size,
        *,
        stride: Size = 1,
        padding: Size | Literal["same"] | None = None,
        groups: int = 1,
        eps: float = 1e-5,
        momentum: float = 0.1,
        scale: float = 1.0,
        activation: Callable[[jax.Array], jax.Array] | None = jax.nn.relu,
        kernel_init: initializers.Initializer = he_normal_out,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        self.conv = Conv(
            in_features,
            out_features,
            kernel,
            stride=stride,
            padding=padding,
            groups=groups,
            kernel_init=kernel_init,
            dtype=dtype,
            rngs=rngs,
        )
        self.bn = BatchNorm(out_features, eps=eps, momentum=momentum, dtype=dtype, scale=scale)
        self.activation = activation

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """`[B, H, W, in]` -> `[B, H', W', out]`."""
        y = self.bn(self.conv(x), train)
        return y if self.activation is None else self.activation(y)


class SqueezeExcite(nnx.Module):
    """A gate a channel, computed from the channel means (Hu et al. 2018); `fc1` and `fc2` are 1x1 convolutions."""

    def __init__(
        self,
        features: int,
        squeezed: int,
        *,
        activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
        gate: Callable[[jax.Array], jax.Array] = jax.nn.sigmoid,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        self.fc1 = Conv(features, squeezed, 1, bias=True, dtype=dtype, rngs=rngs)
        self.fc2 = Conv(squeezed, features, 1, bias=True, dtype=dtype, rngs=rngs)
        self.activation, self.gate = activation, gate

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C]` -> same."""
        mean = x.mean((1, 2), keepdims=True)
        return x * self.gate(self.fc2(self.activation(self.fc1(mean))))


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis (Ba et al. 2016); statistics in float32."""

    def __init__(self, features: int, *, eps: float = 1e-5, dtype: Any = None):
        self.eps = eps
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., C]` -> same."""
        wide = x.astype(at_least_float32(x))
        mean = wide.mean(-1, keepdims=True)
        centred = wide - mean
        var = (centred * centred).mean(-1, keepdims=True)
        axes = tuple(range(x.ndim - 1))
        y = centred * lax.rsqrt(var + self.eps) * jnp.expand_dims(self.scale[...], axes)
        return (y + jnp.expand_dims(self.bias[...], axes)).astype(self.dtype or x.dtype)


class PatchEmbed(nnx.Module):
    """Squares of `patch` x `patch` pixels to vectors, then layer normalisation: how ConvNeXt and Swin begin."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        patch: int,
        *,
        eps: float,
        kernel_init: initializers.Initializer,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        self.conv = Conv(
            in_features,
            out_features,
            patch,
            stride=patch,
            padding=0,
            bias=True,
            kernel_init=kernel_init,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = LayerNorm(out_features, eps=eps, dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, in]` -> `[B, H // patch, W // patch, out]`."""
        return self.norm(self.conv(x))


class PReLU(nnx.Module):
    """max(x, 0) + a min(x, 0) with one learned slope a, 0.25 at first (He et al. 2015)."""

    def __init__(self, slope: float = 0.25):
        self.slope = nnx.Param(jnp.full((), slope, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Any shape."""
        return jnp.where(x >= 0, x, x * self.slope[...].astype(x.dtype))


class Linear(nnx.Module):
    """`[..., in]` -> `[..., out]`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        kernel_init: initializers.Initializer = lecun_normal,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        self.kernel = nnx.Param(kernel_init(rngs.params(), (in_features, out_features), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((out_features,), jnp.float32)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., in]` -> `[..., out]`."""
        dtype = self.dtype or x.dtype
        y = product(x.astype(dtype), self.kernel[...].astype(dtype))
        return y if self.bias is None else y + jnp.expand_dims(self.bias[...].astype(dtype), tuple(range(y.ndim - 1)))


class Mlp(nnx.Module):
    """Linear, GELU, linear: what a transformer does with each token."""

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        dropout: float = 0.0,
        kernel_init: initializers.Initializer = xavier_uniform,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        self.dropout = dropout
        self.fc1 = Linear(features, hidden, kernel_init=kernel_init, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(hidden, features, kernel_init=kernel_init, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> jax.Array:
        """`[..., C]` -> same; `key` for dropout, after either layer."""
        keys = Keys(key)
        y = dropout(jax.nn.gelu(self.fc1(x), approximate=False), self.dropout, keys(), train)
        return dropout(self.fc2(y), self.dropout, keys(), train)
