"""Who may touch the records in a folder."""

import os
import time
from pathlib import Path

from cspine_jax import locks
from cspine_jax.errors import DataError


class BusyError(DataError):
    """Another process writes these records now."""


class Lock:
    """Of the records in one folder: many may look at them, or one may write. It dies with the process that holds it."""

    def __init__(self, folder: Path):
        self._folder = folder

    def __enter__(self) -> "Lock":
        path = self._folder / ".lock"
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            self._file = os.open(path, os.O_RDONLY)  # finished records on a disk that nobody may write
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._file)

    def share(self) -> None:
        """For a look at what is there; refused while another process writes."""
        if not locks.acquire(self._file, shared=True):
            raise BusyError(f"{self._folder}: another process is building these records; wait for it or stop it")

    def take(self) -> None:
        """For writing; waits for those who merely look, which takes them moments."""
        while not locks.acquire(self._file):
            self.share()
            locks.release(self._file)  # two that wait would each see the other look
            time.sleep(0.02)
