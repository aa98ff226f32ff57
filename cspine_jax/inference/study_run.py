"""A trained model of whole studies, or of clips of them, loaded once and asked about many studies."""

from pathlib import Path

import numpy as np

from cspine_jax.anatomy import NUM_VERTEBRAE, TARGETS
from cspine_jax.data.source import SliceTable
from cspine_jax.data.views import ClipView, SlicesView
from cspine_jax.inference.study_level import BY_TRUE_MASKS, StudyLevelRun

ROUNDED = 16
"""Studies of any length are padded to a multiple of so many positions: a few compilations instead of one a study."""


class StudyRun(StudyLevelRun):
    """The classifier, the 3D transformer or the 3D CNN; evaluated as its run was.

    Args:
        source: as `loaded.load` takes it.
        batch: clips predicted at once; 0, or more than seven, for all. A whole study is one example.

    Raises:
        DataError: as `loaded.load`.
    """

    def __init__(self, source: str | Path, batch: int = 0):
        super().__init__(source, "study")
        self._clips = self.config.study.clip_depth > 0
        self._batch = min(batch or NUM_VERTEBRAE, NUM_VERTEBRAE) if self._clips else 1

    @property
    def needs_vertebrae(self) -> str:
        """Why it cannot do without the vertebrae from elsewhere; empty where it can."""
        if self._clips:
            return "reads clips about vertebrae that have to be found first"
        return "reads a mask of the vertebrae beside the slices" if self.config.study.with_mask else ""

    @property
    def facts(self) -> dict[str, str]:
        """What findings say of the model."""
        study, model = self.config.study, self.config.model
        return {"model": study.model, **({"backbone": model.backbone} if study.model == "classifier" else {})}

    @property
    def reservations(self) -> list[str]:
        """See `StudyLevelRun`."""
        by_true_masks = [BY_TRUE_MASKS] if self.needs_vertebrae and self.card.evaluated else []
        return super().reservations + by_true_masks

    def answer(
        self, uid: str, hu: np.ndarray, mask: np.ndarray | None, spacing_mm: tuple[float, ...]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Asks it about one study; arguments as `SliceTable.of_study`, records as the run's own.

        Returns:
            As the first two of `StudyLevelRun.ask`; all NaN, and None, where there is nothing to show it.
        """
        data, study = self.config.data, self.config.study
        table = SliceTable.of_study(uid, hu, mask, spacing_mm, data.size)
        view = ClipView(table, data, study) if self._clips else SlicesView(table, data, study, ROUNDED)
        if not len(view.items(np.arange(1), False)):
            return np.full(len(TARGETS), np.nan), None
        return self.ask(view, self._batch)[:2]
