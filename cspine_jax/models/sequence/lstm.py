"""Long short-term memory (Hochreiter and Schmidhuber 1997; Gers et al. 2000), several layers, one or both directions.

Parameters, gates and initialisation are torch's `nn.LSTM`; a mask does what `pack_padded_sequence` does there and more:
a masked element is stepped over in both directions wherever it stands, so the outputs at the others are those of the
sequence without it.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from cspine_jax.models.layers import Keys, at_least_float32, dropout

NAMES = (
    (r"\blayers\.(\d+)\.directions\.0\.(\w+)$", r"\2_l\1"),
    (r"\blayers\.(\d+)\.directions\.1\.(\w+)$", r"\2_l\1_reverse"),
)
"""Rules from this module's parameter names to those of torch's state dicts, see `pretrained.torch_name`."""


class Direction(nnx.Module):
    """Parameters of one layer in one direction; the gates of the 4 `hidden` are input, forget, cell, output."""

    def __init__(self, in_features: int, hidden: int, rngs: nnx.Rngs):
        bound = hidden**-0.5

        def draw(*shape: int) -> nnx.Param:
            return nnx.Param(jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound))

        self.weight_ih = draw(in_features, 4 * hidden)
        self.weight_hh = draw(hidden, 4 * hidden)
        self.bias_ih = draw(4 * hidden)
        self.bias_hh = draw(4 * hidden)

    def gates(self, x: jax.Array) -> jax.Array:
        """What the gates make of the input alone: `[B, T, in]` -> `[T, B, 4 hidden]`."""
        bias = self.bias_ih[...] + self.bias_hh[...]
        return jnp.swapaxes(x, 0, 1) @ self.weight_ih[...] + bias[None, None]


class Layer(nnx.Module):
    """One layer; its directions advance together in one loop over T."""

    def __init__(self, in_features: int, hidden: int, directions: int, rngs: nnx.Rngs):
        self.hidden = hidden
        self.directions = nnx.List([Direction(in_features, hidden, rngs) for _ in range(directions)])

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """`[B, T, in]` -> `[B, T, directions * hidden]`, zero where `mask` `[B, T]` is false."""
        keep = jnp.swapaxes(mask, 0, 1)[..., None]
        turned = [slice(None), slice(None, None, -1)][: len(self.directions)]
        gates = [direction.gates(x)[order] for direction, order in zip(self.directions, turned, strict=True)]
        keeps = [keep[order] for order in turned]
        weights = [direction.weight_hh[...] for direction in self.directions]
        zero = jnp.zeros((x.shape[0], self.hidden), x.dtype)

        def step(states: list, inputs: tuple[list, list]) -> tuple[list, list]:
            after = [advance(*each) for each in zip(states, *inputs, weights, strict=True)]
            return after, [jnp.where(keep, h, 0.0) for (h, _), keep in zip(after, inputs[1], strict=True)]

        _, outputs = lax.scan(step, [(zero, zero)] * len(weights), (gates, keeps))
        outputs = [y[order] for y, order in zip(outputs, turned, strict=True)]
        return jnp.swapaxes(jnp.concatenate(outputs, axis=-1), 0, 1)


def advance(
    state: tuple[jax.Array, jax.Array], gates: jax.Array, keep: jax.Array, weight: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One step of the cell.

    Args:
        state: output h and cell c, `[B, H]` each.
        gates: input's part of the gates, `[B, 4 H]`.
        keep: bool `[B, 1]`; where false, the state stays.
        weight: `[H, 4 H]`.

    Returns:
        The next h and c.
    """
    h, c = state
    i, f, g, o = jnp.split(gates + h @ weight, 4, axis=-1)
    cell = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jnp.where(keep, jax.nn.sigmoid(o) * jnp.tanh(cell), h), jnp.where(keep, cell, c)


class LSTM(nnx.Module):
    """`[B, T, in]` -> `[B, T, out_features]`, forward and backward outputs side by side.

    It computes in float32 whatever comes in: an error in the cell is carried through the whole sequence.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int,
        layers: int = 2,
        *,
        bidirectional: bool = True,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        """Builds it.

        Args:
            in_features: C of the input.
            hidden: H of one direction.
            layers: one on top of the other.
            bidirectional: read in both directions.
            dropout: rate between layers.
            rngs: randomness of the initial weights.
        """
        directions = 2 if bidirectional else 1
        self.out_features = directions * hidden
        self.dropout = dropout
        self.layers = nnx.List(
            [Layer(in_features if k == 0 else self.out_features, hidden, directions, rngs) for k in range(layers)]
        )

    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        """Outputs at every element.

        Args:
            x: `[B, T, in]`.
            mask: bool `[B, T]`, false for what is not there, whatever (even NaN) is in it; None for all true.
            train: drop units.
            key: randomness of dropout, needed in training at a rate above 0.

        Returns:
            `[B, T, out_features]`, zero where masked.
        """
        x = x.astype(at_least_float32(x))
        mask = jnp.ones(x.shape[:2], bool) if mask is None else mask > 0
        x = jnp.where(mask[..., None], x, 0.0)
        keys = Keys(key)
        for k, layer in enumerate(self.layers):
            x = layer(dropout(x, self.dropout, keys(), train) if k else x, mask)
        return x
