"""Models of vertebra crops: gold (Types 1 and 2), silver, bronze, and the level transformer."""

import csv
import functools
import json
from pathlib import Path

import numpy as np

from cspine_jax.anatomy import TARGETS
from cspine_jax.config import Config
from cspine_jax.data.build import SKIPPED_FILE, folds_there
from cspine_jax.data.crops import CropLayout, CropTable, build_crops, check_cut, crops_path
from cspine_jax.data.crops.masks import masked
from cspine_jax.data.loader import split_studies
from cspine_jax.data.metadata import METADATA_FILE
from cspine_jax.data.tables import StudyEntry, read_tables
from cspine_jax.data.views import View, crop_view
from cspine_jax.errors import DataError
from cspine_jax.kinds.on_targets import NETWORK, OnTargets, Roster
from cspine_jax.kinds.records import dealt, find_folder
from cspine_jax.training.crops_task import study_level_task
from cspine_jax.training.workdir import say

LAYOUT = ("crops.positions", "crops.radius", "crops.stride", "crops.size", "crops.margin", "crops.oriented")
"""Where the masks are from may change between training and use."""


class Crops(OnTargets):
    """Crops of vertebrae in, the eight targets out."""

    of_the_model = (*NETWORK, *LAYOUT)

    def __init__(self, config: Config):
        self.config, self.task = config, study_level_task(config)

    @functools.cached_property
    def table(self) -> CropTable:
        """The crops, found or made."""
        return dealt(CropTable.open(find_crops(self.config), cache_mb=self.config.data.cache_mb), self.config.data)

    @functools.cached_property
    def roster(self) -> Roster:
        """See `OnTargets`."""
        return list_studies(self.table, self.config)

    @functools.cached_property
    def parts(self) -> dict[str, np.ndarray]:
        """See `OnTargets`."""
        return split_studies(self.roster, self.config.data)

    @functools.cached_property
    def view(self) -> View:
        """See `OnTargets`."""
        return crop_view(self.table, self.config.study)

    @property
    def phantom(self) -> bool:
        """See `OnTargets`."""
        return self.table.phantom

    def network(self) -> str:
        """See `OnTargets`."""
        layout = self.table.layout
        return (
            f"{self.config.study.model}, {self.config.model.backbone}, {layout.positions} positions of "
            f"{layout.channels} slices and mask, {layout.size} px"
        )


def find_crops(config: Config) -> Path:
    """Finds, finishes or makes the RSNA-layout folder and its crops.

    `manual_dir` empty: crops that are already in `data_dir` are taken as they are; else the phantom under `root`.

    Raises:
        DataError: `manual_dir` is not there, or what is there cannot be used.
    """
    data = config.data
    if data.data_dir and not data.manual_dir:
        there = crops_path(data.data_dir, config.crops)
        if there.is_dir():
            check_cut(there)
            say(f"data: crops {there}")
            return there
    source = find_folder(data)
    data_dir = data.data_dir or str(Path(data.root).expanduser() / "records" / source.resolve().name)
    folds = folds_there(data_dir, CropLayout.of(config.crops)) or data.num_folds  # others are dealt when opened
    built = build_crops(source, data_dir, config.crops, num_folds=folds, workers=data.workers)
    say(f"data: {built.slices} vertebrae of {built.studies} studies in {built.path}")
    if built.skipped:
        say(f"data: {len(built.skipped)} things left out, see {built.path / SKIPPED_FILE}")
    return built.path


def list_studies(table: CropTable, config: Config) -> Roster:
    """The studies with a crop, and those with a mask but without any crop: nothing of them is visible.

    The latter are known where the RSNA-layout folder that the crops were made from can still be read. Studies without
    a mask were never to be cropped; they are named under `left_out`.
    """
    lost, left_out = _without_crops(table, config)
    blank = np.zeros(len(TARGETS), np.uint8)
    labels = [blank if entry.labels is None else np.array(entry.labels, np.uint8) for entry in lost]
    return Roster(
        path=table.path,
        uids=np.concatenate([table.uids, [entry.uid for entry in lost]]) if lost else table.uids,
        labels=np.concatenate([table.labels, np.reshape(labels, (len(lost), len(TARGETS))).astype(np.uint8)]),
        has_labels=np.concatenate([table.has_labels, np.array([e.labels is not None for e in lost], bool)]),
        folds=np.concatenate([table.folds, np.array([entry.fold for entry in lost], np.int32)]),
        row=np.concatenate([np.arange(len(table.uids)), np.full(len(lost), -1)]),
        left_out=left_out,
    )


def _without_crops(table: CropTable, config: Config) -> tuple[list[StudyEntry], dict[str, list[str]]]:
    """Studies with a mask that gave no crop, and reasons -> UIDs of the other skipped ones."""
    there, file = set(table.uids.tolist()), table.path / METADATA_FILE
    about = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    folder = Path(config.data.manual_dir or about.get("manual_dir") or "").expanduser()
    skipped = _skipped(table.path / SKIPPED_FILE)
    lost: list[StudyEntry] = []
    if (folder / "train.csv").is_file():
        try:
            entries = masked(read_tables(folder, config.data.num_folds), config.crops.masks).studies
        except DataError:  # the masks were moved since; the crops are whole without them
            entries = []
        lost = [entry for entry in entries if entry.uid in skipped and entry.uid not in there]
    named = {entry.uid for entry in lost}
    left_out: dict[str, list[str]] = {}
    for uid, reason in skipped.items():
        if uid not in there and uid not in named:
            left_out.setdefault(reason, []).append(uid)
    return lost, left_out


def _skipped(file: Path) -> dict[str, str]:
    """UID -> reason, of studies and masks."""
    if not file.is_file():
        return {}
    with file.open(newline="", encoding="utf-8") as rows:
        found = [list(row.values()) for row in csv.DictReader(rows)]
    return {uid: reason for uid, what, reason, *_ in found if what in ("study", "mask")}
