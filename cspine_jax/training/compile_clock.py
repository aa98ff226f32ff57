"""How many seconds of a run went into tracing and compiling."""

import time

import jax

PREFIX = "/jax/core/compile/"


class CompileClock:
    """Adds up jax's own reports of tracing, lowering and compiling, counting nested and overlapping ones once.

    Use as a context manager round a run; `seconds` may be read at any time.
    """

    def __init__(self):
        self._spans: list[tuple[float, float]] = []

    def __enter__(self) -> "CompileClock":
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration: float, **_: str | int) -> None:
        if event.startswith(PREFIX):
            now = time.perf_counter()
            self._spans.append((now - duration, now))

    @property
    def seconds(self) -> float:
        """Length of the union of all reported spans."""
        total, end = 0.0, float("-inf")
        for start, stop in sorted(self._spans):
            total += max(0.0, stop - max(start, end))
            end = max(end, stop)
        return total
