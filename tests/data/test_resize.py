"""Resizing agrees with the device's, keeps pixel centres and never invents a label."""

import jax
import numpy as np
import pytest

from cspine_jax.data.resize import resize_hu, resize_mask


@pytest.mark.parametrize(("shape", "size"), [((96, 80), 30), ((30, 31), 64), ((64, 64), 32)])
def test_as_jax_image_resize(shape, size):
    hu = np.random.default_rng(0).integers(-1000, 2000, (2, *shape)).astype(np.int16)
    expected = jax.image.resize(hu.astype(np.float32), (2, size, size), "linear", antialias=True)
    assert np.abs(resize_hu(hu, size) - np.asarray(expected)).max() <= 0.51


def test_same_size_is_the_same_array():
    hu = np.zeros((1, 8, 8), np.int16)
    assert resize_hu(hu, 8) is hu
    assert resize_mask(hu, 8) is hu


def test_halving_is_the_mean_of_four_pixels_for_a_plane():
    """A ramp stays a ramp: pixel centres are where they were."""
    y, x = np.mgrid[:32, :32]
    hu = (10 * x + 20 * y).astype(np.int16)[None]
    expected = hu[0].reshape(16, 2, 16, 2).mean((1, 3))
    np.testing.assert_allclose(resize_hu(hu, 16)[0, 1:-1, 1:-1], expected[1:-1, 1:-1], atol=0.5)


def test_the_ends_of_int16_survive():
    for value in (-32768, 32767):
        assert (resize_hu(np.full((1, 20, 20), value, np.int16), 9) == value).all()


def test_mask_takes_the_nearest_label():
    mask = np.array([[[0, 7, 7, 0], [0, 7, 7, 0], [1, 1, 19, 19], [1, 1, 19, 19]]], np.uint8)
    np.testing.assert_array_equal(resize_mask(mask, 2), [[[7, 0], [1, 19]]])
    np.testing.assert_array_equal(resize_mask(mask, 8), mask.repeat(2, 1).repeat(2, 2))
