"""Reading crop records: an index of every column, and the pixels of any crops by random access."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cspine_jax.anatomy import NUM_VERTEBRAE, TARGETS
from cspine_jax.data.crops import cut
from cspine_jax.data.crops.layout import COLUMNS, CropLayout
from cspine_jax.data.metadata import is_phantom
from cspine_jax.data.pixels import PixelReader, PixelsInMemory
from cspine_jax.data.source import open_records


@dataclasses.dataclass(frozen=True)
class CropTable:
    """Everything about the crops but their pixels, in memory; pixels by `read`.

    Crops are in study order, and from C1 to C7 inside a study. S studies (those with a crop), N crops, P positions.

    Attributes:
        path: folder of the records.
        layout: of the crops.
        phantom: the studies are synthetic.
        uids: str [S].
        labels: uint8 [S, 8] patient_overall, C1..C7; meaningless where `has_labels` is False.
        has_labels: bool [S].
        has_boxes: bool [S], the study has fracture boxes on some slice.
        folds: int32 [S], -1 without labels.
        record: int64 [S, 7], the crop of each level; -1 where the mask does not show it.
        study: int32 [N], which study.
        level: int32 [N], 1..7.
        complete: bool [N]; False where the mask touches the edge of the scan, so that a part may be missing.
        boxed: uint8 [N, P], 1 where a box that overlaps the vertebra is nearest to the position, see `cut.boxed`.
        box: float32 [N, P, 4], about those boxes: top, left, bottom, right in pixels of the crop; zeros where none.
        slice_index: float32 [N, P], where the centre of each position's plane lies in the study (slices).
        spacing_mm: float32 [N, 3], of neighbours, rows and columns.
        origin: float32 [N, P, 3], centre of pixel (0, 0) of each position's plane, in voxels (z, y, x) of the study.
        axes: float32 [N, 3, 3], one neighbour, one row and one column further, in the same voxels.
        pixels: reads records; see `PixelReader`.
    """

    path: Path
    layout: CropLayout
    phantom: bool
    uids: np.ndarray
    labels: np.ndarray
    has_labels: np.ndarray
    has_boxes: np.ndarray
    folds: np.ndarray
    record: np.ndarray
    study: np.ndarray
    level: np.ndarray
    complete: np.ndarray
    boxed: np.ndarray
    box: np.ndarray
    slice_index: np.ndarray
    spacing_mm: np.ndarray
    origin: np.ndarray
    axes: np.ndarray
    pixels: PixelReader | PixelsInMemory

    @classmethod
    def open(cls, path: str | Path, cache_mb: int = 0) -> "CropTable":
        """Opens a folder of crops written by `cspine build --crops` or `tfds build --file_format=array_record`.

        Args:
            path: folder that holds `dataset_info.json` and the shards.
            cache_mb: memory for decoded crops, see `PixelReader`.

        Returns:
            The table. Records of the TFDS builder have no index yet: they are scanned once and the index is kept
            beside them where that folder can be written.

        Raises:
            DataError: there are no records, or no crops, or an older version made them.
        """
        path = Path(path).expanduser()
        layout, pixels, columns = open_records(
            path, CropLayout.from_name, lambda layout: (layout.shape, layout.channels), COLUMNS, cache_mb
        )
        count, level = columns["count"], columns["level"]
        study = np.repeat(np.arange(len(count), dtype=np.int32), count)
        record = np.full((len(count), NUM_VERTEBRAE), -1, np.int64)
        record[study, level - 1] = np.arange(len(study))
        return cls(
            path=path,
            layout=layout,
            phantom=is_phantom(path),
            uids=columns["study_uid"],
            folds=columns["fold"],
            record=record,
            study=study,
            pixels=pixels,
            **{
                name: columns[name]
                for name in (
                    *("labels", "has_labels", "has_boxes", "level", "complete", "boxed", "box"),
                    *("slice_index", "spacing_mm", "origin", "axes"),
                )
            },
        )

    @classmethod
    def of_study(
        cls, uid: str, hu: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float] | np.ndarray, layout: CropLayout
    ) -> "CropTable":
        """The crops of one new study, in memory; without labels, boxes or a fold.

        Args:
            uid: its StudyInstanceUID.
            hu: int16 [D, H, W], superior slice first.
            mask: uint8 [D, H, W] labels; vertebrae it does not show have no crop.
            spacing_mm: [3] (z, y, x).
            layout: of the crops.
        """
        seen, spacing = cut.look(mask), np.asarray(spacing_mm, np.float64)
        plans = [cut.plan(mask, spacing, level, layout, seen) for level in seen if level <= NUM_VERTEBRAE]
        record = np.full((1, NUM_VERTEBRAE), -1, np.int64)
        record[0, [where.level - 1 for where in plans]] = np.arange(len(plans))
        n, P = len(plans), layout.positions
        pixels = [cut.sample(hu, mask, where, layout) for where in plans]

        def each(name: str, *shape: int) -> np.ndarray:
            return np.array([getattr(where, name) for where in plans], np.float32).reshape(n, *shape)

        return cls(
            path=Path(),
            layout=layout,
            phantom=False,
            uids=np.array([uid]),
            labels=np.zeros((1, len(TARGETS)), np.uint8),
            has_labels=np.zeros(1, bool),
            has_boxes=np.zeros(1, bool),
            folds=np.full(1, -1, np.int32),
            record=record,
            study=np.zeros(n, np.int32),
            level=np.array([where.level for where in plans], np.int32),
            complete=np.array([where.complete for where in plans], bool),
            boxed=np.zeros((n, P), np.uint8),
            box=np.zeros((n, P, 4), np.float32),
            slice_index=each("slice_index", P),
            spacing_mm=each("spacing_mm", 3),
            origin=each("origin", P, 3),
            axes=each("axes", 3, 3),
            pixels=PixelsInMemory([image for image, _ in pixels], [inside for _, inside in pixels], layout.channels),
        )

    def __len__(self) -> int:
        """Number of crops N."""
        return len(self.study)

    def read(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels of `records` (int [n]), from any thread.

        Returns:
            (int16 [n, P, H, W, 2 radius + 1] HU, superior neighbour first; uint8 [n, P, H, W], 1 on the vertebra).
        """
        shape = self.layout.shape
        image = np.empty((len(records), *shape, self.layout.channels), np.int16)
        mask = np.empty((len(records), *shape), np.uint8)
        for place, (hu, inside) in enumerate(self.pixels.pairs(records)):
            image[place], mask[place] = hu, inside
        return image, mask
