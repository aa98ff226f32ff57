"""Images on disk -> a stack of HU, on all cores: raw frames by threads, compressed ones by decoder processes."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np

from cspine_jax.ct import codecs, limits
from cspine_jax.ct.headers import BIG_ENDIAN, DEFLATED, NATIVE, SliceHeader, inflate
from cspine_jax.ct.hu import to_hu
from cspine_jax.ct.shared import SharedArray
from cspine_jax.ct.sources import READ_ERRORS
from cspine_jax.errors import StudyError


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
            if header.pixel_length is None:
                raise StudyError(
                    f"{header.name}: its pixels are compressed but its transfer syntax says that they are not; "
                    "export the study again"
                )
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
    if any(header.transfer_syntax in codecs.LOSSY for header in headers):
        notes["lossy compression: fine fracture lines may be lost; use the original series if there is one"] = None
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
        finally:  # a failed one holds this frame, which must not hold it: the volume would outlive the failure
            futures.clear()
            future = None
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
        return to_hu(header, _native(header, out), header.bits_stored, out)
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
                    inline = file.read(header.frame_bytes or limits.MAX_FRAME_BYTES)
            except READ_ERRORS as error:
                raise _unreadable(header, error) from None
        return {
            "memory": memory,
            "place": index * 2 * header.rows * header.columns,
            "path": header.entry.path,
            "offset": header.pixel_offset,
            "length": header.frame_bytes or 0,
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
        finish(index, to_hu(header, stored, min(precision, header.bits_stored), out[index]))

    def failed(index: int, error: codecs.DecodeError) -> StudyError:
        header = headers[index]
        codec = codecs.CODECS[header.transfer_syntax]
        return StudyError(f"{header.name}: cannot decode its {codec} pixels: {error}; copy the file again")

    codecs.decode(compressed(), load, store, failed)


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
