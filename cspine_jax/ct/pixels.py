"""Stored pixels -> int16 HU, on all cores: uncompressed frames by threads, compressed ones by decoder processes."""

import os
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import numpy as np

from cspine_jax.ct import codecs
from cspine_jax.ct.headers import BIG_ENDIAN, DEFLATED, NATIVE, SliceHeader, inflate
from cspine_jax.errors import StudyError

AIR_HU = -1024
"""What padding outside the scanner's field of view becomes."""

_LOWEST_CT_NUMBER = -1500
"""No tissue, air or artefact is darker: such values mark pixels outside the field of view (-2000, -3024)."""


def read_pixels(
    headers: Sequence[SliceHeader],
    out: np.ndarray,
    workers: int | None = None,
    done: Callable[[], None] | None = None,
) -> list[str]:
    """Fills a stack with HU.

    Args:
        headers: one image each.
        out: int16 [n, rows, columns], filled in the order of `headers`.
        workers: frames decoded at the same time; None for one a core.
        done: called after each frame, for a progress bar.

    Returns:
        Warnings, each once.

    Raises:
        StudyError: a file is truncated, damaged or in a transfer syntax nobody here decodes.
    """
    for header in headers:
        if header.transfer_syntax not in NATIVE and header.transfer_syntax not in codecs.CODECS:
            raise StudyError(
                f"{header.name}: transfer syntax {header.transfer_syntax} is not supported; "
                "export the study uncompressed or as JPEG-Lossless"
            )
    notes: dict[str, None] = {}

    def one(index: int) -> None:
        for note in read_frame(headers[index], out[index]):
            notes[note] = None
        if done:
            done()

    workers = workers or available_cores()
    if workers == 1:
        for index in range(len(headers)):
            one(index)
    else:
        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(one, index) for index in range(len(headers))]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return sorted(notes)


def available_cores() -> int:
    """Cores this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def read_frame(header: SliceHeader, out: np.ndarray) -> list[str]:
    """One image's HU into `out`, int16 [rows, columns]; returns warnings without the file's name."""
    try:
        if header.transfer_syntax in NATIVE:
            stored, bits = _native(header, out), header.bits_stored
        else:
            stored, bits = _encapsulated(header)
    except OSError as error:
        raise StudyError(f"{header.name}: cannot be read ({error.strerror or error}); check the file") from None
    notes = []
    if header.transfer_syntax in codecs.LOSSY:
        notes.append("lossy compression: fine fracture lines may be lost; use the original series if there is one")
    stored = _significant_bits(stored, bits, header)
    if not header.signed and bits == 16 and header.bits_allocated == 16 and _is_signed_after_all(stored, header):
        stored = stored.view(np.int16)
        notes.append("PixelRepresentation says unsigned but the pixels are signed: read as signed")
    return notes + _to_hu(stored, header, out)


def _native(header: SliceHeader, out: np.ndarray) -> np.ndarray:
    """Stored values in an unsigned container; 16-bit ones straight in the memory of `out`."""
    bytes_each = header.bits_allocated // 8
    needed = header.rows * header.columns * bytes_each
    if header.pixel_length is not None and header.pixel_length < needed:
        raise StudyError(
            f"{header.name}: Pixel Data holds {header.pixel_length} bytes, {header.rows} x {header.columns} pixels "
            f"of {header.bits_allocated} bits need {needed}; export the study again"
        )
    if bytes_each == 2 and out.flags.c_contiguous:
        stored = out.view(np.uint16)
    else:
        stored = np.empty((header.rows, header.columns), f"u{bytes_each}")
    buffer = stored.reshape(-1).view(np.uint8).data
    with header.entry.open() as file:
        if header.transfer_syntax == DEFLATED:
            value = inflate(header.entry, file)[header.pixel_offset : header.pixel_offset + needed]
            got = len(value)
            buffer[:got] = value
        else:
            file.seek(header.pixel_offset)
            got = file.readinto(buffer)  # type: ignore[attr-defined]
    if got < needed:
        raise StudyError(f"{header.name}: truncated: {got} of {needed} bytes of pixels; copy the file again")
    if header.transfer_syntax == BIG_ENDIAN and bytes_each > 1:
        stored.byteswap(inplace=True)
    return stored


def _encapsulated(header: SliceHeader) -> tuple[np.ndarray, int]:
    if header.pixel_length is not None:
        raise StudyError(
            f"{header.name}: transfer syntax {header.transfer_syntax} but its pixels are not encapsulated; "
            "export the study again"
        )
    with header.entry.open() as file:
        file.seek(header.pixel_offset)
        data = _frame(header, file)
    codec = codecs.CODECS[header.transfer_syntax]
    request = {
        "codec": codec,
        "transfer_syntax": header.transfer_syntax,
        "rows": header.rows,
        "columns": header.columns,
        "bits_allocated": header.bits_allocated,
        "bits_stored": header.bits_stored,
    }
    try:
        with codecs.decoder() as decoder:
            stored, precision = decoder.decode(data, request)
    except codecs.DecodeError as error:
        raise StudyError(f"{header.name}: cannot decode its {codec} pixels: {error}; copy the file again") from None
    return stored, min(precision, header.bits_stored)


def _frame(header: SliceHeader, file: BinaryIO) -> bytes:
    """The encoded frame: its fragments joined (DICOM PS3.5, annex A.4). The file stands at the offset table."""
    fragments: list[bytes] = []
    while True:
        head = file.read(8)
        if len(head) < 8:
            break
        group, element, length = struct.unpack("<HHI", head)
        if (group, element) == (0xFFFE, 0xE0DD):
            break
        if (group, element) != (0xFFFE, 0xE000):
            raise StudyError(f"{header.name}: damaged compressed pixels (no fragment mark); copy the file again")
        fragment = file.read(min(length, header.entry.size))
        if len(fragment) < length:
            raise StudyError(f"{header.name}: truncated: its compressed pixels end early; copy the file again")
        fragments.append(fragment)
    if len(fragments) < 2 or not any(fragments[1:]):
        raise StudyError(f"{header.name}: truncated: no compressed pixels in it; copy the file again")
    return b"".join(fragments[1:])


def _significant_bits(stored: np.ndarray, bits: int, header: SliceHeader) -> np.ndarray:
    """Drops what lies outside the stored bits (old overlays) and extends the sign; works in place."""
    container = stored.dtype.itemsize * 8
    shift = container - bits
    top = (
        container - 1 - min(header.high_bit, container - 1)
        if stored.dtype.itemsize * 8 == header.bits_allocated
        else shift
    )
    if top:
        np.left_shift(stored, top, out=stored)
    if header.signed:
        stored = stored.view(f"i{stored.dtype.itemsize}")
    if shift:
        np.right_shift(stored, shift, out=stored)
    return stored


def _is_signed_after_all(stored: np.ndarray, header: SliceHeader) -> bool:
    """Whether 16-bit "unsigned" pixels hold negative numbers: their HU would lie beyond every scanner's range."""
    high = stored >= 0x8000
    share = float(high.mean())
    if share < 0.001:
        return False
    as_signed = stored.view(np.int16)[high].astype(np.float64) * header.slope + header.intercept
    return float(np.median(as_signed)) > -4096 and float(np.median(stored[high])) * header.slope > 36_000


def _to_hu(stored: np.ndarray, header: SliceHeader, out: np.ndarray) -> list[str]:
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
