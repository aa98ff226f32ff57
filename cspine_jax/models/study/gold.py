"""The winners' 2.5D networks: a CNN a slice, a bidirectional LSTM over the slices, a logit for each slice.

Type 1 reads one vertebra: 15 positions from its top to its bottom, each with six channels (five neighbouring slices and
the mask of the vertebra). Type 2 reads a patient: the crops of all seven vertebrae one after the other, 105 slices; a
second LSTM answers for the patient. As published, the patient's answer is read at the first slice, where the backward
direction has seen all the others (and the forward one of the last layer nothing but that slice: its recurrent weights
are never used).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cspine_jax.models.layers import Keys
from cspine_jax.models.sequence import lstm
from cspine_jax.models.sequence.lstm import LSTM
from cspine_jax.models.study.encoder import SliceEncoder, SliceModel
from cspine_jax.models.study.heads import SliceHead

NAMES = (
    *lstm.NAMES,
    (r"\b(head2?)\.hidden\.", r"\1.0."),
    (r"\b(head2?)\.bn\.", r"\1.1."),
    (r"\b(head2?)\.out\.", r"\1.4."),
)
"""Rules from the names of everything after the encoder to those of the published state dicts."""


class VertebraSequence(SliceModel):
    """Type 1: `[B, S, H, W, C]` -> a logit for each slice of one vertebra, `[B, S]`."""

    def __init__(
        self,
        backbone: str = "efficientnet_v2_s",
        *,
        in_channels: int = 6,
        hidden: int = 256,
        layers: int = 2,
        dropout: float = 0.3,
        drop_path: float | None = 0.0,
        chunk: int | None = None,
        where: bool = False,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        """Builds it.

        Args:
            backbone: one of `models.names()`.
            in_channels: C.
            hidden: width of one direction of the LSTM, and of the head's hidden layer.
            layers: of the LSTM.
            dropout: rate in the head.
            drop_path: stochastic depth of the backbone (published: none); None for the variant's own.
            chunk: slices at a time, see `SliceEncoder`.
            where: look for breaks on a map, see `SliceEncoder`.
            dtype: type the backbone computes in; everything after it, parameters and logits are float32.
            rngs: randomness of the initial weights.
        """
        self.encoder = SliceEncoder(
            backbone,
            in_channels=in_channels,
            pooling="avg",
            drop_path=drop_path,
            chunk=chunk,
            where=where,
            dtype=dtype,
            rngs=rngs,
        )
        self.lstm = LSTM(self.encoder.out_features, hidden, layers, rngs=rngs)
        self.head = SliceHead(self.lstm.out_features, hidden=hidden, dropout=dropout, rngs=rngs)

    def _answer(self, embedding: jax.Array, mask: jax.Array | None, train: bool, keys: Keys) -> jax.Array:
        return self.head(self.lstm(embedding, mask, train, keys()), mask, train, keys())[..., 0]


class PatientSequence(SliceModel):
    """Type 2: `[B, N, H, W, C]`, the crops of C1 to C7 one after the other -> `slice` `[B, N]` and `patient` `[B]`."""

    def __init__(
        self,
        backbone: str = "efficientnet_v2_s",
        *,
        in_channels: int = 6,
        hidden: int = 256,
        layers: int = 2,
        dropout: float = 0.3,
        drop_path: float | None = 0.0,
        chunk: int | None = None,
        where: bool = False,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        """Builds it; the options are those of `VertebraSequence`."""
        self.encoder = SliceEncoder(
            backbone,
            in_channels=in_channels,
            pooling="avg",
            drop_path=drop_path,
            chunk=chunk,
            where=where,
            dtype=dtype,
            rngs=rngs,
        )
        self.lstm, self.lstm2 = (LSTM(self.encoder.out_features, hidden, layers, rngs=rngs) for _ in range(2))
        self.head, self.head2 = (
            SliceHead(self.lstm.out_features, hidden=hidden, dropout=dropout, rngs=rngs) for _ in range(2)
        )

    def _answer(self, embedding: jax.Array, mask: jax.Array | None, train: bool, keys: Keys) -> dict[str, jax.Array]:
        slices = self.head(self.lstm(embedding, mask, train, keys()), mask, train, keys())
        sequence = self.lstm2(embedding, mask, train, keys())
        if mask is None:
            first, there = sequence[:, 0], None
        else:
            at = jnp.argmax(mask > 0, axis=1)[:, None, None]
            first, there = jnp.take_along_axis(sequence, at, axis=1)[:, 0], (mask > 0).any(1)
        return {"slice": slices[..., 0], "patient": self.head2(first, there, train, keys())[..., 0]}
