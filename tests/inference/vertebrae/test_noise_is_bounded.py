"""A network that answers noise costs no more time than one that answers vertebrae."""

import numpy as np

from cspine_jax.inference.vertebrae.instances import MOST_INSTANCES, find_instances
from cspine_jax.inference.vertebrae.order import name_instances


def test_noise_makes_no_more_instances_than_a_spine_could_have():
    rng = np.random.default_rng(0)
    probabilities = rng.random((40, 24, 24, 20)).astype(np.float32)
    probabilities /= probabilities.sum(-1, keepdims=True)
    offsets = rng.normal(0, 10, (40, 24, 24, 3)).astype(np.float32)
    instances = find_instances(probabilities, offsets, (4.0, 4.0, 4.0))
    assert len(instances) <= MOST_INSTANCES
    levels = name_instances(instances).levels
    named = levels[levels >= 0]
    assert (np.diff(named) > 0).all()
