"""Vertebra probabilities v_ij of every slice: the truth, nothing, or what other models predicted, out of fold.

A model's answers on studies that it learnt from are better than its answers on new ones; a second model trained on them
would trust them too much. So each study's v_ij come from a model that had it in its test part: K vertebra models
(`data.fold` = 0..K-1) predict everything, and from the K tables this module takes, study by study, the rows whose
`part` is "test". Rows of "train" and of "validation" (on which the checkpoint was chosen) are refused unless they are
allowed.
"""

import dataclasses
import glob
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cspine_jax.anatomy import NUM_VERTEBRAE, VERTEBRAE
from cspine_jax.data.source import SliceTable
from cspine_jax.data.tables import UID, csv_rows
from cspine_jax.errors import DataError

IN_SAMPLE = ("train", "validation")
"""Parts of a study that its model has learnt from, or was chosen on."""


@dataclasses.dataclass(frozen=True)
class VertebraProbabilities:
    """What is known of the vertebrae on N slices.

    Attributes:
        values: float32 [N, 7]; NaN where there is no row that may be used.
        in_sample: bool [N]; there is one, but of a model that learnt from the study.
        source: as in `data.vertebra_probs`.
    """

    values: np.ndarray
    in_sample: np.ndarray
    source: str

    def require(self, table: SliceTable, records: np.ndarray) -> None:
        """Checks that every one of `records` (int [n]) has its probabilities.

        Raises:
            DataError: one has not, or only those of a model that learnt from it; the message names the study.
        """
        missing = records[np.isnan(self.values[records, 0])]
        if not missing.size:
            return
        first = missing[0]
        uid, row = table.uids[table.study[first]], table.index[first]
        if self.in_sample[first]:
            studies = len(np.unique(table.study[missing[self.in_sample[missing]]]))
            raise DataError(
                f"{self.source}: the rows of study {uid} ({studies} such studies) are of a model that learnt from it; "
                "give the tables of all folds (a pattern such as 'runs/v/fold*/predictions/slices.csv'), or set "
                "data.in_sample_probs=true"
            )
        raise DataError(
            f"{self.source}: no row for slice_index {row} of study {uid} ({missing.size} slices are missing)"
        )


def vertebra_probabilities(table: SliceTable, source: str, in_sample: bool = False) -> VertebraProbabilities:
    """The vertebra probabilities that Type 1 and 2 models read.

    Args:
        table: N records.
        source: "mask" for the truth (0 or 1 with a mask, 0.5 = unknown without), "none" for 0.5 everywhere, or the
            path of a csv table with the columns StudyInstanceUID, slice_index (0-based, superior first) or
            slice_number (k of k.dcm), C1..C7 and maybe part, or a pattern (`*`, `?`, `[]`) of such paths. Without the
            column part all rows count as out of fold. A study that is in no part of several runs gets their mean.
        in_sample: take rows of "train" and "validation" where there is no other.

    Returns:
        The probabilities; see `VertebraProbabilities.require`.

    Raises:
        DataError: a table is missing or malformed, or names a slice twice.
    """
    nowhere = np.zeros(len(table), bool)
    if source == "none":
        return VertebraProbabilities(np.full((len(table), NUM_VERTEBRAE), 0.5, np.float32), nowhere, source)
    if source == "mask":
        known = table.has_mask[table.study][:, None]
        return VertebraProbabilities(np.where(known, table.presence, 0.5).astype(np.float32), nowhere, source)
    joined = _Joined(table, in_sample)
    for path in _paths(source):
        joined.add(path)
    return VertebraProbabilities(joined.values(), joined.seen_in_sample & (joined.count == 0), source)


def _paths(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    if not found:
        raise DataError(
            f"{path}: no such file; data.vertebra_probs must be mask, none or the path (or pattern) of csv tables"
        )
    return found


class _Joined:
    """Rows of several tables, the best one of each slice: out of fold, else in no part, else (if allowed) in sample."""

    def __init__(self, table: SliceTable, in_sample: bool):
        self.table, self.allowed = table, in_sample
        self.total = np.zeros((len(table), NUM_VERTEBRAE))
        self.count = np.zeros(len(table), np.int64)
        self.rank = np.zeros(len(table), np.int8)
        self.seen_in_sample = np.zeros(len(table), bool)

    def values(self) -> np.ndarray:
        """float32 [N, 7], NaN without a row."""
        count = np.where(self.count > 0, self.count, np.nan)[:, None]
        return (self.total / count).astype(np.float32)

    def add(self, path: Path) -> None:
        here = np.zeros(len(self.table), bool)
        for line, row, values in self._rows(path):
            if here[row]:
                uid, index = self.table.uids[self.table.study[row]], self.table.index[row]
                raise DataError(f"{path}:{line}: slice_index {index} of study {uid} is named twice")
            here[row] = True
            part = values.get("part", "test")
            if part not in (*IN_SAMPLE, "none", "test"):
                raise DataError(f"{path}:{line}: part {part!r} must be train, validation, test or none")
            if part in IN_SAMPLE:
                self.seen_in_sample[row] = True
                if not self.allowed:
                    continue
            rank = 1 if part in IN_SAMPLE else 2 if part == "none" else 3
            if rank < self.rank[row]:
                continue
            if rank == self.rank[row] == 3:
                uid = self.table.uids[self.table.study[row]]
                raise DataError(
                    f"{path}:{line}: study {uid} is out of fold in another table too; give one table a fold"
                )
            if rank > self.rank[row]:
                self.rank[row], self.count[row], self.total[row] = rank, 0, 0.0
            self.total[row] += self._probabilities(path, line, values)
            self.count[row] += 1

    def _rows(self, path: Path) -> Iterator[tuple[int, int, dict[str, str]]]:
        """(line, record, values) of the slices that the records have; a table may cover more."""
        table = self.table
        with path.open(encoding="utf-8-sig") as file:
            by = "slice_index" if "slice_index" in file.readline() else "slice_number"
        column = table.index if by == "slice_index" else table.slice_number
        uids = table.uids[table.study].tolist()
        record = {(uid, int(number)): row for row, (uid, number) in enumerate(zip(uids, column, strict=True))}
        for line, values in csv_rows(path, (UID, by, *VERTEBRAE)):
            try:
                row = record.get((values[UID], int(values[by])))
            except ValueError as error:
                raise DataError(f"{path}:{line}: {error}") from None
            if row is not None:
                yield line, row, values

    @staticmethod
    def _probabilities(path: Path, line: int, values: dict[str, str]) -> np.ndarray:
        try:
            probabilities = np.array([float(values[name]) for name in VERTEBRAE])
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}:{line}: {error}") from None
        if not ((probabilities >= 0) & (probabilities <= 1)).all():
            raise DataError(f"{path}:{line}: probabilities {probabilities.tolist()} must be within 0..1")
        return probabilities
