"""The interface every backbone keeps: shapes, pyramid, heads, names, types, jitted initialisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cspine_jax import models
from cspine_jax.errors import ConfigError
from cspine_jax.models.backbones.base import Draws
from cspine_jax.models.slices import init_model

PARAMETERS = {
    "alexnet": 61_100_840,
    "convnext_small": 50_223_688,
    "convnext_tiny": 28_589_128,
    "densenet121": 7_978_856,
    "efficientnet_b5": 30_389_784,
    "efficientnet_lite0": 4_652_008,
    "efficientnet_v2_l": 118_515_272,
    "efficientnet_v2_s": 21_458_488,
    "tf_efficientnetv2_l": 118_515_272,
    "tf_efficientnetv2_s": 21_458_488,
    "googlenet": 6_624_904,
    "mnasnet1_3": 6_282_256,
    "mobilenet_v3_large": 5_483_032,
    "regnet_y_8gf": 39_381_472,
    "resnet18": 11_689_512,
    "resnet18d": 11_708_744,
    "resnet50": 25_557_032,
    "resnext50_32x4d": 25_028_904,
    "shufflenet_v2_x2_0": 7_393_996,
    "swin_s": 49_606_258,
    "vgg16_bn": 138_365_992,
    "vit_b_16": 86_567_656,
}
"""As published, with 3 input channels and 1000 outputs."""


def abstract(name, **options):
    return nnx.eval_shape(lambda: models.create(name, **options, rngs=nnx.Rngs(0)))


def build_small(rngs):
    return models.create("basic_cnn", in_channels=2, num_outputs=3, rngs=rngs)


def count(module):
    return sum(x.size for x in jax.tree.leaves(nnx.state(module, nnx.Param)))


def outputs(module, shape, **options):
    """Shapes and types of what the module returns, without computing it."""
    graph, state = nnx.split(module)
    return jax.eval_shape(
        lambda state, x: nnx.merge(graph, state)(x, **options), state, jax.ShapeDtypeStruct(shape, jnp.float32)
    )


def level_side(name, side, reduction):
    """Cells of one side of a pyramid level; the references round up at each stride, but for some."""
    if name.startswith(("convnext", "vgg")):
        return side // reduction
    if name == "densenet121":
        return -(-side // min(reduction, 4)) // max(reduction // 4, 1)
    if name == "googlenet":
        cells = -(-side // 2) // (min(reduction, 16) // 2)
        return -(-cells // 2) if reduction == 32 else cells
    if name in ("alexnet", "inception_v3"):  # windows of 3 at stride 2, and what unpadded convolutions cut
        at, cells, cut = (4, (side - 7) // 4 + 1, {}) if name == "alexnet" else (1, side, {2: 2, 4: 2})
        while at < reduction:
            at *= 2
            cells = (cells - 3) // 2 + 1 - cut.get(at, 0)
        return cells
    if name.startswith("swin"):
        return -(-(side // 4) // (reduction // 4))
    return -(-side // reduction)


def test_names():
    assert {"basic_cnn", "resnet18", "resnet50"} <= set(models.names())


def test_an_unknown_name_is_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match=r"model.backbone='resnet19'.*did you mean resnet18\?"):
        models.create("resnet19", rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="known: alexnet"):
        models.create("?", rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count_is_the_published_one(name):
    assert count(abstract(name)) == PARAMETERS[name]


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("size", [(96, 80), (97, 75)])
def test_pyramid(name, size):
    module = abstract(name, in_channels=5, features_only=True)
    assert module.head is None
    levels = outputs(module, (2, *size, 5))
    assert len(levels) == len(module.channels) == len(module.reductions)
    for level, channels, reduction in zip(levels, module.channels, module.reductions, strict=True):
        expected = tuple(level_side(name, side, reduction) for side in size)
        assert level.shape == (2, *expected, channels)


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("pooling", ["avg", "max", "avgmax", None])
def test_head_and_embedding(name, pooling):
    module = abstract(name, in_channels=1, num_outputs=3, pooling=pooling)
    assert outputs(module, (2, 96, 96, 1)).shape == (2, 3)
    bare = abstract(name, in_channels=1, num_outputs=0, pooling=pooling)
    assert outputs(bare, (2, 96, 96, 1)).shape == (2, module.embedding_dim)
    assert count(module) - count(bare) == (module.embedding_dim + 1) * 3


@pytest.mark.parametrize("name", models.names())
def test_bfloat16_computes_low_and_answers_float32(name):
    module = abstract(name, in_channels=2, num_outputs=3, dtype=jnp.bfloat16)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(nnx.state(module)))
    assert outputs(module, (1, 96, 96, 2)).dtype == jnp.float32
    levels = outputs(abstract(name, in_channels=2, features_only=True, dtype=jnp.bfloat16), (1, 96, 96, 2))
    assert all(level.dtype == jnp.bfloat16 for level in levels)


def test_training_mode_uses_and_records_batch_statistics():
    graph, state = init_model(build_small, jax.random.key(0))
    x = jnp.asarray(np.random.default_rng(0).normal(2.0, 3.0, (4, 32, 32, 2)), jnp.float32)

    @jax.jit
    def run(state, x):
        module = nnx.merge(graph, state)
        logits = module(x, train=True)
        return logits, nnx.state(module), module(x)

    trained, after, evaluated = run(state, x)
    before_stats, after_stats = (jax.tree.leaves(nnx.split_state(s, nnx.BatchStat, ...)[0]) for s in (state, after))
    assert all(bool((a != b).any()) for a, b in zip(before_stats, after_stats, strict=True))
    before, kept = (jax.tree.leaves(nnx.split_state(s, nnx.Param, ...)[0]) for s in (state, after))
    assert all(bool((a == b).all()) for a, b in zip(before, kept, strict=True))
    assert not np.allclose(trained, evaluated)
    shifted, _, _ = run(state, 5.0 * x)  # batch statistics take a factor out (all but eps)
    np.testing.assert_allclose(shifted, trained, atol=2e-2)


def test_initialisation_depends_on_the_key_alone():
    states = [init_model(build_small, jax.random.key(seed))[1] for seed in (0, 0, 1)]
    first, same, other = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(s)]) for s in states)
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


def test_keys_are_drawn_as_rngs_would():
    rngs, plain = nnx.Rngs(3), nnx.Rngs(3)
    for stream in (rngs, plain):
        stream.params()
    draws = Draws(rngs)
    for _ in range(3):
        assert jax.random.key_data(draws.params()).tolist() == jax.random.key_data(plain.params()).tolist()
    draws.close()
    assert jax.random.key_data(rngs.params()).tolist() == jax.random.key_data(plain.params()).tolist()
