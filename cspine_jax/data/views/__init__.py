"""What study-level models see of records: one vertebra, seven of them, a whole study, or a clip of it.

A view lists its examples as integers (`items`), says which of them show a fracture (`positive`) and reads a batch of
any of them; `stream` makes endless shuffled or ordered batches of one. Nothing here imports jax.
"""

from cspine_jax.data.views.clips import ClipView
from cspine_jax.data.views.levels import LevelsView
from cspine_jax.data.views.slices import SlicesView
from cspine_jax.data.views.stream import View, ordered_batches, shuffled_batches
from cspine_jax.data.views.vertebrae import VertebraView

__all__ = ["ClipView", "LevelsView", "SlicesView", "VertebraView", "View", "ordered_batches", "shuffled_batches"]
