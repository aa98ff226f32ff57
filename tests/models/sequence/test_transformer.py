"""Transformer encoder and positions: torch's encoder, padding as if it were not there, remat the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cspine_jax.errors import ConfigError
from cspine_jax.models.pretrained import converted, overlaid
from cspine_jax.models.sequence.positions import Positions, sinusoids
from cspine_jax.models.sequence.transformer import TransformerEncoder
from tests.models.drawn import drawn


def made(**options):
    def build(rngs):
        return TransformerEncoder(8, heads=2, depth=2, hidden=12, rngs=rngs, **options)

    return drawn(build)


def numbers(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_is_torchs_pre_norm_encoder():
    torch = pytest.importorskip("torch", reason="needs the extra [parity]; torch is never a dependency of the package")
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 12, activation="gelu", batch_first=True, norm_first=True)
    net = torch.nn.TransformerEncoder(layer, 2, norm=torch.nn.LayerNorm(8), enable_nested_tensor=False).eval()
    for parameter in net.parameters():  # both copies of the layer start out alike, norms and biases at 1 and 0
        parameter.data += 0.2 * torch.randn(parameter.shape)
    rules = (
        (r"^blocks\.(\d+)\.", r"layers.\1."),
        (r"\.attn\.qkv\.", ".self_attn.in_proj_"),
        (r"\.attn\.proj\.", ".self_attn.out_proj."),
        (r"\.mlp\.fc([12])\.", r".linear\1."),
    )
    graph, state = made(positions=None)
    table = {name: value.numpy() for name, value in net.state_dict().items()}
    arrays, missing, misshapen, unexpected = converted(state, table, rules)
    assert not missing and not misshapen and not unexpected
    x, mask = numbers(3, 5, 8), np.arange(5)[None] < np.array([5, 2, 4])[:, None]
    with torch.no_grad():
        expected = net(torch.from_numpy(x), src_key_padding_mask=torch.from_numpy(~mask)).numpy()
    y = jax.jit(lambda state: nnx.merge(graph, state)(x, mask))(overlaid(state, arrays))
    np.testing.assert_allclose(y, np.where(mask[..., None], expected, 0), atol=1e-5)


@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_masked_elements_are_as_if_they_were_not_there(positions):
    graph, state = made(positions=positions)
    run = jax.jit(lambda x, mask: nnx.merge(graph, state)(x, mask))
    x, there = numbers(2, 7, 8), [1, 2, 4, 5]
    mask = np.zeros((2, 7), bool)
    mask[:, there] = True
    y = run(np.where(mask[..., None], x, np.nan), mask)
    np.testing.assert_allclose(y[:, there], run(x[:, there], None), atol=1e-5)
    np.testing.assert_array_equal(y[:, [0, 3, 6]], 0)


def test_remat_changes_no_number_and_gradients_reach_everything():
    x, bias = numbers(2, 4, 8), numbers(2, 4, 4)

    def value_and_grad(remat):
        graph, state = made(remat=remat, dropout=0.0)

        def total(state, bias):
            return (nnx.merge(graph, state)(x, train=True, bias=bias) ** 3).sum()

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(state, bias)

    kept, again = value_and_grad(False), value_and_grad(True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), kept, again)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(kept[1]))


def test_dropout_needs_and_follows_the_key():
    graph, state = made(positions=None, dropout=0.5)
    x = numbers(2, 4, 8)
    run = jax.jit(lambda key: nnx.merge(graph, state)(x, train=True, key=key))
    one, same, other = (run(jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    with pytest.raises(ValueError, match="needs a key"):
        jax.eval_shape(run, None)


def test_computes_in_the_type_asked_for_and_answers_in_float32():
    graph, state = nnx.split(
        nnx.eval_shape(lambda: TransformerEncoder(8, heads=2, depth=1, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    )
    assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    jaxpr = jax.make_jaxpr(lambda state, x: nnx.merge(graph, state)(x))(state, jnp.zeros((1, 3, 8)))
    assert jaxpr.out_avals[0].dtype == jnp.float32 and "bf16" in str(jaxpr)


def test_sinusoids_by_hand():
    y = sinusoids(jnp.array([0.0, 3.0]), 4)
    np.testing.assert_allclose(y, [[0, 0, 1, 1], [np.sin(3), np.sin(0.03), np.cos(3), np.cos(0.03)]], atol=1e-6)


def test_learned_positions_are_stretched_over_what_is_there():
    positions = Positions("learned", 2, length=5, rngs=nnx.Rngs(0))
    table = np.asarray(positions.table[...])
    mask = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [0, 1, 0, 0, 0], [1, 1, 0, 0, 0]]) > 0
    y = positions(jnp.asarray(mask))
    np.testing.assert_allclose(y[0], table, rtol=1e-6)
    np.testing.assert_allclose(y[1, ::2], table[::2], rtol=1e-6)
    np.testing.assert_allclose(y[2, 1], table[0], rtol=1e-6)
    np.testing.assert_allclose(y[3, :2], table[[0, 4]], rtol=1e-6)
    longer = positions(jnp.ones((1, 9), bool))
    np.testing.assert_allclose(longer[0, 1], table[:2].mean(0), rtol=1e-5)


def test_positions_refuse_what_they_do_not_know():
    with pytest.raises(ConfigError, match="positions='rotary'"):
        Positions("rotary", 4, rngs=nnx.Rngs(0))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="features=5"):
        Positions("sinusoidal", 5, rngs=nnx.Rngs(0))
