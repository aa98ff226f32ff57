"""Reading records: an index of every column, and slices or whole studies by random access."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from cspine_jax import progress
from cspine_jax.anatomy import NUM_VERTEBRAE, TARGETS
from cspine_jax.data import index
from cspine_jax.data.pixels import PixelReader, PixelsInMemory
from cspine_jax.data.resize import resize_hu, resize_mask
from cspine_jax.errors import ConfigError, DataError

if TYPE_CHECKING:  # TensorFlow Datasets takes a second to import: only to open records
    from cspine_jax.data.features import Layout, RecordConfig

L = TypeVar("L", bound="Layout")


@dataclasses.dataclass(frozen=True)
class SliceTable:
    """Everything about the records but their pixels, in memory; pixels by `read_*`.

    Records are in study order, and superior slice first inside a study. S studies, N records, M boxes.

    Attributes:
        path: folder of the records.
        uids: str [S].
        labels: uint8 [S, 8] patient_overall, C1..C7; meaningless where `has_labels` is False.
        has_labels: bool [S].
        has_mask: bool [S].
        has_boxes: bool [S], the study has boxes on some slice.
        folds: int32 [S], -1 without labels.
        first: int64 [S], first record of the study; its records are `first .. first + count - 1`.
        count: int32 [S], records of the study.
        num_slices: int32 [S], slices of the scan (`count` times the build's stride).
        spacing_mm: float32 [S, 3], (z, y, x).
        shapes: int32 [S, 2], (H, W) of the study's records.
        study: int32 [N], which study.
        index: int32 [N], slice position in the study.
        slice_number: int32 [N], k of k.dcm.
        presence: uint8 [N, 7]; meaningless where the study has no mask.
        area_fraction: float32 [N, 7]; likewise.
        position_mm: float32 [N, 3], LPS (x, y, z).
        num_boxes: int32 [N].
        boxes: float32 [M, 4], (x, y, width, height), in record order.
        pixels: reads records; see `PixelReader`.
    """

    path: Path
    uids: np.ndarray
    labels: np.ndarray
    has_labels: np.ndarray
    has_mask: np.ndarray
    has_boxes: np.ndarray
    folds: np.ndarray
    first: np.ndarray
    count: np.ndarray
    num_slices: np.ndarray
    spacing_mm: np.ndarray
    shapes: np.ndarray
    study: np.ndarray
    index: np.ndarray
    slice_number: np.ndarray
    presence: np.ndarray
    area_fraction: np.ndarray
    position_mm: np.ndarray
    num_boxes: np.ndarray
    boxes: np.ndarray
    pixels: PixelReader | PixelsInMemory

    @classmethod
    def open(cls, path: str | Path, cache_mb: int = 0) -> "SliceTable":
        """Opens a data set folder written by `cspine build` or `tfds build --file_format=array_record`.

        Args:
            path: folder that holds `dataset_info.json` and the shards.
            cache_mb: memory for decoded slices, see `PixelReader`.

        Returns:
            The table. Records of the TFDS builder have no index yet: they are scanned once and the index is kept
            beside them where that folder can be written.

        Raises:
            DataError: there are no records, or not of this kind.
        """
        path = Path(path).expanduser()
        from cspine_jax.data.features import RecordConfig

        _, pixels, columns = open_records(path, RecordConfig.from_name, _shape, index.SLICES, cache_mb)
        count = columns["count"]
        return cls(
            path=path,
            uids=columns["study_uid"],
            folds=columns["fold"],
            first=np.cumsum(count) - count,
            shapes=columns["shape"],
            study=np.repeat(np.arange(len(count), dtype=np.int32), count),
            pixels=pixels,
            **{
                name: columns[name]
                for name in (
                    *("labels", "has_labels", "has_mask", "has_boxes", "count", "num_slices", "spacing_mm"),
                    *("index", "slice_number", "presence", "area_fraction", "position_mm", "num_boxes", "boxes"),
                )
            },
        )

    @classmethod
    def of_study(
        cls,
        uid: str,
        hu: np.ndarray,
        mask: np.ndarray | None,
        spacing_mm: Sequence[float] | np.ndarray,
        size: int = 0,
    ) -> "SliceTable":
        """The records of one new study, in memory; without labels, boxes or a fold, its first slice at 0, 0, 0.

        Args:
            uid: its StudyInstanceUID.
            hu: int16 [D, H, W], superior slice first.
            mask: uint8 [D, H, W] labels; None without.
            spacing_mm: [3] (z, y, x).
            size: in-plane matrix of the records; 0 keeps the native one.
        """
        (depth, height, width), (z, y, x) = hu.shape, spacing_mm
        area = np.zeros((depth, NUM_VERTEBRAE), np.int64) if mask is None else level_areas(mask)
        labels = np.zeros(hu.shape, np.uint8) if mask is None else mask
        image = resize_hu(hu, size) if size else hu
        along = np.arange(depth)
        return cls(
            path=Path(),
            uids=np.array([uid]),
            labels=np.zeros((1, len(TARGETS)), np.uint8),
            has_labels=np.zeros(1, bool),
            has_mask=np.full(1, mask is not None),
            has_boxes=np.zeros(1, bool),
            folds=np.full(1, -1, np.int32),
            first=np.zeros(1, np.int64),
            count=np.full(1, depth, np.int32),
            num_slices=np.full(1, depth, np.int32),
            spacing_mm=np.array([[z, y * height / (size or height), x * width / (size or width)]], np.float32),
            shapes=np.array([image.shape[1:]], np.int32),
            study=np.zeros(depth, np.int32),
            index=along.astype(np.int32),
            slice_number=np.full(depth, -1, np.int32),
            presence=(area > 0).astype(np.uint8),
            area_fraction=(area / (height * width)).astype(np.float32),
            position_mm=np.stack([0.0 * along, 0.0 * along, -z * along], axis=1).astype(np.float32),
            num_boxes=np.zeros(depth, np.int32),
            boxes=np.zeros((0, 4), np.float32),
            pixels=PixelsInMemory(list(image), list(resize_mask(labels, size) if size else labels)),
        )

    def __len__(self) -> int:
        """Number of records N."""
        return len(self.study)

    @functools.cached_property
    def first_box(self) -> np.ndarray:
        """int64 [N + 1]: record r has boxes `boxes[first_box[r] : first_box[r + 1]]`."""
        return np.concatenate([[0], np.cumsum(self.num_boxes)])

    @functools.cached_property
    def seen(self) -> dict[str, float]:
        """Medians over the studies, in mm: `field_mm`, the side of a slice, and `slice_mm` between two slices."""
        side = np.asarray(self.spacing_mm[:, 2], float) * self.shapes[:, 1]
        return {
            "field_mm": round(float(np.median(side)), 1),
            "slice_mm": round(float(np.median(self.spacing_mm[:, 0])), 2),
        }

    def records_of(self, studies: Sequence[int] | np.ndarray) -> np.ndarray:
        """int64 [n], the records of some studies, study after study in z order."""
        parts = [np.arange(self.first[s], self.first[s] + self.count[s]) for s in studies]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def neighbours(self, records: np.ndarray, depth: int, stride: int = 1) -> np.ndarray:
        """int64 [B, D]: the records of each stack, superior first, edge slices repeated inside the study.

        Args:
            records: int [B] centres.
            depth: odd number of slices D.
            stride: records between neighbours.
        """
        records = np.asarray(records)
        steps = (np.arange(depth) - depth // 2) * stride
        first = self.first[self.study[records]]
        last = first + self.count[self.study[records]] - 1
        return np.clip(records[:, None] + steps[None, :], first[:, None], last[:, None])

    def read_stacks(self, records: np.ndarray, depth: int, stride: int = 1) -> np.ndarray:
        """int16 [B, D, H, W] HU around each of `records` (int [B]). A slice that stacks share is read once.

        Raises:
            DataError: the studies differ in matrix size.
        """
        return self._stacks(self.pixels.images, records, depth, stride)

    def read_mask_stacks(self, records: np.ndarray, depth: int, stride: int = 1) -> np.ndarray:
        """uint8 [B, D, H, W] vertebra labels, like `read_stacks`; zeros that mean nothing where `has_mask` is False."""
        return self._stacks(self.pixels.masks, records, depth, stride)

    def _stacks(self, read: Callable, records: np.ndarray, depth: int, stride: int) -> np.ndarray:
        rows = self.neighbours(records, depth, stride)
        unique, inverse = np.unique(rows, return_inverse=True)
        self.check_shape(self.study[unique])
        planes = read(unique)
        stacks = np.empty((*rows.shape, *planes[0].shape), planes[0].dtype)
        for target, source in zip(stacks.reshape(-1, *planes[0].shape), inverse.ravel(), strict=True):
            target[...] = planes[source]
        return stacks

    def read_study(self, study: int, rows: slice = slice(None)) -> np.ndarray:
        """int16 [n, H, W] HU of one study, or of some `rows` of it (positions among its records)."""
        return np.stack(self.pixels.images(self.records_of([study])[rows]))

    def read_study_masks(self, study: int, rows: slice = slice(None)) -> np.ndarray:
        """uint8 [n, H, W] vertebra labels of one study; zeros that mean nothing where `has_mask` is False."""
        return np.stack(self.pixels.masks(self.records_of([study])[rows]))

    def check_shape(self, studies: np.ndarray) -> tuple[int, int]:
        """The (H, W) that all of `studies` share.

        Raises:
            DataError: they differ; the message names two studies.
        """
        studies = np.unique(studies)
        odd = studies[(self.shapes[studies] != self.shapes[studies[0]]).any(1)]
        if odd.size:
            one, other = studies[0], odd[0]
            raise DataError(
                f"{self.path}: study {self.uids[one]} is {'x'.join(map(str, self.shapes[one]))} and "
                f"{self.uids[other]} is {'x'.join(map(str, self.shapes[other]))}; a batch needs one size: build "
                "with --size (data.size)"
            )
        height, width = self.shapes[studies[0]]
        return int(height), int(width)


def level_areas(mask: np.ndarray) -> np.ndarray:
    """int64 [D, 7]: pixels of C1..C7 on each slice of labels uint8 [D, H, W]."""
    return np.array(
        [np.bincount(labels.ravel(), minlength=NUM_VERTEBRAE + 1)[1 : NUM_VERTEBRAE + 1] for labels in mask]
    )


def open_records(
    path: Path,
    from_name: Callable[[str], L],
    shape: Callable[[L], tuple[tuple[int, ...] | None, int]],
    columns: index.Columns,
    cache_mb: int,
) -> tuple[L, PixelReader, dict[str, np.ndarray]]:
    """What every table of records is opened by.

    Args:
        path: folder of a build.
        from_name: the layout of a name; raises ConfigError for the name of another kind of records.
        shape: (shape of a mask, channels of an image) of a layout, as `PixelReader` takes them.
        columns: of the index.
        cache_mb: memory for decoded pixels.

    Returns:
        The layout, the pixels, and the index; this is made where it is missing, and kept where that is possible.

    Raises:
        DataError: there are no records, or not of this kind, or an older version made them.
    """
    import tensorflow_datasets as tfds

    from cspine_jax.data.features import SPLIT

    if not (path / "dataset_info.json").is_file():
        raise DataError(f"{path}: no dataset_info.json; make the records with `cspine build`")
    info = tfds.builder_from_directory(path).info
    try:
        layout = from_name(info.config_name or "")
        split = info.splits[SPLIT]
    except (ConfigError, KeyError) as error:
        raise DataError(f"{path}: not records of rsna_cspine: {error}") from None
    if info.file_format is None or info.file_format.file_suffix != "array_record":
        raise DataError(f"{path}: records are {info.file_format}; build with --file_format=array_record")
    features: Any = info.features
    if missing := sorted({*columns.per_study, *columns.per_record} - set(features.keys())):
        raise DataError(
            f"{path}: records without {', '.join(missing)}, made by an older version; make them again (--overwrite)"
        )
    pixels = PixelReader(split.filepaths, split.shard_lengths, *shape(layout), cache_mb)
    file = path / index.INDEX_FILE
    if file.is_file():
        table = index.load(file)
    else:
        table = _scan(pixels, columns, layout.features())
        with contextlib.suppress(OSError):  # a read-only data set is scanned again next time
            index.save(file, table)
    if int(table["count"].sum()) != len(pixels):
        raise DataError(f"{file}: {table['count'].sum()} records in the index, {len(pixels)} in the shards; delete it")
    return layout, pixels, table


def _shape(layout: "RecordConfig") -> tuple[tuple[int, int] | None, int]:
    return (layout.size, layout.size) if layout.size else None, layout.channels


def _scan(pixels: PixelReader, columns: index.Columns, spec: Any) -> dict[str, np.ndarray]:
    """Makes the index from the records themselves, whose TFDS features are `spec`."""
    names = {**columns.per_study, **columns.per_record}
    studies, rows, shape = [], [], (0, 0)
    for feature in progress.bar(pixels.features(), total=len(pixels), what="index records", unit="record"):
        row = {name: _column(feature[name], kind, spec[name].shape) for name, kind in names.items()}
        if columns.boxes:
            row["boxes"] = np.array(feature["boxes"].float_list.value, np.float32)
        if rows and row["study_uid"] != rows[0]["study_uid"]:
            studies.append(index.study_columns(rows, shape, columns=columns))
            rows = []
        if not rows:
            shape = pixels.decode_mask(feature).shape
        rows.append(row)
    studies.append(index.study_columns(rows, shape, columns=columns))
    return index.join(studies, columns)


def _column(feature, kind: str, shape: tuple[int, ...]) -> np.ndarray | str:
    if kind == "U":
        return feature.bytes_list.value[0].decode()
    values = feature.float_list.value if kind.startswith("float") else feature.int64_list.value
    return np.array(values, kind).reshape(shape)
