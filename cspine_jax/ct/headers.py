"""DICOM headers -> `SliceHeader`: read once, everything the other modules need, no pixel and no patient name.

Elements are taken raw and converted here, so a value that breaks the standard ends in a message with the file's name
(or in a warning of the volume), never in a Python warning or a foreign exception.
"""

import contextlib
import dataclasses
import io
import logging
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterable, Iterator
from typing import IO

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag

from cspine_jax.ct import enhanced, limits
from cspine_jax.ct.fields import TAGS, Fields, text
from cspine_jax.ct.sources import READ_ERRORS, Entry, MemoryEntry
from cspine_jax.errors import StudyError

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
NATIVE: frozenset[str] = frozenset((IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN))

_PIXEL_DATA = (0x7FE0, 0x0010)
_DIRECTORY = 0x00041220
_READ_TAGS = [*TAGS.values(), *enhanced.TAGS, _DIRECTORY]
"""All that is read of a header: private elements of any size are passed over, and names never enter memory."""

_CT = frozenset(("1.2.840.10008.5.1.4.1.1.2", *enhanced.SOP_CLASSES))
_HU_TYPES = ("", "HU", "US", "HU_MOD")  # US: unspecified, as some scanners write for HU
_SECONDARY_CAPTURE = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.7(\.[0-9]+)?")
_UNDEFINED = 0xFFFFFFFF


@dataclasses.dataclass(frozen=True)
class SliceHeader:
    """One stored image: where it is in the patient and how its pixels become HU.

    Lengths in mm, LPS axes. None means that the header does not say. `pixel_offset` and `pixel_length` bound the
    value of Pixel Data in the file (in the inflated data set of a deflated file); `pixel_length` None marks
    encapsulated (compressed) frames, which run to their own end mark. One frame of a multi-frame image is a
    `SliceHeader` of its own: `frame` is its number from 1, and of compressed ones `frame_bytes` says how many bytes of
    fragments follow `pixel_offset`.
    """

    entry: Entry
    study_uid: str
    series_uid: str
    series_number: int | None
    acquisition: int | None
    instance: int | None
    number: int | None
    modality: str
    image_type: tuple[str, ...]
    kernel: str
    contrast: bool
    patient_position: str
    position: tuple[float, float, float] | None
    orientation: tuple[float, float, float, float, float, float] | None
    spacing: tuple[float, float] | None
    thickness: float | None
    location: float | None
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    photometric: str
    slope: float
    intercept: float
    padding: tuple[int, int] | None
    transfer_syntax: str
    pixel_offset: int
    pixel_length: int | None
    rescaled: bool = True
    gantry_tilt: float | None = None
    marks: tuple[str, ...] = ()
    frame: int | None = None
    frame_bytes: int | None = None

    @property
    def name(self) -> str:
        """The file, and the frame in it, as messages name them."""
        return self.entry.name if self.frame is None else f"{self.entry.name} frame {self.frame}"


class NotAnImage(Exception):  # noqa: N818 (not an error: the file is left out and listed)
    """The file is no CT image; its text says what it is."""


_lock = threading.Lock()


def read_headers(found: Iterable[Entry]) -> tuple[list[SliceHeader], list[str], list[str]]:
    """Reads every header once.

    Args:
        found: the files of a study.

    Returns:
        The images' headers, in the given order; what was left out, as "FILE: why"; warnings.

    Raises:
        StudyError: a DICOM file is damaged or a needed value is missing or impossible.
    """
    headers: list[SliceHeader] = []
    left_out: list[str] = []
    notes: dict[str, None] = {}
    # pydicom reports what it forgives through `warnings`, whose capture is process-wide: one reader at a time.
    with _lock, _pydicom_says_nothing(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for entry in found:
            try:
                found_headers, found_notes = _read_header(entry)
                headers.extend(found_headers)
                notes.update(dict.fromkeys(found_notes))
            except NotAnImage as reason:
                left_out.append(f"{entry.name}: {reason}")
            for warning in caught:
                notes[f"{entry.name}: {_one_line(str(warning.message))}"] = None
            caught.clear()
    return headers, left_out, list(notes)


@contextlib.contextmanager
def _pydicom_says_nothing() -> Iterator[None]:
    """Its log quotes the values it finds odd: where a header is damaged, the patient's name."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _read_header(entry: Entry) -> tuple[list[SliceHeader], list[str]]:
    try:
        with entry.open() as file:
            return _parse(entry, file)
    except (StudyError, NotAnImage):
        raise
    except READ_ERRORS as error:
        raise StudyError(f"{entry.name}: cannot be read ({_one_line(str(error))}); copy the file again") from None
    except Exception as error:  # pydicom's exceptions on damaged files are of every kind
        reason = _one_line(str(error)) or type(error).__name__
        raise StudyError(f"{entry.name}: damaged DICOM header ({reason}); copy the file again") from None


def _parse(entry: Entry, file: IO[bytes]) -> tuple[list[SliceHeader], list[str]]:
    head = file.read(2048)
    file.seek(0)
    if head[128:132] != b"DICM" and not _looks_bare(head):
        if entry.suffix in (".dcm", ".ima"):
            raise StudyError(
                f"{entry.name}: {'empty file' if not entry.size else 'not DICOM, or damaged'} "
                f"({entry.size} bytes); copy it again or remove it"
            )
        raise NotAnImage("not DICOM")
    if DEFLATED.encode() in head[132:1024]:
        file, dataset, syntax = _inflate(entry, file)
    else:
        dataset = dcmread(file, stop_before_pixels=True, force=True, specific_tags=_READ_TAGS)
        meta = getattr(dataset, "file_meta", None)
        syntax = text(meta, 0x00020010) if meta is not None else ""
        implicit, little = dataset.original_encoding
        if not re.fullmatch(r"[0-9.]{0,64}", syntax):
            raise StudyError(f"{entry.name}: TransferSyntaxUID is damaged; copy the file again")
        if not syntax:
            syntax = (IMPLICIT if implicit else EXPLICIT) if little else BIG_ENDIAN
    if _DIRECTORY in dataset:
        raise NotAnImage("DICOMDIR")
    get = Fields(entry, dataset)
    modality = get.code("Modality")
    sop_class = get.uid("SOPClassUID")
    if modality and modality != "CT":
        raise NotAnImage(f"modality {modality}")
    if _SECONDARY_CAPTURE.fullmatch(sop_class):
        raise NotAnImage("secondary capture")
    if not modality and sop_class not in _CT:
        if sop_class or (entry.suffix != ".dcm" and head[128:132] != b"DICM"):
            raise NotAnImage("not a CT image")
        raise StudyError(f"{entry.name}: truncated or damaged: neither SOPClassUID nor Modality; copy the file again")
    if "Rows" not in get and "Columns" not in get and not _at_pixels(file):
        if sop_class in _CT or (entry.suffix == ".dcm" and not sop_class):
            raise StudyError(f"{entry.name}: truncated: ends before its image; copy the file again")
        raise NotAnImage("no image in it")
    offset, length = _pixel_value(entry, file, syntax)
    frames = get.integer("NumberOfFrames") or 1
    if enhanced.PER_FRAME in dataset:
        return _build_frames(entry, file, dataset, frames, syntax, offset, length)
    if frames != 1:
        raise NotAnImage(f"multi-frame image: {frames} frames but one geometry; export it as single images")
    if sop_class in enhanced.SOP_CLASSES:
        raise NotAnImage("multi-frame image without functional groups for its frames; export it as single images")
    return [_build(entry, get, syntax, offset, length)], get.notes


def _build_frames(
    entry: Entry, file: IO[bytes], dataset: Dataset, frames: int, syntax: str, offset: int, length: int | None
) -> tuple[list[SliceHeader], list[str]]:
    """One header a frame of a multi-frame image."""
    if entry.path is None or syntax == DEFLATED:  # each frame is sought: what does not seek is inflated once
        size = file.seek(0, 2) if syntax == DEFLATED else entry.size
        if size > limits.MAX_VOLUME_BYTES:
            raise StudyError(f"{entry.name}: {size >> 30} GiB, at most {limits.MAX_VOLUME_BYTES >> 30}; give one study")
        file.seek(0)
        entry = MemoryEntry.inflated(entry, file, size)
        file, syntax = entry.open(), EXPLICIT if syntax == DEFLATED else syntax
    top = Fields(entry, dataset)
    first = (top.spare_integer("ConcatenationFrameOffsetNumber") or 0) + 1
    notes: dict[str, None] = {}
    headers: list[SliceHeader] = []
    places: list[tuple[int, int]] = []
    for index, get in enumerate(enhanced.frame_fields(entry, dataset, frames)):
        header = _build(entry, get, syntax, offset, length)
        if not places:
            size = header.rows * header.columns * header.bits_allocated // 8
            if length is None:
                places = enhanced.encapsulated_frames(entry, file, dataset, offset, frames)
            else:
                places = enhanced.native_frames(entry, offset, length, frames, size)
        at, size = places[index]
        own = {"pixel_length": size} if length is not None else {"frame_bytes": size}
        header = dataclasses.replace(
            header, frame=index + 1, instance=first + index, number=None, pixel_offset=at, **own
        )
        headers.append(header)
        notes.update(dict.fromkeys(get.notes))
    if all(header.position is None for header in headers):
        raise NotAnImage(f"multi-frame image: {frames} frames without a position; export it as single images")
    return headers, [*top.notes, *notes]


def _build(entry: Entry, get: "Fields", syntax: str, offset: int, length: int | None) -> SliceHeader:
    rows, columns = get.need_integer("Rows"), get.need_integer("Columns")
    for name, side in (("Rows", rows), ("Columns", columns)):
        if not 1 <= side <= limits.MAX_SIDE:
            raise StudyError(f"{entry.name}: {name} {side}: must be 1 to {limits.MAX_SIDE}; the header is damaged")
    samples = get.integer("SamplesPerPixel")
    if samples not in (None, 1):
        raise NotAnImage(f"colour image ({samples} samples a pixel)")
    photometric = get.code("PhotometricInterpretation")
    if photometric not in ("", "MONOCHROME1", "MONOCHROME2"):
        raise NotAnImage(f"colour image ({photometric})")
    unit = get.text("RescaleType").upper()
    if unit not in _HU_TYPES:
        shown = f"RescaleType {unit}" if re.fullmatch(r"[A-Z_0-9]{1,16}", unit) else "RescaleType damaged"
        raise NotAnImage(f"{shown}: its values are no HU")
    allocated = get.need_integer("BitsAllocated")
    stored = get.integer("BitsStored") or allocated
    if allocated not in (8, 16, 32) or not 1 <= stored <= allocated:
        raise StudyError(
            f"{entry.name}: BitsAllocated {allocated}, BitsStored {stored}: CT stores 8, 16 or 32 bits; export again"
        )
    high_bit = get.integer("HighBit")
    signed = bool(get.integer("PixelRepresentation"))
    slope, intercept = get.number("RescaleSlope"), get.number("RescaleIntercept")
    if slope == 0:
        raise StudyError(f"{entry.name}: RescaleSlope 0: every pixel would be the same HU; export the study again")
    number = int(entry.stem) if entry.stem.isascii() and entry.stem.isdigit() and len(entry.stem) < 10 else None
    return SliceHeader(
        entry=entry,
        study_uid=get.uid("StudyInstanceUID"),
        series_uid=get.uid("SeriesInstanceUID"),
        series_number=get.spare_integer("SeriesNumber"),
        acquisition=get.spare_integer("AcquisitionNumber"),
        instance=get.spare_integer("InstanceNumber"),
        number=number,
        modality=get.code("Modality"),
        image_type=tuple(get.text("ImageType").upper().split("\\")),
        kernel=get.kernel(),
        contrast=bool(get.text("ContrastBolusAgent")) or "ContrastBolusAgentSequence" in get,
        patient_position=get.text("PatientPosition")[:16],
        position=get.numbers("ImagePositionPatient", 3),
        orientation=get.numbers("ImageOrientationPatient", 6),
        spacing=get.numbers("PixelSpacing", 2),
        thickness=get.spare("SliceThickness"),
        location=get.spare("SliceLocation"),
        rows=rows,
        columns=columns,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=stored - 1 if high_bit is None or not stored - 1 <= high_bit < allocated else high_bit,
        signed=signed,
        photometric=photometric,
        slope=1.0 if slope is None else slope,
        intercept=0.0 if intercept is None else intercept,
        padding=get.padding(signed),
        transfer_syntax=syntax,
        pixel_offset=offset,
        pixel_length=length,
        rescaled=intercept is not None,
        gantry_tilt=get.spare("GantryDetectorTilt"),
        marks=get.marks(),
    )


def _looks_bare(head: bytes) -> bool:
    """Whether a file without preamble starts with a plausible first element (group 2 or 8, little endian)."""
    if len(head) < 16 or head[:4] in (b"\0\0\0\0", b"\xff\xff\xff\xff"):
        return False
    group, element, length = struct.unpack("<HHI", head[:8])
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return group in (2, 8) and element < 0x0100 and (explicit or length < 1024)


def _inflate(entry: Entry, file: IO[bytes]) -> tuple[IO[bytes], Dataset, str]:
    inflated = io.BytesIO(inflate(entry, file))
    dataset = read_dataset(inflated, is_implicit_VR=False, is_little_endian=True, stop_when=_is_pixel_data)
    return inflated, dataset, DEFLATED


def inflate(entry: Entry, file: IO[bytes]) -> bytes:
    """Inflates the data set of a deflated file (DICOM PS3.5, annex A.5), within `limits.MAX_HEADER_BYTES`."""
    data = file.read()
    at = 132
    while at + 8 <= len(data) and data[at : at + 2] == b"\x02\x00":  # file meta: explicit VR, little endian
        long = data[at + 4 : at + 6] in (b"OB", b"OW", b"SQ", b"UN", b"UT")
        size = struct.unpack_from("<I", data, at + 8)[0] if long else struct.unpack_from("<H", data, at + 6)[0]
        at += (12 if long else 8) + size
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        result = stream.decompress(data[at:], limits.MAX_HEADER_BYTES)
    except zlib.error as error:
        raise StudyError(f"{entry.name}: damaged deflated data ({error}); copy the file again") from None
    if stream.unconsumed_tail:
        raise StudyError(
            f"{entry.name}: inflates to more than {limits.MAX_HEADER_BYTES >> 20} MB; not a CT slice, remove it"
        )
    if not stream.eof:
        raise StudyError(f"{entry.name}: truncated deflated data; copy the file again")
    return result


def _is_pixel_data(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag.group == 0x7FE0 and tag.element in (0x0008, 0x0009, 0x0010)


def _at_pixels(file: IO[bytes]) -> bool:
    at = file.tell()
    found = file.read(2) in (b"\xe0\x7f", b"\x7f\xe0")
    file.seek(at)
    return found


def _pixel_value(entry: Entry, file: IO[bytes], syntax: str) -> tuple[int, int | None]:
    """Offset and length of the Pixel Data value; the file stands at the element's tag."""
    order = ">" if syntax == BIG_ENDIAN else "<"
    at = file.tell()
    head = file.read(12)
    if len(head) < 12:
        raise StudyError(f"{entry.name}: truncated: ends before its pixels; copy the file again")
    tag = struct.unpack(order + "HH", head[:4])
    if tag != _PIXEL_DATA:
        raise StudyError(f"{entry.name}: no integer Pixel Data after the header; export the study again")
    # The element says itself which it is: read as an implicit length, "OW" and "OB" would be odd.
    if head[4:6] not in (b"OW", b"OB", b"UN"):
        length, offset = struct.unpack(order + "I", head[4:8])[0], at + 8
    else:
        length, offset = struct.unpack(order + "I", head[8:12])[0], at + 12
    return offset, None if length == _UNDEFINED else length


def _one_line(text: str) -> str:
    """A foreign message without the values it quotes: they may be the patient's."""
    return " ".join(re.sub(r"'[^']*'?|\"[^\"]*\"?", "'...'", text).split())[:160]
