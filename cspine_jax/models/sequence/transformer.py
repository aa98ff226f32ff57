"""Transformer encoder (Vaswani et al. 2017; normalisation first, as Xiong et al. 2020) over padded sequences."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from cspine_jax.models.attention import EncoderBlock, SelfAttention
from cspine_jax.models.layers import Keys, LayerNorm, at_least_float32, dropout
from cspine_jax.models.sequence.positions import Kind, Positions


class TransformerEncoder(nnx.Module):
    """`[B, T, C]` -> same, every element knowing all the others that are there."""

    def __init__(
        self,
        features: int,
        *,
        heads: int,
        depth: int,
        hidden: int | None = None,
        positions: Kind | None = "sinusoidal",
        dropout: float = 0.1,
        drop_path: float = 0.0,
        remat: bool = False,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        """Builds it.

        Args:
            features: C.
            heads: of attention.
            depth: blocks.
            hidden: width inside the MLPs; None for 4 C.
            positions: what tells the elements' order, see `Positions`; None where they carry it themselves.
            dropout: rate after positions, attention and both layers of the MLPs.
            drop_path: rate of stochastic depth, the same at every block.
            remat: compute each block again in the backward pass and keep only its input in memory.
            dtype: type the blocks compute in; parameters and the output are float32.
            rngs: randomness of the initial weights.
        """
        self.dropout, self.drop_path = dropout, drop_path
        self.remat = remat
        self.dtype = dtype
        self.positions = None if positions is None else Positions(positions, features, rngs=rngs)
        layer = {"dtype": dtype, "rngs": rngs}
        self.blocks = nnx.List(
            [
                EncoderBlock(
                    SelfAttention(features, heads, **layer), features, hidden or 4 * features, dropout=dropout, **layer
                )
                for _ in range(depth)
            ]
        )
        self.norm = LayerNorm(features)

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        train: bool = False,
        key: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> jax.Array:
        """All elements, after the last normalisation.

        Args:
            x: `[B, T, C]`.
            mask: `[B, T]`, above 0 for what is there, whatever (even NaN) the rest is; None for everything.
            train: drop units and branches.
            key: randomness of both, needed in training at a rate above 0.
            bias: added to the attention scores of every block, `[heads, T, T]`; see `attention.attend`.

        Returns:
            Float32 `[B, T, C]`, zero where masked.
        """
        there = jnp.ones(x.shape[:2], bool) if mask is None else mask > 0
        x = jnp.where(there[..., None], x.astype(at_least_float32(x)), 0.0)
        if self.positions is not None:
            x = x + self.positions(there).astype(x.dtype)
        keys = Keys(key)
        x = dropout(x.astype(self.dtype or x.dtype), self.dropout, keys(), train)
        x = self._run_blocks(x, None if mask is None else there, bias, train, keys())
        x = self.norm(x.astype(at_least_float32(x)))
        return jnp.where(there[..., None], x, 0.0)

    def _run_blocks(
        self, x: jax.Array, key_mask: jax.Array | None, bias: jax.Array | None, train: bool, key: jax.Array | None
    ) -> jax.Array:
        """All blocks as one loop over their stacked weights: compiled once, and with `remat` one block in memory."""
        graphs, states = zip(*(nnx.split(block) for block in self.blocks), strict=True)

        def run(x: jax.Array, each: tuple[nnx.State, jax.Array | None]) -> tuple[jax.Array, None]:
            block = nnx.merge(graphs[0], each[0])
            return block(x, train, self.drop_path, each[1], key_mask=key_mask, bias=bias), None

        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        keys = None if key is None else jax.random.split(key, len(states))
        return lax.scan(jax.checkpoint(run, prevent_cse=False) if self.remat else run, x, (stacked, keys))[0]
