"""Decoder process: takes requests on stdin, writes pixels into shared memory. Run by `codecs.py`, not imported by it.

The codecs hold Python's lock while they decode and may abort on a damaged stream. In processes of their own they use
every core, and a crash costs one error message. This file imports only what the stream at hand needs: it starts in
0.1 s.

Request: a JSON line; then, where it says `bytes`, so many bytes of the value of Pixel Data (otherwise that value lies
at `offset` in the file `path`; of one frame among several only `length` bytes of it). The pixels go to `place` in the
shared memory `memory` as 16-bit words in native byte order, unsigned or in two's complement as the stream has them.
Answer: a JSON line with the precision `bits` of the stream, or with `error`. A request without `codec` lets go of the
shared memory and has no answer.
"""

import ctypes
import io
import json
import mmap
import os
import struct
import sys
from typing import Any, BinaryIO


def decode_jpeg_ls(data: bytes, request: dict, out: memoryview) -> int:
    """JPEG-LS, lossless and near-lossless."""
    import jpeg_ls

    pixels, info = jpeg_ls.decode_pixel_data(data)
    _check(info["height"], info["width"], info["components"], request)
    _widen(pixels, info["bits_per_sample"], out)
    return info["bits_per_sample"]


def decode_jpeg_2000(data: bytes, request: dict, out: memoryview) -> int:
    """JPEG 2000."""
    from openjpeg.utils import decode_pixel_data, get_parameters

    info: dict[str, Any] = dict(get_parameters(data))
    _check(info["rows"], info["columns"], info["samples_per_pixel"], request)
    _widen(decode_pixel_data(data, version=2), info["precision"], out)
    return info["precision"]


def decode_rle(data: bytes, request: dict, out: memoryview) -> int:
    """DICOM run-length encoding."""
    from rle.utils import decode_pixel_data

    bits = request["bits_allocated"]
    rows, columns = request["rows"], request["columns"]
    pixels = decode_pixel_data(data, version=2, rows=rows, columns=columns, bits_allocated=bits, byteorder="<")
    _widen(pixels, bits, out)
    return request["bits_stored"]


def decode_jpeg(data: bytes, request: dict, out: memoryview) -> int:
    """JPEG: baseline, extended and lossless (process 14)."""
    import gdcm

    rows, columns, components, bits = _jpeg_frame_header(data)
    _check(rows, columns, components, request)
    if request["transfer_syntax"] == "1.2.840.10008.1.2.4.51" and bits > 8:
        raise ValueError("12-bit lossy JPEG has no sound decoder here; export it uncompressed")
    # The codec alone, without an image, a file and a change of syntax around it: a tenth faster. gdcm hands pixels to
    # Python only as text, which costs a fifth of the time: they are taken from where they lie in its memory instead.
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(data)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    encoded, decoded = (gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010)) for _ in range(2))
    encoded.SetValue(fragments.__ref__())
    codec = gdcm.JPEGCodec()
    codec.SetNumberOfDimensions(2)
    codec.SetDimensions((columns, rows, 1))
    codec.SetPlanarConfiguration(0)
    codec.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    allocated = 8 if bits <= 8 else 16
    codec.SetPixelFormat(gdcm.PixelFormat(1, allocated, bits, bits - 1, 0))
    size = rows * columns * allocated // 8
    value = decoded.GetByteValue() if codec.Decode(encoded, decoded) else None
    # The length comes as an object whose text is the number; an odd one is padded.
    if value is None or int(str(value.GetLength())) != size + size % 2:
        raise ValueError("damaged JPEG stream")
    pixels = memoryview((ctypes.c_ubyte * size).from_address(int(value.GetVoidPointer()))).cast("B")
    _widen(pixels, bits, out)
    return bits


DECODERS = {"jpeg": decode_jpeg, "jpeg_ls": decode_jpeg_ls, "jpeg_2000": decode_jpeg_2000, "rle": decode_rle}


def _widen(pixels: Any, bits: int, out: memoryview) -> None:
    """Stores decoded pixels as 16-bit words."""
    count = len(out) // 2
    if bits > 16:
        raise ValueError(f"{bits} bits a pixel; CT has at most 16")
    expected = count * (1 if bits <= 8 else 2)
    if len(pixels) != expected:
        raise ValueError(f"{len(pixels)} bytes decoded, {expected} expected")
    if bits <= 8:
        import numpy as np

        np.frombuffer(out, np.uint16)[:] = np.frombuffer(pixels, np.uint8)
    else:
        out[:] = pixels


def _check(rows: int, columns: int, components: int, request: dict) -> None:
    if (rows, columns) != (request["rows"], request["columns"]):
        raise ValueError(f"stream is {rows} x {columns} but the header says {request['rows']} x {request['columns']}")
    if components != 1:
        raise ValueError(f"stream has {components} samples a pixel, CT has 1")


def _jpeg_frame_header(data: bytes) -> tuple[int, int, int, int]:
    """Rows, columns, components and precision from the start-of-frame marker (ITU-T T.81, B.2.2)."""
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            precision, rows, columns, components = struct.unpack_from(">BHHB", data, at + 4)
            return rows, columns, components, precision
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    raise ValueError("no JPEG frame header in the stream")


def frame(file: BinaryIO, length: int = 0) -> bytes:
    """One encoded frame of an encapsulated value: its fragments joined (DICOM PS3.5, annex A.4).

    Args:
        file: stands at the first item, the offset table; of several frames, at the first fragment of this one.
        length: bytes of this one's fragments where there are several frames; 0 for the only frame.

    Raises:
        ValueError: the value ends early or is no sequence of fragments.
    """
    fragments: list[bytes] = []
    if length:
        file = io.BytesIO(file.read(length) + b"\xfe\xff\xdd\xe0\0\0\0\0")
        fragments.append(b"")  # in the place of the offset table
    while True:
        head = file.read(8)
        if len(head) < 8:
            raise ValueError("truncated: no end mark")
        group, number, length = struct.unpack("<HHI", head)
        if (group, number) == (0xFFFE, 0xE0DD):
            break
        if (group, number) != (0xFFFE, 0xE000):
            raise ValueError("no fragment mark where one should be")
        fragment = b""
        if length:
            fragment = file.read(length) if length < 1 << 28 else b""
        if len(fragment) < length:
            raise ValueError("truncated: a fragment ends early")
        fragments.append(fragment)
    data = b"".join(fragments[1:])
    if not data:
        raise ValueError("no compressed pixels")
    return data


def _limit(memory: int) -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    # Private memory: the shared volume does not count. (On Linux; elsewhere it limits the heap only.)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _allow_seconds(seconds: int) -> None:
    """Lets the next frame use this much processor time; an endless decode is then ended by the system."""
    try:
        import resource
    except ImportError:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + seconds + 1, hard))


def _serve(request: dict, inline: bytes, memory: mmap.mmap) -> dict:
    try:
        _allow_seconds(int(sys.argv[2]))
        if inline:
            data = frame(io.BytesIO(inline), request["length"])
        else:
            with open(request["path"], "rb") as file:
                file.seek(request["offset"])
                data = frame(file, request["length"])
        size = 2 * request["rows"] * request["columns"]
        with memoryview(memory) as view, view[request["place"] : request["place"] + size] as out:
            return {"bits": DECODERS[request["codec"]](data, request, out)}
    except Exception as error:
        return {"error": " ".join(str(error).split())[:200] or type(error).__name__}


def main() -> None:
    """Serves requests until stdin closes, which it does when the reading process ends, however it ends."""
    requests, answers = os.fdopen(0, "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a codec prints must not get between the answers
    _limit(int(sys.argv[1]))
    name, memory = "", None
    while line := requests.readline():
        request = json.loads(line)
        inline = requests.read(request.get("bytes", 0))
        if memory is not None and request.get("memory") != name:
            memory.close()
            memory = None
        if "codec" not in request:
            continue
        if memory is None:
            name = request["memory"]
            with open(name, "r+b") as file:
                memory = mmap.mmap(file.fileno(), 0)
        answers.write(json.dumps(_serve(request, inline, memory)).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
