"""Out-of-fold tables: each study predicted by the fold that tested on it, and all models on the same studies."""

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cspine_jax.anatomy import NUM_VERTEBRAE, TARGETS, VERTEBRAE
from cspine_jax.data.folds import assign_folds
from cspine_jax.errors import DataError
from cspine_jax.metrics.target_table import UID

OF_TRUTH = "true masks"

FEW = 3
"""How many studies a message names."""


Table = tuple[Sequence[str], np.ndarray]
"""(study uids `[S]`, values `[S, C]`)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """What one model says about the studies that it was not trained on.

    Attributes:
        name: of the model.
        uids: `[S]` studies.
        fold: `[S]` which of its folds predicted each; -1 for a table from elsewhere.
        p: `[S, 8]` clinical probabilities; NaN where a level is not visible.
        tta: `[S, 7]` spread over test-time augmentations, NaN where there is none; None if the model offers none.
        cost: what its runs took, see `cost_of`.
        validation: fold -> `(uids, [S', 8])`, what it says of its validation studies; of those folds that left it.
        by_masks: whose masks show it where the vertebrae are, in the studies it is tested on; "" where none do.
    """

    name: str
    uids: Sequence[str]
    fold: np.ndarray
    p: np.ndarray
    tta: np.ndarray | None = None
    cost: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    validation: Mapping[int, Table] = dataclasses.field(default_factory=dict)
    by_masks: str = ""

    @property
    def outside(self) -> bool:
        """The table came from elsewhere: nothing is known of what it was trained on."""
        return bool((self.fold < 0).all())


def join_folds(
    name: str,
    folds: Mapping[int, Table],
    tta: Mapping[int, Table] | None = None,
    cost: Mapping[str, Any] | None = None,
    validation: Mapping[int, Table] | None = None,
    by_masks: str = "",
) -> Model:
    """The union of the folds' test tables.

    Args:
        name: of the model.
        folds: `(uids, [S, 8])` of each fold.
        tta: `(uids, [S, 7])` of those folds that have it.
        cost: see `Model`.
        validation: `(uids, [S, 8])` of each fold's validation studies, for those that have it.
        by_masks: see `Model`.

    Raises:
        DataError: there is no fold, or two folds predicted the same study.
    """
    if not folds:
        raise DataError(f"{name}: no fold has predictions")
    by: dict[str, int] = {}
    for k, (uids, _) in folds.items():
        for uid in uids:
            if uid in by:
                raise DataError(
                    f"{name}: study {uid} was predicted by fold {by[uid]} and by fold {k}; a study is tested in one "
                    "fold only: give every fold the same data and data.num_folds"
                )
            by[uid] = k
    spread = None
    if tta:
        found = {uid: row for uids, table in tta.values() for uid, row in zip(uids, table, strict=True)}
        nothing = np.full(NUM_VERTEBRAE, np.nan)
        spread = np.stack([found.get(uid, nothing) for uid in by])
    return Model(
        name,
        list(by),
        np.array(list(by.values()), np.int64),
        np.concatenate([np.asarray(table, np.float64) for _, table in folds.values()]),
        spread,
        cost or {},
        validation or {},
        by_masks,
    )


def outside_model(name: str, table: Table) -> Model:
    """A table from elsewhere, `(uids, [S, 8])`."""
    return Model(name, list(table[0]), np.full(len(table[0]), -1), np.asarray(table[1], np.float64))


@dataclasses.dataclass(frozen=True, eq=False)
class Aligned:
    """All models on the same studies.

    Attributes:
        uids: `[S]`, sorted; after those that are compared, the ones that are only chosen by.
        fold: `[S]`; those that are only chosen by are dealt into folds below 0.
        labels: `[S, 8]` 0 / 1.
        p: name -> `[S, 8]`, NaN where a level is not visible.
        tta: name -> `[S, 7]`, for the models that offer it.
        notes: what was left out, one sentence each.
    """

    uids: list[str]
    fold: np.ndarray
    labels: np.ndarray
    p: dict[str, np.ndarray]
    tta: dict[str, np.ndarray]
    notes: list[str]

    @property
    def tested(self) -> np.ndarray:
        """Bool `[S]`: is compared; the others only serve to choose and to calibrate."""
        return self.fold >= 0

    def of_tested(self) -> "Aligned":
        """Those alone that are compared."""
        keep = self.tested
        return Aligned(
            [uid for uid, kept in zip(self.uids, keep, strict=True) if kept],
            self.fold[keep],
            self.labels[keep],
            {name: table[keep] for name, table in self.p.items()},
            {name: table[keep] for name, table in self.tta.items()},
            self.notes,
        )


CHOOSING_FOLDS = 4
"""Into how many the studies are dealt that are only chosen by."""


def align(models: Sequence[Model], labels: Mapping[str, np.ndarray], num_folds: int) -> Aligned:
    """Keeps the studies that every model predicted and that have labels.

    Args:
        models: with different names.
        labels: `[8]` 0 / 1 of each study.
        num_folds: folds to deal the studies into where no model says its folds (tables from elsewhere alone).

    Raises:
        DataError: there is no model or no common study, or two models tested one study in different folds.
    """
    if not models:
        raise DataError("no model to compare: every recipe failed or was left out")
    rows = [dict(zip(model.uids, range(len(model.uids)), strict=True)) for model in models]
    predicted = set(rows[0]).intersection(*rows[1:])
    everywhere = set(rows[0]).union(*rows[1:])
    uids = sorted(predicted & labels.keys())
    if not uids:
        raise DataError(
            f"no study is in all tables and has labels: {', '.join(f'{m.name} has {len(m.uids)}' for m in models)}, "
            f"{len(predicted)} in common, {len(labels)} labelled; are they of the same data?"
        )
    notes = [f"All models are compared on the same {len(uids)} studies: those that each of them predicted."]
    for model, row in zip(models, rows, strict=True):
        if lacking := sorted(everywhere - row.keys()):
            notes.append(
                f"{model.name} has no prediction of {len(lacking)} studies that another has: {_some(lacking)}."
            )
        if model.by_masks:
            notes.append(
                f"{model.name} is shown where the vertebrae are by {model.by_masks}, in the tested studies, too"
                + ("; a new study has only masks as they are found." if model.by_masks == OF_TRUTH else ".")
            )
        if model.outside:
            notes.append(f"{model.name} is a table from elsewhere: whether it was trained on these studies is unknown.")
    if bare := sorted(predicted - labels.keys()):
        notes.append(f"{len(bare)} predicted studies have no labels and were left out: {_some(bare)}.")
    at = [np.array([row[uid] for uid in uids]) for row in rows]
    truth = np.stack([labels[uid] for uid in uids])
    fold = _folds(models, at, uids, truth, num_folds)
    found = Aligned(
        uids,
        fold,
        truth,
        {model.name: model.p[k] for model, k in zip(models, at, strict=True)},
        {model.name: model.tta[k] for model, k in zip(models, at, strict=True) if model.tta is not None},
        notes,
    )
    return _with_validation(found, models, labels) if len(np.unique(fold)) == 1 else found


def _with_validation(found: Aligned, models: Sequence[Model], labels: Mapping[str, np.ndarray]) -> Aligned:
    """With one fold there are no others to choose by: its validation studies follow, where every model has them."""
    k = int(found.fold[0])
    given = {m.name: (m.uids, m.p) if m.outside else m.validation.get(k, ([], [])) for m in models}
    tables = [dict(zip(*table, strict=True)) for table in given.values()]
    common = set(tables[0]).intersection(*tables[1:]) & labels.keys() - set(found.uids)
    uids = sorted(common)
    if not uids:
        without = [name for name, (table, _) in given.items() if not set(table) - set(found.uids)]
        whose = f"{', '.join(without)} left none" if without else "no labelled ones are in all tables"
        why = f"Nothing is chosen by validation studies: in fold {k} {whose}."
        return dataclasses.replace(found, notes=[*found.notes, why])
    truth = np.stack([labels[uid] for uid in uids])
    return Aligned(
        found.uids + uids,
        np.concatenate([found.fold, -1 - assign_folds(uids, truth.astype(np.int64), CHOOSING_FOLDS).astype(np.int64)]),
        np.concatenate([found.labels, truth]),
        {
            model.name: np.concatenate([found.p[model.name], np.stack([table[uid] for uid in uids])])
            for model, table in zip(models, tables, strict=True)
        },
        {name: np.concatenate([x, np.full((len(uids), x.shape[1]), np.nan)]) for name, x in found.tta.items()},
        found.notes,
    )


def _folds(models, at, uids, labels, num_folds) -> np.ndarray:
    own = [(model, model.fold[k]) for model, k in zip(models, at, strict=True) if not model.outside]
    if not own:
        return assign_folds(uids, labels.astype(np.int64), num_folds).astype(np.int64)
    first, fold = own[0]
    for other, its in own[1:]:
        if (differs := np.flatnonzero(fold != its)).size:
            k = int(differs[0])
            raise DataError(
                f"study {uids[k]} is tested in fold {fold[k]} of {first.name} but in fold {its[k]} of {other.name}; "
                "their data differ: give every recipe the same data.manual_dir (or phantom)"
            )
    return fold


def _some(uids: Sequence[str]) -> str:
    return ", ".join(uids[:FEW]) + (", ..." if len(uids) > FEW else "")


def merge_labels(tables: Mapping[str, Table]) -> dict[str, np.ndarray]:
    """One label row a study out of several tables.

    Raises:
        DataError: two tables disagree about a study.
    """
    found: dict[str, tuple[str, np.ndarray]] = {}
    for source, (uids, labels) in tables.items():
        for uid, row in zip(uids, labels, strict=True):
            if uid in found and not np.array_equal(found[uid][1], row):
                raise DataError(f"study {uid} has other labels in {source} than in {found[uid][0]}; the data differ")
            found.setdefault(uid, (source, row))
    return {uid: row for uid, (_, row) in found.items()}


def read_tta(path: Path) -> Table:
    """`StudyInstanceUID,C1..C7`: standard deviations over test-time augmentations; an empty cell is NaN.

    Raises:
        DataError: the file cannot be read, or a cell is no number that is at least 0.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        table = [[float(row[name] or "nan") for name in VERTEBRAE] for row in rows]
        uids = [row[UID] for row in rows]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: no table of {UID},C1..C7 with a number a cell ({error})") from error
    values = np.array(table, np.float64).reshape(len(table), NUM_VERTEBRAE)
    if (values < 0).any():
        raise DataError(f"{path}: a standard deviation is below 0")
    return uids, values


def write_table(path: Path, uids: Sequence[str], fold: np.ndarray, values: np.ndarray, names: Sequence[str]) -> None:
    """`StudyInstanceUID,<names>,fold`; numbers with six digits, NaN as an empty cell, text as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([UID, *names, "fold"])
        for uid, k, row in zip(uids, fold, values, strict=True):
            writer.writerow([uid, *map(_cell, row), int(k)])


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if np.isnan(value) else f"{value:.6g}"


def hidden_cells(uids: Sequence[str], p: np.ndarray) -> dict[str, list[str]]:
    """StudyInstanceUID -> targets the model gave no probability for."""
    return {
        uid: [TARGETS[j] for j in np.flatnonzero(row)] for uid, row in zip(uids, np.isnan(p), strict=True) if row.any()
    }
