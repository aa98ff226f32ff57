"""Stored pixel values -> int16 HU, in place: significant bits, sign, rescale, padding, inversion."""

import dataclasses

import numpy as np

from cspine_jax.ct import limits
from cspine_jax.ct.headers import SliceHeader

AIR_HU = -1024
"""What padding outside the scanner's field of view becomes."""

_LOWEST_CT_NUMBER = -1500
"""No tissue, air or artefact is darker: such values mark pixels outside the field of view (-2000, -3024)."""


def to_hu(header: SliceHeader, stored: np.ndarray, bits: int, out: np.ndarray) -> list[str]:
    """Turns one image into HU.

    Args:
        header: of the image.
        stored: unsigned container [rows, columns] of the stored values, overwritten; may be the memory of `out`.
        bits: significant bits of the values.
        out: int16 [rows, columns], filled.

    Returns:
        Warnings, without the file's name.
    """
    notes = []
    if _is_right_aligned_after_all(stored, header):
        header = dataclasses.replace(header, high_bit=header.bits_stored - 1)
        notes.append("HighBit says that pixels fill the upper bits but they fill the lower ones: read so")
    stored = _significant_bits(stored, bits, header)
    if not header.signed and header.bits_allocated == 16:
        after_all = _is_signed_after_all if bits == 16 else _is_wrapped
        if after_all(stored, header):
            stored = _extend_sign(stored, bits)
            notes.append("PixelRepresentation says unsigned but the pixels are signed: read as signed")
    return notes + _rescale(stored, header, out)


def _significant_bits(stored: np.ndarray, bits: int, header: SliceHeader) -> np.ndarray:
    """Drops what lies outside the stored bits (old overlays) and extends the sign; works in place."""
    container = stored.dtype.itemsize * 8
    shift = container - bits
    top = (
        container - 1 - min(header.high_bit, container - 1)
        if stored.dtype.itemsize * 8 == header.bits_allocated
        else shift
    )
    if bits < header.bits_stored:  # a decoded stream of lower precision: its values lie in the lower bits
        top = shift
    if top:
        np.left_shift(stored, top, out=stored)
    if header.signed:
        stored = stored.view(f"i{stored.dtype.itemsize}")
    if shift:
        np.right_shift(stored, shift, out=stored)
    return stored


def _is_right_aligned_after_all(stored: np.ndarray, header: SliceHeader) -> bool:
    """Whether pixels declared to lie in the upper bits (as before DICOM) use the lower ones and nothing above them."""
    low = header.high_bit + 1 - header.bits_stored
    if low <= 0 or stored.dtype.itemsize * 8 != header.bits_allocated:
        return False
    if not (stored & stored.dtype.type((1 << low) - 1)).any():
        return False
    if header.signed:
        above = stored.view(f"i{stored.dtype.itemsize}") >> (header.bits_stored - 1)
        return bool(((above == 0) | (above == -1)).all())
    return not (stored >> header.bits_stored).any()


def _extend_sign(stored: np.ndarray, bits: int) -> np.ndarray:
    """16-bit containers of `bits` significant ones as int16, in place."""
    np.left_shift(stored, 16 - bits, out=stored)
    signed = stored.view(np.int16)
    return np.right_shift(signed, 16 - bits, out=signed)


def _is_wrapped(stored: np.ndarray, header: SliceHeader) -> bool:
    """Whether "unsigned" pixels of fewer than 16 bits hold air as large numbers (some series of RSNA's head CTs do).

    Their intercept leaves no room for air, nor for fat, among what is not negative; what is above half of the range
    would be these if it were. Metal reaches down to half of the range, or lies at its end where it is cut off.
    """
    if header.slope <= 0 or header.intercept <= limits.MOST_AIR_HU:
        return False
    high = stored >= 1 << (header.bits_stored - 1)
    if float(high.mean()) < 0.001:
        return False
    wrapped = float(np.percentile(stored[high], 10)) - (1 << header.bits_stored)
    return -1200 < wrapped * header.slope + header.intercept < -20


def _is_signed_after_all(stored: np.ndarray, header: SliceHeader) -> bool:
    """Whether 16-bit "unsigned" pixels hold negative numbers: their HU would lie beyond every scanner's range."""
    high = stored >= 0x8000
    share = float(high.mean())
    if share < 0.001:
        return False
    as_signed = stored.view(np.int16)[high].astype(np.float64) * header.slope + header.intercept
    return float(np.median(as_signed)) > -4096 and float(np.median(stored[high])) * header.slope > 36_000


def _rescale(stored: np.ndarray, header: SliceHeader, out: np.ndarray) -> list[str]:
    """HU = slope x stored + intercept, exact for whole numbers, else rounded to the nearest HU."""
    notes: list[str] = []
    padding = _padding(stored, header, notes)
    low, high = int(stored.min()), int(stored.max())
    whole = header.slope.is_integer() and header.intercept.is_integer()
    ends = sorted((low * header.slope + header.intercept, high * header.slope + header.intercept))
    fits = ends[0] >= -32768 and ends[1] <= 32767
    if whole and fits and stored.dtype.itemsize == 2:
        # Sums and products are right modulo 2^16, and the result fits: no wider copy is needed.
        values = stored.view(np.int16)
        if header.slope != 1:
            values = np.multiply(values, np.int16(_wrap(header.slope)), out=out)
        np.add(values, np.int16(_wrap(header.intercept)), out=out)
    else:
        values = stored.astype(np.float64)
        values *= header.slope
        values += header.intercept
        np.rint(values, out=values)
        if not fits:
            notes.append("HU beyond the int16 range were clipped (metal, or a wrong RescaleIntercept)")
            np.clip(values, -32768, 32767, out=values)
        out[...] = values
    if ends[0] < _LOWEST_CT_NUMBER:
        outside = out < _LOWEST_CT_NUMBER
        padding = outside if padding is None else padding | outside
    if padding is not None:
        out[padding] = AIR_HU
        notes.append(f"pixels outside the field of view set to {AIR_HU} HU")
    return notes


def undo_inversion(hu: np.ndarray, header: SliceHeader) -> list[str]:
    """Turns a volume round, in place, whose MONOCHROME1 was taken to mean inverted pixels.

    MONOCHROME1 is a matter of display: HU are the same (DICOM PS3.3, C.7.6.3.1.2). Some software inverts the pixels all
    the same; the corners of the image, air in a CT, then look like bone.

    Args:
        hu: int16 [n, rows, columns].
        header: of one of the images.

    Returns:
        A warning where the volume was turned round.
    """
    if header.photometric != "MONOCHROME1":
        return []
    rows, columns = max(hu.shape[1] // 32, 1), max(hu.shape[2] // 32, 1)
    corner = float(np.median([hu[:, i, j] for i in (rows, -rows - 1) for j in (columns, -columns - 1)]))
    top = -1 if header.signed else 2**header.bits_stored - 1
    turned = round(header.slope * top + 2 * header.intercept)  # the HU of a pixel and of its inverse add up to this
    if corner < 500 or not -2000 <= turned - corner <= -500:
        return []
    np.clip(turned - hu.astype(np.int32), -32768, 32767, out=hu, casting="unsafe")
    return ["MONOCHROME1 with inverted pixels (the corners looked like bone): turned round"]


def _wrap(value: float) -> int:
    """The int16 that equals `value` modulo 2^16."""
    return (int(value) + 32768) % 65536 - 32768


def _padding(stored: np.ndarray, header: SliceHeader, notes: list[str]) -> np.ndarray | None:
    """Where the pixels carry the header's padding value; None where they carry none."""
    if header.padding is None:
        return None
    low, high = header.padding
    if max(low * header.slope, high * header.slope) + header.intercept > -900:
        notes.append("PixelPaddingValue lies in the range of tissue: ignored")
        return None
    outside = stored == low if low == high else (stored >= low) & (stored <= high)
    if low * header.slope + header.intercept == AIR_HU == high * header.slope + header.intercept:
        return None
    return outside if outside.any() else None
