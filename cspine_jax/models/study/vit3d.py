"""Document C's 3D vision transformer: a whole study as one volume, cut into tubelets, in one sequence of tokens.

Tubelets (Arnab et al. 2021) are boxes of voxels, each projected to a token; a token is there if any of its slices is.
Every token attends to every other through all of depth, so a study of any length goes in at full length; a token of its
own gathers the answer.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cspine_jax.anatomy import TARGETS
from cspine_jax.models.layers import Linear, dropout
from cspine_jax.models.sequence.positions import Kind, Positions
from cspine_jax.models.sequence.transformer import TransformerEncoder
from cspine_jax.models.study.volumes import Box, clear_padding, fold, fold_mask


class Positions3d(nnx.Module):
    """Positions of a grid of tokens: z, y and x each have a third of the channels (sinusoidal) or a table (learned)."""

    def __init__(self, kind: Kind, features: int, *, rngs: nnx.Rngs):
        self.split = kind == "sinusoidal"
        in_plane = features // 6 * 2 if self.split else features
        along_z = features - 2 * in_plane if self.split else features
        self.z, self.y, self.x = (Positions(kind, width, rngs=rngs) for width in (along_z, in_plane, in_plane))

    def __call__(self, mask: jax.Array, height: int, width: int) -> jax.Array:
        """`mask` bool `[B, d]` -> float32 `[B, d, height, width, C]`."""
        z = self.z(mask)[:, :, None, None]
        y = self.y(jnp.ones((1, height), bool))[:, None, :, None]
        x = self.x(jnp.ones((1, width), bool))[:, None, None]
        if not self.split:
            return z + y + x
        shape = (*mask.shape, height, width)
        return jnp.concatenate([jnp.broadcast_to(part, (*shape, part.shape[-1])) for part in (z, y, x)], axis=-1)


class ViT3D(nnx.Module):
    """`[B, D, H, W, C]` -> logits `[B, 8]`; D of any length, H and W any size."""

    def __init__(
        self,
        *,
        in_channels: int = 6,
        tubelet: Box = (3, 16, 16),
        features: int = 384,
        heads: int = 6,
        depth: int = 12,
        positions: Kind = "sinusoidal",
        dropout: float = 0.1,
        drop_path: float = 0.0,
        remat: bool = True,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        """Builds it.

        Args:
            in_channels: C of a voxel (document C: five neighbouring slices and the mask).
            tubelet: voxels of a token along z, y and x.
            features: width of a token, even.
            heads: of attention.
            depth: blocks.
            positions: "sinusoidal" (in tokens) or "learned" (in shares of the study), see `sequence.positions`.
            dropout: rate in the encoder and before the last layer.
            drop_path: rate of stochastic depth.
            remat: keep only the input of each block in memory, and compute it again in the backward pass.
            dtype: type computed in (jnp.bfloat16 for long studies); parameters and logits are float32.
            rngs: randomness of the initial weights.
        """
        self.tubelet = tubelet
        self.dropout = dropout
        t, p, q = tubelet
        self.embed = Linear(t * p * q * in_channels, features, dtype=dtype, rngs=rngs)
        self.positions = Positions3d(positions, features, rngs=rngs)
        self.token = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (features,), jnp.float32))
        self.encoder = TransformerEncoder(
            features,
            heads=heads,
            depth=depth,
            positions=None,
            dropout=dropout,
            drop_path=drop_path,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )
        self.head = Linear(features, len(TARGETS), dtype=jnp.float32, rngs=rngs)

    def __call__(
        self, image: jax.Array, mask: jax.Array | None = None, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        """Logits of a batch of studies.

        Args:
            image: volumes, 0..1, `[B, D, H, W, C]`.
            mask: bool `[B, D]`, false on padding, whatever (even NaN) is in it; None for none.
            train: drop units.
            key: randomness of dropout, needed in training.

        Returns:
            Float32 `[B, 8]`, in the order of `anatomy.TARGETS`.
        """
        B, D = image.shape[:2]
        trunk, top = (None, None) if key is None else jax.random.split(key)
        there = fold_mask(jnp.ones((B, D), bool) if mask is None else mask, self.tubelet[0])
        tokens = self.embed(fold(clear_padding(image, mask), self.tubelet))
        _, d, h, w, C = tokens.shape
        tokens = (tokens + self.positions(there, h, w).astype(tokens.dtype)).reshape(B, d * h * w, C)
        first = jnp.broadcast_to(self.token[...].astype(tokens.dtype)[None, None], (B, 1, C))
        key_mask = None
        if mask is not None:
            key_mask = jnp.pad(jnp.repeat(there, h * w, axis=1), ((0, 0), (1, 0)), constant_values=True)
        tokens = self.encoder(jnp.concatenate([first, tokens], axis=1), key_mask, train, trunk)
        return self.head(dropout(tokens[:, 0], self.dropout, top, train))
