"""Seconds spent compiling, and the cache on disk."""

import time

import jax
import jax.numpy as jnp
import pytest

from cspine_jax.cli import main
from cspine_jax.training.compiling import VARIABLE, CompileClock, enable_cache


def test_nested_and_overlapping_spans_count_once():
    clock = CompileClock()
    clock._spans = [(0.0, 1.0), (0.2, 0.4), (0.9, 1.5), (3.0, 3.5)]
    assert clock.seconds == 2.0


def test_the_clock_sees_compilation_and_not_running():
    with CompileClock() as clock:
        before = time.perf_counter()
        run = jax.jit(lambda x: jnp.cos(x) * 3.25 + jnp.arange(7.0)).lower(jnp.ones(7)).compile()
        wall = time.perf_counter() - before
        compiled = clock.seconds
        run(jnp.ones(7))
    assert 0 < compiled <= wall
    assert clock.seconds == compiled
    jax.jit(lambda x: x * 1.0625)(jnp.ones(3))  # after the end: not counted
    assert clock.seconds == compiled


def test_the_cache_can_be_off_or_somewhere(tmp_path, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        assert enable_cache("off") is None
        monkeypatch.setenv(VARIABLE, "OFF")
        assert enable_cache() is None
        monkeypatch.setenv(VARIABLE, str(tmp_path))
        folder = enable_cache()
        assert folder.parent == tmp_path and jax.config.jax_compilation_cache_dir == str(folder)
        assert enable_cache(str(tmp_path / "other")) == folder  # what jax was told already stays
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


@pytest.mark.parametrize(("verb", "missing"), [("segment", "--weights"), ("predict", "--checkpoint")])
def test_what_answers_studies_keeps_its_programs_too(tmp_path, monkeypatch, capsys, verb, missing):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        assert main([verb, "study", missing, str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
        assert str(tmp_path / "none") in capsys.readouterr().err
        assert jax.config.jax_compilation_cache_dir.startswith(str(tmp_path / "cache"))
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
