"""Decoder process: reads one request a time on stdin, answers on stdout. Run by `codecs.py`, never imported by it.

The codecs hold Python's lock while they decode and may abort on a damaged stream. In processes of their own they use
every core, and a crash costs one error message. This file imports only numpy and the codecs, so it starts in ~0.1 s.

Request: a JSON line, then `bytes` bytes of one encoded frame. Answer: a JSON line, then `bytes` bytes of pixels
(native byte order, rows x columns, unsigned or signed container as `dtype` says; `bits` is the stream's own precision),
or a JSON line with `error`.
"""

import json
import os
import sys
from typing import Any


def decode_jpeg_ls(data: bytes, request: dict) -> tuple[bytes, str, int]:
    """JPEG-LS, lossless and near-lossless."""
    import jpeg_ls

    pixels, info = jpeg_ls.decode_pixel_data(data)
    _same_size(info["height"], info["width"], info["components"], request)
    bits = info["bits_per_sample"]
    return bytes(pixels), "u1" if bits <= 8 else "u2", bits


def decode_jpeg_2000(data: bytes, request: dict) -> tuple[bytes, str, int]:
    """JPEG 2000 and HTJ2K."""
    from openjpeg.utils import decode_pixel_data, get_parameters

    info: dict[str, Any] = dict(get_parameters(data))
    _same_size(info["rows"], info["columns"], info["samples_per_pixel"], request)
    bits = info["precision"]
    pixels = decode_pixel_data(data, version=2)
    return bytes(pixels), "u1" if bits <= 8 else "u2" if bits <= 16 else "u4", bits


def decode_rle(data: bytes, request: dict) -> tuple[bytes, str, int]:
    """DICOM run-length encoding."""
    from rle.utils import decode_pixel_data

    allocated = request["bits_allocated"]
    pixels = decode_pixel_data(
        data, version=2, rows=request["rows"], columns=request["columns"], bits_allocated=allocated, byteorder="<"
    )
    return bytes(pixels), f"u{allocated // 8}", request["bits_stored"]


def decode_jpeg(data: bytes, request: dict) -> tuple[bytes, str, int]:
    """JPEG: baseline, extended and lossless (process 14)."""
    import gdcm

    rows, columns, components, bits = _jpeg_frame_header(data)
    _same_size(rows, columns, components, request)
    allocated = 8 if bits <= 8 else 16
    # gdcm objects do not keep each other alive from Python: the names below must outlive GetBuffer().
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(data)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(element)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(request["transfer_syntax"])))
    image.SetPixelFormat(gdcm.PixelFormat(1, allocated, bits, bits - 1, 0))
    text = image.GetBuffer()  # gdcm hands bytes over as text
    return text.encode("utf-8", "surrogateescape"), f"u{allocated // 8}", bits


DECODERS = {"jpeg": decode_jpeg, "jpeg_ls": decode_jpeg_ls, "jpeg_2000": decode_jpeg_2000, "rle": decode_rle}


def _same_size(rows: int, columns: int, components: int, request: dict) -> None:
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
            return (
                int.from_bytes(data[at + 5 : at + 7], "big"),
                int.from_bytes(data[at + 7 : at + 9], "big"),
                data[at + 9],
                data[at + 4],
            )
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise ValueError("no JPEG frame header in the stream")


def _limit(memory: int) -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
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


def main() -> None:
    """Serves requests until stdin closes, which it does when the reading process ends, however it ends."""
    requests, answers = os.fdopen(0, "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a codec prints must not get between the answers
    _limit(int(sys.argv[1]))
    while line := requests.readline():
        request = json.loads(line)
        data = requests.read(request["bytes"])
        pixels = b""
        try:
            _allow_seconds(int(sys.argv[2]))
            pixels, dtype, bits = DECODERS[request["codec"]](data, request)
            expected = request["rows"] * request["columns"] * int(dtype[1:])
            if len(pixels) == expected + expected % 2:  # a pad byte
                pixels = pixels[:expected]
            if len(pixels) != expected:
                raise ValueError(f"{len(pixels)} bytes decoded, {expected} expected")
            answer = {"bytes": len(pixels), "dtype": dtype, "bits": bits}
        except Exception as error:
            pixels, answer = b"", {"bytes": 0, "error": " ".join(str(error).split())[:200] or type(error).__name__}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.write(pixels)
        answers.flush()


if __name__ == "__main__":
    main()
