"""Arrays that decoder processes can write into."""

import mmap
import os
import sys
import tempfile

import numpy as np


class SharedArray:
    """An int16 array in memory that other processes open by name; it leaves nothing behind when the process is killed.

    Attributes:
        array: int16; stays valid after `close`.
        name: path under which other processes open it, until `close`.
    """

    def __init__(self, shape: tuple[int, ...]):
        size = max(2 * int(np.prod(shape)), 1)
        if sys.platform == "linux":
            self._file = os.fdopen(os.memfd_create("cspine-volume"), "r+b")
            self.name = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        else:
            self._file = tempfile.NamedTemporaryFile(prefix="cspine-volume-")
            self.name = self._file.name
        self._file.truncate(size)
        self.array = np.ndarray(shape, np.int16, buffer=mmap.mmap(self._file.fileno(), size))

    def close(self) -> None:
        """Takes the name away; the array lives on."""
        self._file.close()
