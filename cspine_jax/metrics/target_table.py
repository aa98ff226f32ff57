"""Label and prediction tables: `StudyInstanceUID,patient_overall,C1..C7`, checked cell by cell."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cspine_jax.anatomy import TARGETS, VERTEBRAE
from cspine_jax.errors import DataError

UID = "StudyInstanceUID"


def read_targets(path: str | Path, *, labels: bool = False, allow_empty: bool = False) -> tuple[list[str], np.ndarray]:
    """Reads a table of the eight targets; other columns are ignored, rows keep their order.

    Args:
        path: CSV with a header.
        labels: the cells must be 0 or 1; otherwise they must be within 0..1.
        allow_empty: an empty cell is NaN ("not visible") instead of an error.

    Returns:
        (study uids, `[S, 8]` float64 in the order of `anatomy.TARGETS`).

    Raises:
        DataError: the file cannot be read, a column is missing, a study comes twice, a cell makes no sense; the message
            names the line, the study and the column.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _parse(csv.DictReader(file), path, labels, allow_empty)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give a CSV file with {UID} and the targets"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: is no CSV text ({error})") from error


def _parse(reader: csv.DictReader, path: Path, labels: bool, allow_empty: bool) -> tuple[list[str], np.ndarray]:
    missing = [name for name in (UID, *TARGETS) if name not in (reader.fieldnames or ())]
    if missing:
        raise DataError(
            f"{path}: column {', '.join(missing)} is missing; the header must have {','.join((UID, *TARGETS))}"
        )
    seen: dict[str, int] = {}
    rows = []
    for row in reader:
        uid, where = row[UID], f"{path} line {reader.line_num}"
        if not uid:
            raise DataError(f"{where}: {UID} is empty")
        if uid in seen:
            raise DataError(f"{where}: study {uid} was already on line {seen[uid]}; keep one row a study")
        seen[uid] = reader.line_num
        rows.append([_cell(row[name], f"{where}, study {uid}, column {name}", labels, allow_empty) for name in TARGETS])
    if not rows:
        raise DataError(f"{path}: holds no study, only a header")
    return list(seen), np.array(rows, np.float64)


def _cell(text: str | None, where: str, labels: bool, allow_empty: bool) -> float:
    if text is None or not text.strip():
        if allow_empty:
            return math.nan
        fix = "" if labels else " (a level that is not visible? --fill prevalence scores such cells)"
        raise DataError(f"{where}: is empty{fix}")
    try:
        value = float(text)
    except ValueError:
        raise DataError(f"{where}: {text!r} is no number") from None
    if labels and value not in (0.0, 1.0):
        raise DataError(f"{where}: label {text} must be 0 or 1")
    if not 0.0 <= value <= 1.0:
        raise DataError(f"{where}: {text} is no probability; it must be within 0..1")
    return value


def write_targets(
    path: Path, uids: Sequence[str], table: np.ndarray, parts: Sequence[str] | np.ndarray | None = None
) -> None:
    """`StudyInstanceUID,patient_overall,C1..C7`, a row a study; NaN is an empty cell.

    Args:
        path: file to write.
        uids: `[S]`.
        table: `[S, 8]`.
        parts: `[S]`, a column `part` after the UID; None for none.
    """
    _write(path, TARGETS, uids, table, parts)


SPREAD_FILE = "tta.csv"
"""Beside a run's predictions, with `eval.tta`."""


def write_spread(path: Path, uids: Sequence[str], spread: np.ndarray) -> None:
    """`StudyInstanceUID,C1..C7`, standard deviations over test-time augmentations `[S, 7]`; NaN is an empty cell."""
    _write(path, VERTEBRAE, uids, spread)


def _write(path: Path, names: Sequence[str], uids: Sequence[str], table: np.ndarray, parts=None) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([UID, *(["part"] if parts is not None else []), *names])
        for k, (uid, row) in enumerate(zip(uids, table, strict=True)):
            part = [parts[k]] if parts is not None else []
            writer.writerow([uid, *part, *("" if np.isnan(x) else f"{x:.6g}" for x in row)])


def match_studies(
    label_uids: Sequence[str], uids: Sequence[str], *, subset: bool = False
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Pairs the rows of two tables by study, in the labels' order.

    Args:
        label_uids: studies that have labels.
        uids: studies that have predictions.
        subset: score just the studies that have predictions; otherwise every labelled one must have them.

    Returns:
        (rows of the labels, rows of the predictions, predicted studies without labels, which are left out).

    Raises:
        DataError: a labelled study has no prediction, or the tables share no study.
    """
    at = {uid: row for row, uid in enumerate(uids)}
    missing = [uid for uid in label_uids if uid not in at]
    known = set(label_uids)
    unlabelled = [uid for uid in uids if uid not in known]
    if len(missing) == len(label_uids):
        raise DataError(
            f"no study of the labels is in the predictions: {label_uids[0]} is not; are they of the same data?"
        )
    if missing and not subset:
        raise DataError(
            f"{len(missing)} of {len(label_uids)} labelled studies have no prediction, the first is {missing[0]}; "
            "--subset scores those that have one"
        )
    pairs = [(row, at[uid]) for row, uid in enumerate(label_uids) if uid in at]
    left, right = np.array(pairs, np.int64).T
    return left, right, unlabelled
