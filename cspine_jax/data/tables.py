"""An RSNA-layout folder's tables: which studies there are, their labels, boxes and masks; every misfit is named."""

import csv
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from cspine_jax.anatomy import TARGETS
from cspine_jax.ct.identity import Identity
from cspine_jax.data.folds import assign_folds
from cspine_jax.errors import DataError

IMAGES = "train_images"
LABELS = "train.csv"
BOXES = "train_bounding_boxes.csv"
MASKS = "segmentations"
PHANTOM = "phantom.json"
UID = "StudyInstanceUID"


@dataclasses.dataclass(frozen=True)
class StudyEntry:
    """What the folder says about one study, before any image is read.

    Attributes:
        uid: name of the study's folder.
        folder: where its DICOM files are.
        labels: [8] 0/1 patient_overall, C1..C7; None when train.csv does not name the study.
        boxes: (slice_number, x, y, width, height) in native pixels, in table order.
        mask: NIfTI segmentation, or None.
        fold: test fold of the study; -1 without labels.
        identity: where UIDs are hashed, what hashes them; `uid` is hashed then, `folder` and `mask` are as on disk.
    """

    uid: str
    folder: Path
    labels: tuple[int, ...] | None
    boxes: tuple[tuple[float, ...], ...]
    mask: Path | None
    fold: int
    identity: Identity | None = None

    def said(self, text: str) -> str:
        """A message about the study, without its true UID where that is hashed."""
        return text if self.identity is None else self.identity.text(text, [self.folder.name])


@dataclasses.dataclass(frozen=True)
class Note:
    """Something left out of the records: a `study`, its `mask` or its `boxes`, and why."""

    uid: str
    what: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Tables:
    """A folder's studies in uid order, what does not fit, and a fingerprint of the tables."""

    manual_dir: Path
    studies: tuple[StudyEntry, ...]
    notes: tuple[Note, ...]
    unlabelled: int
    fingerprint: str


def read_tables(manual_dir: str | Path, num_folds: int = 5) -> Tables:
    """Reads `train.csv`, `train_bounding_boxes.csv` and the folder listing.

    Args:
        manual_dir: folder that holds `train_images/`, `train.csv` and, if there are any, boxes and `segmentations/`.
        num_folds: folds to deal the labelled studies into.

    Returns:
        The studies that have a folder. Studies of the tables without a folder are in `notes`.

    Raises:
        DataError: a table is missing or a row of it makes no sense.
    """
    root = Path(manual_dir).expanduser()
    if not (root / IMAGES).is_dir():
        raise DataError(f"{root / IMAGES}: no such folder; --manual_dir must hold {IMAGES}/ and {LABELS}")
    labels = _read_labels(root / LABELS)
    boxes = _read_boxes(root / BOXES)
    masks = {
        path.name.removesuffix(".gz").removesuffix(".nii"): path
        for path in sorted((root / MASKS).glob("*.nii*"))
        if path.name.endswith((".nii", ".nii.gz"))
    }
    folders = {path.name: path for path in (root / IMAGES).iterdir() if path.is_dir()}
    if not folders:
        raise DataError(f"{root / IMAGES}: holds no study folder; expected {IMAGES}/<{UID}>/<k>.dcm")

    named = sorted(labels)
    folds = dict(zip(named, assign_folds(named, np.array([labels[uid] for uid in named]), num_folds), strict=True))
    notes = [
        Note(uid, "study", f"in {LABELS} but there is no folder {IMAGES}/{uid}") for uid in labels.keys() - folders
    ]
    notes += [
        Note(uid, what, f"{what} for a study that has no folder {IMAGES}/{uid}")
        for what, table in (("boxes", boxes), ("mask", masks))
        for uid in table.keys() - folders - labels.keys()
    ]
    studies = tuple(
        StudyEntry(
            uid=uid,
            folder=folder,
            labels=labels.get(uid),
            boxes=tuple(boxes.get(uid, ())),
            mask=masks.get(uid),
            fold=int(folds.get(uid, -1)),
        )
        for uid, folder in sorted(folders.items())
    )
    return Tables(
        manual_dir=root,
        studies=studies,
        notes=tuple(sorted(notes, key=lambda note: (note.uid, note.what))),
        unlabelled=sum(study.labels is None for study in studies),
        fingerprint=_fingerprint(root, masks),
    )


def hashed(tables: Tables, identity: Identity) -> Tables:
    """The tables with every UID hashed; labels, boxes, masks and folds were matched by the true ones."""
    studies = [dataclasses.replace(entry, uid=identity.uid(entry.uid), identity=identity) for entry in tables.studies]
    notes = [Note(identity.uid(n.uid), n.what, identity.text(n.reason, [n.uid])) for n in tables.notes]
    return dataclasses.replace(
        tables,
        studies=tuple(sorted(studies, key=lambda entry: entry.uid)),
        notes=tuple(sorted(notes, key=lambda note: (note.uid, note.what))),
    )


def _fingerprint(root: Path, masks: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for name in (LABELS, BOXES):
        path = root / name
        digest.update(f"{name}:".encode() + (hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b"-"))
    if (root / PHANTOM).is_file():  # phantoms of another size or noise can have the same tables
        made = json.loads((root / PHANTOM).read_text())
        digest.update(json.dumps({name: made[name] for name in sorted(made) if name != "version"}).encode())
    digest.update("\n".join(path.name for path in masks.values()).encode())
    return digest.hexdigest()[:16]


def csv_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields (line number, row) of a csv table.

    Raises:
        DataError: one of `columns` is missing, or it is no CSV table in UTF-8.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        try:
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{path}: column {missing[0]} is missing; expected {','.join(columns)}")
            for row in reader:
                yield reader.line_num, row
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path}: {error}; save it as CSV in UTF-8") from error


def _read_labels(path: Path) -> dict[str, tuple[int, ...]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a table with columns {UID},{','.join(TARGETS)}")
    labels: dict[str, tuple[int, ...]] = {}
    for line, row in csv_rows(path, (UID, *TARGETS)):
        uid = row[UID]
        if uid in labels:
            raise DataError(f"{path}:{line}: study {uid} is named twice; keep one row a study")
        values = [row[name] for name in TARGETS]
        if any(value not in ("0", "1") for value in values):
            raise DataError(f"{path}:{line}: study {uid} has labels {values}; each must be 0 or 1")
        labels[uid] = tuple(map(int, values))
        if labels[uid][0] != max(labels[uid][1:]):
            raise DataError(
                f"{path}:{line}: study {uid} has patient_overall={labels[uid][0]} but C1..C7={list(labels[uid][1:])}; "
                "patient_overall must be 1 exactly when a vertebra is"
            )
    return labels


def _read_boxes(path: Path) -> dict[str, list[tuple[float, ...]]]:
    boxes: dict[str, list[tuple[float, ...]]] = {}
    if not path.is_file():
        return boxes
    names = ("slice_number", "x", "y", "width", "height")
    for line, row in csv_rows(path, (UID, *names)):
        try:
            box = tuple(float(row[name]) for name in names)
        except (TypeError, ValueError):
            values = [row[name] for name in names]
            raise DataError(f"{path}:{line}: {','.join(names)}={values}: each must be a number") from None
        if not (np.isfinite(box).all() and box[0] == int(box[0]) and box[3] > 0 and box[4] > 0):
            raise DataError(f"{path}:{line}: box {box} needs a whole slice_number and a positive width and height")
        boxes.setdefault(row[UID], []).append(box)
    return boxes
