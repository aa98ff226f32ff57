"""Ctrl-C and SIGTERM as a wish to stop, granted between two steps."""

import signal
import threading
from types import FrameType
from typing import NoReturn


class Interrupted(Exception):  # noqa: N818 - a wish granted, not an error
    """A run was asked to stop and has saved a checkpoint.

    Attributes:
        signum: SIGINT or SIGTERM.
        step: steps done and saved.
    """

    def __init__(self, signum: int, step: int):
        super().__init__(f"{signal.Signals(signum).name} at step {step}")
        self.signum = signum
        self.step = step

    @property
    def exit_status(self) -> int:
        """128 + signal number, as shells count: 130 for ctrl-C, 143 for SIGTERM."""
        return 128 + self.signum


class Terminated(BaseException):
    """SIGTERM came outside of the training loop.

    Like KeyboardInterrupt no `Exception`: what passes over unreadable checkpoints and studies must not pass over it.
    """


def terminable() -> None:
    """From here on SIGTERM raises `Terminated`, so that what is under way is closed and written; for programs."""

    def terminated(signum: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    signal.signal(signal.SIGTERM, terminated)


class StopSignals:
    """While entered, the first SIGINT or SIGTERM only sets `caught`; a second one acts as it did before.

    Outside the main thread signals cannot be handled; there nothing changes and `caught` stays None.
    """

    def __init__(self):
        self.caught: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _catch(self, signum: int, frame: FrameType | None) -> None:
        self.caught = signum
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # pyright: ignore[reportArgumentType]
        self._before = {}
