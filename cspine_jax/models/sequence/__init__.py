"""Networks over sequences of embeddings `[B, T, C]` with a mask `[B, T]` of what is there: LSTM, transformer, levels.

Padding is exact: what is masked changes nothing, so a padded batch answers as each sequence alone would.
"""

from cspine_jax.models.sequence.levels import LevelTransformer
from cspine_jax.models.sequence.lstm import LSTM
from cspine_jax.models.sequence.transformer import TransformerEncoder

__all__ = ["LSTM", "LevelTransformer", "TransformerEncoder"]
