"""Stored pixels -> int16 HU, on all cores: uncompressed frames by threads, compressed ones by decoder processes."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np

from cspine_jax.ct import codecs, limits
from cspine_jax.ct.headers import BIG_ENDIAN, DEFLATED, NATIVE, SliceHeader, inflate
from cspine_jax.ct.shared import SharedArray
from cspine_jax.ct.sources import READ_ERRORS
from cspine_jax.errors import StudyError

AIR_HU = -1024
"""What padding outside the scanner's field of view becomes."""

_LOWEST_CT_NUMBER = -1500
"""No tissue, air or artefact is darker: such values mark pixels outside the field of view (-2000, -3024)."""


def read_pixels(
    headers: Sequence[SliceHeader],
    workers: int | None = None,
    done: Callable[[], None] | None = None,
) -> tuple[np.ndarray, list[str]]:
    """Reads a stack of images.

    Args:
        headers: one image each, all of one size.
        workers: frames decoded at the same time; None for one a core.
        done: called after each frame, for a progress bar.

    Returns:
        int16 [n, rows, columns] HU in the order of `headers`, and warnings, each once.

    Raises:
        StudyError: a file is truncated, damaged or in a transfer syntax nobody here decodes.
    """
    for header in headers:
        if header.transfer_syntax not in NATIVE and header.transfer_syntax not in codecs.CODECS:
            raise StudyError(
                f"{header.name}: transfer syntax {header.transfer_syntax} is not supported; "
                "export the study uncompressed or as JPEG-Lossless"
            )
        if header.transfer_syntax in NATIVE:
            _check_length(header)
    shape = (len(headers), headers[0].rows, headers[0].columns)
    if all(header.transfer_syntax in NATIVE for header in headers):
        out = np.empty(shape, np.int16)
        return out, _read(headers, out, None, workers, done)
    shared = SharedArray(shape)
    try:
        return shared.array, _read(headers, shared.array, shared.name, workers, done)
    finally:
        shared.close()


def _read(
    headers: Sequence[SliceHeader],
    out: np.ndarray,
    memory: str | None,
    workers: int | None,
    done: Callable[[], None] | None,
) -> list[str]:
    """Fills `out`, in `memory` where frames are compressed; returns warnings."""
    notes: dict[str, None] = {}
    indices = _Shared(range(len(headers)))

    def finish(index: int, found: list[str]) -> None:
        notes.update(dict.fromkeys(found))
        if done:
            done()

    def work() -> None:
        if memory is None:
            for index in indices:
                finish(index, _read_native(headers[index], out[index]))
        else:
            _decode(headers, out, memory, indices, finish)

    workers = min(workers or available_cores(), len(headers))
    if workers == 1:
        work()
        return sorted(notes)
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work) for _ in range(workers)]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            indices.stop()
            raise
    return sorted(notes)


class _Shared:
    """Indices that several threads take from, each once, until one says stop."""

    def __init__(self, indices: Iterable[int]):
        self._left, self._lock = iter(list(indices)), threading.Lock()

    def __iter__(self) -> Iterator[int]:
        while True:
            with self._lock:
                index = next(self._left, None)
            if index is None:
                return
            yield index

    def stop(self) -> None:
        """Leaves nothing to take."""
        with self._lock:
            self._left = iter(())


def available_cores() -> int:
    """Cores this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def _read_native(header: SliceHeader, out: np.ndarray) -> list[str]:
    try:
        return _finish(header, _native(header, out), header.bits_stored, out)
    except READ_ERRORS as error:
        raise _unreadable(header, error) from None


def _unreadable(header: SliceHeader, error: Exception) -> StudyError:
    return StudyError(f"{header.name}: cannot be read ({' '.join(str(error).split())}); copy the file again")


def _decode(
    headers: Sequence[SliceHeader],
    out: np.ndarray,
    memory: str,
    indices: Iterable[int],
    finish: Callable[[int, list[str]], None],
) -> None:
    """Compressed images on one decoder process; uncompressed ones among them are read on the way."""

    def compressed() -> Iterator[int]:
        for index in indices:
            if headers[index].transfer_syntax in NATIVE:
                finish(index, _read_native(headers[index], out[index]))
            else:
                yield index

    def load(index: int) -> tuple[dict, bytes]:
        header = headers[index]
        if header.pixel_length is not None:
            raise StudyError(
                f"{header.name}: transfer syntax {header.transfer_syntax} but its pixels are not encapsulated; "
                "export the study again"
            )
        inline = b""
        if header.entry.path is None:
            try:
                with header.entry.open() as file:
                    file.seek(header.pixel_offset)
                    inline = file.read(limits.MAX_FRAME_BYTES)
            except READ_ERRORS as error:
                raise _unreadable(header, error) from None
        return {
            "memory": memory,
            "place": index * 2 * header.rows * header.columns,
            "path": header.entry.path,
            "offset": header.pixel_offset,
            "codec": codecs.CODECS[header.transfer_syntax],
            "transfer_syntax": header.transfer_syntax,
            "rows": header.rows,
            "columns": header.columns,
            "bits_allocated": header.bits_allocated,
            "bits_stored": header.bits_stored,
        }, inline

    def store(index: int, precision: int) -> None:
        header = headers[index]
        stored = out[index].view(np.uint16)
        finish(index, _finish(header, stored, min(precision, header.bits_stored), out[index]))

    def failed(index: int, error: codecs.DecodeError) -> StudyError:
        header = headers[index]
        codec = codecs.CODECS[header.transfer_syntax]
        return StudyError(f"{header.name}: cannot decode its {codec} pixels: {error}; copy the file again")

    codecs.decode(compressed(), load, store, failed)


def _finish(header: SliceHeader, stored: np.ndarray, bits: int, out: np.ndarray) -> list[str]:
    """Stored values in an unsigned container -> HU in `out`; returns warnings."""
    notes = []
    if header.transfer_syntax in codecs.LOSSY:
        notes.append("lossy compression: fine fracture lines may be lost; use the original series if there is one")
    stored = _significant_bits(stored, bits, header)
    if not header.signed and bits == 16 and header.bits_allocated == 16 and _is_signed_after_all(stored, header):
        stored = stored.view(np.int16)
        notes.append("PixelRepresentation says unsigned but the pixels are signed: read as signed")
    return notes + _to_hu(stored, header, out)


def _check_length(header: SliceHeader) -> None:
    """Whether the file can hold its pixels; before memory is set aside for what a damaged header claims."""
    needed = header.rows * header.columns * header.bits_allocated // 8
    if header.pixel_length is not None and header.pixel_length < needed:
        raise StudyError(
            f"{header.name}: Pixel Data holds {header.pixel_length} bytes, {header.rows} x {header.columns} pixels "
            f"of {header.bits_allocated} bits need {needed}; export the study again"
        )
    if header.transfer_syntax != DEFLATED and header.entry.size < header.pixel_offset + needed:
        raise StudyError(
            f"{header.name}: truncated: {header.entry.size} bytes, {header.pixel_offset + needed} needed; copy it again"
        )


def _native(header: SliceHeader, out: np.ndarray) -> np.ndarray:
    """Stored values in an unsigned container; 16-bit ones straight in the memory of `out`."""
    bytes_each = header.bits_allocated // 8
    needed = header.rows * header.columns * bytes_each
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
