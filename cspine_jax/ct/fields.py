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
    "SOPClassUID": 0x00080016,
    "SOPInstanceUID": 0x00080018,
    "Modality": 0x00080060,
    "SliceThickness": 0x00180050,
    "GantryDetectorTilt": 0x00181120,
    "ConvolutionKernel": 0x00181210,
    "ContrastBolusAgent": 0x00180010,
    "PatientPosition": 0x00185100,
    "StudyInstanceUID": 0x0020000D,
    "SeriesInstanceUID": 0x0020000E,
    "SeriesNumber": 0x00200011,
    "AcquisitionNumber": 0x00200012,
    "InstanceNumber": 0x00200013,
    "ImagePositionPatient": 0x00200032,
    "ImageOrientationPatient": 0x00200037,
    "SliceLocation": 0x00201041,
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
}


class Fields:
    """Raw elements of one data set, converted with errors that name the file, the element and the value."""

    def __init__(self, entry: Entry, dataset: Dataset):
        self._entry, self._dataset = entry, dataset
        self.notes: list[str] = []

    def __contains__(self, name: str) -> bool:
        return TAGS[name] in self._dataset

    def text(self, name: str) -> str:
        """The value without its padding, "" where absent."""
        return text(self._dataset, TAGS[name])

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
            values = tuple(float(part) for part in value.split("\\"))
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
        value = self.spare(name)
        return None if value is None or abs(value) >= 2**31 else int(value)

    def integer(self, name: str) -> int | None:
        """A whole number, stored in two bytes or as text."""
        raw = self._dataset.get_item(TAGS[name])
        value = getattr(raw, "value", None)
        if not value:
            return None
        if name in _BINARY:
            if len(value) < 2:
                raise self._bad(name, value.hex(), "2 bytes")
            order = "<" if getattr(raw, "is_little_endian", True) else ">"
            return struct.unpack(order + "H", value[:2])[0]
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
        shown = repr(value) if re.fullmatch(r"[A-Za-z0-9.+\-\\]{1,40}", value) else "is damaged"
        return StudyError(f"{self._entry.name}: {name} {shown}: must be {wanted}; export the study again")


_BINARY = frozenset(
    "SamplesPerPixel Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue "
    "PixelPaddingRangeLimit".split()
)


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
