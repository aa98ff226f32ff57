"""Compressed frames -> pixels, in decoder processes that are kept for the next study."""

import atexit
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from cspine_jax.ct import limits

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

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
}
"""Transfer syntax UID -> decoder (DICOM PS3.5, annex A.4)."""

LOSSY: frozenset[str] = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in ("50", "51", "81", "91"))


_AHEAD = 16
"""Requests a decoder may hold unanswered: enough to keep it busy while this process waits for its turn."""


_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(32 << 20)}
"""A decoder takes and frees the same few buffers for every frame: handing them back to the system in between (glibc)
costs 500 page faults and a sixth of the time."""


class DecodeError(Exception):
    """One frame could not be decoded; the caller knows the file."""


class Decoder:
    """One decoder process. Requests may be sent ahead of the answers, which come in the same order."""

    def __init__(self):
        worker = str(Path(__file__).with_name("codec_worker.py"))
        command = [sys.executable, "-P", worker, str(limits.DECODER_MEMORY_BYTES), str(limits.DECODER_SECONDS)]
        # One thread a process: the processes already fill the cores, and each BLAS thread reserves address space.
        env = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} | _KEEP_MEMORY
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env
        )
        for pipe in (self._process.stdin, self._process.stdout):
            _widen(pipe)

    def send(self, request: dict, inline: bytes = b"") -> None:
        """Hands over one request (see `codec_worker`), with the pixels' bytes where they are in no plain file."""
        pipe = self._process.stdin
        assert pipe
        # A process that died, or was closed, says so where its answer is received.
        with contextlib.suppress(OSError, ValueError):
            pipe.write(json.dumps(request | {"bytes": len(inline)}).encode() + b"\n")
            pipe.write(inline)
            pipe.flush()

    def receive(self) -> int:
        """The next answer: the pixels are in place; the stream's precision in bits.

        Raises:
            DecodeError: the stream is damaged, or the process died of it.
        """
        pipe = self._process.stdout
        assert pipe
        try:
            answer = json.loads(pipe.readline() or b"{}")
        except (OSError, ValueError):
            answer = {}
        if "bits" not in answer:
            raise DecodeError(answer.get("error", "the decoder ended abruptly"))
        return answer["bits"]

    @property
    def alive(self) -> bool:
        """Whether the process can take another frame."""
        return self._process.poll() is None

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError, ValueError):
                pipe.close()  # type: ignore[union-attr]


def decode(
    frames: Iterable[int],
    load: Callable[[int], tuple[dict, bytes]],
    store: Callable[[int, int], None],
    failed: Callable[[int, DecodeError], Exception],
) -> None:
    """Decodes frames on one process: one thread feeds it ahead, this one takes what it answers.

    Args:
        frames: indices; several callers may share one iterator.
        load: index -> request, and the pixels' bytes where they are in no plain file.
        store: takes the index whose pixels are in place, and the stream's precision.
        failed: index and cause -> the exception to raise.
    """
    sent: queue.Queue[int | Exception | None] = queue.Queue(_AHEAD)
    stop = threading.Event()
    decoder = _borrow()

    def feed() -> None:
        try:
            for index in frames:
                request, inline = load(index)
                sent.put(index)
                if stop.is_set():
                    return
                decoder.send(request, inline)
            sent.put(None)
        except Exception as error:
            sent.put(error)

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    try:
        while (item := sent.get()) is not None:
            if isinstance(item, Exception):
                try:
                    raise item
                finally:
                    del item  # it holds this frame, which must not hold it: the volume would outlive the failure
            try:
                bits = decoder.receive()
            except DecodeError as error:
                raise failed(item, error) from None
            store(item, bits)
    except BaseException:
        stop.set()
        decoder.close()  # what was sent ahead is lost with it
        while feeder.is_alive():
            with contextlib.suppress(queue.Empty):
                sent.get(timeout=0.01)  # the feeder may wait for room
        raise
    feeder.join()
    decoder.send({})  # lets go of the volume's memory
    if decoder.alive:
        with _lock:
            _idle.append(decoder)


def _widen(pipe: IO[bytes] | None) -> None:
    """Lets a pipe hold many requests, so that neither side waits for the other's turn on the processor."""
    resize = getattr(fcntl, "F_SETPIPE_SZ", None)
    if resize and pipe:
        with contextlib.suppress(OSError):  # the system's limit for users
            fcntl.fcntl(pipe.fileno(), resize, 1 << 20)  # type: ignore[union-attr]


_idle: list[Decoder] = []
_lock = threading.Lock()


def _borrow() -> Decoder:
    """An idle decoder process, or a new one; as many exist as were ever in use at the same time."""
    with _lock:
        while _idle:
            decoder = _idle.pop()
            if decoder.alive:
                return decoder
            decoder.close()
    return Decoder()


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
