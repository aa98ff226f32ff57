"""Random access to the pixels of records."""

import collections
import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # random access, in the calling thread
_OPEN_SHARDS = 256  # of perhaps thousands: well below the usual limit of 1,024 open files


@dataclasses.dataclass(frozen=True)
class PixelsInMemory:
    """The pixels of a few new records, as a `PixelReader` gives those of a data set.

    Attributes:
        image: int16, of each record.
        mask: uint8, of each record.
        channels: of an image, 0 for plain slices.
    """

    image: Sequence[np.ndarray]
    mask: Sequence[np.ndarray]
    channels: int = 0

    def images(self, records: np.ndarray) -> list[np.ndarray]:
        """Those of `records` (int [n])."""
        return [self.image[record] for record in records]

    def masks(self, records: np.ndarray) -> list[np.ndarray]:
        """Those of `records` (int [n])."""
        return [self.mask[record] for record in records]

    def pairs(self, records: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """`images` and `masks` of `records` (int [n])."""
        return list(zip(self.images(records), self.masks(records), strict=True))


class PixelReader:
    """Random access to the pixels of records; safe to use from several threads.

    Args:
        shards: the files, in order.
        lengths: records in each.
        shape: of every record's mask, (H, W) or that of a crop; None where each record says its own.
        channels: channels of an image, 0 for plain slices.
        cache_mb: megabytes of decoded images to keep. The cache fills and then stays as it is: under a random order
            each slice is as likely as another to come again, so evicting would only cost.
    """

    def __init__(
        self,
        shards: Sequence[os.PathLike | str],
        lengths: Sequence[int],
        shape: tuple[int, ...] | None = None,
        channels: int = 0,
        cache_mb: int = 0,
    ):
        self.channels = channels
        self._shape = shape
        self._shards = [os.fspath(shard) for shard in shards]
        self._ends = np.cumsum(lengths)
        self._readers: collections.OrderedDict[int, ArrayRecordReader] = collections.OrderedDict()
        self._lock = threading.Lock()
        self._cache: dict[int, np.ndarray] = {}
        self._pairs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._room = cache_mb * 2**20

    def __len__(self) -> int:
        return int(self._ends[-1])

    def images(self, records: np.ndarray) -> list[np.ndarray]:
        """The int16 images of `records` (int [n]), read-only: [H, W], or [H, W, C] in builds with a radius."""
        cache = self._cache
        missing = [int(record) for record in records if int(record) not in cache]
        fresh = dict(zip(missing, map(self._image, self._features(missing)), strict=True))
        for record, image in fresh.items():
            if image.nbytes <= self._room:
                self._room -= image.nbytes
                cache[record] = image
        return [fresh[r] if r in fresh else cache[r] for r in map(int, records)]

    def masks(self, records: np.ndarray) -> list[np.ndarray]:
        """The uint8 [H, W] vertebra labels of `records` (int [n]), read-only."""
        return [self.decode_mask(feature) for feature in self._features([int(record) for record in records])]

    def pairs(self, records: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """`images` and `masks` of `records` (int [n]) at once, read-only; cached as pairs."""
        cache = self._pairs
        missing = list(dict.fromkeys(int(record) for record in records if int(record) not in cache))
        features = self._features(missing)
        fresh = {r: (self._image(f), self.decode_mask(f)) for r, f in zip(missing, features, strict=True)}
        for record, pair in fresh.items():
            if (size := pair[0].nbytes + pair[1].nbytes) <= self._room:
                self._room -= size
                cache[record] = pair
        return [fresh[r] if r in fresh else cache[r] for r in map(int, records)]

    def features(self, batch: int = 64) -> Iterator[Any]:
        """The parsed `tf.train.Example` feature map of every record in order."""
        for low in range(0, len(self), batch):
            yield from self._features(list(range(low, min(low + batch, len(self)))))

    def decode_mask(self, feature: Any) -> np.ndarray:
        """uint8 [H, W] from a parsed feature map."""
        return self._array(feature, "mask", np.uint8, ())

    def _image(self, feature: Any) -> np.ndarray:
        return self._array(feature, "image", np.int16, (self.channels,) if self.channels else ())

    def _array(self, feature: Any, name: str, dtype: type, channels: tuple[int, ...]) -> np.ndarray:
        # TFDS stores `Tensor(encoding="bytes")` as one entry when its shape is fixed, else as value and shape.
        if self._shape:
            return np.frombuffer(feature[name].bytes_list.value[0], dtype).reshape(*self._shape, *channels)
        shape = feature[f"{name}/shape"].int64_list.value
        return np.frombuffer(feature[f"{name}/value"].bytes_list.value[0], dtype).reshape(shape)

    def _features(self, records: list[int]) -> list[Any]:
        parse = _parse()
        return [parse(data).features.feature for data in self._raw(records)]

    def _raw(self, records: list[int]) -> list[bytes]:
        shards = np.searchsorted(self._ends, records, side="right")
        out: list[bytes] = [b""] * len(records)
        groups: dict[int, list[int]] = {}
        for place, shard in enumerate(shards.tolist()):
            groups.setdefault(shard, []).append(place)
        for shard, places in groups.items():
            start = int(self._ends[shard - 1]) if shard else 0
            data = self._reader(shard).read([records[place] - start for place in places])
            for place, value in zip(places, data, strict=True):
                out[place] = value
        return out

    def _reader(self, shard: int) -> ArrayRecordReader:
        with self._lock:
            reader = self._readers.pop(shard, None)
            if reader is None:
                reader = ArrayRecordReader(self._shards[shard], options=_READER_OPTIONS, file_reader_buffer_size=32768)
                while len(self._readers) >= _OPEN_SHARDS:
                    self._readers.popitem(last=False)  # closed when its last user lets go
            self._readers[shard] = reader
            return reader


@functools.cache
def _parse() -> Callable:
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString  # pyright: ignore[reportAttributeAccessIssue]
