"""A trained model of vertebra crops, loaded once and asked about many studies."""

import dataclasses
from pathlib import Path

import numpy as np

from cspine_jax.anatomy import NUM_VERTEBRAE, TARGETS
from cspine_jax.config.study import ON_LABELLED_SLICES, ON_VERTEBRAE
from cspine_jax.data.crops import CropLayout, CropTable
from cspine_jax.data.crops.layout import TRUE_MASKS
from cspine_jax.data.views import crop_view
from cspine_jax.inference.study_level import BY_TRUE_MASKS, StudyLevelRun


@dataclasses.dataclass(frozen=True)
class CropsAnswer:
    """What a model says of the crops of one study.

    Attributes:
        table: the crops.
        targets: float64 [8], clinical probabilities; NaN where a level has no crop.
        spread: float64 [7], standard deviation over the views of `eval.tta`; None without.
        positions: float64 [7, P], clinical probabilities of the slices at the positions, NaN where there is no crop;
            None of a model that gives none.
        breaks: float32 [7, P, h, w], probability that a cell of a position's picture shows a break, as boxes taught it,
            NaN where there is no crop; None of a model without such a map.
    """

    table: CropTable
    targets: np.ndarray
    spread: np.ndarray | None
    positions: np.ndarray | None
    breaks: np.ndarray | None

    def surest(self, level: int) -> int:
        """The position of C1..C7 (0..6) where a break is likeliest: by slices, else by the map, else the middle."""
        if self.positions is not None:
            return int(self.positions[level].argmax())
        if self.breaks is not None:
            return int(self.breaks[level].max((1, 2)).argmax())
        return self.table.layout.positions // 2


class CropsRun(StudyLevelRun):
    """Gold (Types 1 and 2), silver, bronze, or the level transformer; evaluated as its run was.

    Args:
        source: as `loaded.load` takes it.
        batch: vertebrae predicted at once, in models of single ones; 0, or more than seven, for all.

    Raises:
        DataError: as `loaded.load`.
    """

    needs_vertebrae = "reads crops of vertebrae that have to be found first"

    def __init__(self, source: str | Path, batch: int = 0):
        super().__init__(source, "crops")
        self.layout = CropLayout.of(dataclasses.replace(self.config.crops, masks="segmented"))
        self._batch = min(batch or NUM_VERTEBRAE, NUM_VERTEBRAE) if self.config.study.model in ON_VERTEBRAE else 1

    @property
    def facts(self) -> dict[str, str]:
        """What findings say of the model."""
        return {"model": self.config.study.model, "backbone": self.config.model.backbone, "crops": self.layout.name}

    @property
    def reservations(self) -> list[str]:
        """See `StudyLevelRun`."""
        study, notes = self.config.study, super().reservations
        if study.model in ON_LABELLED_SLICES and study.slice_labels == "copy":
            notes.append("slices were trained on the label of their vertebra: theirs do not say where a break is")
        if self.config.crops.oriented:
            notes.append("slices are those at the middle of tilted planes: a break off the middle may be on one beside")
        if self.config.crops.masks == TRUE_MASKS and self.card.evaluated:
            notes.append(BY_TRUE_MASKS)
        return notes

    def answer(self, uid: str, hu: np.ndarray, mask: np.ndarray, spacing_mm: tuple[float, ...]) -> CropsAnswer:
        """Asks it about one study; arguments as `CropTable.of_study`, crops as the run's own were cut."""
        table = CropTable.of_study(uid, hu, mask, spacing_mm, self.layout)
        if not len(table):
            shape = (NUM_VERTEBRAE, self.layout.positions)
            return CropsAnswer(table, np.full(len(TARGETS), np.nan), None, np.full(shape, np.nan), None)
        targets, spread, found = self.ask(crop_view(table, self.config.study), self._batch)
        positions = [_positions(each) for each in found if "slice_prob" in each]
        return CropsAnswer(
            table,
            targets,
            spread,
            np.mean(positions, axis=0) if positions else None,
            self._breaks(table, found[0]["breaks"]) if "breaks" in found[0] else None,
        )

    def _breaks(self, table: CropTable, each: np.ndarray) -> np.ndarray:
        """Maps of seven vertebrae, or of those there are, as [7, P, h, w]."""
        each = each.reshape(-1, self.layout.positions, *each.shape[2:])
        if self.config.study.model in ON_VERTEBRAE:
            there = each
            each = np.full((NUM_VERTEBRAE, *there.shape[1:]), np.nan, np.float32)
            each[table.level - 1] = there
        return np.where(table.record[0, :, None, None, None] >= 0, each, np.nan)


def _positions(found: dict[str, np.ndarray]) -> np.ndarray:
    """Probabilities of slices as [7, P], of a model of single vertebrae or of seven at once."""
    slices = np.asarray(found["slice_prob"], np.float64)
    if "level" in found:
        each = np.full((NUM_VERTEBRAE, slices.shape[1]), np.nan)
        each[found["level"] - 1] = slices
        return each
    return np.where(found["there"].reshape(NUM_VERTEBRAE, 1) > 0, slices.reshape(NUM_VERTEBRAE, -1), np.nan)
