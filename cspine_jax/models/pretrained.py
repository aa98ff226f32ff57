"""Published weights: from the names and shapes of a torch state dict to the arrays of a network of this package.

A family's `NAMES` maps a source ("torchvision", "timm", ...) to rules `(pattern, replacement)`, applied in order with
`re.sub` to this package's dotted parameter name, whose last part has already become torch's (`kernel` and `scale` ->
`weight`, `mean` -> `running_mean`, `var` -> `running_var`). Arrays follow by shape alone: convolutions `[kh, kw, in,
out]` from `[out, in, kh, kw]`, matrices `[in, out]` from `[out, in]`, anything else of equal size is reshaped.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from cspine_jax.models.first_layer import Arrays, Path

Rule = tuple[str, str | Callable[[re.Match], str]]

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def torch_name(path: Iterable[Any], rules: Iterable[Rule]) -> str:
    """The name in a state dict of the parameter at `path` of a module's state."""
    *parts, leaf = (str(part) for part in path)
    name = ".".join([*parts, _LEAVES.get(leaf, leaf)])
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def own_name(path: Iterable[Any]) -> str:
    """The name of the parameter at `path` in a file of this package's own."""
    return ".".join(map(str, path))


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


def torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """What torch has where this package has `shape`; the inverse of `from_torch`."""
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]


def as_it_is(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """The array, if it has `shape`: of a file of this package's own."""
    return array if array.shape == shape else None


def module_arrays(state: nnx.State) -> dict[Path, Any]:
    """Path -> variable of every parameter and batch statistic of a module's state."""
    return {
        path: variable for path, variable in nnx.to_flat_state(state) if isinstance(variable, nnx.Param | nnx.BatchStat)
    }


def shapes_of(state: nnx.State) -> dict[Path, tuple[int, ...]]:
    """Path -> shape of every parameter and batch statistic of a module's state."""
    return {path: tuple(variable.shape) for path, variable in module_arrays(state).items()}


def converted(
    state: nnx.State, table: Mapping[str, np.ndarray], rules: Iterable[Rule]
) -> tuple[Arrays, list[str], list[str], list[str]]:
    """Finds each array of a module in a state dict.

    Args:
        state: of the module (shapes suffice).
        table: the state dict.
        rules: of the source that wrote it.

    Returns:
        Arrays by path, and the names of those missing, misshapen ("name: has [..], wanted [..]") and unexpected.
    """
    rules = tuple(rules)
    return found(shapes_of(state), table, lambda path: torch_name(path, rules), from_torch)


def found(
    shapes: Mapping[Path, tuple[int, ...]],
    table: Mapping[str, np.ndarray],
    name_of: Callable[[Path], str],
    ordered: Callable[[np.ndarray, tuple[int, ...]], np.ndarray | None],
) -> tuple[Arrays, list[str], list[str], list[str]]:
    """`converted` for any source: its name of a path, and what makes an array of it one of ours (see `from_torch`)."""
    arrays, missing, misshapen, used = {}, [], [], set()
    for path, shape in shapes.items():
        name = name_of(path)
        if name not in table:
            missing.append(name)
            continue
        used.add(name)
        theirs = table[name]
        array = ordered(theirs, shape) if jnp.issubdtype(theirs.dtype, jnp.floating) else None
        if array is None:
            wanted = shape if ordered is as_it_is else torch_shape(shape)
            misshapen.append(f"{name}: has {theirs.dtype} {list(theirs.shape)}, wanted {list(wanted)}")
        else:
            arrays[path] = array
    counted = {name for name, array in table.items() if np.issubdtype(array.dtype, np.integer)}  # nothing learned
    unexpected = [name for name in table if name not in used | counted]
    return arrays, missing, misshapen, unexpected


def overlaid(state: nnx.State, arrays: Mapping[Path, np.ndarray]) -> nnx.State:
    """The state with arrays put in place, each of the type that was there."""

    def put(path: Path, variable: Any) -> Any:
        return variable.replace(jnp.asarray(arrays[path], variable.dtype)) if path in arrays else variable

    return nnx.map_state(put, state)
