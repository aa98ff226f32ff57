"""Settings of the C library's allocator that training on the CPU is fast with."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameters of mallopt(3)."""


def keep_freed_memory() -> bool:
    """Lets this process keep the memory that it frees: one that trains, or works on volumes.

    A training step on the CPU frees its hundreds of megabytes of intermediate results at its end. The C library gives
    them back to the system, which hands them out again in the next step page by page: a tenth to a quarter of the step.
    The main thread's are kept whatever their size, another thread's up to 64 MiB each (an arena's part in glibc), which
    is why `xla.tune_process` has programs run on the thread that calls them. One arena for all threads would keep
    everything, but XLA's matrix products ask for workspace block by block, and would wait for each other there: a
    quarter of the step.

    Returns:
        Whether it did: only glibc can.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # The last is more than an arena's parts hold together, so that none is given back when it is empty.
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 256 << 20))
    return all([mallopt(name, value) == 1 for name, value in settings])
