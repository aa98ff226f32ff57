"""Records for the tasks on slices: found, finished or made at the first use, and divided into parts."""

import dataclasses
import json
from pathlib import Path
from typing import TypeVar

import numpy as np

from cspine_jax.config import DataConfig
from cspine_jax.data import build as records
from cspine_jax.data.crops import CropTable
from cspine_jax.data.features import RecordConfig
from cspine_jax.data.loader import split_studies
from cspine_jax.data.metadata import is_phantom
from cspine_jax.data.source import SliceTable
from cspine_jax.data.tables import LABELS, read_tables
from cspine_jax.errors import DataError
from cspine_jax.phantom.dataset import write_dataset
from cspine_jax.training.workdir import say


@dataclasses.dataclass(frozen=True)
class Records:
    """Records, and how they are divided.

    Attributes:
        table: the records.
        parts: study numbers of "train", "validation" and "test".
        phantom: they are synthetic.
        manual_dir: the RSNA-layout folder they were made from ("" where that is not known).
    """

    table: SliceTable
    parts: dict[str, np.ndarray]
    phantom: bool
    manual_dir: str

    @property
    def counts(self) -> str:
        """Such as "3 train, 1 validation, 1 test"."""
        return ", ".join(f"{len(studies)} {part}" for part, studies in self.parts.items())

    def masked(self, part: str) -> np.ndarray:
        """The studies of a part that have a mask."""
        studies = self.parts[part]
        return studies[self.table.has_mask[studies]]

    @property
    def part_of(self) -> np.ndarray:
        """Str [S]: the part of each study, "none" for those in no part."""
        names = np.full(len(self.table.uids), "none", dtype=object)
        for part, studies in self.parts.items():
            names[studies] = part
        return names

    def read_slice(self, uid: str, index: int) -> np.ndarray:
        """int16 [H, W] HU of one slice of a study."""
        study = int(np.flatnonzero(self.table.uids == uid)[0])
        rows = self.table.records_of([study])
        record = rows[np.flatnonzero(self.table.index[rows] == index)[0]]
        return self.table.read_stacks(np.array([record]), depth=1)[0, 0]


def find_records(config: DataConfig) -> Records:
    """Finds, finishes or makes the RSNA-layout folder and its records.

    `manual_dir` empty: records that are already in `data_dir` are taken as they are; else the phantom under `root`.

    Raises:
        DataError: `manual_dir` is not there, or what is there cannot be used.
    """
    layout = RecordConfig(config.size)
    if config.data_dir and not config.manual_dir:
        there = records.records_path(config.data_dir, layout)
        if there.is_dir():
            say(f"data: records {there}")
            return _open(there, config)
    source = find_folder(config)
    data_dir = config.data_dir or str(Path(config.root).expanduser() / "records" / source.resolve().name)
    folds = records.folds_there(data_dir, layout) or config.num_folds  # others are dealt when they are opened
    built = records.build(source, data_dir, size=config.size, num_folds=folds)
    say(f"data: {built.studies} studies, {built.slices} slices in {built.path}")
    if built.skipped:
        say(f"data: {len(built.skipped)} things left out, see {built.path / records.SKIPPED_FILE}")
    return _open(built.path, config)


def find_folder(config: DataConfig) -> Path:
    """The RSNA-layout folder `manual_dir`; where that is empty the phantom under `root`, made or finished first.

    Raises:
        DataError: `manual_dir` is not there.
    """
    if config.manual_dir:
        source = Path(config.manual_dir).expanduser()
        if not source.is_dir():
            raise DataError(
                f"data.manual_dir={config.manual_dir!r}: no such folder; give the one that holds train.csv and "
                "train_images/, or leave it empty for the phantom"
            )
        return source
    phantom = config.phantom
    name = f"phantom-{phantom.difficulty}-{phantom.studies}x{phantom.size}px"
    name += f"-scale{phantom.scale:g}-fov{phantom.fov:g}"
    name += "" if phantom.variety == "rsna" else f"-{phantom.variety}"
    source = Path(config.root).expanduser() / f"{name}-seed{phantom.seed}"
    say(f"data: phantom of {phantom.studies} studies in {source}")
    write_dataset(source, **dataclasses.asdict(phantom))
    return source


def _open(path: Path, config: DataConfig) -> Records:
    table = dealt(SliceTable.open(path, cache_mb=config.cache_mb), config)
    return Records(table, split_studies(table, config), is_phantom(path), _made_from(path))


T = TypeVar("T", SliceTable, CropTable)


def dealt(table: T, config: DataConfig) -> T:
    """The table in `config.num_folds` folds, whatever number it was built with: those of a build with that number.

    They are of all studies in `train.csv`, so that slices and crops of one folder have the same. Where this cannot be
    read any more, or goes by other UIDs (hashed ones), the table stays, and `split_studies` deals what is in it.
    """
    labelled = table.folds[table.has_labels]
    folder = Path(config.manual_dir or _made_from(table.path)).expanduser()
    if not labelled.size or labelled.max() + 1 == config.num_folds or not (folder / LABELS).is_file():
        return table
    fold_of = {entry.uid: entry.fold for entry in read_tables(folder, config.num_folds).studies}
    if not all(uid in fold_of for uid in table.uids.tolist()):
        return table
    return dataclasses.replace(table, folds=np.array([fold_of[uid] for uid in table.uids.tolist()], np.int32))


def _made_from(path: Path) -> str:
    """The folder that `cspine build` made records from, "" where that is not known."""
    file = path / records.METADATA_FILE
    return json.loads(file.read_text(encoding="utf-8")).get("manual_dir", "") if file.is_file() else ""
