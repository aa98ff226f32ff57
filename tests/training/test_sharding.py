"""Batches on the way to the devices."""

import jax
import numpy as np
import pytest

from cspine_jax.training.sharding import place


@pytest.mark.parametrize("count", [1, 2])
def test_a_batch_is_there_when_it_is_put(count):
    """Else the program that it is given to runs on another thread, whose memory is given back after each step."""
    placement = place(jax.devices()[:count])
    batch = {"image": np.ones((2, 64 << 20), np.int8), "valid": np.ones(2, bool)}
    for _ in range(3):
        assert all(array.is_ready() for array in placement.put(batch).values())


def test_rows_that_the_devices_do_not_divide_are_repeated_and_invalid():
    placement = place(jax.devices()[:2])
    placed = placement.put({"x": np.arange(3), "valid": np.ones(3, bool)})
    np.testing.assert_array_equal(placed["x"], [0, 1, 2, 2])
    np.testing.assert_array_equal(placed["valid"], [True, True, True, False])
