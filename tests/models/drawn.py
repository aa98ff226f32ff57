"""Networks with weights drawn by numpy: compiling an initialisation costs more than the tests that need one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def drawn(build: Callable[[nnx.Rngs], Any], seed: int = 0) -> tuple[Any, Any]:
    """Graph and state: normal weights of variance 1 / fan-in, vectors near what they start as, variances 1."""
    rng = np.random.default_rng(seed)
    graph, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))

    def value(path: Any, x: Any) -> jax.Array:
        name = jax.tree_util.keystr(path)
        if len(x.shape) > 1:
            fan_in = np.prod(x.shape[:-1])
            return jnp.asarray(rng.normal(size=x.shape) / np.sqrt(fan_in), x.dtype)
        return jnp.asarray(
            0.1 * rng.normal(size=x.shape) * ("var" not in name) + ("scale" in name or "var" in name), x.dtype
        )

    return graph, jax.tree_util.tree_map_with_path(value, state)
