"""Every back-end-specific form equals XLA's native operation, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cspine_jax.errors import ConfigError
from cspine_jax.models import conv

RNG = np.random.default_rng(0)


def random(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def value_and_grads(f, *args):
    """f's output, and the gradients of a random projection of it."""
    out, pull = jax.vjp(f, *args)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=out.shape), out.dtype)
    return out, *pull(weights)


def assert_same_on_both_back_ends(f, *args):
    results = []
    for name in ("cpu", "gpu"):
        with conv.assume_backend(name):
            results.append(jax.jit(lambda *a: value_and_grads(f, *a))(*args))
    for ours, native in zip(*results, strict=True):
        np.testing.assert_allclose(ours, native, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("kernel", "channels", "out", "groups", "stride", "padding"),
    [
        (1, 6, 8, 1, 1, 0),
        (1, 6, 8, 1, 2, 0),
        (3, 6, 8, 1, 2, 1),
        (3, 6, 8, 2, 1, 1),
        (3, 12, 24, 6, 2, 1),
        (3, 192, 96, 6, 1, 1),
        (3, 96, 96, 32, 1, 1),
        (3, 6, 6, 6, 1, 1),
        (3, 6, 6, 6, 2, 1),
        (5, 6, 6, 6, 2, 2),
        (7, 6, 6, 6, 1, 3),
        ((1, 5), 6, 6, 6, (1, 2), (0, 2)),
    ],
)
@pytest.mark.parametrize("size", [(9, 12), (8, 7)])
def test_conv2d_equals_native(size, kernel, channels, out, groups, stride, padding):
    kh, kw = conv.pair(kernel)
    x, k = random(2, *size, channels), random(kh, kw, channels // groups, out)
    assert_same_on_both_back_ends(lambda x, k: conv.conv2d(x, k, stride, padding, groups), x, k)


@pytest.mark.parametrize("size", [(2, 2), (1, 4), (3, 3)])
@pytest.mark.parametrize("stride", [1, 2])
def test_maps_smaller_than_the_kernel_equal_native(size, stride):
    x, k = random(3, *size, 5), random(3, 3, 5, 4)
    assert_same_on_both_back_ends(lambda x, k: conv.conv2d(x, k, stride, 1), x, k)


@pytest.mark.parametrize(
    ("kernel", "size", "padding"), [(3, (4, 5), 1), (3, (4, 4), 0), ((1, 7), (5, 6), (0, 3)), ((5, 3), (6, 5), (4, 0))]
)
def test_kernels_larger_than_the_map_equal_native(kernel, size, padding):
    x, k = random(2, *size, 24), random(*conv.pair(kernel), 24, 16)
    assert k.size >= x.size
    assert_same_on_both_back_ends(lambda x, k: conv.conv2d(x, k, 1, padding), x, k)


@pytest.mark.parametrize("batch", [1, 5, 6, 8])
@pytest.mark.parametrize(("kernel", "size", "stride"), [(3, 9, 1), (7, 9, 2), (3, 150, 1)])
def test_depthwise_gradients_some_pictures_at_a_time_equal_native(batch, kernel, size, stride):
    x, k = random(batch, size, size, 3), random(kernel, kernel, 1, 3)
    assert_same_on_both_back_ends(lambda x, k: conv.conv2d(x, k, stride, kernel // 2, groups=3) / size, x, k)


def test_conv2d_by_hand():
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    ones = jnp.ones((3, 3, 1, 1))
    out = conv.conv2d(x, ones, stride=2, padding=1)
    np.testing.assert_array_equal(out[0, :, :, 0], [[0 + 1 + 3 + 4, 1 + 2 + 4 + 5], [3 + 4 + 6 + 7, 4 + 5 + 7 + 8]])


@pytest.mark.parametrize(
    ("window", "stride", "padding"), [(3, 2, 1), (2, 2, 0), (3, 1, 1), ((1, 3), (1, 2), (0, 1)), (2, 3, 0), (5, 2, 2)]
)
@pytest.mark.parametrize("size", [(8, 8), (9, 11)])
def test_max_pool_equals_native(size, window, stride, padding):
    assert_same_on_both_back_ends(lambda x: conv.max_pool(x, window, stride, padding), random(2, *size, 3))


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_max_pool_sends_the_gradient_of_a_tie_to_the_first(backend):
    with conv.assume_backend(backend):
        grad = jax.grad(lambda x: conv.max_pool(x, 2, 2).sum())(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(grad[0, :, :, 0], [[1, 0], [0, 0]])


def test_a_map_without_room_for_one_window_is_refused():
    with pytest.raises(
        ConfigError, match=r"a map of 1 x 3 pixels is too small for a 2 x 2 convolution: .* crops\.size"
    ):
        conv.conv2d(jnp.ones((1, 1, 3, 4)), jnp.ones((2, 2, 4, 4)), 2)
    assert conv.conv2d(jnp.ones((1, 1, 3, 4)), jnp.ones((2, 2, 4, 4)), 2, padding=1).shape == (1, 1, 2, 4)


@pytest.mark.parametrize("shape", [(5, 4), (2, 5, 4), (2, 3, 5, 4)])
def test_product_and_its_gradient(shape):
    x, w = random(*shape), random(4, 7)
    with conv.assume_backend("gpu"):
        expected = value_and_grads(conv.product, x, w)
    with conv.assume_backend("cpu"):
        found = value_and_grads(conv.product, x, w)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)
