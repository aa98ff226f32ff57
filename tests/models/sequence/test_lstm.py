"""LSTM: torch's, weights and names included; masked elements are as if they were not there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cspine_jax.models.pretrained import converted, from_torch, overlaid, torch_name
from cspine_jax.models.sequence.lstm import LSTM, NAMES
from tests.models.drawn import drawn


def made(**options):
    return drawn(lambda rngs: LSTM(3, 4, rngs=rngs, **options))


def numbers(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("layers", "both"), [(2, True), (1, False)])
def test_outputs_and_gradients_are_torchs(layers, both):
    torch = pytest.importorskip("torch", reason="needs the extra [parity]; torch is never a dependency of the package")
    torch.manual_seed(0)
    net = torch.nn.LSTM(3, 4, layers, bidirectional=both, batch_first=True).double()
    x, lengths = numbers(3, 6, 3), [6, 2, 4]
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        torch.from_numpy(x).double(), lengths, batch_first=True, enforce_sorted=False
    )
    expected, _ = torch.nn.utils.rnn.pad_packed_sequence(net(packed)[0], batch_first=True)
    weights = np.random.default_rng(1).normal(size=expected.shape)
    (expected * torch.from_numpy(weights)).sum().backward()

    graph, state = made(layers=layers, bidirectional=both)
    table = {name: value.detach().numpy() for name, value in net.state_dict().items()}
    arrays, missing, misshapen, unexpected = converted(state, table, NAMES)
    assert not missing and not misshapen and not unexpected
    mask = np.arange(6)[None] < np.array(lengths)[:, None]
    with jax.enable_x64(True):
        state = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), overlaid(state, arrays))

        @jax.jit
        def run(state):
            def total(state):
                y = nnx.merge(graph, state)(jnp.asarray(x, jnp.float64), mask)
                return (y * weights).sum(), y

            return jax.value_and_grad(total, has_aux=True)(state)

        (_, y), grads = run(state)
    np.testing.assert_allclose(y, expected.detach().numpy(), atol=1e-6)
    theirs = {name: p.grad.numpy() for name, p in net.named_parameters()}
    for path, ours in nnx.to_flat_state(grads):
        np.testing.assert_allclose(ours[...], from_torch(theirs[torch_name(path, NAMES)], ours.shape), atol=1e-5)


def test_a_prefix_of_the_name_is_kept():
    path = ("lstm2", "layers", 1, "directions", 1, "weight_hh")
    assert torch_name(path, NAMES) == "lstm2.weight_hh_l1_reverse"


@pytest.mark.parametrize("there", [[0, 1, 2], [2, 4, 5], []])
def test_masked_elements_are_as_if_they_were_not_there(there):
    graph, state = made()
    run = jax.jit(lambda x, mask: nnx.merge(graph, state)(x, mask))
    x, mask = numbers(2, 7, 3), np.zeros((2, 7), bool)
    mask[:, there] = True
    garbage = np.where(mask[..., None], x, np.nan)
    y = run(garbage, mask)
    np.testing.assert_array_equal(y[:, [t for t in range(7) if t not in there]], 0)
    if there:
        alone = run(x[:, there], mask[:, there])
        np.testing.assert_allclose(y[:, there], alone, atol=1e-6)


def test_both_directions_see_all_that_is_there():
    graph, state = made(layers=1)
    x, mask = numbers(1, 6, 3), np.array([[True, True, True, True, False, False]])
    slopes = jax.jit(jax.jacobian(lambda x: nnx.merge(graph, state)(x, mask)[0].sum(-1)))(x)[:, 0]
    reached = np.abs(slopes).sum(-1) > 0
    np.testing.assert_array_equal(reached, mask[0][:, None] & mask[0][None])


def test_any_type_in_float32_out_and_no_mask_is_a_full_one():
    graph, state = made()
    run = jax.jit(lambda x, mask: nnx.merge(graph, state)(x, mask))
    x = numbers(2, 5, 3)
    assert run(x.astype(jnp.bfloat16), None).dtype == jnp.float32
    np.testing.assert_allclose(run(x, None), run(x, np.ones((2, 5), np.float32)), atol=1e-6)


def test_dropout_acts_between_layers_only():
    x = numbers(2, 5, 3)
    graph, state = made(layers=1, dropout=0.5)
    one = jax.jit(lambda train, key: nnx.merge(graph, state)(x, train=train, key=key), static_argnums=0)
    np.testing.assert_array_equal(one(True, None), one(False, None))
    deep, weights = made(layers=2, dropout=0.5)
    two = jax.jit(lambda key: nnx.merge(deep, weights)(x, train=True, key=key))
    assert (np.asarray(two(jax.random.key(0))) != np.asarray(two(jax.random.key(1)))).any()
    with pytest.raises(ValueError, match="needs a key"):
        two(None)
