"""Published weights: from the names and shapes of a torch state dict to the arrays of a network of this package.

A family's `NAMES` maps a source ("torchvision", "timm", ...) to rules `(pattern, replacement)`, applied in order with
`re.sub` to this package's dotted parameter name, whose last part has already become torch's (`kernel` and `scale` ->
`weight`, `mean` -> `running_mean`, `var` -> `running_var`). Arrays follow by shape alone: convolutions `[kh, kw, in,
out]` from `[out, in, kh, kw]`, matrices `[in, out]` from `[out, in]`, anything else of equal size is reshaped.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

Rule = tuple[str, str | Callable[[re.Match], str]]

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def torch_name(path: Iterable[Any], rules: Iterable[Rule]) -> str:
    """The name in a state dict of the parameter at `path` of a module's state."""
    *parts, leaf = (str(part) for part in path)
    name = ".".join([*parts, _LEAVES.get(leaf, leaf)])
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def from_torch(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """An array of a state dict in this package's order; None where it cannot have `shape`."""
    if len(shape) == 4 and array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
    elif len(shape) == 2 and array.ndim == 2:
        array = array.T
    elif len(shape) == 2 and array.ndim == 4 and array.shape[2:] == (1, 1):  # a 1x1 convolution used as a matrix
        array = array[:, :, 0, 0].T
    elif array.size == int(np.prod(shape)) and 4 not in (len(shape), array.ndim):
        array = array.reshape(shape)
    return array if array.shape == shape else None


def module_arrays(state: nnx.State) -> dict[tuple[Any, ...], Any]:
    """Path -> variable of every parameter and batch statistic of a module's state."""
    return {path: variable for path, variable in nnx.to_flat_state(state) if isinstance(variable, nnx.Param | nnx.BatchStat)}


def converted(
    state: nnx.State, table: Mapping[str, np.ndarray], rules: Iterable[Rule]
) -> tuple[dict[tuple[Any, ...], np.ndarray], list[str], list[str], list[str]]:
    """Finds each array of a module in a state dict.

    Args:
        state: of the module (shapes suffice).
        table: the state dict.
        rules: of the source that wrote it.

    Returns:
        Arrays by path, and the names of those missing, misshapen ("name: has [..], wanted [..]") and unexpected.
    """
    rules = tuple(rules)
    arrays, missing, misshapen, used = {}, [], [], set()
    for path, variable in module_arrays(state).items():
        name = torch_name(path, rules)
        if name not in table:
            missing.append(name)
            continue
        used.add(name)
        array = from_torch(table[name], variable.shape)
        if array is None:
            misshapen.append(f"{name}: has {list(table[name].shape)}, wanted {list(variable.shape)} as [.., in, out]")
        else:
            arrays[path] = array
    unexpected = [name for name in table if name not in used and not name.endswith("num_batches_tracked")]
    return arrays, missing, misshapen, unexpected


def overlaid(state: nnx.State, arrays: Mapping[tuple[Any, ...], np.ndarray]) -> nnx.State:
    """The state with arrays put in place, each of the type that was there."""

    def put(path: tuple[Any, ...], variable: Any) -> Any:
        return variable.replace(jax.numpy.asarray(arrays[path], variable.dtype)) if path in arrays else variable

    return nnx.map_state(put, state)
