"""Test-wide settings: eight CPU devices, no silent rank promotion, one compilation cache for the whole run."""

import os
import tempfile

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=8"
    " --xla_cpu_collective_call_terminate_timeout_seconds=600"  # the default 40 s kills tests on a busy machine
)
# XLA sizes its thread pools by this: on fewer threads than devices, collectives wait for each other forever
os.environ.setdefault("NPROC", "32")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", os.path.join(tempfile.gettempdir(), "cspine_jax_test_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
