"""Files of weights as torchvision or timm would publish them, for networks of this package, with values from numpy."""

import numpy as np

from cspine_jax.models import published
from cspine_jax.models.backbones import family_of
from cspine_jax.models.pretrained import torch_name, torch_shape
from cspine_jax.models.state_dict import write_state_dict


def names_and_shapes(name, source="torchvision", num_outputs=10, in_channels=3):
    """Shape in torch's order of every array of a network, by its name in the files of a source."""
    rules = family_of(name).NAMES[source]
    shapes = published._shapes(name, num_outputs, False)
    first = published.first_kernel(shapes)
    shapes[first] = (*shapes[first][:2], in_channels, shapes[first][3])
    return {torch_name(path, rules): torch_shape(shape) for path, shape in shapes.items()}


def table_of(name, source="torchvision", num_outputs=10, in_channels=3):
    """A state dict of a network: normal numbers, variances positive."""
    rng = np.random.default_rng(0)
    shapes = names_and_shapes(name, source, num_outputs, in_channels)
    table = {}
    for key, shape in shapes.items():
        scale = 1 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.3
        table[key] = np.asarray(scale * rng.normal(size=shape), np.float32)
        if "var" in key:
            table[key] = np.exp(table[key])
    return table


def write(path, table):
    write_state_dict(path, table)
    return path
