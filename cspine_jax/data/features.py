"""What one record holds, as TFDS features, and the named layouts (`RecordConfig`) a build can have."""

import dataclasses
import functools
import re
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from cspine_jax.anatomy import NUM_VERTEBRAE, TARGETS
from cspine_jax.errors import ConfigError

DATASET_NAME = "rsna_cspine"
VERSION = "1.0.0"
VOLUMES = ".volumes"
"""Folder beside the records, of what `data.volumes` makes of them."""

SPLIT = "train"
"""TFDS needs a split name; training, validation and test parts are made from the `fold` column."""


class Layout(Protocol):
    """What the records of a build look like; hashable, and the TFDS config of that name."""

    @property
    def name(self) -> str:
        """The TFDS config."""
        ...

    @property
    def description(self) -> str:
        """One sentence for the data set's metadata."""
        ...

    @property
    def about(self) -> str:
        """What a record is, in general: the data set's description."""
        ...

    def features(self) -> tfds.features.FeaturesDict:
        """The TFDS features of a record; none needs TensorFlow."""
        ...


_NAME = re.compile(r"(?:native|(?:(?P<c>document_c)|r(?P<r>\d+)s(?P<s>\d+)|(?P<plain>))_?(?:size(?P<size>\d+))?)")


@dataclasses.dataclass(frozen=True)
class RecordConfig:
    """Layout of the records.

    Attributes:
        size: in-plane matrix of every record in pixels; 0 keeps each study's own.
        radius: neighbours on each side stored inside the record. 0 (default) stores single slices, from which stacks
            of any depth are views. Above 0 the image has `2 * radius + 2` channels: slices n - radius .. n + radius
            (superior first, edge slices repeated) and the mask of slice n last.
        stride: every so many-th slice becomes a record, from the most superior one on. With stride 2 these are the
            odd ones of document C, n = 1, 3, 5, ... counted from 1.
    """

    size: int = 0
    radius: int = 0
    stride: int = 1

    def __post_init__(self):
        if self.size < 0 or 0 < self.size < 8:
            raise ConfigError(f"size={self.size}: must be 0 (native) or at least 8 pixels")
        if self.radius < 0:
            raise ConfigError(f"radius={self.radius}: must be at least 0")
        if self.stride < 1:
            raise ConfigError(f"stride={self.stride}: must be at least 1")

    @property
    def name(self) -> str:
        """`native`, `size160`, `document_c`, `document_c_size256`, `r1s1_size128`; `from_name` reads it back."""
        layout = {(0, 1): "", (2, 2): "document_c"}.get((self.radius, self.stride), f"r{self.radius}s{self.stride}")
        size = f"size{self.size}" if self.size else ""
        return "_".join(filter(None, (layout, size))) or "native"

    @classmethod
    def from_name(cls, name: str) -> "RecordConfig":
        """The layout called `name`.

        Raises:
            ConfigError: no layout has that name.
        """
        match = _NAME.fullmatch(name)
        if match:
            size = int(match["size"] or 0)
            radius, stride = (2, 2) if match["c"] else (int(match["r"] or 0), int(match["s"] or 1))
            config = cls(size, radius, stride)
            if config.name == name:
                return config
        raise ConfigError(f"config={name!r}: no such layout; use native, size160 (any number) or document_c")

    @property
    def channels(self) -> int:
        """Channels of `image`; 0 means a plain [H, W] slice."""
        return 2 * self.radius + 2 if self.radius else 0

    def features(self) -> tfds.features.FeaturesDict:
        """See `features`."""
        return features(self)

    @property
    def about(self) -> str:
        """The data set's description."""
        return (
            "Cervical-spine CT in the layout of the RSNA 2022 Cervical Spine Fracture Detection challenge as one "
            "record a slice: HU, vertebra mask, presence, study labels, fracture boxes, geometry and fold. Missing "
            "truth is flagged."
        )

    @property
    def description(self) -> str:
        """One sentence for the data set's metadata."""
        matrix = f"{self.size} x {self.size} pixels" if self.size else "the native matrix"
        if not self.radius:
            return (
                f"One record a slice (every {self.stride}) in {matrix}."
                if self.stride > 1
                else (f"One record a slice in {matrix}.")
            )
        return (
            f"One record every {self.stride} slices in {matrix}: slices n-{self.radius}..n+{self.radius} and the mask "
            f"of slice n as {self.channels} channels."
        )


def features(config: RecordConfig) -> tfds.features.FeaturesDict:
    """The TFDS features of a record.

    Args:
        config: layout; decides the shape of `image` and `mask`.

    Returns:
        A `FeaturesDict` that needs no TensorFlow. Pixel arrays are stored as raw bytes.
    """
    side = config.size or None
    channels = (config.channels,) if config.channels else ()
    tensor = tfds.features.Tensor
    vertebrae, targets = (NUM_VERTEBRAE,), (len(TARGETS),)
    return tfds.features.FeaturesDict(
        {
            "study_uid": tfds.features.Text(doc="StudyInstanceUID: the name of the study's folder"),
            "image": tensor(shape=(side, side, *channels), dtype=np.int16, encoding="bytes", doc="HU"),
            "mask": tensor(shape=(side, side), dtype=np.uint8, encoding="bytes", doc="1..7 C1..C7, 8..19 T1..T12"),
            "has_mask": tensor(shape=(), dtype=np.bool_, doc="False: no truth in mask, presence and area_fraction"),
            "presence": tensor(shape=vertebrae, dtype=np.uint8, doc="1: a native pixel of the slice is that vertebra"),
            "area_fraction": tensor(shape=vertebrae, dtype=np.float32, doc="share of the native slice's pixels"),
            "labels": tensor(shape=targets, dtype=np.uint8, doc="patient_overall, C1..C7 of the study"),
            "has_labels": tensor(shape=(), dtype=np.bool_, doc="False: the study is not in train.csv"),
            "boxes": tensor(shape=(None, 4), dtype=np.float32, doc="x, y, width, height in pixels of this record"),
            "has_boxes": tensor(shape=(), dtype=np.bool_, doc="the study has boxes, on this slice or another"),
            "index": tensor(shape=(), dtype=np.int32, doc="0-based slice position in the study, superior first"),
            "num_slices": tensor(shape=(), dtype=np.int32, doc="slices in the study"),
            "slice_number": tensor(shape=(), dtype=np.int32, doc="k of the slice's file k.dcm"),
            "position_mm": tensor(shape=(3,), dtype=np.float32, doc="ImagePositionPatient, LPS (x, y, z)"),
            "spacing_mm": tensor(shape=(3,), dtype=np.float32, doc="(z, y, x), of this record's pixels"),
            "fold": tensor(shape=(), dtype=np.int32, doc="-1: no fold, the study has no labels"),
        }
    )


@functools.cache
def _serializer(layout: Layout) -> tuple[tfds.features.FeaturesDict, ExampleSerializer]:
    spec = layout.features()
    specs: Any = spec.get_serialized_info()
    return spec, ExampleSerializer(specs)


def serialize(example: dict[str, Any], layout: Layout) -> bytes:
    """The record as bytes, as TFDS writes it; map entries in a fixed order, so equal examples give equal bytes."""
    spec, serializer = _serializer(layout)
    return serializer.get_tf_example(spec.encode_example(example)).SerializeToString(deterministic=True)
