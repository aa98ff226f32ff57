"""XLA's settings that this package is fast with on the CPU: a process's, and the compiler's of every hot path."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from cspine_jax.memory import keep_freed_memory

CPU_OPTIONS = {
    # jaxlib 0.10 gives convolutions to a library that divides them among threads by output channels only: below 96 of
    # them one core works and the others wait. XLA's own runtime divides them by pixels, too. Sums stay with the
    # library, which is several times as fast at them.
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
}


def tune_process() -> bool:
    """Settings of a process that trains on the CPU; for programs, before they have jax do anything.

    Freed memory is kept, and a program runs on the thread that calls it instead of one of jax's own: intermediate
    results are asked for there, and the C library keeps large ones only for the main thread.

    Returns:
        Whether freed memory is kept: only glibc can.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    return keep_freed_memory()


@functools.cache
def compiler_options() -> dict[str, str]:
    """`CPU_OPTIONS` where programs run on the CPU and this jaxlib knows them, else nothing."""
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=CPU_OPTIONS).lower().compile()
    except jax.errors.JaxRuntimeError:  # another jaxlib: experimental options come and go
        return {}
    return CPU_OPTIONS


def jit(function: Callable, **options: Any) -> jax.stages.Wrapped:
    """`jax.jit(function, **options)`, compiled with `compiler_options`; not to be called inside another jitted one."""
    return jax.jit(function, compiler_options=compiler_options(), **options)
