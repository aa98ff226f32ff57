"""Compilation: how many seconds of a run it took, and a cache on disk so that the next run spends none."""

import hashlib
import os
import platform
import time
from pathlib import Path

import jax

PREFIX = "/jax/core/compile/"
VARIABLE = "CSPINE_JAX_CACHE"


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

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        del kwargs
        if event.startswith(PREFIX):
            now = time.perf_counter()
            self._spans.append((now - duration_secs, now))

    @property
    def seconds(self) -> float:
        """Length of the union of all reported spans."""
        total, end = 0.0, float("-inf")
        for start, stop in sorted(self._spans):
            total += max(0.0, stop - max(start, end))
            end = max(end, stop)
        return total


def enable_cache(directory: str = "") -> Path | None:
    """Keeps compiled programs on disk; the second run of an experiment then starts at once.

    Args:
        directory: where; "off" for nowhere; "" takes the environment variable CSPINE_JAX_CACHE (same values), else
            `~/.cache/cspine_jax/xla`.

    Returns:
        The folder, or None where it is off. A cache that jax was already told of (`JAX_COMPILATION_CACHE_DIR`) stays.
    """
    if already := getattr(jax.config, "jax_compilation_cache_dir", None):
        return Path(already)
    chosen = directory or os.environ.get(VARIABLE, "") or "~/.cache/cspine_jax/xla"
    if chosen.lower() in ("off", "none", "0", "false"):
        return None
    path = Path(chosen).expanduser() / f"{platform.machine()}-{_cpu()}"
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return path


def _cpu() -> str:
    """A short name of this kind of CPU: programs for another one may not run here (a home folder can be shared)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        known = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    except OSError:
        known = [platform.processor()]
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:12]
