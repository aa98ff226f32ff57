"""What views share whose examples are patients: which are learnt from, which are positive, which targets are known."""

from typing import Generic, TypeVar

import numpy as np

from cspine_jax.data.crops import CropTable
from cspine_jax.data.source import SliceTable

Table = TypeVar("Table", CropTable, SliceTable)


class PatientView(Generic[Table]):
    """Items are study numbers of `table`."""

    table: Table
    shows = "a fractured patient"

    def items(self, studies: np.ndarray, train: bool) -> np.ndarray:
        """The studies; in training those with labels."""
        studies = np.asarray(studies, np.int64)
        return studies[self.table.has_labels[studies]] if train else studies

    def positive(self, items: np.ndarray) -> np.ndarray:
        """Fractured patients."""
        return self.table.labels[items, 0] > 0


def known_targets(labels: np.ndarray, there: np.ndarray, has_labels: np.ndarray) -> np.ndarray:
    """Which of the eight targets can be learnt: float32 [B, 8].

    Args:
        labels: [B, 8].
        there: bool [B, 7], vertebrae in the picture.
        has_labels: bool [B].
    """
    shown = ((labels[:, 1:] > 0) & there).any(1)
    patient = there.any(1) & ((labels[:, 0] == 0) | shown)
    return (np.concatenate([patient[:, None], there], axis=1) & has_labels[:, None]).astype(np.float32)
