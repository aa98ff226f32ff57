"""One study, from its folder to its records: the function that `cspine build` and the TFDS builder share."""

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from cspine_jax.anatomy import NUM_VERTEBRAE, TARGETS
from cspine_jax.ct import read_mask, read_study
from cspine_jax.data.boxes import place_boxes
from cspine_jax.data.features import RecordConfig
from cspine_jax.data.resize import resize_hu, resize_mask
from cspine_jax.data.source import level_areas
from cspine_jax.data.tables import Note, StudyEntry
from cspine_jax.errors import StudyError

MOST_SLICES = 100_000
"""Above the slices of any study; makes keys of records."""


@dataclasses.dataclass(frozen=True)
class Study:
    """A study on the grid of its records, superior slice first.

    Attributes:
        entry: what the tables say about it.
        hu: int16 [D, H, W], resized in plane when asked.
        mask: uint8 [D, H, W] labels, resized alike; None without a mask.
        presence: uint8 [D, 7], 1 where a native pixel of the slice belongs to the vertebra; zeros without a mask.
        area_fraction: float32 [D, 7], the vertebra's pixels over all native pixels of the slice; zeros without a mask.
        boxes: D arrays float32 [n, 4] of (x, y, width, height) in pixels of `hu`.
        slice_numbers: int32 [D], k of k.dcm.
        positions_mm: float32 [D, 3] ImagePositionPatient, LPS (x, y, z) mm.
        spacing_mm: float32 [3], (z, y, x) mm of `hu`.
        notes: a mask or boxes that had to be left out, and warnings of the reader.
    """

    entry: StudyEntry
    hu: np.ndarray
    mask: np.ndarray | None
    presence: np.ndarray
    area_fraction: np.ndarray
    boxes: tuple[np.ndarray, ...]
    slice_numbers: np.ndarray
    positions_mm: np.ndarray
    spacing_mm: np.ndarray
    notes: tuple[Note, ...]

    @property
    def has_boxes(self) -> bool:
        """Whether boxes say where its fractures show: not if none of those in the table found its slice."""
        return any(map(len, self.boxes))


def load_study(entry: StudyEntry, size: int = 0, workers: int | None = None) -> Study:
    """Reads one study, its mask and its boxes.

    Args:
        entry: from `read_tables`.
        size: in-plane matrix in pixels; 0 keeps the native one.
        workers: slices decoded at the same time, see `read_study`; 1 where studies are read side by side.

    Returns:
        The study. A mask that does not fit and boxes on slices that do not exist are left out and named in `notes`.

    Raises:
        StudyError: the images cannot be read.
    """
    volume = read_study(entry.folder, workers=workers, identity=entry.identity)
    depth, height, width = volume.hu.shape
    notes = [Note(entry.uid, "warning", entry.said(text)) for text in volume.warnings]

    mask = None
    if entry.mask is not None:
        try:
            mask = read_mask(entry.mask, volume)
        except StudyError as error:
            notes.append(Note(entry.uid, "mask", entry.said(str(error))))
    counts = np.zeros((depth, NUM_VERTEBRAE), np.int64) if mask is None else level_areas(mask)

    boxes, lost = place_boxes(entry.boxes, volume)
    notes += [Note(entry.uid, "boxes", f"the study has no slice of slice_number {number}") for number in lost]
    scale = np.array([size / width, size / height] * 2 if size else [1.0] * 4)[None, :]

    z, y, x = volume.spacing_mm
    return Study(
        entry=entry,
        hu=resize_hu(volume.hu, size) if size else volume.hu,
        mask=resize_mask(mask, size) if size and mask is not None else mask,
        presence=(counts > 0).astype(np.uint8),
        area_fraction=(counts / (height * width)).astype(np.float32),
        boxes=tuple((row * scale).astype(np.float32) for row in boxes),
        slice_numbers=np.asarray(volume.slice_numbers, np.int32),
        positions_mm=np.asarray(volume.positions_mm, np.float32),
        spacing_mm=np.array([z, y * height / size, x * width / size] if size else [z, y, x], np.float32),
        notes=tuple(notes),
    )


def record_rows(depth: int, config: RecordConfig) -> np.ndarray:
    """The slices of a study of `depth` slices that become records: [n] indices, superior first."""
    return np.arange(0, depth, config.stride)


def examples(study: Study, config: RecordConfig) -> Iterator[dict[str, Any]]:
    """The study's records in z order, as `features(config)` encodes them."""
    entry, depth = study.entry, len(study.hu)
    shared = {
        "study_uid": entry.uid,
        "has_mask": study.mask is not None,
        "labels": np.array(entry.labels or [0] * len(TARGETS), np.uint8),
        "has_labels": entry.labels is not None,
        "has_boxes": study.has_boxes,
        "num_slices": depth,
        "spacing_mm": study.spacing_mm,
        "fold": entry.fold,
    }
    empty = np.zeros(study.hu.shape[1:], np.uint8)
    for row in record_rows(depth, config):
        mask = empty if study.mask is None else study.mask[row]
        image = study.hu[row]
        if config.radius:
            near = np.clip(np.arange(row - config.radius, row + config.radius + 1), 0, depth - 1)
            image = np.stack([*study.hu[near], mask.astype(np.int16)], axis=-1)
        yield shared | {
            "image": np.ascontiguousarray(image),
            "mask": np.ascontiguousarray(mask),
            "presence": study.presence[row],
            "area_fraction": study.area_fraction[row],
            "boxes": study.boxes[row],
            "index": int(row),
            "slice_number": int(study.slice_numbers[row]),
            "position_mm": study.positions_mm[row],
        }


def keyed_examples(number: int, entry: StudyEntry, config: RecordConfig) -> Iterator[tuple[int, dict[str, Any]]]:
    """What a TFDS builder asks for: (key, example) pairs of one study, keys ascending over all studies.

    Args:
        number: position of the study in the data set.
        entry: from `read_tables`.
        config: layout of the records.

    Yields:
        The records in z order; none for a study that cannot be read, which is logged.
    """
    try:
        study = load_study(entry, config.size)
    except StudyError as error:
        logging.warning("skipped study %s: %s", entry.uid, error)
        return
    for note in study.notes:
        logging.warning("%s %s: %s", note.what, entry.uid, note.reason)
    for example in examples(study, config):
        yield number * MOST_SLICES + example["index"], example
