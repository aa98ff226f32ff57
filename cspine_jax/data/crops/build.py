"""Builds crop records, by the machinery of `data.build`: one shard a study, resumable, readable by TFDS."""

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cspine_jax.anatomy import NUM_VERTEBRAE, TARGETS
from cspine_jax.config import CropsConfig
from cspine_jax.ct.identity import Identity
from cspine_jax.data.build import BuildResult, build_records, records_path
from cspine_jax.data.crops import cut, masks
from cspine_jax.data.crops.layout import COLUMNS, TRUE_MASKS, CropLayout
from cspine_jax.data.metadata import METADATA_FILE
from cspine_jax.data.recipe import Made
from cspine_jax.data.study import MOST_SLICES, Study, load_study
from cspine_jax.data.tables import Note, StudyEntry, Tables, read_tables
from cspine_jax.errors import DataError, StudyError


def crops_path(data_dir: str | Path, crops: CropsConfig) -> Path:
    """Where the crops that a configuration asks for are under `data_dir`."""
    return records_path(data_dir, CropLayout.of(crops))


def build_crops(
    manual_dir: str | Path,
    data_dir: str | Path,
    crops: CropsConfig,
    *,
    num_folds: int = 5,
    workers: int = 0,
    retry: bool = False,
    overwrite: bool = False,
    hash_uids: str | None = None,
) -> BuildResult:
    """Makes, completes or finds the vertebra crops of an RSNA-layout folder.

    Call it under `if __name__ == "__main__":` when `workers` is not 1: it starts fresh Python processes.

    Args:
        manual_dir: see `data.build.build`.
        data_dir: records go to `crops_path(data_dir, crops)`.
        crops: their layout, and where the masks come from.
        num_folds: folds to deal the studies into, the same as those of slice records; 0 takes 5, or as many as the
            crops there already have.
        workers: processes; 0 takes one a CPU, 1 works in this one.
        retry: try the studies again that a finished build had to skip.
        overwrite: throw away what is there, whatever it was made from.
        hash_uids: salt with which every UID is hashed (see `ct.identity`); None keeps them.

    Returns:
        The result, `slices` being the number of crops. A study that cannot be read, that has no mask that may be used,
        or whose mask fits it badly or shows no vertebra of C1..C7, is in `skipped`.

    Raises:
        DataError: as `data.build.build`; or the masks cannot be used, see `masks.masked`, or are others than those
            that the crops there were made by.
    """
    return build_records(
        Crops(CropLayout.of(crops), crops.masks),
        manual_dir,
        data_dir,
        num_folds=num_folds,
        workers=workers,
        retry=retry,
        overwrite=overwrite,
        hash_uids=hash_uids,
    )


_LATER = ("boxed", "box", "has_boxes")
"""Columns that crops lack whose metadata name no columns."""

_CUT = {"boxes": "nearest", "strays": "left out"}
"""Which boxes are a position's (`cut.boxed`), and what of a mask a crop is about (`cut.STRAY`): of crops of today."""

_ONCE = {
    "boxes": "by an older version, which gave boxes to other positions",
    "strays": "by an older version, whose planes stray voxels of a mask moved",
}
"""How those were made whose metadata say nothing of it."""


def check_cut(path: Path) -> None:
    """Refuses crops of `cspine build` from before `_CUT`; those of TFDS's own command do not say.

    Raises:
        DataError: what to do about them.
    """
    file = path / METADATA_FILE
    try:
        made = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except ValueError as error:
        raise DataError(f"{file}: not JSON ({error}); build the crops again with --overwrite") from None
    for name, today in _CUT.items():
        if made is not None and made.get(name) != today:
            raise DataError(f"{path}: made {_ONCE[name]}; build it again: cspine build --crops ... --overwrite")


@dataclasses.dataclass(frozen=True)
class Crops:
    """The recipe of crop records; see `data.recipe.Recipe`.

    Attributes:
        layout: of the crops.
        masks: as in `CropsConfig`.
    """

    layout: CropLayout
    masks: str = TRUE_MASKS
    columns = COLUMNS

    def tables(self, manual_dir: str | Path, num_folds: int, identity: Identity | None) -> Tables:
        """The studies that have a mask."""
        return masks.masked(read_tables(manual_dir, num_folds), self.masks, identity)

    def parameters(self, tables: Tables) -> dict[str, Any]:
        """The masks decide the crops too; records without a column of today, or cut otherwise, are refused."""
        return {"masks": masks.fingerprint(tables), "columns": _names(), **_CUT}

    def facts(self, tables: Tables) -> dict[str, Any]:
        """Where the masks were."""
        return {"masks_from": self.masks}

    def differs(self, name: str, there: Mapping[str, Any]) -> str | None:
        """Says whose masks are others, and which columns are missing."""
        if name == "columns":
            missing = [name for name in _names() if name not in there["columns"]] if "columns" in there else _LATER
            return f"the volumes by an older version, without {', '.join(missing)}" if missing else None
        if name in _CUT:
            return f"the volumes {_ONCE[name]}"
        if name != "masks":
            return None
        return f"other masks than those now in {self.masks!r} (built from {there.get('masks_from', 'others')!r})"

    def make(self, entry: StudyEntry, readers: int | None) -> Made | Note:
        """The crops of a study, from C1 to C7."""
        study = load_study(entry, 0, readers)
        if study.mask is None:  # and a note says why
            return next(note for note in study.notes if note.what == "mask")
        seen = cut.look(study.mask)
        levels = [level for level in seen if level <= NUM_VERTEBRAE]
        if not levels:
            return Note(entry.uid, "mask", "the mask shows no vertebra of C1..C7")
        plans = [cut.plan(study.mask, study.spacing_mm, level, self.layout, seen) for level in levels]
        return Made(self._examples(study, plans), self.layout.shape, study.notes)

    def _examples(self, study: Study, plans: list[cut.Plan]) -> Iterator[dict[str, Any]]:
        entry, hu, mask = study.entry, study.hu, study.mask
        assert mask is not None
        for plan in plans:
            image, inside = cut.sample(hu, mask, plan, self.layout)
            box = cut.boxed(mask, study.boxes, plan, self.layout.radius)
            yield {
                "study_uid": entry.uid,
                "level": plan.level,
                "image": image,
                "mask": inside,
                "complete": plan.complete,
                "labels": np.array(entry.labels or [0] * len(TARGETS), np.uint8),
                "has_labels": entry.labels is not None,
                "boxed": box.any(1).astype(np.uint8),
                "box": box,
                "has_boxes": study.has_boxes,
                "fold": entry.fold,
                "slice_index": plan.slice_index.astype(np.float32),
                "spacing_mm": plan.spacing_mm.astype(np.float32),
                "origin": plan.origin.astype(np.float32),
                "axes": plan.axes.astype(np.float32),
            }


def _names() -> list[str]:
    return sorted({**COLUMNS.per_study, **COLUMNS.per_record})


def keyed_crops(number: int, entry: StudyEntry, layout: CropLayout) -> Iterator[tuple[int, dict[str, Any]]]:
    """What a TFDS builder asks for: (key, example) pairs of one study, keys ascending over all studies.

    Args:
        number: position of the study in the data set.
        entry: from `masks.masked` tables.
        layout: of the crops.

    Yields:
        The records from C1 to C7; none for a study that cannot be read or shows none, which is logged.
    """
    try:
        made = Crops(layout).make(entry, None)
    except StudyError as error:
        logging.warning("skipped study %s: %s", entry.uid, error)
        return
    if isinstance(made, Note):
        logging.warning("skipped study %s: %s", entry.uid, made.reason)
        return
    for note in made.notes:
        logging.warning("%s %s: %s", note.what, entry.uid, note.reason)
    for example in made.examples:
        yield number * MOST_SLICES + example["level"], example
