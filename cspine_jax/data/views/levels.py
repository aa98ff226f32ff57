"""The seven vertebrae of a patient as one example: what gold's Type 2 and the level transformer learn from."""

import numpy as np

from cspine_jax.data.batches import Batch
from cspine_jax.data.crops import CropTable
from cspine_jax.data.views.patients import PatientView, known_targets
from cspine_jax.data.views.slice_labels import slice_boxes, slice_labels

AIR_HU = -1000


class LevelsView(PatientView[CropTable]):
    """All crops of a study; items are study numbers of a `CropTable`. `labels` as in `VertebraView`."""

    def __init__(self, table: CropTable, labels: str = "copy"):
        self.table, self.labels = table, labels

    def read(self, items: np.ndarray, valid: np.ndarray, jitter: np.ndarray | None = None) -> Batch:
        """A batch.

        A label is known where the study has labels and a crop of that vertebra. The patient's is not where all
        fractured vertebrae are without a crop: what is not in the picture cannot be learnt from it.

        Returns:
            `image` int16 [B, 7, P, H, W, K] HU, `mask` uint8 [B, 7, P, H, W] 0/1 (air and zeros where there is no
            crop), `there` bool [B, 7], `targets` and `targets_known` float32 [B, 8], `slice_targets` float32
            [B, 7, P] (zeros where there is no crop, known where the vertebra's label is), `box` float32 [B, 7, P, 4]
            and `where_known` float32 [B, 7] of `slice_boxes` (zeros where there is no crop), `study` int32 [B],
            `valid` bool [B].
        """
        del jitter  # crops are cut already
        table, rows = self.table, self.table.record[items]
        there = rows >= 0
        pixels, inside = table.read(rows[there])
        image = np.full((*rows.shape, *pixels.shape[1:]), AIR_HU, np.int16)
        mask = np.zeros((*rows.shape, *inside.shape[1:]), np.uint8)
        image[there], mask[there] = pixels, inside
        slices = np.zeros(mask.shape[:3], np.float32)
        slices[there] = slice_labels(table, rows[there], self.labels)
        boxes = {}
        for name, found in slice_boxes(table, rows[there]).items():
            boxes[name] = np.zeros((*rows.shape, *found.shape[1:]), np.float32)
            boxes[name][there] = found
        labels = table.labels[items].astype(np.float32)
        return {
            "image": image,
            "mask": mask,
            "there": there,
            "targets": labels,
            "slice_targets": slices,
            **boxes,
            "targets_known": known_targets(labels, there, table.has_labels[items]),
            "study": np.asarray(items, np.int32),
            "valid": valid,
        }
