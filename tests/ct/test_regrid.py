"""Resampling to another spacing keeps places, means and constants."""

import numpy as np
import pytest

from cspine_jax.ct.regrid import axis_weights, regrid, regrid_labels, source_positions, target_length


@pytest.mark.parametrize(("spacing", "target"), [(0.4, 1.0), (1.0, 0.4), (0.625, 2.0), (3.0, 1.0), (1.0, 1.0)])
def test_a_linear_ramp_stays_where_it_is(spacing, target):
    n = 60
    ramp = np.arange(n, dtype=np.float32)
    out = axis_weights(n, spacing, target) @ ramp
    at = source_positions(n, spacing, target)
    inside = (at > target / spacing + 1) & (at < n - 2 - target / spacing)
    assert inside.sum() > 5
    np.testing.assert_allclose(out[inside], at[inside], atol=2e-3 * n)


def test_same_spacing_is_the_identity():
    volume = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    np.testing.assert_allclose(regrid(volume, (2, 1, 1), (2, 1, 1)), volume, atol=1e-6)


def test_constants_stay_and_extents_agree():
    volume = np.full((33, 40, 50), -1000, np.int16)
    out = regrid(volume, (0.625, 0.41, 0.41), 1.0)
    assert (
        out.shape == (21, 17, 21) == tuple(target_length(n, s, 1.0) for n, s in ((33, 0.625), (40, 0.41), (50, 0.41)))
    )
    np.testing.assert_allclose(out, -1000, rtol=1e-5)


def test_a_fine_pattern_is_averaged_not_sampled():
    stripes = np.tile([0.0, 1000.0], 60)[None, None, :] * np.ones((1, 1, 1))
    out = regrid(stripes, (1, 1, 0.5), (1, 1, 2.0))
    assert np.abs(out[0, 0, 1:-1] - 500).max() < 1


def test_a_ball_and_its_mask_stay_together():
    z, y, x = np.ogrid[:48, :60, :60]
    ball = ((z * 1.5 - 30) ** 2 + (y * 0.7 - 20) ** 2 + (x * 0.7 - 22) ** 2 < 12**2).astype(np.uint8)
    soft = regrid(ball * 100, (1.5, 0.7, 0.7), 1.0) > 50
    hard = regrid_labels(ball, (1.5, 0.7, 0.7), 1.0) > 0
    dice = 2 * (soft & hard).sum() / (soft.sum() + hard.sum())
    assert dice > 0.97
    volumes = [m.sum() * v for m, v in ((ball, 1.5 * 0.7 * 0.7), (hard, 1.0))]
    assert abs(volumes[1] / volumes[0] - 1) < 0.02
