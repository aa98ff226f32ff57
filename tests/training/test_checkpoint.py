"""Checkpoints on their own: what is kept, which is best, refusal of a wrong model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cspine_jax.errors import DataError
from cspine_jax.training.checkpoint import Checkpoints
from cspine_jax.training.sharding import place
from cspine_jax.training.state import TrainState, abstract_state

PLACEMENT = place()


def state(step, width=3):
    value = TrainState(
        jnp.asarray(step, jnp.int32), {"w": jnp.full(width, float(step))}, {"m": jnp.zeros(2)}, (jnp.ones(width), ())
    )
    return jax.device_put(value, PLACEMENT.replicated)


def abstract(width=3):
    return abstract_state(lambda: state(0, width), PLACEMENT)


def test_last_and_best_are_kept_and_the_best_is_loaded(tmp_path):
    losses = {1: 0.5, 2: None, 3: 0.3, 4: None, 5: 0.3, 6: 0.4, 7: None}
    with Checkpoints(tmp_path, keep_last=2, keep_best=1) as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(state(step), {"step": step, "note": [1, None, "x"]}, loss)
        checkpoints.wait()
        assert checkpoints.steps == {5: 0.3, 6: 0.4, 7: None}
        assert checkpoints.best_step == 5
    with Checkpoints(tmp_path, keep_last=2, keep_best=1) as checkpoints:
        params, stats, step = checkpoints.load_model(abstract().params, abstract().stats)
        assert step == 5
        np.testing.assert_array_equal(params["w"], 5.0)
        np.testing.assert_array_equal(stats["m"], 0.0)
        restored, progress = checkpoints.restore(abstract())
        assert int(restored.step) == 7 and progress == {"step": 7, "note": [1, None, "x"]}
        assert jax.tree.structure(restored) == jax.tree.structure(state(0))
        assert restored.params["w"].sharding == PLACEMENT.replicated


def test_a_step_saved_again_gets_its_loss(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state(1), {"step": 1})
        checkpoints.save(state(1), {"step": 1}, 0.25)
        checkpoints.wait()
        assert checkpoints.steps == {1: 0.25}


def test_a_donated_state_does_not_reach_into_the_checkpoint(tmp_path):
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 100, s), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        running = state(1)
        checkpoints.save(running, {"step": 1})
        step(running)
        checkpoints.wait()
        restored, _ = checkpoints.restore(abstract())
        np.testing.assert_array_equal(restored.params["w"], 1.0)


def test_an_empty_folder_has_nothing_to_resume_and_no_model(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(abstract()) is None and checkpoints.best_step is None
        with pytest.raises(DataError, match="no checkpoint; train first"):
            checkpoints.load_model(abstract().params, abstract().stats)


def test_the_checkpoint_of_another_model_is_refused_and_left_alone(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state(1), {"step": 1})
        checkpoints.wait()
        with pytest.raises(
            DataError, match=r"another network .*\(params\.other: none, wanted \(4,\)\).*train again in"
        ):
            checkpoints.load_model({"other": abstract(4).params["w"]}, abstract(4).stats)
        with pytest.raises(DataError, match=r"/1: holds another network .*\(params\.w: \(3,\), wanted \(4,\)\)"):
            checkpoints.restore(abstract(4))
        more = abstract().params | {"v": abstract().params["w"]}
        with pytest.raises(DataError, match=r"/1: holds another network .*\(params\.v: none, wanted \(3,\)\)"):
            checkpoints.restore(dataclasses.replace(abstract(), params=more))
        assert list(checkpoints.steps) == [1] and checkpoints.restore(abstract()) is not None
