"""Convolution and pooling in the form that is fast where they run; all forms are exact (tests compare them).

XLA's CPU back end is on par with others for dense 3x3 convolutions and slow for 1x1, depthwise and max-pool
gradients. Here each operation picks, while it is traced, the exact form that its back end runs fast; other back ends
keep XLA's native operations. All arrays are `[B, H, W, C]`; kernels are `[kh, kw, in / groups, out]`.
"""

import contextlib
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from cspine_jax.errors import ConfigError

Size = int | tuple[int, int]

BLOCK = 32
"""Channels that groups of a convolution are taken together to, on the CPU."""

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

    Raises:
        ConfigError: no window fits; nothing would come out, and means of nothing are NaN.
    """
    stride, padding = pair(stride), pair(padding)
    kh, kw, _, out = kernel.shape
    if x.shape[1] + 2 * padding[0] < kh or x.shape[2] + 2 * padding[1] < kw:
        raise ConfigError(
            f"a map of {x.shape[1]} x {x.shape[2]} pixels is too small for a {kh} x {kw} convolution: give this "
            "network larger pictures (data.size, crops.size)"
        )
    if on_cpu() and (kh, kw) == (1, 1) and groups == 1 and padding == (0, 0):
        return _pointwise(x, kernel, stride)
    if on_cpu() and groups == x.shape[-1] == out and kh * kw <= 49:
        return _depthwise_shifted(x, kernel, stride, padding)
    if on_cpu() and groups > 1:
        return _grouped_blocks(x, kernel, stride, padding, groups)
    if on_cpu() and x.shape[1] * x.shape[2] <= kh * kw:
        return _by_patches(x, kernel, stride, padding)
    if on_cpu() and stride == (1, 1) and kernel.size >= x.size and padding[0] < kh and padding[1] < kw:
        return _wide(x, kernel, padding)
    return _native(x, kernel, stride, padding, groups)


def _native(
    x: jax.Array, kernel: jax.Array, stride: tuple[int, int], padding: tuple[int, int], groups: int = 1
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=stride,
        padding=[(p, p) for p in padding],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _wide(x: jax.Array, kernel: jax.Array, padding: tuple[int, int]) -> jax.Array:
    """A convolution whose kernel is larger than its map: the map's gradient is one product of patches.

    XLA turns the whole kernel over for it, which took longer than the product (4 x 4 x 512, batch 8: 12 ms, here 8).
    """
    return _native(x, kernel, (1, 1), padding)


def _wide_fwd(x, kernel, padding):
    return _wide(x, kernel, padding), (x, kernel)


def _wide_bwd(padding, saved, g):
    x, kernel = saved
    kh, kw, channels, out = kernel.shape
    around = _pad(g, (kh - 1 - padding[0], kw - 1 - padding[1]))
    seen = [_window(around, kh - 1 - i, kw - 1 - j, x.shape[1:3], (1, 1)) for i in range(kh) for j in range(kw)]
    dx = lax.dot_general(jnp.stack(seen, axis=3), kernel.reshape(kh * kw, channels, out), (((3, 4), (0, 2)), ((), ())))
    return dx, jax.vjp(lambda kernel: _native(x, kernel, (1, 1), padding), kernel)[1](g)[0]


_wide.defvjp(_wide_fwd, _wide_bwd)


def _grouped_blocks(
    x: jax.Array, kernel: jax.Array, stride: tuple[int, int], padding: tuple[int, int], groups: int
) -> jax.Array:
    """Dense convolutions of neighbouring groups taken together, as many as make `BLOCK` channels.

    XLA's CPU gradient of a grouped convolution is a loop over single channels: 4.8 s where this takes 0.04 s (32 x 32 x
    128 in 32 groups, batch 8), though most of a block's kernel is zeros.
    """
    kh, kw, width, out = kernel.shape
    together = next(q for q in range(min(groups, max(1, BLOCK // width)), 0, -1) if groups % q == 0)
    blocks, out = groups // together, out // groups
    eye = jnp.eye(together, dtype=kernel.dtype)
    parts = kernel.reshape(kh, kw, width, blocks, together, out)
    parts = jnp.einsum("hwcmqo,pq->mhwpcqo", parts, eye).reshape(blocks, kh, kw, together * width, together * out)
    images = jnp.split(x, blocks, axis=-1)
    answers = [_native(image, part, stride, padding) for image, part in zip(images, parts, strict=True)]
    return answers[0] if blocks == 1 else jnp.concatenate(answers, axis=-1)


def _pointwise(x: jax.Array, kernel: jax.Array, stride: tuple[int, int]) -> jax.Array:
    return product(x[:, :: stride[0], :: stride[1]], kernel[0, 0])


def product(x: jax.Array, w: jax.Array) -> jax.Array:
    """`[..., C]` times `[C, O]`, one dtype: `[..., O]`."""
    return _product(x, w) if on_cpu() else x @ w


@jax.custom_vjp
def _product(x: jax.Array, w: jax.Array) -> jax.Array:
    """Its gradient is written out: what differentiation makes of it lets XLA turn the output's whole gradient over.

    That was a tenth of a training step of EfficientNet-Lite0.
    """
    return x @ w


def _product_fwd(x, w):
    return x @ w, (x, w)


def _product_bwd(saved, g):
    x, w = saved
    dx = lax.dot_general(g, w, (((g.ndim - 1,), (1,)), ((), ())))
    return dx, lax.dot_general(x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1]), (((0,), (0,)), ((), ())))


_product.defvjp(_product_fwd, _product_bwd)


def _by_patches(x: jax.Array, kernel: jax.Array, stride: tuple[int, int], padding: tuple[int, int]) -> jax.Array:
    """One matrix product of what each window sees.

    For maps smaller than the kernel, where XLA exchanges map and kernel: 1.8 s where this takes 0.02 s (2 x 2 x 512,
    batch 105).
    """
    kh, kw, _, out = kernel.shape
    x = _pad(x, padding)
    size = _out_size(x, (kh, kw), stride)
    seen = jnp.concatenate([_window(x, i, j, size, stride) for i in range(kh) for j in range(kw)], axis=-1)
    return lax.dot_general(seen, kernel.reshape(-1, out), (((3,), (0,)), ((), ())))


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


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise_shifted(x: jax.Array, kernel: jax.Array, stride: tuple[int, int], padding: tuple[int, int]) -> jax.Array:
    """One multiply-add of the whole map for each tap.

    Its gradient is written out: what differentiation makes of the same sum takes 4 to 10 times as long for 5x5 and 7x7
    kernels, and as much longer to compile.
    """
    kh, kw = kernel.shape[:2]
    x = _pad(x, padding)
    size = _out_size(x, (kh, kw), stride)
    terms = (_window(x, i, j, size, stride) * kernel[i, j, 0][None, None, None] for i in range(kh) for j in range(kw))
    return sum(terms, start=jnp.zeros((), x.dtype))


def _depthwise_fwd(x, kernel, stride, padding):
    return _depthwise_shifted(x, kernel, stride, padding), (x, kernel)


def _depthwise_bwd(stride, padding, saved, g):
    x, kernel = saved
    kh, kw = kernel.shape[:2]
    # Of the input: the same sum over the turned kernel, on the gradient with zeros where the stride left pixels out.
    edges = [
        (k - 1 - p, n - 1 - (m - 1) * s + p, s - 1)
        for k, p, n, m, s in zip((kh, kw), padding, x.shape[1:3], g.shape[1:3], stride, strict=True)
    ]
    spread = lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    dx = _depthwise_shifted(spread, kernel[::-1, ::-1], (1, 1), (0, 0))
    return dx, _depthwise_kernel_gradient(_pad(x, padding), g, (kh, kw), stride)[:, :, None].astype(kernel.dtype)


TOGETHER, TOGETHER_BYTES = 4, 1 << 18
"""Pictures that a depthwise kernel's gradient takes at once: at most so many, of at most so many bytes in all.

They stay in the cache, and what made the gradient is not computed again for every tap.
"""


def _depthwise_kernel_gradient(
    x: jax.Array, g: jax.Array, window: tuple[int, int], stride: tuple[int, int]
) -> jax.Array:
    """Float32 `[kh, kw, C]`: for each tap, the sum over pixels of what it met times the gradient of what it made.

    Args:
        x: padded input `[B, H, W, C]`.
        g: gradient of the output `[B, h, w, C]`.
        window: (kh, kw).
        stride: step in y and x.
    """
    (kh, kw), size = window, (g.shape[1], g.shape[2])
    few = min(TOGETHER, max(1, TOGETHER_BYTES * len(x) // (x.size * x.dtype.itemsize)))
    few = next(n for n in range(few, 0, -1) if len(x) % n == 0)

    def add(total: jax.Array, start: jax.Array) -> tuple[jax.Array, None]:
        seen, made = (lax.dynamic_slice_in_dim(a, start, few, axis=0) for a in (x, g))
        met = [_window(seen, i, j, size, stride) * made for i in range(kh) for j in range(kw)]
        rows = [met] if kh * kw <= 25 else [met[k : k + kw] for k in range(0, kh * kw, kw)]
        return total + jnp.stack([part for row in rows for part in _sums(row)]), None

    zeros = jnp.zeros((kh * kw, g.shape[-1]), jnp.float32)
    return lax.scan(add, zeros, jnp.arange(0, len(x), few))[0].reshape(kh, kw, -1)


def _sums(terms: list[jax.Array]) -> tuple[jax.Array, ...]:
    """Float32 `[C]` sums over pixels of several `[B, H, W, C]` in one pass over memory."""
    wide = tuple(term.astype(jnp.float32) for term in terms)
    zeros = (jnp.zeros((), jnp.float32),) * len(wide)
    return lax.reduce(wide, zeros, lambda a, b: tuple(p + q for p, q in zip(a, b, strict=True)), (0, 1, 2))


_depthwise_shifted.defvjp(_depthwise_fwd, _depthwise_bwd)


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
    """The maxima, and for the gradient which tap was the first to show each."""
    padded = _pad(x, padding, -jnp.inf)
    size = _out_size(padded, window, stride)
    out = _window(padded, 0, 0, size, stride)
    first = jnp.zeros(out.shape, jnp.uint8 if window[0] * window[1] <= 256 else jnp.int32)
    for k in range(1, window[0] * window[1]):
        seen = _window(padded, *divmod(k, window[1]), size, stride)
        first = jnp.where(seen > out, jnp.asarray(k, first.dtype), first)
        out = jnp.maximum(out, seen)
    return out, (first, x)  # of x the shape alone


def _max_pool_bwd(window, stride, padding, saved, g):
    """Each residue of (row, column) by the stride is a map of its own: no tap is tried that cannot have met a pixel.

    Gradient and taps are padded once and looked at through windows. Padding what each tap chose, as differentiation
    would, takes a pass over memory for every tap: 20 times as long for 3x3 by 1.
    """
    (first, seen), ((kh, kw), (sy, sx), (py, px)) = saved, (window, stride, padding)
    (b, h, w, c), shape = g.shape, seen.shape
    size = ny, nx = -(-(shape[1] + 2 * py) // sy), -(-(shape[2] + 2 * px) // sx)
    top, left = (kh - 1) // sy, (kw - 1) // sx
    edges = [(0, 0, 0), (top, ny - h, 0), (left, nx - w, 0), (0, 0, 0)]
    first, g = (lax.pad(a, jnp.zeros((), a.dtype), edges) for a in (first, g))

    def residue(y: int, x: int) -> jax.Array:
        total = jnp.zeros((b, ny, nx, c), g.dtype)
        for i in range(y, kh, sy):
            for j in range(x, kw, sx):
                tap, made = (_window(a, top - i // sy, left - j // sx, size, (1, 1)) for a in (first, g))
                total += jnp.where(tap == i * kw + j, made, jnp.zeros((), g.dtype))
        return total

    rows = [jnp.stack([residue(y, x) for x in range(sx)], axis=3).reshape(b, ny, -1, c) for y in range(sy)]
    full = jnp.stack(rows, axis=2).reshape(b, ny * sy, nx * sx, c)
    return (full[:, py : py + shape[1], px : px + shape[2]],)


_max_pool_shifted.defvjp(_max_pool_fwd, _max_pool_bwd)


def avg_pool(x: jax.Array, window: Size, stride: Size, padding: Size = 0) -> jax.Array:
    """Mean under each window, padded zeros counted; `[B, H, W, C]` -> `[B, H', W', C]`. Sums are at least float32."""
    window, stride, padding = pair(window), pair(stride), pair(padding)
    kh, kw = window
    if on_cpu() and min(window) > 3:  # rows, then columns: a gradient by 10 shifts is 8 times faster than one by 25
        rows = avg_pool(x, (kh, 1), (stride[0], 1), (padding[0], 0))
        return avg_pool(rows, (1, kw), (1, stride[1]), (0, padding[1]))
    wide = _pad(x.astype(jnp.promote_types(x.dtype, jnp.float32)), padding)
    if on_cpu():
        size = _out_size(wide, window, stride)
        zero = jnp.zeros((), wide.dtype)
        total = sum((_window(wide, i, j, size, stride) for i in range(kh) for j in range(kw)), start=zero)
    else:
        total = lax.reduce_window(wide, 0.0, lax.add, (1, kh, kw, 1), (1, *stride, 1), "VALID")
    return (total / (kh * kw)).astype(x.dtype)


def adaptive_avg_pool(x: jax.Array, size: Size) -> jax.Array:
    """Means of a grid of cells that cover the image, `[B, H, W, C]` -> `[B, *size, C]`, as torch lays them out.

    Cell i of n spans floor(i H / n) to ceil((i + 1) H / n): cells overlap where n does not divide H, and repeat pixels
    where the image is smaller than the grid.
    """
    for axis, count in enumerate(pair(size), start=1):
        length = x.shape[axis]
        if length != count:
            spans = [(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]
            cells = [lax.slice_in_dim(x, a, b, axis=axis).mean(axis, keepdims=True) for a, b in spans]
            x = jnp.concatenate(cells, axis)
    return x
