"""Elements of a DICOM data set as Python values, or an error that names file, element and value.

They are taken raw: pydicom's own conversion warns or raises in many ways on values that break the standard.
"""

import math
import re
import struct
from typing import Any

from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from cspine_jax.ct.sources import Entry
from cspine_jax.errors import StudyError

TAGS: dict[str, int] = {
    "ImageType": 0x00080008,
    "AcquisitionUID": 0x00080017,
    "AcquisitionDateTime": 0x0008002A,
    "AcquisitionTime": 0x00080032,
    "ContentTime": 0x00080033,
    "IrradiationEventUID": 0x00083010,
    "SOPClassUID": 0x00080016,
    "SOPInstanceUID": 0x00080018,
    "Modality": 0x00080060,
    "ContrastBolusAgentSequence": 0x00180012,
    "SliceThickness": 0x00180050,
    "KVP": 0x00180060,
    "TriggerTime": 0x00181060,
    "GantryDetectorTilt": 0x00181120,
    "ReconstructionDiameter": 0x00181100,
    "ConvolutionKernel": 0x00181210,
    "ContrastBolusAgent": 0x00180010,
    "ImagerPixelSpacing": 0x00181164,
    "PatientPosition": 0x00185100,
    "FrameAcquisitionDateTime": 0x00189074,
    "FrameReferenceDateTime": 0x00189151,
    "FrameType": 0x00089007,
    "StudyInstanceUID": 0x0020000D,
    "SeriesInstanceUID": 0x0020000E,
    "SeriesNumber": 0x00200011,
    "AcquisitionNumber": 0x00200012,
    "InstanceNumber": 0x00200013,
    "ImagePositionPatient": 0x00200032,
    "ImageOrientationPatient": 0x00200037,
    "FrameOfReferenceUID": 0x00200052,
    "TemporalPositionIdentifier": 0x00200100,
    "SliceLocation": 0x00201041,
    "StackID": 0x00209056,
    "TemporalPositionIndex": 0x00209128,
    "FrameAcquisitionNumber": 0x00209156,
    "ConcatenationFrameOffsetNumber": 0x00209228,
    "NominalPercentageOfCardiacPhase": 0x00209241,
    "SamplesPerPixel": 0x00280002,
    "PhotometricInterpretation": 0x00280004,
    "NumberOfFrames": 0x00280008,
    "Rows": 0x00280010,
    "Columns": 0x00280011,
    "PixelSpacing": 0x00280030,
    "BitsAllocated": 0x00280100,
    "BitsStored": 0x00280101,
    "HighBit": 0x00280102,
    "PixelRepresentation": 0x00280103,
    "PixelPaddingValue": 0x00280120,
    "PixelPaddingRangeLimit": 0x00280121,
    "RescaleIntercept": 0x00281052,
    "RescaleSlope": 0x00281053,
    "RescaleType": 0x00281054,
}

ALIASES: dict[str, str] = {
    "ImageType": "FrameType",
    "AcquisitionNumber": "FrameAcquisitionNumber",
    "AcquisitionDateTime": "FrameAcquisitionDateTime",
    "ContentTime": "FrameReferenceDateTime",
    "TemporalPositionIdentifier": "TemporalPositionIndex",
}
"""What one frame of a multi-frame image calls an element of a single image; it comes first where both are there."""

MARKS: tuple[str, ...] = (
    "StackID",
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "NominalPercentageOfCardiacPhase",
    "TriggerTime",
    "ImageType",
    "ConvolutionKernel",
    "ReconstructionDiameter",
    "SliceThickness",
    "KVP",
    "AcquisitionUID",
    "IrradiationEventUID",
    "ContrastBolusAgent",
    "FrameOfReferenceUID",
    "AcquisitionDateTime",
    "AcquisitionTime",
    "ContentTime",
)
"""Elements that may tell apart two images at one place of one series, the most telling first."""


class Fields:
    """Raw elements of one image, converted with errors that name the file, the element and the value.

    They are looked up in several data sets, the first of which that has one wins: a frame of a multi-frame image has
    its own values, those it shares with the other frames, and those of the file.
    """

    def __init__(self, entry: Entry, *datasets: Dataset):
        self._entry, self._datasets = entry, datasets
        self.notes: list[str] = []

    def __contains__(self, name: str) -> bool:
        return self._holder(name) is not None

    def _holder(self, name: str) -> tuple[Dataset, int] | None:
        """The first data set that holds the element, and the tag it has there."""
        for tag in (TAGS[each] for each in (ALIASES.get(name), name) if each):
            for dataset in self._datasets:
                if tag in dataset:
                    return dataset, tag
        return None

    def text(self, name: str) -> str:
        """The value without its padding, "" where absent."""
        held = self._holder(name)
        return "" if held is None else text(*held)

    def marks(self) -> tuple[str, ...]:
        """The values of `MARKS`; to be compared, never shown: a damaged one may hold anything."""
        return tuple(self._mark(name) for name in MARKS)

    def _mark(self, name: str) -> str:
        held = self._holder(name)
        if held is None:
            return ""
        return str(self.integer(name)) if held[1] in _BINARY else text(*held)

    def code(self, name: str) -> str:
        """A code in capitals of at most 16 characters, such as CT; an error where it is anything else.

        What a damaged header runs together may hold the patient's name: no value is shown or kept unless it has the
        form of what it should be.
        """
        value = self.text(name).upper()
        if not re.fullmatch(r"[A-Z0-9_ ]{0,16}", value):
            raise self._bad(name, value, "a code such as CT")
        return value

    def uid(self, name: str) -> str:
        """A unique identifier; letters and dashes pass, as some anonymisers write them."""
        value = self.text(name)
        if not re.fullmatch(r"[A-Za-z0-9._\-]{0,64}", value):
            raise self._bad(name, value, "a UID of digits and dots")
        return value

    def kernel(self) -> str:
        """ConvolutionKernel, its values joined; "" where it is absent or damaged."""
        value = self.text("ConvolutionKernel").replace("\\", " ")
        return value if re.fullmatch(r"[A-Za-z0-9_ .,+/()\-]{0,50}", value) else ""

    def numbers(self, name: str, count: int) -> Any:
        """So many finite numbers; None where absent; an error where they are anything else."""
        value = self.text(name)
        if not value:
            return None
        try:
            values = tuple(float(part.strip(" \0")) for part in value.split("\\"))
        except ValueError:
            values = ()
        if len(values) != count or not all(math.isfinite(number) for number in values):
            raise self._bad(name, value, f"{count} number{'s' if count > 1 else ''}")
        return values

    def number(self, name: str) -> float | None:
        """One number."""
        values = self.numbers(name, 1)
        return None if values is None else values[0]

    def spare(self, name: str) -> float | None:
        """One number of an element that a study can be read without: a broken value is left out and noted."""
        try:
            return self.number(name)
        except StudyError as error:
            self.notes.append(str(error).rpartition(";")[0] + "; left out")
            return None

    def spare_integer(self, name: str) -> int | None:
        """A whole number of an element that a study can be read without."""
        held = self._holder(name)
        if held is not None and held[1] in _BINARY:
            value = self.integer(name)
        else:
            value = self.spare(name)
        return None if value is None or abs(value) >= 2**31 else int(value)

    def integer(self, name: str) -> int | None:
        """A whole number, stored in two or four bytes or as text."""
        held = self._holder(name)
        if held is None:
            return None
        if held[1] in _BINARY:
            raw = held[0].get_item(held[1])
            value = getattr(raw, "value", None)
            size = struct.calcsize(_BINARY[held[1]])
            if isinstance(value, int):  # pydicom has converted it: PixelRepresentation, where there are sequences
                return value % 256**size
            if not value:
                return None
            if not isinstance(value, bytes):
                raise self._bad(name, "", f"{size} bytes")
            if len(value) < size:
                raise self._bad(name, value.hex(), f"{size} bytes")
            order = "<" if getattr(raw, "is_little_endian", True) else ">"
            return struct.unpack(order + _BINARY[held[1]], value[:size])[0]
        number = self.number(name)
        if number is not None and number != int(number):
            raise self._bad(name, self.text(name), "a whole number")
        return None if number is None else int(number)

    def need_integer(self, name: str) -> int:
        """A whole number that must be there."""
        value = self.integer(name)
        if value is None:
            raise StudyError(f"{self._entry.name}: {name} is missing; export the study again")
        return value

    def padding(self, signed: bool) -> tuple[int, int] | None:
        """Lowest and highest stored value that mark pixels outside the field of view; None where not declared."""
        ends = [self.integer(name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
        if ends[0] is None:
            return None
        # Written as US or SS whatever the pixels are: read the two bytes as the pixels are.
        ends = [ends[0] if end is None else end for end in ends]
        low, high = sorted(end - 65536 if signed and end >= 32768 else end for end in ends if end is not None)
        return low, high

    def _bad(self, name: str, value: str, wanted: str) -> StudyError:
        shown = repr(value) if re.fullmatch(r"[0-9eE.,+\- \\]{1,60}", value) else "is damaged"
        return StudyError(f"{self._entry.name}: {name} {shown}: must be {wanted}; export the study again")


_TWO_BYTES = (
    "SamplesPerPixel Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue "
    "PixelPaddingRangeLimit FrameAcquisitionNumber"
).split()
_FOUR_BYTES = ("TemporalPositionIndex", "ConcatenationFrameOffsetNumber")
_BINARY: dict[int, str] = {TAGS[name]: "H" for name in _TWO_BYTES} | {TAGS[name]: "I" for name in _FOUR_BYTES}


def text(dataset: Dataset, tag: int) -> str:
    """An element's value without its padding, "" where absent."""
    if tag not in dataset:
        return ""
    value = dataset.get_item(BaseTag(tag)).value
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    elif not isinstance(value, str):  # pydicom converted it already (file meta)
        value = "" if value is None else str(value)
    return value.strip(" \0\r\n\t")
