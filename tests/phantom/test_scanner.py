"""What the scanner does to a known object: noise, kernel, streaks, metal, motion, clipping."""

import dataclasses

import numpy as np
import pytest

from cspine_jax.phantom.sample import sample_study
from cspine_jax.phantom.scanner import HU_MAX, HU_MIN, PADDING_HU, align, kernel, scan, slice_shifts_px
from cspine_jax.phantom.scene import Metal, Scene

SIZE, DEPTH = 96, 12


def plan_with(**changes):
    plan = sample_study(0, 0, size=SIZE, scale=0.05)
    changes = {"slices": DEPTH, "motion_mm": 0.0, "noise_hu": 30.0, "pixel_mm": 0.8, "seed": 5, **changes}
    return dataclasses.replace(plan, acquisition=dataclasses.replace(plan.acquisition, **changes))


def scene_of(hu, path=130.0, metal=()):
    empty = np.zeros((DEPTH, SIZE, SIZE), np.uint8)
    hu = np.broadcast_to(np.asarray(hu, np.float32), empty.shape).copy()
    return Scene(hu, empty, empty, np.full(DEPTH, path, np.float32), metal)


def middle(hu, margin=24):
    return hu[:, margin:-margin, margin:-margin].astype(float)


@pytest.mark.parametrize("noise_hu", [15.0, 60.0])
@pytest.mark.parametrize("sharpness", [0.1, 0.9])
def test_noise_has_the_planned_standard_deviation(noise_hu, sharpness):
    water = middle(scan(scene_of(50), plan_with(noise_hu=noise_hu, sharpness=sharpness)))
    detrended = water - water.mean(axis=0, keepdims=True)
    assert detrended.std() * np.sqrt(DEPTH / (DEPTH - 1)) == pytest.approx(noise_hu, rel=0.06)
    assert 20 < water.mean() <= 51  # cupping may take up to 25 HU


def test_noise_is_coloured_and_shared_by_overlapping_slices():
    def z_correlation(plan):
        n = middle(scan(scene_of(50), plan))
        n -= n.mean(axis=0, keepdims=True)
        return np.mean(n[1:] * n[:-1]) / n.var(), n

    plan = plan_with(spacing_mm=0.5, thickness_mm=1.0, pixel_mm=0.4, sharpness=0.2)
    overlapping, n = z_correlation(plan)
    apart, _ = z_correlation(plan_with(spacing_mm=1.0, thickness_mm=1.0, pixel_mm=0.4, sharpness=0.2))
    assert overlapping > apart + 0.2
    spectrum = (np.abs(np.fft.fft2(n)) ** 2).mean(axis=0)
    size = spectrum.shape[0]
    low, mid, high = spectrum[0, 1], spectrum[0, size // 6], spectrum[0, size // 2]
    assert mid > 2 * low and mid > 2 * high  # ramp below, kernel above


def test_soft_kernel_blurs_and_sharp_kernel_overshoots():
    edge = np.where(np.arange(SIZE) < SIZE // 2, 1000.0, 0.0)
    profiles = []
    for sharpness in (0.0, 1.0):
        hu = scan(scene_of(edge[None, None, :]), plan_with(sharpness=sharpness, noise_hu=0.01, pixel_mm=0.4))
        profiles.append(middle(hu).mean(axis=(0, 1)))
    soft, sharp = profiles
    assert sharp.max() > soft.max() + 50
    assert np.abs(np.diff(sharp)).max() > np.abs(np.diff(soft)).max()
    for sharpness in (0.0, 0.5, 1.0):
        taps = kernel(sharpness, 0.4)
        assert taps.sum() == pytest.approx(1, abs=1e-5) and (taps == taps[::-1]).all()


def test_shoulders_bring_noise_in_horizontal_streaks():
    neck = middle(scan(scene_of(50), plan_with()))
    shoulders = middle(scan(scene_of(50, path=380.0), plan_with()))
    assert shoulders.std() > 1.8 * neck.std()

    def along(hu, axis):
        hu = hu - hu.mean(axis=(1, 2), keepdims=True)
        a, b = np.split(np.moveaxis(hu, axis, 0)[: 2 * (hu.shape[axis] // 2)].reshape(-1, 2, *[hu.shape[0], 48]), 2, 1)
        return np.mean(a * b) / hu.var()

    assert along(shoulders, 2) > along(shoulders, 1) + 0.1


def test_metal_saturates_and_streaks_only_near_it():
    metal = (Metal((6.0, 48.0, 40.0), 3.0),)
    plan = plan_with(spacing_mm=2.0, thickness_mm=2.0)
    with_metal, without = scan(scene_of(50, metal=metal), plan), scan(scene_of(50), plan)
    assert with_metal[6, 48, 40] == HU_MAX
    assert with_metal[6].std() > 2 * without[6].std()
    # The rest of the scanner's draws are shared only in distribution: far slices look alike, not equal.
    assert middle(with_metal)[0].std() == pytest.approx(middle(without)[0].std(), rel=0.1)


def test_motion_moves_labels_with_the_image():
    plan = plan_with(motion_mm=2.4, noise_hu=1.0)
    shifts = slice_shifts_px(plan)
    assert np.abs(shifts).max() in (2, 3) and shifts.shape == (DEPTH, 2)
    square = np.zeros((DEPTH, SIZE, SIZE), np.uint8)
    square[:, 40:56, 40:56] = 3
    moved = align(square, plan)
    hu = scan(scene_of(np.where(square > 0, 1000.0, 0.0)), plan)
    for k in range(DEPTH):
        seen = np.argwhere(hu[k] > 500).mean(axis=0)
        told = np.argwhere(moved[k] == 3).mean(axis=0)
        np.testing.assert_allclose(seen, told, atol=0.35)
    assert not slice_shifts_px(plan_with()).any()
    np.testing.assert_array_equal(align(square, plan_with()), square)


def test_range_padding_and_determinism():
    kinds = set()
    for seed in range(12):
        plan = plan_with(seed=seed)
        hu = scan(scene_of(np.where(np.arange(SIZE) < 48, 9000.0, -1000.0)), plan)
        assert hu.dtype == np.int16 and hu.max() == HU_MAX
        np.testing.assert_array_equal(hu, scan(scene_of(np.where(np.arange(SIZE) < 48, 9000.0, -1000.0)), plan))
        corner = np.unique(hu[:, 0, -1])
        kinds.add(int(corner[0]) if len(corner) == 1 else None)
        everywhere = align(np.ones(hu.shape, np.uint8), plan)
        assert (everywhere[:, 0, 0] == (0 if len(corner) == 1 else 1)).all() and everywhere[:, 48, 48].all()
        assert hu[hu != PADDING_HU].min() >= HU_MIN
    assert {None, HU_MIN, PADDING_HU} <= kinds
