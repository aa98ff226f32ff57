"""What one crop record holds, as TFDS features, and the names of the layouts."""

import dataclasses
import re

import numpy as np
import tensorflow_datasets as tfds

from cspine_jax.anatomy import TARGETS
from cspine_jax.config import CropsConfig
from cspine_jax.data.index import Columns
from cspine_jax.errors import ConfigError

TRUE_MASKS = "true"
"""`CropsConfig.masks` for the segmentations of the RSNA-layout folder."""

PREFIX = "crops"
"""How the names of crop layouts start, and no other layout's."""

COLUMNS = Columns(
    per_study={"study_uid": "U", "labels": "uint8", "has_labels": "bool", "has_boxes": "bool", "fold": "int32"},
    per_record={
        "level": "int32",
        "complete": "bool",
        "boxed": "uint8",
        "box": "float32",
        "slice_index": "float32",
        "spacing_mm": "float32",
        "origin": "float32",
        "axes": "float32",
    },
)
"""The index: all of a record but its pixels."""

_NAME = re.compile(
    PREFIX + r"(?P<positions>\d+)r(?P<radius>\d+)_size(?P<size>\d+)"
    r"(?:_stride(?P<stride>[\d.]+)mm)?(?:_margin(?P<margin>[\d.]+))?(?P<oriented>_oriented)?(?P<segmented>_segmented)?"
)


@dataclasses.dataclass(frozen=True)
class CropLayout:
    """Layout of the crops; all but `segmented` as in `CropsConfig`.

    Attributes:
        positions: S planes of a vertebra, from its top to its bottom.
        radius: neighbours on each side of a plane.
        stride: mm between neighbours; 0 takes the study's own next slices.
        size: in-plane matrix in pixels.
        margin: room around the mask's box on each side, as a share of the box's longer side.
        oriented: planes perpendicular to the spine rather than the scan's own.
        segmented: by masks that `cspine segment` found, rather than by true ones.
    """

    positions: int = CropsConfig.positions
    radius: int = CropsConfig.radius
    stride: float = CropsConfig.stride
    size: int = CropsConfig.size
    margin: float = CropsConfig.margin
    oriented: bool = CropsConfig.oriented
    segmented: bool = False

    def __post_init__(self):
        values = dataclasses.asdict(self)
        del values["segmented"]
        CropsConfig(**values)  # its checks are ours

    @classmethod
    def of(cls, config: CropsConfig) -> "CropLayout":
        """The layout that a configuration asks for."""
        values = dataclasses.asdict(config)
        segmented = values.pop("masks") != TRUE_MASKS
        return cls(**values, segmented=segmented)

    @property
    def name(self) -> str:
        """`crops15r2_size224`, `crops15r2_size224_stride2mm_oriented_segmented`; `from_name` reads it back."""
        parts = [f"{PREFIX}{self.positions}r{self.radius}", f"size{self.size}"]
        parts += [f"stride{_number(self.stride)}mm"] if self.stride else []
        parts += [f"margin{_number(self.margin)}"] if self.margin != CropsConfig.margin else []
        parts += ["oriented"] * self.oriented + ["segmented"] * self.segmented
        return "_".join(parts)

    @classmethod
    def from_name(cls, name: str) -> "CropLayout":
        """The layout called `name`.

        Raises:
            ConfigError: no layout has that name.
        """
        match = _NAME.fullmatch(name)
        try:
            if match:
                layout = cls(
                    positions=int(match["positions"]),
                    radius=int(match["radius"]),
                    size=int(match["size"]),
                    stride=float(match["stride"] or 0),
                    margin=CropsConfig.margin if match["margin"] is None else float(match["margin"]),
                    oriented=bool(match["oriented"]),
                    segmented=bool(match["segmented"]),
                )
                if layout.name == name:
                    return layout
        except ValueError:  # such as stride1.2.3mm
            pass
        raise ConfigError(
            f"config={name!r}: no such layout of crops; use crops15r2_size224 (15 positions, 2 neighbours on each "
            "side; any numbers), followed by _stride2mm, _margin0.2, _oriented, _segmented where wanted, in this order"
        )

    def config(self, masks: str | None = None) -> CropsConfig:
        """The configuration of this layout.

        Args:
            masks: as in `CropsConfig`; None for the true ones.

        Raises:
            ConfigError: the name of the layout says true masks and `masks` another, or the other way round.
        """
        masks = masks or TRUE_MASKS
        if self.segmented != (masks != TRUE_MASKS):
            fix = "say in which folder the masks are" if self.segmented else f"call it {self.name}_segmented"
            raise ConfigError(f"layout {self.name} and masks={masks!r}: {fix}")
        values = dataclasses.asdict(self)
        del values["segmented"]
        return CropsConfig(**values, masks=masks)

    @property
    def channels(self) -> int:
        """Slices of a position: 2 r + 1."""
        return 2 * self.radius + 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """(S, H, W) of a crop's mask; its image has `channels` last."""
        return self.positions, self.size, self.size

    @property
    def about(self) -> str:
        """The data set's description."""
        return (
            "Cervical-spine CT in the layout of the RSNA 2022 Cervical Spine Fracture Detection challenge as one "
            "record a vertebra that its mask shows: HU around evenly spaced planes from top to bottom, the vertebra's "
            "mask, study labels, where fracture boxes show it, fold and where the crop lies. Vertebrae that are not "
            "there have no record."
        )

    @property
    def description(self) -> str:
        """One sentence for the data set's metadata."""
        planes = "planes perpendicular to the spine" if self.oriented else "slices"
        apart = f"{_number(self.stride)} mm apart" if self.stride else "a slice apart"
        return (
            f"One record a vertebra of C1..C7: {self.positions} {planes} of {self.size} x {self.size} pixels with "
            f"{self.radius} neighbours on each side, {apart}; by {'predicted' if self.segmented else 'true'} masks."
        )

    def features(self) -> tfds.features.FeaturesDict:
        """The TFDS features of a record. Pixel arrays are stored as raw bytes; no TensorFlow is needed."""
        tensor, places = tfds.features.Tensor, (self.positions,)
        where = "centre of pixel (0, 0) of each plane, in voxels (z, y, x) of the study"
        step = "one neighbour, one row and one column further, in voxels (z, y, x) of the study"
        return tfds.features.FeaturesDict(
            {
                "study_uid": tfds.features.Text(doc="StudyInstanceUID: the name of the study's folder"),
                "level": tensor(shape=(), dtype=np.int32, doc="1..7: C1..C7"),
                "image": tensor(
                    shape=(*self.shape, self.channels),
                    dtype=np.int16,
                    encoding="bytes",
                    doc="HU; position, row, column, neighbour (superior first); -1000 beyond the image",
                ),
                "mask": tensor(shape=self.shape, dtype=np.uint8, encoding="bytes", doc="1: the vertebra"),
                "complete": tensor(shape=(), dtype=np.bool_, doc="False: the mask touches the edge of the scan"),
                "labels": tensor(shape=(len(TARGETS),), dtype=np.uint8, doc="patient_overall, C1..C7 of the study"),
                "has_labels": tensor(shape=(), dtype=np.bool_, doc="False: the study is not in train.csv"),
                "boxed": tensor(
                    shape=places,
                    dtype=np.uint8,
                    doc="1: a fracture box overlaps the vertebra, is shown here, and no position is nearer to it",
                ),
                "box": tensor(
                    shape=(*places, 4),
                    dtype=np.float32,
                    doc="about those boxes: top, left, bottom, right in the crop's pixels (k is from k to k + 1)",
                ),
                "has_boxes": tensor(shape=(), dtype=np.bool_, doc="the study has boxes, on this vertebra or another"),
                "fold": tensor(shape=(), dtype=np.int32, doc="-1: no fold, the study has no labels"),
                "slice_index": tensor(
                    shape=places, dtype=np.float32, doc="where each plane's centre lies: 0-based, superior first"
                ),
                "spacing_mm": tensor(shape=(3,), dtype=np.float32, doc="of neighbours, rows and columns"),
                "origin": tensor(shape=(*places, 3), dtype=np.float32, doc=where),
                "axes": tensor(shape=(3, 3), dtype=np.float32, doc=step),
            }
        )


def _number(value: float) -> str:
    """The shortest decimal that reads back as the same number: 2, 0.25."""
    return np.format_float_positional(value, trim="-")
