"""What each slice of a vertebra's crop is trained on: whether it shows a break, and where."""

import numpy as np

from cspine_jax.data.batches import Batch
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


def slice_boxes(table: CropTable, records: np.ndarray) -> Batch:
    """Where the breaks of some crops are.

    Returns:
        `box` float32 [n, P, 4], see `CropTable`; `where_known` float32 [n]: 1 where those are all there are: the
        vertebra is intact, or fractured and shown by a box on some position.
    """
    study = table.study[records]
    fractured = table.labels[study, table.level[records]] > 0
    known = table.has_labels[study] & (~fractured | (table.boxed[records] > 0).any(1))
    return {
        "box": np.where(fractured[:, None, None], table.box[records], np.float32(0)),
        "where_known": known.astype(np.float32),
    }
