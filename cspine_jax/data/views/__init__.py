"""What study-level models see of records: one vertebra, seven of them, a whole study, or a clip of it.

A view lists its examples as integers (`items`), says which of them show a fracture (`positive`) and reads a batch of
any of them; `stream` makes endless shuffled or ordered batches of one. Nothing here imports jax.
"""

from cspine_jax.config import StudyConfig
from cspine_jax.config.study import ON_VERTEBRAE
from cspine_jax.data.crops import CropTable
from cspine_jax.data.views.clips import ClipView
from cspine_jax.data.views.levels import LevelsView
from cspine_jax.data.views.slices import SlicesView
from cspine_jax.data.views.stream import View, ordered_batches, prevalence, shuffled_batches
from cspine_jax.data.views.vertebrae import VertebraView

__all__ = [
    "ClipView",
    "LevelsView",
    "SlicesView",
    "VertebraView",
    "View",
    "crop_view",
    "ordered_batches",
    "prevalence",
    "shuffled_batches",
]


def crop_view(table: CropTable, study: StudyConfig) -> VertebraView | LevelsView:
    """What `study.model` sees of crops: one vertebra, or the seven of a patient."""
    if study.model in ON_VERTEBRAE:
        return VertebraView(table, study.slice_labels, study.train_positions)
    return LevelsView(table, study.slice_labels)
