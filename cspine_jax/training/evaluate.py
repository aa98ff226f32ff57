"""One pass over a set of examples in evaluation mode: means of the loss and a host table of every output."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from cspine_jax.training.sharding import Placement
from cspine_jax.training.step import Once
from cspine_jax.training.task import Batch


def run_pass(
    step: Once,
    params: Any,
    stats: Any,
    batches: Iterable[Batch],
    placement: Placement,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, float], dict[str, np.ndarray]] | None:
    """Runs the model over `batches`.

    Args:
        step: from `step.evaluator`; compiled at the first batch and for its shape only.
        params: on the devices.
        stats: on the devices.
        batches: host batches of one fixed shape, padding marked by `valid` False.
        placement: the devices.
        stop: asked after each batch; True gives the pass up.

    Returns:
        (means, table): every loss part averaged by its weight; every output and every batch column of at most two axes,
        [N, ...] in batch order with padding removed. None where `stop` said so.
    """
    sums: dict[str, np.ndarray] = {}
    tables: list[dict[str, np.ndarray]] = []
    running: Any = None
    for batch in batches:
        started = step(params, stats, placement.put(batch))
        if running is not None:  # fetch the previous batch while this one computes
            _collect(running, sums, tables)
        running = started
        if stop():
            return None
    if running is not None:
        _collect(running, sums, tables)
    means = {name: float(total / max(weight, 1e-6)) for name, (total, weight) in sums.items()}
    names = tables[0] if tables else {}
    return means, {name: np.concatenate([table[name] for table in tables]) for name in names}


def _collect(running: Any, sums: dict[str, np.ndarray], tables: list[dict[str, np.ndarray]]) -> None:
    parts, table = jax.device_get(running)
    for name, pair in parts.items():
        sums[name] = sums.get(name, np.zeros(2)) + np.asarray(pair, np.float64)
    tables.append({name: x[table["valid"]] for name, x in table.items()})
