"""The seven levels: absent ones say nothing, neighbours are looked at first, the patient hears from all."""

import jax
import numpy as np
from flax import nnx

from cspine_jax.models.sequence.levels import LevelTransformer
from tests.models.drawn import drawn


def test_levels_that_are_there_and_no_others_reach_all_tokens():
    graph, state = drawn(lambda rngs: LevelTransformer(3, 8, heads=2, depth=1, rngs=rngs))
    x = np.random.default_rng(0).normal(size=(1, 7, 3)).astype(np.float32)
    mask = np.array([[False, False, True, True, True, True, False]])

    @jax.jit
    def run(x):
        def cubes(x):
            y = nnx.merge(graph, state)(x, mask)
            return (y**3)[0].sum(-1), y

        slopes, y = jax.jacrev(cubes, has_aux=True)(x)
        return y, slopes[:, 0]

    y, slopes = run(np.where(mask[..., None], x, np.nan))
    assert y.shape == (1, 8, 8) and np.isfinite(y).all() and np.isfinite(slopes).all()
    np.testing.assert_array_equal(y[0, 1:][~mask[0]], 0)
    tokens = np.concatenate([[True], mask[0]])
    np.testing.assert_array_equal(np.abs(slopes).sum(-1) > 0, tokens[:, None] & mask[0][None])


def test_attention_starts_out_falling_with_distance_and_leaves_the_patient_alone():
    model = LevelTransformer(3, 8, heads=2, depth=1, rngs=nnx.Rngs(0))
    bias = np.asarray(model.bias())
    assert bias.shape == (2, 8, 8)
    np.testing.assert_array_equal(bias[:, 0], 0)
    np.testing.assert_array_equal(bias[:, :, 0], 0)
    np.testing.assert_array_equal(bias[:, 1:, 1:], bias[:, 1:, 1:].transpose(0, 2, 1))
    assert (np.diff(bias[:, 1, 1:]) < 0).all()
    assert bias[0, 3, 4] == bias[0, 6, 5] == -(2.0**-4)
