"""The building blocks by hand, against numpy and against torch's conventions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cspine_jax.models import layers

RNG = np.random.default_rng(0)


def random(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def value_and_grads(f, *args):
    """f's output, and the gradients of a random projection of it."""
    out, pull = jax.vjp(f, *args)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=out.shape), out.dtype)
    return out, *pull(weights)


def test_global_pool():
    x = random(2, 3, 4, 5)
    both = layers.global_pool(x.astype(jnp.bfloat16), "avgmax")
    assert both.dtype == jnp.float32
    np.testing.assert_allclose(layers.global_pool(x, "avg"), x.mean((1, 2)), rtol=1e-6)
    np.testing.assert_array_equal(layers.global_pool(x, "max"), x.max((1, 2)))
    np.testing.assert_array_equal(layers.global_pool(x, "avgmax")[:, 5:], x.max((1, 2)))
    with pytest.raises(ValueError, match="avgmax"):
        layers.global_pool(x, "median")


def test_batch_norm_follows_torch():
    x = 3.0 + 2.0 * random(4, 5, 6, 3)
    norm = layers.BatchNorm(3, eps=1e-3, momentum=0.3)
    norm.scale[...], norm.bias[...] = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.5, 0.0, -0.5])
    y = norm(x, train=True)
    flat = np.asarray(x, np.float64).reshape(-1, 3)
    mean, var = flat.mean(0), flat.var(0)
    expected = (flat - mean) / np.sqrt(var + 1e-3) * [1, 2, 3] + [0.5, 0, -0.5]
    np.testing.assert_allclose(y.reshape(-1, 3), expected, atol=2e-5)
    np.testing.assert_allclose(norm.mean[...], 0.3 * mean, rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.7 + 0.3 * flat.var(0, ddof=1), rtol=1e-5)  # unbiased, as torch's
    running, spread = np.asarray(norm.mean[...]), np.sqrt(np.asarray(norm.var[...]) + 1e-3)
    expected = (flat - running) / spread * [1, 2, 3] + [0.5, 0, -0.5]
    np.testing.assert_allclose(norm(x).reshape(-1, 3), expected, atol=2e-5)


def test_batch_norm_gradient():
    x = random(3, 4, 4, 2)

    def plain(x):
        mean, var = x.mean((0, 1, 2), keepdims=True), x.var((0, 1, 2), keepdims=True)
        return (x - mean) / jnp.sqrt(var + 1e-5)

    graph, state = nnx.split(layers.BatchNorm(2))
    ours = value_and_grads(lambda x: nnx.merge(graph, state, copy=True)(x, train=True), x)
    for a, b in zip(ours, value_and_grads(plain, x), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_prelu_and_linear():
    prelu = layers.PReLU()
    np.testing.assert_array_equal(prelu(jnp.array([-2.0, 0.0, 3.0])), [-0.5, 0, 3])
    linear = layers.Linear(3, 2, rngs=nnx.Rngs(0))
    linear.bias[...] = jnp.array([1.0, -1.0])
    x = random(4, 5, 3)
    np.testing.assert_allclose(linear(x), x @ linear.kernel[...] + jnp.array([[[1.0, -1.0]]]), rtol=1e-5)


def test_dropout():
    x = jnp.ones((200, 100))
    assert layers.dropout(x, 0.3, None, train=False) is x
    assert layers.dropout(x, 0.0, None, train=True) is x
    y = layers.dropout(x, 0.3, jax.random.key(0), train=True)
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.7)}
    assert float(y.mean()) == pytest.approx(1, abs=0.01)
    with pytest.raises(ValueError, match="needs a key"):
        layers.dropout(x, 0.3, None, train=True)


def test_conv_computes_in_the_type_asked_for_and_keeps_float32_parameters():
    conv = layers.Conv(3, 4, 3, bias=True, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert conv(random(1, 5, 5, 3)).dtype == jnp.bfloat16
    assert conv.kernel[...].dtype == conv.bias[...].dtype == jnp.float32
