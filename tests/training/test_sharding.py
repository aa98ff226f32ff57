"""Batches on the way to the devices."""

import types

import jax
import numpy as np
import pytest

from cspine_jax.training.sharding import dividing, place


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


@pytest.mark.parametrize(("rows", "used"), [(0, 8), (16, 8), (8, 8), (12, 6), (4, 4), (2, 2), (1, 1), (7, 7), (11, 1)])
def test_as_many_devices_as_divide_a_training_batch(rows, used):
    assert place(jax.devices()[:8], rows=rows).mesh.devices.size == used


def test_hosts_use_equally_many_devices():
    """A batch of 12 on two hosts of four: six rows each, on three devices."""
    hosts = [types.SimpleNamespace(process_index=host, name=f"{host}.{n}") for host in (0, 1) for n in range(4)]
    names = [device.name for device in dividing(hosts, 12)]
    assert names == ["0.0", "0.1", "0.2", "1.0", "1.1", "1.2"]
