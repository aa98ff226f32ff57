"""Which mask each study is cropped by: its true one, or the one that `cspine segment` found out of fold.

A network segments studies that it learnt from better than new ones, and what is trained on such crops would trust them
too much. So, as for `data.vertebra_probs`: a folder whose `part.csv` (StudyInstanceUID, part) or `slices.csv` with a
column `part` names a study as "train" or "validation" lends it no mask. A folder that says nothing counts as out of
fold where its masks are of weights that learnt from synthetic studies alone, as those that come with the package; else
it is refused.
"""

import csv
import dataclasses
import glob
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from cspine_jax.ct.identity import Identity
from cspine_jax.data.crops.layout import TRUE_MASKS
from cspine_jax.data.probabilities import IN_SAMPLE
from cspine_jax.data.tables import MASKS, UID, Note, Tables, csv_rows
from cspine_jax.errors import DataError

MASK, REPORT = "vertebrae.nii.gz", "vertebrae.json"
"""What `cspine segment` writes for each study."""

PARTS = ("part.csv", "slices.csv")
_KNOWN = (*IN_SAMPLE, "none", "test")
_END = 4096  # bytes from each end of a mask that go into its fingerprint; a gzip's last hold its checksum


@dataclasses.dataclass(frozen=True)
class _Found:
    """A study's mask in one folder, and the part that the folder names for it ("" for none)."""

    path: Path
    part: str


def masked(tables: Tables, source: str, identity: Identity | None = None) -> Tables:
    """The tables with the studies that have a usable mask, which is the one of `source`.

    Args:
        tables: of the RSNA-layout folder, UIDs as they are.
        source: `CropsConfig.masks`.
        identity: where UIDs get hashed: masks of `cspine segment` may go by the hashed UID too.

    Returns:
        The tables; a study without a mask is in `notes`.

    Raises:
        DataError: no such folder, what it holds is malformed, two folders have a mask of one study, or none is left.
    """
    if source == TRUE_MASKS:
        found = {entry.uid: entry.mask for entry in tables.studies if entry.mask is not None}
        refused = {}
    else:
        found, refused = _segmented(source)
    studies, notes = [], [note for note in tables.notes if note.what != "mask"]
    for entry in tables.studies:
        names = (entry.uid,) if identity is None else (entry.uid, identity.uid(entry.uid))
        path = next((found[name] for name in names if name in found), None)
        if path is not None:
            studies.append(dataclasses.replace(entry, mask=path))
            continue
        why = next((refused[name] for name in names if name in refused), None)
        where = f"{MASKS}/" if source == TRUE_MASKS else source
        notes.append(Note(entry.uid, "mask", why or f"no mask of this study in {where}, so no crops"))
    if not studies:
        lost = [note for note in notes if note.what == "mask"]
        first = f"{lost[0].uid}: {lost[0].reason}"
        raise DataError(f"{tables.manual_dir}: none of {len(lost)} studies has a usable mask; first: {first}")
    return dataclasses.replace(
        tables,
        studies=tuple(studies),
        notes=tuple(sorted(notes, key=lambda note: (note.uid, note.what))),
        unlabelled=sum(entry.labels is None for entry in studies),
    )


def fingerprint(tables: Tables) -> str:
    """Tells the masks of `masked` tables from others: the study of each, its size, what it begins and ends with.

    A compressed mask that is copied or made again alike is the same. Of one that is not compressed the time of its last
    change counts too, since its ends say little.
    """
    digest = hashlib.sha256()
    for entry in tables.studies:
        assert entry.mask is not None
        digest.update(f"{entry.folder.name}:".encode())
        try:
            state = entry.mask.stat()
            digest.update(f"{state.st_size}:".encode())
            with entry.mask.open("rb") as file:
                digest.update(file.read(_END))
                file.seek(max(0, state.st_size - _END))
                digest.update(file.read())
        except OSError:  # the study will be left out, by name
            continue
        if entry.mask.suffix != ".gz":
            digest.update(str(state.st_mtime_ns).encode())
    return digest.hexdigest()[:16]


def _segmented(source: str) -> tuple[dict[str, Path], dict[str, str]]:
    """({uid: mask}, {uid: why it has none}) of the folders that `source` names."""
    every: dict[str, list[_Found]] = {}
    for folder in _folders(source):
        parts = _parts(folder)
        for uid, path in _masks(folder, bool(parts) or (folder / PARTS[0]).is_file()):
            every.setdefault(uid, []).append(_Found(path, parts.get(uid, "")))
    found, refused = {}, {}
    for uid, all_of_it in every.items():
        usable = [one for one in all_of_it if one.part not in IN_SAMPLE]
        if not usable:
            one = all_of_it[0]
            refused[uid] = (
                f"{one.path}: is of a model that learnt from this study (part {one.part}); give the folders of all "
                "folds (a pattern such as 'segmented/fold*')"
            )
            continue
        said = [one for one in usable if one.part == "test"]
        usable = said if len(said) == 1 else usable
        if len(usable) > 1:
            raise DataError(
                f"{usable[0].path} and {usable[1].path}: two masks of study {uid}; give one folder a fold, each with a "
                f"{PARTS[0]} ({UID},part) that names the part of its studies, or take one of the two away"
            )
        found[uid] = usable[0].path
    return found, refused


def _folders(source: str) -> list[Path]:
    path = Path(source).expanduser()
    folders = [path] if path.is_dir() else [Path(each) for each in sorted(glob.glob(str(path), recursive=True))]
    folders = [folder for folder in folders if folder.is_dir()]
    if not folders:
        raise DataError(
            f"{path}: no such folder; crops.masks must be {TRUE_MASKS} or the folder (or a pattern of folders) that "
            "`cspine segment --out` wrote"
        )
    return folders


def _masks(folder: Path, told: bool) -> Iterable[tuple[str, Path]]:
    """(uid, mask) of each study; `told`: the folder says which studies its weights learnt from."""
    reports = sorted(folder.glob(f"*/{REPORT}"))
    if not reports:
        raise DataError(f"{folder}: holds no <study>/{REPORT}; give the folder that `cspine segment --out` wrote")
    seen: dict[str, Path] = {}
    for report in reports:
        try:
            said = json.loads(report.read_text(encoding="utf-8"))
            uid, model = said["study_uid"], said.get("model", {})
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"{report}: names no study_uid; segment this study again") from None
        if not told and model.get("trained_on_phantoms_only") is False:
            raise DataError(
                f"{folder}: its masks are of weights that learnt from real studies ({model.get('weights')}), and "
                f"nothing says which; name these in {folder / PARTS[0]} (columns {UID},part; 'train' or 'validation'; "
                "the head alone if they are none of these)"
            )
        mask = report.with_name(MASK)
        if not mask.is_file():
            raise DataError(f"{mask}: no such file, but {REPORT} is there; segment this study again")
        if uid in seen:
            raise DataError(f"{seen[uid]} and {mask}: two masks of study {uid}; take one of the two away")
        seen[uid] = mask
        yield uid, mask


def _parts(folder: Path) -> dict[str, str]:
    """{uid: part} that a folder states; the parts of a model's own slices.csv count as those of part.csv."""
    stated: dict[str, str] = {}
    for path in (folder / name for name in PARTS):
        if not path.is_file() or (path.name != PARTS[0] and "part" not in _header(path)):
            continue
        for line, row in csv_rows(path, (UID, "part")):
            uid, part = row[UID], row["part"]
            if part not in _KNOWN:
                raise DataError(f"{path}:{line}: part {part!r} must be train, validation, test or none")
            if stated.setdefault(uid, part) != part:
                raise DataError(f"{path}:{line}: study {uid} is named {part!r} here and {stated[uid]!r} before")
    return stated


def _header(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return next(csv.reader(file), [])
