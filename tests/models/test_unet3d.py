"""3D layers in both forms, packing, and the UNet made of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cspine_jax.models.conv import assume_backend
from cspine_jax.models.layers3d import conv3d, double, pack, redraw_kernels, unpack
from cspine_jax.models.unet3d import UNet3d


@pytest.mark.parametrize("size", [1, 3])
def test_the_fast_convolution_is_the_native_one(size):
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 7, 3))
    kernel = jax.random.normal(jax.random.key(1), (size, size, size, 3, 4))

    def value_and_grads(backend):
        def total(x, kernel):
            with assume_backend(backend):
                y = conv3d(x, kernel)
            return jnp.sum(jnp.sin(y)), y

        (_, y), grads = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(x, kernel)
        return y, *grads

    for fast, native in zip(value_and_grads("cpu"), value_and_grads("gpu"), strict=True):
        np.testing.assert_allclose(fast, native, atol=2e-3)


def test_packing_is_what_it_says_and_unpacking_undoes_it():
    x = jnp.arange(4 * 6 * 8 * 2, dtype=jnp.float32).reshape(1, 4, 6, 8, 2)
    packed = pack(x)
    assert packed.shape == (1, 2, 3, 4, 16)
    dz, dy, dx, c = 1, 0, 1, 1
    np.testing.assert_array_equal(packed[..., (4 * dz + 2 * dy + dx) * 2 + c], x[:, dz::2, dy::2, dx::2, c])
    np.testing.assert_array_equal(unpack(packed), x)
    np.testing.assert_array_equal(double(x)[:, ::2, 1::2, ::2], x)


def test_redrawn_kernels_are_he_normal_and_all_different():
    params = {"a": jnp.zeros((3, 3, 3, 16, 64)), "b": {"k": jnp.zeros((1, 1, 1, 64, 200)), "bias": jnp.ones(8)}}
    new = redraw_kernels(params, jax.random.key(0))
    np.testing.assert_allclose(new["a"].std(), (2 / (27 * 64)) ** 0.5, rtol=0.03)
    np.testing.assert_allclose(new["b"]["k"].std(), (2 / 200) ** 0.5, rtol=0.03)
    np.testing.assert_array_equal(new["b"]["bias"], 1)
    assert abs(np.corrcoef(new["a"].ravel()[:9000], new["b"]["k"].ravel()[:9000])[0, 1]) < 0.05


@pytest.mark.parametrize("light", [False, True])
@pytest.mark.parametrize("unpacked", [False, True])
def test_shapes_and_gradients_reach_every_kernel(light, unpacked):
    def build():
        return UNet3d(4, 3, (4, 6, 8), unpacked=unpacked, light=light, rngs=nnx.Rngs(0))

    graph, state = nnx.split(nnx.eval_shape(build))
    shapes = [nnx.to_pure_dict(part) for part in nnx.split_state(state, nnx.Param, ...)]
    params, stats = jax.tree.map(lambda a: jnp.ones(a.shape), shapes)
    params = redraw_kernels(params, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 4, 8, 4, 4))

    @jax.jit
    def loss(params):
        y = nnx.merge(graph, params, stats)(x, train=True)
        return jnp.sum(jnp.sin(y)), y

    grads, y = jax.grad(loss, has_aux=True)(params)
    scale = 2 if unpacked else 1
    assert y.shape == (2, 4 * scale, 8 * scale, 4 * scale, 3) and y.dtype == jnp.float32
    flat = jax.tree_util.tree_flatten_with_path(grads)[0]
    dead = [jax.tree_util.keystr(path) for path, g in flat if g.ndim > 1 and not np.abs(g).max() > 0]
    assert not dead


def test_sides_that_cannot_be_halved_are_refused():
    def call():
        return UNet3d(1, 1, (2, 2), rngs=nnx.Rngs(0))(jnp.zeros((1, 2, 3, 2, 1)))

    with pytest.raises(ValueError, match="must be a multiple of 2"):
        jax.eval_shape(call)
