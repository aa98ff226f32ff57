"""Whole studies as volumes on one spacing, and crops of them: what 3D networks train on.

Records keep each study's own pixels. Resampling one takes a third of a second, so it is done once and kept beside the
records (`.volumes/`), one memory-mapped array a study.
"""

import concurrent.futures
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import grain
import numpy as np

from cspine_jax import progress
from cspine_jax.config import DataConfig, VolumeConfig
from cspine_jax.ct.regrid import regrid, regrid_labels
from cspine_jax.data.features import VOLUMES
from cspine_jax.data.source import SliceTable
from cspine_jax.errors import DataError

AIR_HU = -1000
HU_RANGE = (-1000, 3071)
MARGIN_MM = 24.0
"""Kept around the vertebrae where only they are wanted."""

Batch = dict[str, np.ndarray]


class Volumes:
    """Studies of a table at one spacing.

    Args:
        table: records of radius 0.
        spacing_mm: of the volumes, all axes.
        spine_only: keep only the box around the vertebrae (with `MARGIN_MM`); studies without a mask have none.
    """

    def __init__(self, table: SliceTable, spacing_mm: float, *, spine_only: bool = False):
        self.table, self.spacing_mm, self.spine_only = table, spacing_mm, spine_only
        self._folder = table.path / VOLUMES / f"{spacing_mm:g}mm{'-spine' if spine_only else ''}"

    def prepare(self, studies: Sequence[int] | np.ndarray, workers: int = 0) -> None:
        """Resamples what has not been resampled yet; may be stopped and run again.

        Raises:
            DataError: a study has no segmentation, or the folder cannot be written.
        """
        bare = [str(self.table.uids[s]) for s in studies if not self.table.has_mask[s]]
        if bare:
            raise DataError(
                f"{self.table.path}: {len(bare)} studies have no segmentation, e.g. {bare[0]}; leave them out"
            )
        todo = [int(s) for s in studies if not self._path(s).is_file()]
        if not todo:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with (
                concurrent.futures.ThreadPoolExecutor(workers or min(4, os.cpu_count() or 1)) as pool,
                progress.bar(total=len(studies), initial=len(studies) - len(todo), what="volumes", unit="study") as bar,
            ):
                for _ in pool.map(self._make, todo):
                    bar.update(1)
        except OSError as error:
            raise DataError(
                f"{self._folder}: {error.strerror or error}; make room, or give another data.root"
            ) from error

    def read(self, study: int) -> np.ndarray:
        """int16 [2, D, H, W], memory-mapped: HU and vertebra labels (0 background, 1..7 C1..C7, 8..19 T1..T12)."""
        return np.load(self._path(study), mmap_mode="r")

    def _path(self, study: int) -> Path:
        return self._folder / f"{int(study):06d}.npy"

    def _make(self, study: int) -> None:
        spacing = tuple(float(s) for s in self.table.spacing_mm[study])
        labels = regrid_labels(self.table.read_study_masks(study), spacing, self.spacing_mm)
        image = regrid(self.table.read_study(study), spacing, self.spacing_mm, bounds=HU_RANGE)
        if self.spine_only:
            box = spine_box(labels, MARGIN_MM / self.spacing_mm)
            image, labels = image[box], labels[box]
        path = self._path(study)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        with partial.open("wb") as file:
            np.save(file, np.stack([np.rint(image), labels]).astype(np.int16))
        os.replace(partial, path)


def spine_box(labels: np.ndarray, margin: float) -> tuple[slice, slice, slice]:
    """The box around all vertebrae with `margin` voxels more, inside the volume; the whole volume if there is none."""
    box = []
    for axis in range(3):
        rows = np.flatnonzero(labels.any(axis=tuple(a for a in range(3) if a != axis)))
        if not rows.size:
            return slice(None), slice(None), slice(None)
        low, high = int(rows[0] - margin), int(np.ceil(rows[-1] + 1 + margin))
        box.append(slice(max(0, low), min(labels.shape[axis], high)))
    return box[0], box[1], box[2]


def crop(volume: np.ndarray, centre: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """int16 [2, *shape] around a voxel; air and background beyond the volume.

    Args:
        volume: [2, D, H, W].
        centre: (z, y, x).
        shape: of the crop.
    """
    out = np.zeros((2, *shape), np.int16)
    out[0] = AIR_HU
    low = np.asarray(centre, int) - np.asarray(shape) // 2
    inside = [slice(max(0, a), min(n, a + s)) for a, n, s in zip(low, volume.shape[1:], shape, strict=True)]
    if all(i.stop > i.start for i in inside):
        there = tuple(slice(i.start - a, i.stop - a) for i, a in zip(inside, low, strict=True))
        out[(slice(None), *there)] = volume[(slice(None), *inside)]
    return out


class Crops:
    """Batches of crops; batch number k of a seed is always the same.

    Args:
        volumes: prepared for `studies`.
        studies: study numbers.
        config: `depth`, `height`, `width_px` and `margin`.
    """

    def __init__(self, volumes: Volumes, studies: np.ndarray, config: VolumeConfig):
        self.volumes, self.studies = volumes, np.asarray(studies)
        self.inner = (config.depth, config.height, config.width_px)
        self.outer = tuple(n + 2 * config.margin for n in self.inner)

    def random(self, seed: int, number: int, size: int) -> Batch:
        """Training batch `number`: every study once an epoch, a crop around any voxel of its vertebrae."""
        rows = []
        for example in range(number * size, (number + 1) * size):
            epoch, place = divmod(example, len(self.studies))
            study = np.random.default_rng([seed, epoch, 0]).permutation(self.studies)[place]
            volume = self.volumes.read(int(study))
            rows.append(crop(volume, self._somewhere(volume, np.random.default_rng([seed, example, 1])), self.outer))
        return self._batch(rows, np.ones(size, bool))

    def fixed(self, number: int, size: int) -> Batch:
        """Evaluation batch `number`: each study once, the crop about the middle of its vertebrae, the last padded."""
        wanted = np.arange(number * size, (number + 1) * size)
        rows = []
        for i in np.minimum(wanted, len(self.studies) - 1):
            volume = self.volumes.read(int(self.studies[i]))
            box = spine_box(np.asarray(volume[1]), 0)
            middle = np.array([(b.start + b.stop) // 2 if b.stop else n // 2 for b, n in zip(box, volume.shape[1:])])  # noqa: B905
            rows.append(crop(volume, middle, self.inner))
        return self._batch(rows, wanted < len(self.studies))

    def _somewhere(self, volume: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The crop's centre: on the spine, up to a quarter of a crop beside it; pulled in where a crop would leave."""
        shape = np.array(volume.shape[1:])
        labels = volume[1]
        centre = shape / 2
        for _ in range(8):  # a random plane that has vertebrae
            z = int(rng.integers(shape[0]))
            y, x = np.nonzero(labels[z])
            if y.size:
                pick = int(rng.integers(y.size))
                centre = np.array([z, y[pick], x[pick]], float)
                break
        centre += rng.uniform(-0.25, 0.25, 3) * self.inner
        # A crop that is mostly outside teaches little: keep it inside as far as the volume allows, plus some freedom.
        half = np.array(self.inner) / 2
        low, high = np.minimum(half, shape / 2), np.maximum(shape - half, shape / 2)
        slack = rng.uniform(0, 0.3) * half
        return np.clip(centre, low - slack, high + slack)

    def _batch(self, rows: list[np.ndarray], valid: np.ndarray) -> Batch:
        return {"image": np.stack(rows), "valid": valid}


def train_crops(
    table: SliceTable, studies: np.ndarray, data: DataConfig, config: VolumeConfig, seed: int, *, spine_only: bool
) -> grain.DatasetIterator[Batch]:
    """Endless training batches: `image` int16 [B, 2, D, H, W] (HU, labels; with margins) and `valid` bool [B].

    Raises:
        DataError: a study has no segmentation.
    """
    volumes = Volumes(table, config.spacing_mm, spine_only=spine_only)
    volumes.prepare(studies, data.workers)
    crops = Crops(volumes, studies, config)
    numbers = grain.MapDataset.range(2**40)
    batches = numbers.map(lambda number: crops.random(seed, int(number), data.batch_size))
    return iter(batches.to_iter_dataset(_options(data)))


def eval_crops(
    table: SliceTable, studies: np.ndarray, data: DataConfig, config: VolumeConfig, *, spine_only: bool
) -> Iterator[Batch]:
    """One pass: each study's crop about the middle of its vertebrae, without margins; the last batch is padded."""
    volumes = Volumes(table, config.spacing_mm, spine_only=spine_only)
    volumes.prepare(studies, data.workers)
    crops = Crops(volumes, studies, config)
    for number in range(-(-len(crops.studies) // data.batch_size)):
        yield crops.fixed(number, data.batch_size)


def _options(data: DataConfig) -> grain.ReadOptions:
    threads = data.workers or min(2, os.cpu_count() or 1)
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(data.prefetch, threads))
