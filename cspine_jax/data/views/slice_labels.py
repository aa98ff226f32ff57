"""What each slice of a vertebra's crop is trained on."""

import numpy as np

from cspine_jax.data.crops import CropTable


def slice_labels(table: CropTable, records: np.ndarray, rule: str) -> np.ndarray:
    """Targets of the positions of some crops.

    "copy": the vertebra's label. "box": where it is fractured and a box shows it on any position, 1 on those positions
    and 0 on the others; else its label. (Few real studies have boxes, and positions may lie between boxed slices.)

    Args:
        table: of the crops.
        records: int [n].
        rule: `config.study.slice_labels`.

    Returns:
        float32 [n, P]; meaningless where the study has no labels.
    """
    study = table.study[records]
    fractured = (table.labels[study, table.level[records]] > 0)[:, None]
    boxed = table.boxed[records] > 0
    if rule == "box":
        shown = table.has_boxes[study][:, None] & boxed.any(1, keepdims=True)
        return (fractured & (boxed | ~shown)).astype(np.float32)
    return np.broadcast_to(fractured, boxed.shape).astype(np.float32)
