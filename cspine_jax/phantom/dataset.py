"""Many studies in one RSNA-layout folder: in parallel, resumable, the same bytes however it was interrupted.

A study's files are written beside the data set and moved in when whole; its rows wait in `OUT/.studies/<index>.json`,
written last. The tables are put together from those at the end.
"""

import concurrent.futures
import contextlib
import csv
import dataclasses
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cspine_jax import __version__, locks
from cspine_jax.anatomy import NUM_VERTEBRAE, TARGETS
from cspine_jax.errors import ConfigError, DataError
from cspine_jax.phantom import scanner, scene, writer
from cspine_jax.phantom.plan import Fracture, StudyPlan
from cspine_jax.phantom.sample import DIFFICULTIES, WRITER_STREAM, sample_fractures, sample_study, stream
from cspine_jax.phantom.variety import VARIETIES
from cspine_jax.progress import bar
from cspine_jax.workers import process_pool

GENERATOR = 1
"""Raised whenever a change alters the bytes of a study, so that no folder mixes two generations."""

_BEFORE = {"variety": "rsna"}
"""What folders were made with whose `phantom.json` does not say yet."""

MIN_FRACTURE_VOXELS = 2
_ATTEMPTS = 3


@dataclasses.dataclass(frozen=True)
class Study:
    """A finished study in memory, superior slice first.

    Attributes:
        plan: with exactly the fractures that show: `plan.labels` agrees with `fractures`.
        hu: int16 [D, H, W].
        labels: uint8 [D, H, W], 1..7 = C1..C7, 8..19 = T1..T12.
        fractures: uint8 [D, H, W], 0 or level + 1.
    """

    plan: StudyPlan
    hu: np.ndarray
    labels: np.ndarray
    fractures: np.ndarray


@dataclasses.dataclass(frozen=True)
class Parameters:
    """What decides the bytes of a data set, but for the number of studies."""

    seed: int = 0
    size: int = 256
    scale: float = 1.0
    difficulty: str = "standard"
    fov: float = 1.0
    variety: str = "rsna"
    codec: str = "explicit"
    mask_fraction: float = 1.0
    box_fraction: float = 1.0

    def __post_init__(self):
        for name in ("mask_fraction", "box_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"phantom {name}={getattr(self, name)}: must be between 0 and 1")
        if self.codec not in writer.CODECS:
            raise ConfigError(f"phantom codec={self.codec!r}: must be one of {', '.join(writer.CODECS)}")
        if self.difficulty not in DIFFICULTIES:
            raise ConfigError(f"phantom difficulty={self.difficulty!r}: must be one of {', '.join(DIFFICULTIES)}")
        if self.variety not in VARIETIES:
            raise ConfigError(f"phantom variety={self.variety!r}: must be one of {', '.join(VARIETIES)}")


def make_study(
    seed: int,
    index: int,
    *,
    size: int = 256,
    scale: float = 1.0,
    difficulty: str = "standard",
    fov: float = 1.0,
    variety: str = "rsna",
) -> Study:
    """Draws, renders and scans one study. Arguments as `sample_study`.

    A planned level whose fracture leaves fewer than `MIN_FRACTURE_VOXELS` voxels on the grid (thin cleft between
    coarse slices, or out of view) gets another fracture; after three attempts it counts as whole and is drawn so.
    The label of a level therefore always equals "its fracture can be seen in this scan".
    """
    plan = sample_study(seed, index, size=size, scale=scale, difficulty=difficulty, fov=fov, variety=variety)
    for attempt in range(1, _ATTEMPTS + 1):
        rendered = scene.render(plan)
        fractures = scanner.align(rendered.fractures, plan)
        hidden = hidden_levels(plan, fractures)
        if not hidden:
            break
        kept = [fracture for fracture in plan.fractures if fracture.level not in hidden]
        redrawn: list[Fracture] = []
        if attempt < _ATTEMPTS:
            redrawn = [f for level in hidden for f in sample_fractures(seed, index, level, difficulty, attempt)]
        plan = dataclasses.replace(plan, fractures=tuple(sorted(kept + redrawn, key=lambda f: f.level)))
    else:
        rendered = scene.render(plan)
        fractures = scanner.align(rendered.fractures, plan)
    return Study(plan, scanner.scan(rendered, plan), scanner.align(rendered.labels, plan), fractures)


def hidden_levels(plan: StudyPlan, fractures: np.ndarray) -> list[int]:
    """Levels (0..6) fractured in the plan that show fewer than `MIN_FRACTURE_VOXELS` voxels in `fractures`."""
    voxels = np.bincount(fractures.ravel(), minlength=NUM_VERTEBRAE + 1)
    return sorted({f.level for f in plan.fractures if voxels[f.level + 1] < MIN_FRACTURE_VOXELS})


def write_dataset(
    out: str | os.PathLike,
    studies: int,
    seed: int = 0,
    size: int = 256,
    scale: float = 1.0,
    difficulty: str = "standard",
    fov: float = 1.0,
    variety: str = "rsna",
    workers: int = 0,
    mask_fraction: float = 1.0,
    box_fraction: float = 1.0,
    first: int = 0,
    codec: str = "explicit",
) -> Path:
    """Writes studies `first .. first + studies - 1` of the endless data set `seed`.

    Run again it goes on where it stopped; with more `studies` it adds to a finished folder. One process at a time
    writes a folder; another waits for it.

    Args:
        out: folder for `train_images/<uid>/<k>.dcm`, `train.csv`, `train_bounding_boxes.csv`,
            `segmentations/<uid>.nii.gz`, `fractures/<uid>.nii.gz` (0 or level + 1) and `phantom.json`.
        studies: how many.
        seed: the data set.
        size: in-plane matrix.
        scale: factor on the number of slices.
        difficulty: "easy", "standard" or "hard".
        fov: factor on the field of view.
        variety: "rsna", or "wide" for people and scans far beyond the challenge's.
        workers: processes; 0 takes one for each core.
        mask_fraction: share of studies that get a segmentation (87 of 2,019 in the real data).
        box_fraction: share of fractured studies that get boxes (235 of 961 in the real data).
        first: index of the first study.
        codec: "explicit", or "mixed" for some JPEG-Lossless studies.

    Returns:
        `out`.

    Raises:
        ConfigError: an argument is out of range.
        DataError: `out` holds another data set.
    """
    if studies < 1 or first < 0 or workers < 0:
        raise ConfigError(
            f"phantom studies={studies}, first={first}, workers={workers}: need studies >= 1, others >= 0"
        )
    parameters = Parameters(seed, size, scale, difficulty, fov, variety, codec, mask_fraction, box_fraction)
    # refuse bad arguments before any file
    sample_study(seed, first, size=size, scale=scale, difficulty=difficulty, fov=fov, variety=variety)
    out = Path(out)
    with _alone(out):
        _claim(out, parameters, studies, first)
        shutil.rmtree(out / ".partial", ignore_errors=True)
        wanted = range(first, first + studies)
        todo = [index for index in wanted if not _is_done(out, index)]
        with bar(total=studies, initial=studies - len(todo), what="phantom", unit="study") as progress:
            for _ in _each(out, parameters, todo, workers or len(os.sched_getaffinity(0))):
                progress.update(1)
        shutil.rmtree(out / ".partial", ignore_errors=True)
        _write_tables(out, wanted)
    return out


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Waits for another process that writes the same folder; the lock dies with the process that holds it."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as file:
        if not locks.acquire(file):
            print(f"phantom: another process is making {out}; waiting for it", file=sys.stderr, flush=True)
            locks.acquire(file, wait=True)
        yield


def _each(out: Path, parameters: Parameters, todo: list[int], workers: int):
    """Writes the studies `todo`, yields as each is done."""
    workers = min(workers, len(todo))
    if workers <= 1:
        for index in todo:
            yield _write_study(out, parameters, index)
        return
    with process_pool(workers) as pool:
        futures = [pool.submit(_write_study, out, parameters, index) for index in todo]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _write_study(out: Path, parameters: Parameters, index: int) -> None:
    p = parameters
    study = make_study(p.seed, index, size=p.size, scale=p.scale, difficulty=p.difficulty, fov=p.fov, variety=p.variety)
    plan, uid = study.plan, study.plan.uid
    has_mask, has_boxes = stream(p.seed, index, WRITER_STREAM, 2).random(2) < (p.mask_fraction, p.box_fraction)
    partial = out / ".partial" / uid
    writer.write_dicom(partial / "images", plan, study.hu, seed=p.seed, codec=p.codec)
    writer.write_nifti(partial / "fractures.nii.gz", plan, study.fractures)
    if has_mask:
        writer.write_nifti(partial / "segmentation.nii.gz", plan, study.labels)
        _move(partial / "segmentation.nii.gz", out / "segmentations" / f"{uid}.nii.gz")
    boxes = writer.fracture_boxes(plan, study.fractures, seed=p.seed) if has_boxes else []
    _move(partial / "fractures.nii.gz", out / "fractures" / f"{uid}.nii.gz")
    _move(partial / "images", out / "train_images" / uid)
    rows = {"uid": uid, "labels": plan.labels, "boxes": [dataclasses.astuple(box) for box in boxes]}
    rows |= {"has_mask": bool(has_mask), "plan": dataclasses.asdict(plan)}
    _write_atomically(_rows_path(out, index), json.dumps(rows))


def _move(source: Path, target: Path) -> None:
    """Moves a file or folder into place over what an interrupted run may have left there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        shutil.rmtree(target)
    os.replace(source, target)


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def _rows_path(out: Path, index: int) -> Path:
    return out / ".studies" / f"{index:06d}.json"


def _is_done(out: Path, index: int) -> bool:
    path = _rows_path(out, index)
    return path.is_file() and (out / "train_images" / json.loads(path.read_text())["uid"]).is_dir()


def _claim(out: Path, parameters: Parameters, studies: int, first: int) -> None:
    """Says in `phantom.json` what `out` holds, or refuses it if it holds something else."""
    path = out / "phantom.json"
    new = dataclasses.asdict(parameters) | {"first": first, "generator": GENERATOR}
    if path.is_file():
        try:
            old = json.loads(path.read_text())
        except ValueError as error:
            raise DataError(f"{path}: not JSON ({error}); delete the folder or choose another --out") from None
        for name, value in new.items():
            there = old.get(name, _BEFORE.get(name))
            if there != value:
                raise DataError(
                    f"{out}: made with {name}={there!r}, not {value!r}; "
                    "choose another folder, or delete this one to make it anew"
                )
        if old["studies"] > studies:
            raise DataError(f"{out}: already has {old['studies']} studies, not {studies}; choose another folder")
    elif (out / "train_images").exists() or (out / "train.csv").exists():
        raise DataError(f"{out}: holds a data set that is not a phantom (no phantom.json); choose another folder")
    new |= {"studies": studies, "version": __version__}
    _write_atomically(path, json.dumps(new, indent=1) + "\n")


def _write_tables(out: Path, wanted: range) -> None:
    rows = [json.loads(_rows_path(out, index).read_text()) for index in wanted]
    labels = [("StudyInstanceUID", *TARGETS), *((row["uid"], *row["labels"]) for row in rows)]
    boxes: list[tuple] = [("StudyInstanceUID", "x", "y", "width", "height", "slice_number")]
    boxes += [(row["uid"], *box) for row in rows for box in row["boxes"]]
    for name, table in (("train.csv", labels), ("train_bounding_boxes.csv", boxes)):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(table)
        _write_atomically(out / name, text.getvalue())
