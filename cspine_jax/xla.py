"""`jax.jit` with the compiler's options that this package is fast with; every hot path compiles through it."""

import functools
from collections.abc import Callable
from typing import Any

import jax

CPU_OPTIONS = {
    # jaxlib 0.10 gives convolutions to a library that divides them among threads by output channels only: below 96 of
    # them one core works and the others wait. XLA's own runtime divides them by pixels, too. Sums stay with the
    # library, which is several times as fast at them.
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
}


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
