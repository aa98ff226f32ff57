import jax.numpy as jnp
import numpy as np
import pytest

from cspine_jax import xla


@pytest.fixture
def forget():
    xla.compiler_options.cache_clear()
    yield
    xla.compiler_options.cache_clear()


def test_a_convolution_of_few_channels_is_not_left_to_the_library_that_uses_one_core():
    from cspine_jax.models.conv import conv2d

    x, kernel = jnp.ones((2, 16, 16, 32)), jnp.ones((3, 3, 32, 32))
    compiled = xla.jit(lambda x, kernel: conv2d(x, kernel, padding=1)).lower(x, kernel).compile()
    assert "ynn_fusion" not in compiled.as_text()
    assert np.asarray(compiled(x, kernel))[0, 4, 4, 0] == 9 * 32


def test_options_that_this_jaxlib_does_not_know_are_left_out(monkeypatch, forget):
    monkeypatch.setattr(xla, "CPU_OPTIONS", {"xla_cpu_gone_since": "1"})
    assert xla.compiler_options() == {}
    assert xla.jit(lambda x: x + 1)(1) == 2


def test_options_are_the_cpu_s_only(monkeypatch, forget):
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    assert xla.compiler_options() == {}
