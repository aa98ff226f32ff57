"""2D UNet, UNet on any backbone, inflated UNet: sizes, the paper's pieces, what inflation keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cspine_jax.errors import ConfigError
from cspine_jax.models import create, names
from cspine_jax.models.backbones import resnet
from cspine_jax.models.inflated import InflatedUNet, conv_planes, inflate
from cspine_jax.models.unet2d import UNet2D, UpConv
from cspine_jax.models.unet_encoder import EncoderUNet, decoder_plan


def shape_of(build, shape):
    graph, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    out = jax.eval_shape(lambda state, x: nnx.merge(graph, state)(x), state, jnp.zeros(shape))
    assert out.dtype == jnp.float32
    return out.shape


def drawn(build, seed=0):
    """Graph and a He-normal state drawn by numpy: compiling an initialisation costs more than the test."""
    rng = np.random.default_rng(seed)
    graph, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))

    def value(path, x):
        if len(x.shape) > 1:
            return jnp.asarray(rng.normal(size=x.shape) * np.sqrt(2 * x.shape[-2] / x.size), x.dtype)
        return jnp.full(x.shape, "scale" in str(path) or "var" in str(path), x.dtype)

    return graph, jax.tree_util.tree_map_with_path(value, state)


@pytest.mark.parametrize("size", [(64, 64), (37, 50), (1, 200)])
def test_unet2d_takes_any_size(size):
    def build(rngs):
        return UNet2D(in_channels=3, num_classes=20, width=4, rngs=rngs)

    assert shape_of(build, (2, *size, 3)) == (2, *size, 20)


def test_unet2d_is_the_papers():
    """31.0 million parameters at width 64, as everywhere reported for one input channel and two classes."""
    model = nnx.eval_shape(lambda: UNet2D(in_channels=1, num_classes=2, width=64, levels=4, rngs=nnx.Rngs(0)))
    kernels = [x for x in jax.tree.leaves(nnx.state(model, nnx.Param)) if len(x.shape) == 4]
    assert sum(x.size for x in kernels) == pytest.approx(31.03e6, rel=1e-3)
    assert model.down[-1].conv2.kernel.shape == (3, 3, 1024, 1024)


def test_padding_does_not_reach_an_image_that_needs_none():
    graph, state = drawn(lambda rngs: UNet2D(in_channels=1, num_classes=3, width=2, levels=2, rngs=rngs))
    run = jax.jit(lambda x: nnx.merge(graph, state)(x))
    x = jnp.asarray(np.random.default_rng(0).random((1, 13, 10, 1)), jnp.float32)
    by_hand = jnp.pad(x, ((0, 0), (0, 3), (0, 2), (0, 0)))
    np.testing.assert_allclose(run(x), run(by_hand)[:, :13, :10], rtol=1e-5, atol=1e-6)


def test_up_convolution_is_a_transposed_convolution():
    graph, state = drawn(lambda rngs: UpConv(3, 5, dtype=None, rngs=rngs))
    up = nnx.merge(graph, state)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 6, 3)), jnp.float32)
    kernel = up.conv.kernel[...].reshape(3, 2, 2, 5).transpose(1, 2, 0, 3)
    expected = jax.lax.conv_transpose(  # which slides the turned kernel
        x, kernel[::-1, ::-1], (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(up(x), expected, rtol=1e-5, atol=1e-5)


def test_decoder_plan():
    assert decoder_plan((2, 4, 8, 16, 32)) == (16, 8, 4, 2, 1)
    assert decoder_plan((4, 8, 16)) == (8, 4, 2, 1)
    assert decoder_plan((4, 8, 16, 32)) == (16, 8, 4, 2, 1)


@pytest.mark.parametrize("backbone", names())
def test_every_backbone_can_be_the_encoder(backbone):
    def build(rngs):
        return EncoderUNet(backbone, in_channels=5, num_classes=20, width=2, rngs=rngs)

    assert shape_of(build, (1, 96, 80, 5)) == (1, 96, 80, 20)
    assert shape_of(build, (1, 75, 100, 5)) == (1, 75, 100, 20)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet18d", "resnet50"])
def test_inflated_shapes(backbone):
    def build(rngs):
        return InflatedUNet(backbone, in_channels=1, num_classes=20, width=2, rngs=rngs)

    assert shape_of(build, (1, 5, 70, 64, 1)) == (1, 5, 70, 64, 20)
    with pytest.raises(ConfigError, match="only ResNets are inflated"):
        nnx.eval_shape(lambda: InflatedUNet("basic_cnn", num_classes=3, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("groups", [1, 2])
def test_conv_planes_is_a_3d_convolution(groups):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 4, 9, 8, 4)), rng.normal(size=(3, 3, 3, 4 // groups, 6))
    x, kernel = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
    expected = jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 2, 2),
        [(1, 1)] * 3,
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        feature_group_count=groups,
    )
    np.testing.assert_allclose(conv_planes(x, kernel, (2, 2), (1, 1), groups), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", [{}, {"d": True}, {"bottleneck": True, "groups": 2}], ids=["plain", "d", "grouped"])
def test_inflated_on_a_constant_stack_is_the_2d_network(form, monkeypatch):
    """Away from the ends (one slice an inflated convolution) every level of the pyramid equals the 2D network's."""
    config = resnet.Config(**{"blocks": (1, 1), "bottleneck": False, "width": 4, **form})
    monkeypatch.setitem(resnet.VARIANTS, "resnet_two_blocks", config)
    flat, params = drawn(lambda r: create("resnet_two_blocks", in_channels=1, features_only=True, rngs=r))
    encoder = nnx.merge(flat, params)
    assert isinstance(encoder, resnet.ResNet)
    deep = inflate(nnx.clone(encoder))
    picture = jnp.asarray(np.random.default_rng(0).random((1, 32, 22, 1)), jnp.float32)
    expected = jax.jit(lambda x: encoder.pyramid(x))(picture)
    stack = jnp.broadcast_to(picture[:, None], (1, 15, 32, 22, 1))
    got = jax.jit(lambda x: deep.pyramid(x))(stack)
    assert len(got) == len(expected) == 3
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one[:, 7], other, rtol=1e-4, atol=1e-5)
        assert np.abs(np.asarray(one[:, 0] - other)).max() > 1e-3  # the ends see zeros
