"""Multi-frame CT (Enhanced, and Legacy Converted Enhanced): where each frame's values and its pixels are.

The values that a single image has at its top lie in functional groups here: a sequence with one item a frame, and one
item for what all frames share (DICOM PS3.3, C.7.6.16). Each group is a sequence of its own ("macro") of one item.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import IO, Any

from pydicom.dataset import Dataset

from cspine_jax.ct import limits
from cspine_jax.ct.fields import Fields
from cspine_jax.ct.sources import Entry
from cspine_jax.errors import StudyError

SOP_CLASSES: frozenset[str] = frozenset(("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"))
"""Enhanced CT, Legacy Converted Enhanced CT."""

SHARED = 0x52009229
PER_FRAME = 0x52009230
OFFSETS = 0x7FE00001
LENGTHS = 0x7FE00002
TAGS: tuple[int, ...] = (SHARED, PER_FRAME, OFFSETS, LENGTHS)

_MACROS: tuple[int, ...] = (
    0x00209113,  # PlanePosition
    0x00209116,  # PlaneOrientation
    0x00289110,  # PixelMeasures
    0x00289145,  # PixelValueTransformation
    0x00189329,  # CTImageFrameType
    0x00189314,  # CTReconstruction
    0x00189325,  # CTXRayDetails
    0x00209111,  # FrameContent
    0x00189118,  # CardiacSynchronization
    0x00189477,  # IrradiationEventIdentification
    0x00209171,  # UnassignedPerFrameConvertedAttributes
    0x00209170,  # UnassignedSharedConvertedAttributes
)

_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51")
"""First bytes of a JPEG or JPEG-LS stream, and of a JPEG 2000 stream."""


def frame_fields(entry: Entry, dataset: Dataset, frames: int) -> Iterator[Fields]:
    """The values of each frame.

    Args:
        entry: the file.
        dataset: its header.
        frames: NumberOfFrames.

    Yields:
        One a frame, in stored order.

    Raises:
        StudyError: there are not as many groups as frames, or too many.
    """
    if frames > limits.MAX_FILES:
        raise StudyError(f"{entry.name}: {frames:,} frames, at most {limits.MAX_FILES:,}; give one study")
    groups = _items(dataset, PER_FRAME)
    if len(groups) != frames:
        raise StudyError(
            f"{entry.name}: NumberOfFrames {frames} but functional groups of {len(groups)} frames; export it again"
        )
    shared = [item for group in _items(dataset, SHARED)[:1] for item in _macros(group)]
    for group in groups:
        yield Fields(entry, *_macros(group), *shared, dataset)


def native_frames(entry: Entry, offset: int, length: int, frames: int, size: int) -> list[tuple[int, int]]:
    """Offset and length of each uncompressed frame.

    Args:
        entry: the file.
        offset: of the value of Pixel Data.
        length: of that value.
        frames: NumberOfFrames.
        size: bytes of a frame.

    Raises:
        StudyError: the value is too short for so many frames.
    """
    if length < frames * size:
        raise StudyError(
            f"{entry.name}: Pixel Data holds {length} bytes, {frames} frames of {size} bytes need {frames * size}; "
            "export the study again"
        )
    return [(offset + index * size, size) for index in range(frames)]


def encapsulated_frames(
    entry: Entry, file: IO[bytes], dataset: Dataset, offset: int, frames: int
) -> list[tuple[int, int]]:
    """Offset and length of each compressed frame's fragments, their item heads included.

    Frames are told apart by there being a fragment for each, else by an offset table, else by the marks with which
    JPEG streams begin (DICOM PS3.5, annex A.4).

    Args:
        entry: the file.
        file: the open file.
        dataset: its header, for the extended offset table.
        offset: of the value of Pixel Data.
        frames: NumberOfFrames.

    Raises:
        StudyError: the value is damaged or its frames cannot be told apart.
    """
    table, items = _fragments(entry, file, offset, frames)
    if len(items) < frames:
        raise StudyError(f"{entry.name}: truncated: {len(items)} fragments for {frames} frames; copy the file again")
    end = items[-1][0] + items[-1][1]
    if len(items) == frames:
        starts = [at for at, _ in items]
    else:
        extended = getattr(dataset.get_item(OFFSETS), "value", None) if OFFSETS in dataset else None
        base = items[0][0]
        if extended:
            starts = [base + at for at in struct.unpack(f"<{len(extended) // 8}Q", extended[: len(extended) // 8 * 8])]
        elif table:
            starts = [base + at for at in struct.unpack(f"<{len(table) // 4}I", table[: len(table) // 4 * 4])]
        else:
            starts = [at for at, _ in items if _begins(file, at)]
        known = {at for at, _ in items}
        if len(starts) != frames or starts[0] != base or starts != sorted(set(starts)) or not set(starts) <= known:
            raise StudyError(
                f"{entry.name}: {len(items)} fragments for {frames} frames and no sound offset table to tell them "
                "apart; export the study again"
            )
    return [(at, next_at - at) for at, next_at in zip(starts, [*starts[1:], end], strict=True)]


def _fragments(entry: Entry, file: IO[bytes], offset: int, frames: int) -> tuple[bytes, list[tuple[int, int]]]:
    """The basic offset table, and offset and length of each fragment with its item head."""
    file.seek(offset)
    table, items, at = b"", [], offset
    while True:
        head = file.read(8)
        if len(head) < 8:
            raise StudyError(f"{entry.name}: truncated: its frames have no end mark; copy the file again")
        group, element, length = struct.unpack("<HHI", head)
        if (group, element) == (0xFFFE, 0xE0DD):
            return table, items
        if (group, element) != (0xFFFE, 0xE000) or length > limits.MAX_FRAME_BYTES:
            raise StudyError(f"{entry.name}: damaged frames: no fragment mark where one should be; copy the file again")
        if at == offset:
            table = file.read(length)
        else:
            items.append((at, 8 + length))
            if len(items) > 64 * frames + 64:
                raise StudyError(f"{entry.name}: far more fragments than its {frames} frames; export the study again")
            file.seek(length, 1)
        at += 8 + length


def _begins(file: IO[bytes], at: int) -> bool:
    file.seek(at + 8)
    return file.read(4).startswith(_STARTS)


def _items(dataset: Dataset, tag: int) -> Sequence[Dataset]:
    """The items of a sequence; none where it is absent or no sequence."""
    value: Any = dataset[tag].value if tag in dataset else None
    return value if isinstance(value, Sequence) and not isinstance(value, bytes | str) else ()


def _macros(group: Dataset) -> list[Dataset]:
    return [item for tag in _MACROS for item in _items(group, tag)[:1]]
