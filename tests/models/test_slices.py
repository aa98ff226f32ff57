"""Document B's three types of slice model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from cspine_jax.config import LossConfig, ModelConfig
from cspine_jax.losses import slice_loss
from cspine_jax.models.slices import Head, LevelHead, SliceModel, init_model


def abstract(type_, **options):
    return nnx.eval_shape(lambda: SliceModel(ModelConfig(type=type_, hidden=16, **options), 3, rngs=nnx.Rngs(0)))


def make(type_, **options):
    """Graph and random state, without compiling an initialisation for each test."""
    rng = np.random.default_rng(0)
    graph, state = nnx.split(abstract(type_, **options))
    return graph, jax.tree.map(lambda x: jnp.asarray(0.1 * rng.normal(size=x.shape) + (x.ndim < 2), x.dtype), state)


def picture(size=4):
    return jnp.asarray(np.random.default_rng(0).random((size, 16, 16, 3)), jnp.float32)


@pytest.mark.parametrize(
    ("type_", "expected"), [(1, {"fracture": 1}), (2, {"fracture": 7}), (3, {"fracture": 7, "vertebra": 7})]
)
def test_outputs_of_each_type(type_, expected):
    graph, state = nnx.split(abstract(type_))
    out = jax.eval_shape(lambda state, x, v: nnx.merge(graph, state)(x, v), state, picture(), jnp.zeros((4, 7)))
    assert {name: x.shape for name, x in out.items()} == {name: (4, n) for name, n in expected.items()}
    assert all(x.dtype == jnp.float32 for x in out.values())


@pytest.mark.parametrize(("type_", "reads"), [(1, False), (2, True), (3, False)])
def test_only_type_2_reads_vertebra_probabilities(type_, reads):
    graph, state = make(type_)
    grad = jax.jit(jax.grad(lambda v: nnx.merge(graph, state)(picture(), v)["fracture"].sum()))(jnp.zeros((4, 7)))
    assert bool((grad != 0).all() if reads else (grad != 0).any()) == reads


def test_type_2_does_not_guess_vertebra_probabilities():
    graph, state = make(2)
    with pytest.raises(ValueError, match="Type 2"):
        jax.eval_shape(lambda: nnx.merge(graph, state)(picture()))


def test_heads_are_prelu():
    graph, state = init_model(lambda rngs: Head(3, 4, 2, dropout=0.0, rngs=rngs), jax.random.key(0))
    head = nnx.merge(graph, state)
    assert float(head.prelu.slope[...]) == 0.25
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
    hidden = np.asarray(x) @ np.asarray(head.hidden.kernel[...])
    expected = np.where(hidden > 0, hidden, 0.25 * hidden) @ np.asarray(head.out.kernel[...])
    np.testing.assert_allclose(head(x), expected, rtol=1e-5, atol=1e-6)


def test_level_head_adds_a_common_logit_to_each_levels_own():
    graph, state = init_model(lambda rngs: LevelHead(3, 4, 0.0, rngs=rngs), jax.random.key(0))
    head = nnx.merge(graph, state)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(50, 3)), jnp.float32)
    logits = np.asarray(head(x))
    np.testing.assert_allclose(logits, np.asarray(head.common(x)) + np.asarray(head.own(x)), rtol=1e-6)
    assert logits.std(axis=1).mean() < 0.3 * logits.mean(axis=1).std()  # a fresh head hardly tells levels apart


def test_dropout_needs_and_follows_the_key():
    graph, state = make(3, dropout=0.5)

    @jax.jit
    def run(key):
        return nnx.merge(graph, state, copy=True)(picture(), train=True, key=key)["fracture"]

    one, same, other = (np.asarray(run(jax.random.key(k))) for k in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    with pytest.raises(ValueError, match="needs a key"):
        jax.eval_shape(lambda: nnx.merge(graph, state, copy=True)(picture(), train=True))


def test_learns_a_bright_dot_among_levels():
    """A stripe says which vertebra the slice shows, a dot somewhere on it says fracture: both must be learned."""
    rng = np.random.default_rng(0)
    level, broken = rng.integers(0, 7, 64), rng.integers(0, 2, 64)
    image = rng.normal(0.3, 0.02, (64, 32, 32, 3))
    for k in range(64):
        image[k, 4 * level[k] : 4 * level[k] + 4] += 0.3
        if broken[k]:
            y, x = rng.integers(0, 4) + 4 * level[k], rng.integers(0, 32)
            image[k, y, x] -= 0.5
    presence = np.eye(7, dtype=np.float32)[level]
    ones = np.ones(64, np.float32)
    batch = {
        "presence": presence,
        "presence_known": ones,
        "fracture": presence * broken[:, None].astype(np.float32),
        "fracture_known": np.ones((64, 7), np.float32),
        "slice_fracture": broken.astype(np.float32),
        "slice_known": ones,
        "valid": ones > 0,
    }
    config = ModelConfig(type=3, hidden=16, dropout=0.0)
    graph, state = init_model(lambda rngs: SliceModel(config, 3, rngs=rngs), jax.random.key(0))
    params, stats = nnx.split_state(state, nnx.Param, ...)
    optimizer = optax.adam(5e-3)
    image = jnp.asarray(image, jnp.float32)

    def loss(params, stats):
        model = nnx.merge(graph, params, stats, copy=True)
        out = model(image, train=True)
        total, weight, parts = slice_loss(out, batch, LossConfig())
        return total / weight, (nnx.state(model, nnx.BatchStat), parts)

    @jax.jit
    def step(params, stats, opt):
        (_, (stats, parts)), grads = jax.value_and_grad(loss, has_aux=True)(params, stats)
        updates, opt = optimizer.update(grads, opt)
        return optax.apply_updates(params, updates), stats, opt, parts

    opt = optimizer.init(params)
    for _ in range(50):
        params, stats, opt, parts = step(params, stats, opt)
    assert float(parts["vertebra"][0] / parts["vertebra"][1]) < 0.1
    assert float(parts["fracture"][0] / parts["fracture"][1]) < 0.1
