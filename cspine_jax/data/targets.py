"""What a slice is trained on, and whether that is known: study labels x vertebra masks x fracture boxes.

Real data have labels for every study, masks for 87 and boxes for 235. Each target therefore comes with a "known" flag,
and what is not known is never guessed: the losses leave it out.
"""

import numpy as np

from cspine_jax.data.source import SliceTable
from cspine_jax.errors import ConfigError


def slice_targets(
    table: SliceTable, fracture_target: str, predicted: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Targets of every record, with y_j the study's label of vertebra j and v_ij its presence on slice i.

    "level" (document B): f_ij = y_j v_ij. Known where y_j = 0, and everywhere in a study with a mask.
    "box": f_ij = y_j v_ij [slice i has a box]. Known where y_j = 0; in a study with boxes also on slices without one
    (0), and on slices with one if there is a mask, or if y has a single 1, which the box then must show.
    A study without labels has nothing known.

    Args:
        table: N records.
        fracture_target: "level" or "box".
        predicted: bool [N, 7], vertebrae that another model sees on each slice; they stand in for the mask in studies
            that have none. For training only: they are not the truth.

    Returns:
        float32 arrays of 0 and 1, targets 0 where unknown: `presence` [N, 7], `presence_known` [N], `fracture` [N, 7],
        `fracture_known` [N, 7], `slice_fracture` [N] (any vertebra fractured on the slice; under "box" the slice has a
        box) and `slice_known` [N].

    Raises:
        ConfigError: there is no such `fracture_target`.
    """
    if fracture_target not in ("level", "box"):
        raise ConfigError(f"data.fracture_target={fracture_target!r}: must be level or box")
    labelled = table.has_labels[table.study]
    masked = table.has_mask[table.study]
    y = table.labels[table.study].astype(bool)
    patient, levels = y[:, 0], y[:, 1:]
    v = table.presence.astype(bool) & masked[:, None]
    if predicted is not None:
        v = np.where(masked[:, None], v, predicted)
        masked = np.ones_like(masked)

    if fracture_target == "level":
        known = labelled[:, None] & (~levels | masked[:, None])
        fracture = levels & v
        slice_known = labelled & (~patient | masked)
        slice_fracture = fracture.any(1)
    else:
        boxed = table.has_boxes[table.study]
        box = table.num_boxes > 0
        single = levels.sum(1) == 1
        certain = boxed & (~box | masked | single)
        known = labelled[:, None] & (~levels | certain[:, None])
        visible = np.where(masked[:, None], v, levels & single[:, None])
        fracture = levels & visible & box[:, None]
        slice_known = labelled & (~patient | boxed)
        slice_fracture = box & patient
    flags = {
        "presence": v,
        "presence_known": masked,
        "fracture": fracture & known,
        "fracture_known": known,
        "slice_fracture": slice_fracture & slice_known,
        "slice_known": slice_known,
    }
    return {name: flag.astype(np.float32) for name, flag in flags.items()}
