"""Settings of the C library's allocator that training on the CPU is fast with."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
"""Parameters of mallopt(3)."""


def keep_freed_memory() -> bool:
    """Lets this process keep the memory that it frees: one that trains, before it imports jax, or works on volumes.

    A training step on the CPU frees its hundreds of megabytes of intermediate results at its end. The C library gives
    them back to the system, which hands them out again in the next step page by page: a tenth to a quarter of the step.
    Threads that have allocated before keep the old ways, so this has to come before those of XLA.

    Returns:
        Whether it did: only glibc can.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 64 << 20), (M_ARENA_MAX, 1))
    return all([mallopt(name, value) == 1 for name, value in settings])
