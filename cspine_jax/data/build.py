"""Builds the records: one shard a study, in parallel, resumable, readable as a TFDS data set without TensorFlow.

A build grows in a hidden folder and appears under its final name only when it is complete:

    OUT/rsna_cspine/<config>/.1.0.0.building/studies/<uid>.array_record   studies done so far, each with its columns
    OUT/rsna_cspine/<config>/1.0.0/rsna_cspine-train.array_record-00007-of-02019, dataset_info.json, index.npz, ...

A shard is written under a temporary name and renamed when it is whole, so a process killed at any moment loses at most
the studies in flight, and running the same command again goes on from there.
"""

import concurrent.futures
import csv
import dataclasses
import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from cspine_jax import progress
from cspine_jax.ct.identity import Identity, from_flag
from cspine_jax.data import index
from cspine_jax.data.features import DATASET_NAME, VERSION, VOLUMES, Layout, RecordConfig, serialize
from cspine_jax.data.lock import Lock as _Lock
from cspine_jax.data.metadata import METADATA_FILE, shard_name, write_metadata
from cspine_jax.data.recipe import Made, Recipe
from cspine_jax.data.study import examples, load_study
from cspine_jax.data.tables import PHANTOM, UID, Note, StudyEntry, Tables, hashed, read_tables
from cspine_jax.errors import DataError
from cspine_jax.workers import process_pool

SKIPPED_FILE = "skipped.csv"
WARNINGS_FILE = "warnings.csv"
_STAGING = ".metadata"
# zstd level 1 writes four times faster than array_record's default level 3 and reads as fast; files are 11% larger.
WRITER_OPTIONS = "group_size:1,zstd:1"


@dataclasses.dataclass(frozen=True)
class BuildResult:
    """What a build left on disk.

    Attributes:
        path: the TFDS data set folder, for `SliceTable.open` and `tfds.builder_from_directory`.
        studies: studies in the records.
        slices: records (crops, where vertebra crops were built).
        skipped: studies, masks and boxes that were left out, with the reason; also in `path/skipped.csv`. What the
            reader found odd but could read is in `path/warnings.csv`.
        new: studies this call wrote; 0 means there was nothing to do.
    """

    path: Path
    studies: int
    slices: int
    skipped: tuple[Note, ...]
    new: int


def records_path(data_dir: str | Path, config: Layout) -> Path:
    """Where the records of a layout are under `data_dir`."""
    return Path(data_dir).expanduser() / DATASET_NAME / config.name / VERSION


def build(
    manual_dir: str | Path,
    data_dir: str | Path,
    *,
    size: int = 0,
    radius: int = 0,
    stride: int = 1,
    num_folds: int = 0,
    workers: int = 0,
    retry: bool = False,
    overwrite: bool = False,
    hash_uids: str | None = None,
) -> BuildResult:
    """Makes, completes or finds the records of an RSNA-layout folder.

    Call it under `if __name__ == "__main__":` when `workers` is not 1: it starts fresh Python processes.

    Args:
        manual_dir: folder with `train_images/`, `train.csv`, and boxes and `segmentations/` where there are any.
        data_dir: records go to `data_dir/rsna_cspine/<config>/<version>/`.
        size: in-plane matrix; 0 keeps the native one.
        radius: see `RecordConfig`.
        stride: see `RecordConfig`.
        num_folds: folds to deal the studies into; 0 takes 5, or as many as the records there already have. Other
            numbers can be had later, see `loader.split_studies`.
        workers: processes; 0 takes one a CPU, 1 works in this one.
        retry: try the studies again that a finished build had to skip.
        overwrite: throw away what is there, whatever it was made from.
        hash_uids: salt with which every UID is hashed (see `ct.identity`); None keeps them.

    Returns:
        The result; studies that cannot be read are in `skipped` and the others are built.

    Raises:
        DataError: the folder's tables are unusable, no study is readable, `data_dir` holds records of another
            folder or made with other parameters, another process builds them now, or they cannot be written (disk
            full); what is finished is kept then, and the same command goes on from there.
    """
    return build_records(
        _Slices(RecordConfig(size, radius, stride)),
        manual_dir,
        data_dir,
        num_folds=num_folds,
        workers=workers,
        retry=retry,
        overwrite=overwrite,
        hash_uids=hash_uids,
    )


@dataclasses.dataclass(frozen=True)
class _Slices:
    """The recipe of slice records; see `Recipe`."""

    layout: RecordConfig
    columns = index.SLICES

    def tables(self, manual_dir: str | Path, num_folds: int, identity: Identity | None) -> Tables:
        return read_tables(manual_dir, num_folds)

    def parameters(self, tables: Tables) -> dict[str, Any]:
        return {}

    def facts(self, tables: Tables) -> dict[str, Any]:
        return {}

    def differs(self, name: str, there: Mapping[str, Any]) -> str | None:
        return None

    def make(self, entry: StudyEntry, readers: int | None) -> Made | Note:
        study = load_study(entry, self.layout.size, readers)
        return Made(examples(study, self.layout), study.hu.shape[1:], study.notes)


def build_records(
    recipe: Recipe,
    manual_dir: str | Path,
    data_dir: str | Path,
    *,
    num_folds: int,
    workers: int,
    retry: bool,
    overwrite: bool,
    hash_uids: str | None,
) -> BuildResult:
    """`build` for any kind of records; arguments, result and errors are the same."""
    final = records_path(data_dir, recipe.layout)
    work = _work(final)
    num_folds = num_folds or folds_there(data_dir, recipe.layout) or 5
    identity = from_flag(hash_uids)
    try:
        tables = recipe.tables(manual_dir, num_folds, identity)
    except DataError as error:
        raise error if identity is None else DataError(identity.text(str(error))) from None
    parameters = {"fingerprint": tables.fingerprint, "num_folds": num_folds, "config": recipe.layout.name}
    parameters |= recipe.parameters(tables)
    parameters["hash_uids"] = None if identity is None else identity.fingerprint
    tables = tables if identity is None else hashed(tables, identity)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with _Lock(final.parent) as lock:
            lock.share()
            if final.is_dir() and not (retry or overwrite):
                _check_same(final, parameters, recipe, manual_dir)
                return _finished(final, new=0)
            lock.take()
            for folder in (final, work):
                if overwrite:
                    shutil.rmtree(folder, ignore_errors=True)
                elif folder.is_dir():
                    _check_same(folder, parameters, recipe, manual_dir)
            if final.is_dir():
                if not retry:  # finished by another process since
                    return _finished(final, new=0)
                os.replace(final, work)
            return _finished(*_complete(tables, recipe, parameters, work, final, workers))
    except OSError as error:
        raise DataError(
            f"{final.parent}: cannot write the records: {error.strerror or error}; finished studies are kept: make "
            "room, or choose another --data_dir, and run again"
        ) from error


def _complete(
    tables: Tables, recipe: Recipe, parameters: dict[str, Any], work: Path, final: Path, workers: int
) -> tuple[Path, int]:
    done = _resume(work, parameters, recipe.columns)
    pending = [entry for entry in tables.studies if entry.uid not in done]
    failed: list[Note] = []
    bar = progress.bar(total=len(tables.studies), initial=len(done), what=f"build {recipe.layout.name}", unit="study")
    with bar:
        for note in _run(pending, recipe, _studies(work), workers):
            if note is not None:
                failed.append(note)
                bar.write(f"skipped {note.uid}: {note.reason}")
            bar.update()
    if len(failed) == len(tables.studies):
        raise DataError(f"{tables.manual_dir}: none of {len(failed)} studies can be read; first: {failed[0].reason}")
    _finalise(tables, recipe, parameters, failed, work)
    os.replace(work, final)
    return final, len(pending) - len(failed)


def _work(final: Path) -> Path:
    """Where records are while they are made."""
    return final.with_name(f".{VERSION}.building")


def _studies(work: Path) -> Path:
    return work / "studies"


def folds_there(data_dir: str | Path, layout: Layout) -> int:
    """Into how many folds the records there were dealt, finished or not; 0 where there are none."""
    final = records_path(data_dir, layout)
    for folder in (final, _work(final)):
        if (folder / METADATA_FILE).is_file():
            return int(json.loads((folder / METADATA_FILE).read_text()).get("num_folds", 0))
    return 0


def _check_same(folder: Path, parameters: dict[str, Any], recipe: Recipe, manual_dir: str | Path) -> None:
    path = folder / METADATA_FILE
    if not path.is_file():
        if all(each.is_dir() or each.suffix == ".tmp" for each in folder.rglob("*")):
            return  # a build that had only just begun
        raise DataError(f"{folder}: no {METADATA_FILE}, so not records of this builder; choose another --data_dir")
    there = json.loads(path.read_text())
    for name, value in parameters.items():
        if there.get(name) == value:
            continue
        what = recipe.differs(name, there) or f"{name}={there.get(name)!r} and not {value!r}"
        if name == "fingerprint":
            what = f"other tables or masks than those now in {manual_dir} (built from {there.get('manual_dir')})"
        raise DataError(f"{folder}: its records were made from {what}; choose another --data_dir or pass --overwrite")


def _resume(work: Path, parameters: dict[str, Any], kind: index.Columns) -> set[str]:
    """Brings `work` to the state "some studies done" from wherever the last run stopped; returns their uids."""
    studies = _studies(work)
    studies.mkdir(parents=True, exist_ok=True)
    if not (work / METADATA_FILE).is_file():
        _write_text(work / METADATA_FILE, json.dumps(parameters))
    for path in (*work.glob("*.tmp"), *studies.glob("*.tmp")):
        path.unlink()
    if (work / _STAGING).is_dir():
        shutil.rmtree(work / _STAGING)
    if (work / VOLUMES).is_dir():  # named by the numbers of studies, which may change now
        shutil.rmtree(work / VOLUMES)
    if (work / index.INDEX_FILE).is_file():  # the last run, or a finished build, had begun to number its shards
        columns = index.split(index.load(work / index.INDEX_FILE), kind)
        for shard, study in enumerate(columns):
            uid = str(study["study_uid"])
            numbered = work / shard_name(shard, len(columns))
            if not (studies / f"{uid}.npz").is_file():
                index.save(studies / f"{uid}.npz", study)
            if numbered.is_file():
                numbered.replace(studies / f"{uid}.array_record")
        (work / index.INDEX_FILE).unlink()
    done = set()
    for path in studies.glob("*.array_record"):
        if _is_whole(path):
            done.add(path.stem)
        else:  # cannot happen to a killed process, but to a machine that lost power
            path.unlink()
    return done


def _is_whole(shard: Path) -> bool:
    try:
        expected = int(index.load(shard.with_suffix(".npz"))["count"])
        reader = ArrayRecordReader(str(shard))
        found = reader.num_records()
        reader.close()
    except (OSError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile):
        return False
    return found == expected


def _run(pending: Sequence[StudyEntry], recipe: Recipe, folder: Path, workers: int) -> Iterator[Note | None]:
    workers = min(workers or os.cpu_count() or 1, len(pending))
    if workers <= 1:
        for entry in pending:
            yield _write_study(entry, recipe, folder)
        return
    pool = process_pool(workers)  # one core a study: `workers` of them are read at the same time
    try:
        futures = [pool.submit(_write_study, entry, recipe, folder, 1) for entry in pending]
        for future in concurrent.futures.as_completed(futures):
            yield future.result()
    except BrokenProcessPool:
        raise DataError(
            f"{folder}: a worker process died, perhaps out of memory; run again with fewer --workers than {workers} "
            "(finished studies are kept)"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


class _NotDrawn(Exception):  # noqa: N818 - carries the error, is none itself
    """An example could not be made; its argument says why."""


def _drawn(examples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The examples; whatever goes wrong in making one is told apart from what goes wrong in writing it."""
    rest = iter(examples)
    while True:
        try:
            example = next(rest)
        except StopIteration:
            return
        except Exception as error:
            raise _NotDrawn(error) from error
        yield example


def _left_out(entry: StudyEntry, error: Exception) -> Note:
    return Note(entry.uid, "study", entry.said(f"{type(error).__name__}: {error}".replace("\n", " ")))


def _write_study(entry: StudyEntry, recipe: Recipe, folder: Path, readers: int | None = None) -> Note | None:
    """Writes one shard and its columns; a study that cannot be read gives a note instead."""
    try:
        made = recipe.make(entry, readers)
    except Exception as error:  # one bad study, whatever is wrong with it, must not end a build of two thousand
        return _left_out(entry, error)
    if isinstance(made, Note):
        return made
    temporary = folder / f"{entry.uid}.array_record.{os.getpid()}.tmp"
    rows = []
    try:
        writer = ArrayRecordWriter(str(temporary), WRITER_OPTIONS)
        for example in _drawn(made.examples):
            writer.write(serialize(example, recipe.layout))
            rows.append({name: value for name, value in example.items() if name not in ("image", "mask")})
        writer.close()  # RuntimeError, and only here, when the disk is full
        index.save(folder / f"{entry.uid}.npz", index.study_columns(rows, made.shape, made.notes, recipe.columns))
        temporary.replace(folder / f"{entry.uid}.array_record")
    except _NotDrawn as error:
        return _left_out(entry, error.args[0])
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DataError(
            f"{folder}: cannot write study {entry.uid}: {reason}; finished studies are kept: make room, or choose "
            "another --data_dir, and run again"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)  # a full disk needs the room
    return None


def _finalise(tables: Tables, recipe: Recipe, parameters: dict[str, Any], failed: Sequence[Note], work: Path) -> None:
    studies = _studies(work)
    uids = [entry.uid for entry in tables.studies if (studies / f"{entry.uid}.array_record").is_file()]
    columns = [index.load(studies / f"{uid}.npz") for uid in uids]
    table = index.join(columns, recipe.columns)
    notes = sorted(
        {*tables.notes, *failed, *(Note(*map(str, note)) for note in table["notes"])},
        key=lambda note: (note.uid, note.what, note.reason),
    )
    index.save(work / index.INDEX_FILE, table)
    num_bytes = 0
    for shard, uid in enumerate(uids):
        path = studies / f"{uid}.array_record"
        num_bytes += path.stat().st_size
        path.replace(work / shard_name(shard, len(uids)))
    staging = work / _STAGING  # a half-written metadata.json would stop the next run
    staging.mkdir()
    made_from = {
        "manual_dir": str(tables.manual_dir.resolve()),
        "phantom": (tables.manual_dir / PHANTOM).is_file(),
    }
    write_metadata(
        staging,
        recipe.layout,
        shard_lengths=[int(study["count"]) for study in columns],
        num_bytes=num_bytes,
        metadata=parameters | made_from | recipe.facts(tables),
    )
    for path in staging.iterdir():
        path.replace(work / path.name)
    staging.rmdir()
    _write_notes(work / SKIPPED_FILE, [note for note in notes if note.what != "warning"])
    _write_notes(work / WARNINGS_FILE, [note for note in notes if note.what == "warning"])
    shutil.rmtree(studies)


def _write_notes(path: Path, notes: Sequence[Note]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow((UID, "what", "reason"))
        writer.writerows(map(dataclasses.astuple, notes))


def _finished(path: Path, new: int) -> BuildResult:
    table = index.load(path / index.INDEX_FILE)
    with (path / SKIPPED_FILE).open(newline="") as file:
        skipped = tuple(Note(*row) for row in list(csv.reader(file))[1:])
    return BuildResult(path, len(table["count"]), int(np.sum(table["count"])), skipped, new)


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
