"""The one-cycle schedule against PyTorch's formula, the optimizer's clipping and decay."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from cspine_jax.config import OptimConfig
from cspine_jax.training.optim import cosine, make_optimizer, make_schedule, one_cycle


def onecycle_by_phases(peak, total, step, pct=0.3):
    """OneCycleLR (cos, div_factor 25, final_div_factor 1e4) written as its documentation does: two annealed phases."""
    initial, last = peak / 25, peak / 25 / 1e4
    end_up, end_down = pct * total - 1, total - 1

    def anneal(start, stop, share):
        return stop + (start - stop) / 2 * (1 + math.cos(math.pi * share))

    if step <= end_up:
        return anneal(initial, peak, step / end_up)
    return anneal(peak, last, (step - end_up) / (end_down - end_up))


@pytest.mark.parametrize("total", [10, 100, 1001])
def test_one_cycle_has_the_values_of_pytorch(total):
    schedule = one_cycle(1e-3, total)
    steps = range(total) if total <= 100 else range(0, total, 7)
    expected = [onecycle_by_phases(1e-3, total, step) for step in steps]
    np.testing.assert_allclose([float(schedule(step)) for step in steps], expected, rtol=1e-4)


def test_one_cycle_golden_values():
    # 100 steps, peak 1: starts at 1/25, peaks at step 29, ends at 4e-6
    schedule = one_cycle(1.0, 100)
    np.testing.assert_allclose([float(schedule(s)) for s in (0, 14.5, 29, 64)], [0.04, 0.52, 1.0, 0.500002], rtol=1e-5)
    np.testing.assert_allclose([float(schedule(s)) for s in (99, 150)], 4e-6, rtol=0.05)


@pytest.mark.parametrize("total", [1, 2, 3])
def test_one_cycle_of_a_very_short_run_is_finite(total):
    rates = [float(one_cycle(1.0, total)(step)) for step in range(total)]
    assert np.isfinite(rates).all() and min(rates) >= 0


def test_clipping_bounds_the_gradient_that_adam_sees():
    params = {"w": jnp.zeros(4)}
    for clip, bound in ((1.0, 1.0), (0.0, 200.0)):
        optimizer = make_optimizer(OptimConfig(lr=1.0, clip_norm=clip), 10)
        state = optimizer.init(params)
        _, state = optimizer.update({"w": jnp.full(4, 100.0)}, state, params)
        first_moment = [x for x in state if hasattr(x, "mu") or isinstance(x, tuple)]
        mu = next(
            s.mu
            for group in first_moment
            for s in (group if isinstance(group, tuple) else (group,))
            if hasattr(s, "mu")
        )
        assert float(jnp.linalg.norm(mu["w"])) == pytest.approx(0.1 * bound, rel=1e-5)


def test_decay_moves_matrices_and_leaves_vectors():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    optimizer = make_optimizer(OptimConfig(lr=1.0, weight_decay=0.5, clip_norm=0.0), 10)
    gradients = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(updates["bias"], 0)
    np.testing.assert_allclose(updates["kernel"], -0.5 * 0.04, rtol=1e-5)


def test_cosine_golden_values():
    # 101 steps from 1 to 0.1, the first 20.2 of them rising
    schedule = make_schedule(OptimConfig(lr=1.0, schedule="cosine", final_lr=0.1, warmup=0.2), 101)
    assert float(schedule(0)) == pytest.approx(1 / 21.2)
    assert float(schedule(20)) == pytest.approx(21 / 21.2)
    assert float(schedule(60.1)) == pytest.approx(0.55)
    np.testing.assert_allclose([float(schedule(s)) for s in (100, 300)], 0.1, rtol=1e-5)
    flat = cosine(2e-4, 2e-5, 50)
    assert float(flat(0)) == pytest.approx(2e-4) and float(flat(49)) == pytest.approx(2e-5)


def test_the_default_schedule_is_one_cycle():
    schedule, reference = make_schedule(OptimConfig(lr=1e-3), 100), one_cycle(1e-3, 100, 0.3)
    assert [float(schedule(s)) for s in (0, 40, 99)] == [float(reference(s)) for s in (0, 40, 99)]
