"""Building blocks that are fast where they run: convolution, batch normalisation, pooling, PReLU, dropout.

XLA's CPU back end is on par with others for dense 3x3 convolutions and slow for 1x1, depthwise and max-pool
gradients. Here each operation picks, while it is traced, the exact form that its back end runs fast; other back ends
keep XLA's native operations. All arrays are `[B, H, W, C]`; kernels are `[kh, kw, in / groups, out]`.

Parameters are float32; `dtype` is the type computed in (None: that of the input). Padding is symmetric, as in torch.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.nn import initializers

Size = int | tuple[int, int]

he_normal_out = initializers.variance_scaling(2.0, "fan_out", "normal")
"""Convolution kernels in front of a ReLU: normal, variance 2 / fan-out (He et al. 2015)."""

_backend: list[str] = []


@contextlib.contextmanager
def assume_backend(name: str) -> Iterator[None]:
    """Traces as if `name` ("cpu", "gpu", "tpu") were the default back end: for export and for tests."""
    _backend.append(name)
    try:
        yield
    finally:
        _backend.pop()


def on_cpu() -> bool:
    """True while operations should be traced in the form that XLA's CPU back end runs fast."""
    return (_backend[-1] if _backend else jax.default_backend()) == "cpu"


def pair(value: Size) -> tuple[int, int]:
    """`3` -> `(3, 3)`."""
    return (value, value) if isinstance(value, int) else value


def _at_least_float32(x: jax.Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)


def conv2d(x: jax.Array, kernel: jax.Array, stride: Size = 1, padding: Size = 0, groups: int = 1) -> jax.Array:
    """Cross-correlation in the form that is fast on this back end.

    Args:
        x: `[B, H, W, C]`.
        kernel: `[kh, kw, C / groups, O]`, of x's dtype.
        stride: step in y and x.
        padding: zeros added on both sides in y and x.
        groups: channel groups; C for a depthwise convolution.

    Returns:
        `[B, H', W', O]`, H' = (H + 2 padding - kh) // stride + 1.
    """
    stride, padding = pair(stride), pair(padding)
    kh, kw, _, out = kernel.shape
    if on_cpu() and (kh, kw) == (1, 1) and groups == 1 and padding == (0, 0):
        return _pointwise(x, kernel, stride)
    if on_cpu() and groups == x.shape[-1] == out and kh * kw <= 49:
        return _depthwise_shifted(x, kernel, stride, padding)
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=stride,
        padding=[(p, p) for p in padding],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _pointwise(x: jax.Array, kernel: jax.Array, stride: tuple[int, int]) -> jax.Array:
    x = x[:, :: stride[0], :: stride[1]]
    return lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))


def _window(x: jax.Array, dy: int, dx: int, size: tuple[int, int], stride: tuple[int, int]) -> jax.Array:
    """The `[B, *size, C]` elements of x that offset (dy, dx) of a sliding window meets."""
    b, _, _, c = x.shape
    stop = (b, dy + (size[0] - 1) * stride[0] + 1, dx + (size[1] - 1) * stride[1] + 1, c)
    return lax.slice(x, (0, dy, dx, 0), stop, (1, *stride, 1))


def _out_size(x: jax.Array, window: tuple[int, int], stride: tuple[int, int]) -> tuple[int, int]:
    _, h, w, _ = x.shape
    return (h - window[0]) // stride[0] + 1, (w - window[1]) // stride[1] + 1


def _pad(x: jax.Array, padding: tuple[int, int], value: float = 0.0) -> jax.Array:
    edges = [(0, 0, 0), (padding[0], padding[0], 0), (padding[1], padding[1], 0), (0, 0, 0)]
    return lax.pad(x, jnp.asarray(value, x.dtype), edges)


def _depthwise_shifted(x: jax.Array, kernel: jax.Array, stride: tuple[int, int], padding: tuple[int, int]) -> jax.Array:
    kh, kw = kernel.shape[:2]
    x = _pad(x, padding)
    size = _out_size(x, (kh, kw), stride)
    terms = (_window(x, i, j, size, stride) * kernel[i, j, 0][None, None, None] for i in range(kh) for j in range(kw))
    return sum(terms, start=jnp.zeros((), x.dtype))


def max_pool(x: jax.Array, window: Size, stride: Size, padding: Size = 0) -> jax.Array:
    """Largest value under each window; `[B, H, W, C]` -> `[B, H', W', C]`. The gradient goes to the first largest."""
    args = pair(window), pair(stride), pair(padding)
    return _max_pool_shifted(x, *args) if on_cpu() else _max_pool_native(x, *args)


def _max_pool_native(
    x: jax.Array, window: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> jax.Array:
    edges = [(0, 0), *((p, p) for p in padding), (0, 0)]
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *stride, 1), edges)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool_shifted(
    x: jax.Array, window: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> jax.Array:
    x = _pad(x, padding, -jnp.inf)
    size = _out_size(x, window, stride)
    out = _window(x, 0, 0, size, stride)
    for k in range(1, window[0] * window[1]):
        out = jnp.maximum(out, _window(x, *divmod(k, window[1]), size, stride))
    return out


def _max_pool_fwd(x, window, stride, padding):
    out = _max_pool_shifted(x, window, stride, padding)
    return out, (x, out)


def _max_pool_bwd(window, stride, padding, saved, g):
    x, out = saved
    padded = _pad(x, padding, -jnp.inf)
    size = _out_size(padded, window, stride)
    free = jnp.ones(out.shape, bool)
    zero = jnp.zeros((), g.dtype)
    total = jnp.zeros(padded.shape, g.dtype)
    for k in range(window[0] * window[1]):
        dy, dx = divmod(k, window[1])
        hit = free & (_window(padded, dy, dx, size, stride) == out)
        free = free & ~hit
        below = padded.shape[1] - dy - (size[0] - 1) * stride[0] - 1
        right = padded.shape[2] - dx - (size[1] - 1) * stride[1] - 1
        edges = [(0, 0, 0), (dy, below, stride[0] - 1), (dx, right, stride[1] - 1), (0, 0, 0)]
        total = total + lax.pad(jnp.where(hit, g, zero), zero, edges)
    py, px = padding
    return (total[:, py : py + x.shape[1], px : px + x.shape[2]],)


_max_pool_shifted.defvjp(_max_pool_fwd, _max_pool_bwd)


def global_pool(x: jax.Array, kind: str) -> jax.Array:
    """Pools `[B, H, W, C]` over the image in float32.

    "avg" keeps what the image is about, "max" the strongest local evidence (a fracture fills a few pixels);
    "avgmax" concatenates both to `[B, 2 C]`.
    """
    x = x.astype(_at_least_float32(x))
    if kind == "avg":
        return x.mean((1, 2))
    if kind == "max":
        return x.max((1, 2))
    if kind == "avgmax":
        return jnp.concatenate([x.mean((1, 2)), x.max((1, 2))], axis=-1)
    raise ValueError(f"pooling={kind!r}: must be avg, max or avgmax")


def dropout(x: jax.Array, rate: float, key: jax.Array | None, train: bool) -> jax.Array:
    """Inverted dropout; the identity in evaluation or at rate 0.

    Raises:
        ValueError: training at a rate above 0 without a key.
    """
    if not train or rate == 0.0:
        return x
    if key is None:
        raise ValueError(f"dropout at rate {rate} in training needs a key: call the module with key=...")
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))


class Conv(nnx.Module):
    """Convolution `[B, H, W, in]` -> `[B, H', W', out]` with symmetric padding; see `conv2d`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel: Size,
        *,
        stride: Size = 1,
        padding: Size | None = None,
        groups: int = 1,
        bias: bool = False,
        kernel_init: initializers.Initializer = he_normal_out,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        kh, kw = pair(kernel)
        self.stride = pair(stride)
        self.padding = (kh // 2, kw // 2) if padding is None else pair(padding)
        self.groups = groups
        self.dtype = dtype
        self.kernel = nnx.Param(kernel_init(rngs.params(), (kh, kw, in_features // groups, out_features), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((out_features,), jnp.float32)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, in]` -> `[B, H', W', out]`."""
        dtype = self.dtype or x.dtype
        y = conv2d(x.astype(dtype), self.kernel[...].astype(dtype), self.stride, self.padding, self.groups)
        return y if self.bias is None else y + self.bias[...].astype(dtype)[None, None, None]


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
            wide = x.astype(_at_least_float32(x))
            mean = wide.mean(axes)
            var = jnp.maximum((wide * wide).mean(axes) - mean * mean, 0.0)
            count = x.size // x.shape[-1]
            self._record(mean, var * (count / max(count - 1, 1)))
        else:
            mean, var = self.mean[...], self.var[...]
        scale = self.scale[...] * lax.rsqrt(var + self.eps)
        shift = self.bias[...] - mean * scale
        axes = tuple(range(x.ndim - 1))
        y = x.astype(_at_least_float32(x)) * jnp.expand_dims(scale, axes) + jnp.expand_dims(shift, axes)
        return y.astype(self.dtype or x.dtype)

    def _record(self, mean: jax.Array, var: jax.Array) -> None:
        m = self.momentum
        self.mean[...] = (1 - m) * self.mean[...] + m * lax.stop_gradient(mean)
        self.var[...] = (1 - m) * self.var[...] + m * lax.stop_gradient(var)


class PReLU(nnx.Module):
    """max(x, 0) + a min(x, 0) with one learned slope a, 0.25 at first (He et al. 2015)."""

    def __init__(self, slope: float = 0.25):
        self.slope = nnx.Param(jnp.full((), slope, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Any shape."""
        return jnp.where(x >= 0, x, x * self.slope[...].astype(x.dtype))


class Linear(nnx.Module):
    """`[..., in]` -> `[..., out]`."""

    def __init__(self, in_features: int, out_features: int, *, dtype: Any = None, rngs: nnx.Rngs):
        init = initializers.lecun_normal()
        self.dtype = dtype
        self.kernel = nnx.Param(init(rngs.params(), (in_features, out_features), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((out_features,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., in]` -> `[..., out]`."""
        dtype = self.dtype or x.dtype
        y = x.astype(dtype) @ self.kernel[...].astype(dtype)
        return y + jnp.expand_dims(self.bias[...].astype(dtype), tuple(range(y.ndim - 1)))
