"""Compressed frames -> pixels, in decoder processes that are kept for the next study."""

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cspine_jax.ct import limits

CODECS: dict[str, str] = {
    "1.2.840.10008.1.2.5": "rle",
    "1.2.840.10008.1.2.4.50": "jpeg",  # baseline
    "1.2.840.10008.1.2.4.51": "jpeg",  # extended
    "1.2.840.10008.1.2.4.57": "jpeg",  # lossless, process 14
    "1.2.840.10008.1.2.4.70": "jpeg",  # lossless, process 14, first-order prediction
    "1.2.840.10008.1.2.4.80": "jpeg_ls",
    "1.2.840.10008.1.2.4.81": "jpeg_ls",  # near-lossless
    "1.2.840.10008.1.2.4.90": "jpeg_2000",
    "1.2.840.10008.1.2.4.91": "jpeg_2000",  # lossy
    "1.2.840.10008.1.2.4.201": "jpeg_2000",  # high throughput
    "1.2.840.10008.1.2.4.202": "jpeg_2000",
    "1.2.840.10008.1.2.4.203": "jpeg_2000",
}
"""Transfer syntax UID -> decoder (DICOM PS3.5, annex A.4)."""

LOSSY: frozenset[str] = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in ("50", "51", "81", "91", "203"))


class DecodeError(Exception):
    """One frame could not be decoded; the caller knows the file."""


class Decoder:
    """One decoder process."""

    def __init__(self):
        worker = str(Path(__file__).with_name("codec_worker.py"))
        command = [sys.executable, "-P", worker, str(limits.DECODER_MEMORY_BYTES), str(limits.DECODER_SECONDS)]
        # One thread a process: the processes already fill the cores, and each BLAS thread reserves address space.
        env = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env
        )

    def decode(self, data: bytes, request: dict) -> tuple[np.ndarray, int]:
        """Decodes one frame.

        Args:
            data: the encoded frame.
            request: codec, transfer_syntax, rows, columns, bits_allocated, bits_stored.

        Returns:
            The pixels in an unsigned container [rows, columns] and the stream's precision in bits.

        Raises:
            DecodeError: the stream is damaged or the process died of it.
        """
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(request | {"bytes": len(data)}).encode() + b"\n")
            self._process.stdin.write(data)
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline() or b"{}")
        except (OSError, ValueError):
            answer = {}
        if not answer:
            self.close()
            raise DecodeError(f"the {request['codec']} decoder ended abruptly (status {self._process.returncode})")
        if "error" in answer:
            raise DecodeError(answer["error"])
        pixels = np.empty((request["rows"], request["columns"]), np.dtype(answer["dtype"]))
        if self._process.stdout.readinto(pixels.view(np.uint8).reshape(-1).data) != answer["bytes"]:  # type: ignore
            self.close()
            raise DecodeError(f"the {request['codec']} decoder ended abruptly")
        return pixels, answer["bits"]

    @property
    def alive(self) -> bool:
        """Whether the process can take another frame."""
        return self._process.poll() is None

    def close(self) -> None:
        """Ends the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        self._process.kill()
        self._process.wait()


_idle: list[Decoder] = []
_lock = threading.Lock()


@contextlib.contextmanager
def decoder() -> Iterator[Decoder]:
    """Lends an idle decoder process, or a new one; as many exist as frames were ever decoded at the same time."""
    with _lock:
        lent = _idle.pop() if _idle else None
    if lent is None:
        lent = Decoder()
    try:
        yield lent
    finally:
        if lent.alive:
            with _lock:
                _idle.append(lent)


@atexit.register
def close_idle() -> None:
    """Ends the idle decoder processes (they also end by themselves with this process)."""
    with _lock:
        decoders, _idle[:] = _idle[:], []
    for each in decoders:
        each.close()


def _forget() -> None:
    """After a fork the pipes belong to the parent: the child starts its own decoders."""
    global _lock
    _lock = threading.Lock()
    _parents.extend(_idle)  # keep the objects: collecting them would warn about processes that are not ours
    _idle.clear()


_parents: list[Decoder] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
