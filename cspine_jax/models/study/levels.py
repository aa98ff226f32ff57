"""All seven vertebrae of a study at once: gold's network for each, then a transformer over the levels.

Each vertebra's slices pass through the shared backbone and LSTM and are pooled to one embedding; the level transformer
lets the embeddings exchange information and answers for each level and for the patient. What the sixth team added.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cspine_jax.anatomy import NUM_VERTEBRAE
from cspine_jax.models.layers import Keys, Linear, dropout
from cspine_jax.models.sequence.levels import LevelTransformer
from cspine_jax.models.sequence.lstm import LSTM
from cspine_jax.models.study.encoder import SliceEncoder, SliceModel
from cspine_jax.models.study.heads import masked_pool


class LevelsModel(SliceModel):
    """`[B, 7, S, H, W, C]` -> logits `[B, 8]`."""

    def __init__(
        self,
        backbone: str = "efficientnet_v2_s",
        *,
        in_channels: int = 6,
        hidden: int = 256,
        layers: int = 1,
        features: int = 256,
        heads: int = 4,
        depth: int = 2,
        dropout: float = 0.2,
        chunk: int | None = None,
        where: bool = False,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        """Builds it.

        Args:
            backbone: one of `models.names()`.
            in_channels: C.
            hidden: width of one direction of the LSTM over the slices of a vertebra.
            layers: of the LSTM.
            features: width of the level transformer.
            heads: of its attention.
            depth: its blocks.
            dropout: rate in the transformer and before the last layers.
            chunk: slices of a study at a time, see `SliceEncoder`.
            where: look for breaks on a map, see `SliceEncoder`.
            dtype: type the backbone computes in; everything after it, parameters and logits are float32.
            rngs: randomness of the initial weights.
        """
        self.dropout = dropout
        self.encoder = SliceEncoder(backbone, in_channels=in_channels, chunk=chunk, where=where, dtype=dtype, rngs=rngs)
        self.lstm = LSTM(self.encoder.out_features, hidden, layers, rngs=rngs)
        self.levels = LevelTransformer(
            2 * self.lstm.out_features, features, heads=heads, depth=depth, dropout=dropout, rngs=rngs
        )
        self.vertebra, self.patient = (Linear(features, 1, dtype=jnp.float32, rngs=rngs) for _ in range(2))

    def look(
        self, image: jax.Array, mask: jax.Array | None = None, train: bool = False, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """As `SliceModel.look`, of crops `[B, 7, S, H, W, C]` with a mask `[B, 7, S]`; the map is `[B, 7 S, h, w]`.

        Raises:
            ValueError: there are not seven vertebrae.
        """
        B, L, S = image.shape[:3]
        if L != NUM_VERTEBRAE:
            raise ValueError(f"image {image.shape}: its second axis must be the {NUM_VERTEBRAE} vertebrae C1..C7")
        flat = None if mask is None else mask.reshape(B, L * S)
        return super().look(image.reshape(B, L * S, *image.shape[3:]), flat, train, key)

    def _answer(self, embedding: jax.Array, mask: jax.Array | None, train: bool, keys: Keys) -> jax.Array:
        B = len(embedding)
        each = embedding.reshape(B * NUM_VERTEBRAE, -1, embedding.shape[-1])
        slices = None if mask is None else mask.reshape(each.shape[:2])
        sequence = self.lstm(each, slices, train, keys())
        vertebrae = masked_pool(sequence, slices, "avgmax").reshape(B, NUM_VERTEBRAE, -1)
        there = None if slices is None else (slices > 0).any(1).reshape(B, NUM_VERTEBRAE)
        tokens = self.levels(vertebrae, there, train, keys())
        tokens = dropout(tokens, self.dropout, keys(), train)
        return jnp.concatenate([self.patient(tokens[:, :1]), self.vertebra(tokens[:, 1:])], axis=1)[..., 0]
