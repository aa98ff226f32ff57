"""Attention: the formula, exact padding, biases, types; the encoder block; the parts of the vision transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cspine_jax.models.attention import EncoderBlock, SelfAttention, attend
from cspine_jax.models.backbones import swin, vit

HEADS, N, D = 3, 7, 4


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def qkv(*batch):
    return [draw(*batch, HEADS, N, D, seed=seed) for seed in range(3)]


def test_is_the_formula():
    q, k, v = qkv(2)
    bias = draw(HEADS, N, N, seed=3)
    scores = np.einsum("bhnd,bhmd->bhnm", q, k) / 2.0 + np.asarray(bias)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = np.einsum("bhnm,bhmd->bhnd", weights, v)
    np.testing.assert_allclose(attend(q, k, v, bias=bias), expected, rtol=1e-5, atol=1e-6)


def test_is_what_jax_computes():
    q, k, v = qkv(2)
    mask = jnp.arange(N)[None] < jnp.asarray([4, 7])[:, None]
    expected = jax.nn.dot_product_attention(*(jnp.swapaxes(x, 1, 2) for x in (q, k, v)), mask=mask[:, None, None])
    np.testing.assert_allclose(attend(q, k, v, key_mask=mask), jnp.swapaxes(expected, 1, 2), rtol=1e-5, atol=1e-6)


def test_padding_changes_nothing_at_valid_tokens():
    q, k, v = qkv(1)
    mask = jnp.arange(N)[None] < 4
    alone = attend(*(x[:, :, :4] for x in (q, k, v)))
    padded = attend(q, k, v, key_mask=mask)[:, :, :4]
    np.testing.assert_allclose(padded, alone, rtol=1e-6, atol=1e-7)
    filled = [jnp.where(mask[:, None, :, None], x, 1e4) for x in (q, k, v)]
    np.testing.assert_array_equal(attend(*filled, key_mask=mask)[:, :, :4], padded)


def test_a_mask_can_leave_out_any_token():
    q, k, v = qkv(1)
    kept = jnp.asarray([0, 2, 3, 6])
    mask = jnp.zeros((1, N), bool).at[:, kept].set(True)
    alone = attend(*(x[:, :, kept] for x in (q, k, v)))
    np.testing.assert_allclose(attend(q, k, v, key_mask=mask)[:, :, kept], alone, rtol=1e-6, atol=1e-7)


def test_gradients_stay_finite_where_nothing_is_left():
    q, k, v = qkv(2)
    mask = jnp.stack([jnp.zeros(N, bool), jnp.arange(N) < 3])
    np.testing.assert_allclose(
        attend(q, k, v, key_mask=mask)[0], jnp.broadcast_to(v[0].mean(1, keepdims=True), v[0].shape), atol=1e-6
    )
    grads = jax.grad(lambda args: (attend(*args, key_mask=mask) ** 2).sum())((q, k, v))
    assert all(bool(jnp.isfinite(g).all()) for g in grads)
    assert bool((grads[1][1, :, 3:] == 0).all()) and bool((grads[2][1, :, 3:] == 0).all())


def test_more_axes_in_front_and_a_bias_for_each():
    q, k, v = qkv(2, 5)
    bias = draw(5, HEADS, N, N, seed=3)
    together = attend(q, k, v, bias=bias)
    for w in range(5):
        np.testing.assert_allclose(
            together[:, w], attend(q[:, w], k[:, w], v[:, w], bias=bias[w]), rtol=1e-5, atol=1e-6
        )


def test_softmax_is_float32_under_bfloat16():
    q, k, v = (x.astype(jnp.bfloat16) for x in qkv(2))
    assert attend(q, k, v).dtype == jnp.bfloat16
    exponents = [e for e in jax.make_jaxpr(attend)(q, k, v).jaxpr.eqns if e.primitive.name == "exp"]
    assert [e.outvars[0].aval.dtype for e in exponents] == [jnp.float32]
    wide = attend(*(x.astype(jnp.float32) for x in (q, k, v)))
    np.testing.assert_allclose(attend(q, k, v).astype(jnp.float32), wide, atol=3e-2)


def test_float64_stays_float64():
    with jax.enable_x64(True):
        q, k, v = (jnp.asarray(x, jnp.float64) for x in qkv(1))
        assert attend(q, k, v).dtype == jnp.float64


def test_self_attention_ignores_padding_and_keeps_the_order_of_tokens():
    attention = SelfAttention(12, HEADS, rngs=nnx.Rngs(0))
    x = draw(2, N, 12)
    mask = jnp.arange(N)[None] < jnp.asarray([5, N])[:, None]
    padded = attention(x, key_mask=mask)
    np.testing.assert_allclose(padded[0, :5], attention(x[:1, :5])[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(padded[1], attention(x[1:])[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(attention(x[:, ::-1]), attention(x)[:, ::-1], rtol=1e-5, atol=1e-6)


def test_heads_must_divide_the_features():
    with pytest.raises(ValueError, match="heads=5: must divide features=12"):
        SelfAttention(12, 5, rngs=nnx.Rngs(0))


def block(**options):
    return EncoderBlock(SelfAttention(12, HEADS, rngs=nnx.Rngs(0)), 12, 24, rngs=nnx.Rngs(1), **options)


def test_block_drops_branches_and_units_in_training_only():
    x, key = draw(8, N, 12), jax.random.key(0)
    steady, dropping = block(), block(dropout=0.5)
    expected = steady(x, False, 0.5, None)
    np.testing.assert_array_equal(steady(x, True, 0.0, None), expected)
    np.testing.assert_array_equal(dropping(x, False, 0.5, None), expected)
    assert (dropping(x, True, 0.0, key) != expected).any()
    whole = steady(x, True, 0.5, key)  # an example may lose both branches; then it comes out as it went in
    assert (whole == x).all((1, 2)).any() and not (whole == x).all()
    with pytest.raises(ValueError, match=r"stochastic depth at rate 0\.5 in training needs a key"):
        steady(x, True, 0.5, None)


def test_block_is_exact_under_padding():
    x = draw(2, N, 12)
    mask = jnp.arange(N)[None] < jnp.asarray([3, N])[:, None]
    padded = block()(x, False, 0.0, None, key_mask=mask)
    np.testing.assert_allclose(padded[0, :3], block()(x[:1, :3], False, 0.0, None)[0], rtol=1e-5, atol=1e-6)


def test_windows_and_back():
    x = draw(2, 6, 9, 4)
    cut = swin.windows(x, 3)
    assert cut.shape == (2, 6, 9, 4)
    np.testing.assert_array_equal(cut[0, 1].reshape(3, 3, 4), x[0, :3, 3:6])
    np.testing.assert_array_equal(swin.unwindowed(cut, 3, (6, 9)), x)


def test_a_position_bias_for_each_offset():
    index = swin.position_index(3)
    assert index.shape == (9, 9) and sorted(set(index.ravel())) == list(range(25))
    assert index[0, 1] == index[4, 5] == index[7, 8] != index[1, 0]


def test_shifted_windows_keep_opposite_edges_apart():
    bias = swin.shift_bias((6, 3), 3, (1, 0))
    assert bias.shape == (2, 1, 9, 9)
    assert (bias[0] == 0).all()  # rows 1, 2, 3
    rows = np.arange(9) // 3  # of the second window: 4, 5, and 0, which the shift brought round
    np.testing.assert_array_equal(bias[1, 0] == 0, (rows < 2)[:, None] == (rows < 2))


def test_positions_are_resized_for_other_grids():
    positions = draw(1 + 16, 5)
    assert vit.resized_positions(positions, 4, (4, 4)) is positions
    other = vit.resized_positions(positions, 4, (3, 6))
    assert other.shape == (1 + 18, 5)
    np.testing.assert_array_equal(other[0], positions[0])
    flat = jnp.ones((17, 5))
    np.testing.assert_allclose(vit.resized_positions(flat, 4, (7, 2)), jnp.ones((15, 5)), rtol=1e-6)
