"""The loop's counters, and how long things last. Plain Python: saved as JSON with every checkpoint."""

import dataclasses
import math
from typing import Any

from cspine_jax.config import TrainConfig


def duration(config: TrainConfig, what: str, batch_size: int, epoch_examples: int) -> int:
    """A duration in steps.

    Args:
        config: exactly one of `{what}_steps`, `{what}_epochs`, `{what}_examples` is above 0.
        what: "total" or "eval".
        batch_size: examples a step.
        epoch_examples: examples an epoch.

    Returns:
        Steps, at least 1; epochs and examples are rounded up to whole steps.
    """
    if steps := getattr(config, f"{what}_steps"):
        return steps
    examples = getattr(config, f"{what}_examples") or getattr(config, f"{what}_epochs") * epoch_examples
    return max(1, math.ceil(examples / batch_size - 1e-9))


@dataclasses.dataclass
class Counters:
    """Everything that a resumed run must know to be the same run, besides the arrays.

    Attributes:
        step: steps done.
        seed: of the run; with `step` it determines every key.
        data: the data iterator's state.
        evaluated: step of the last evaluation.
        lowest: validation loss that early stopping measures from.
        stale: evaluations since it fell by `min_delta`.
        finished: why the run is over; empty while it is not.
        window: (sum, weight) of every training figure since the last log line.
    """

    step: int = 0
    seed: int = 0
    data: Any = None
    evaluated: int = 0
    lowest: float | None = None
    stale: int = 0
    finished: str = ""
    window: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    def add(self, parts: dict[str, Any]) -> None:
        """Adds one step's (sum, weight) pairs to the window, in float64."""
        for name, (total, weight) in parts.items():
            old = self.window.get(name, [0.0, 0.0])
            self.window[name] = [old[0] + float(total), old[1] + float(weight)]

    def means(self) -> dict[str, float]:
        """Means over the window, which is emptied."""
        means = {name: total / max(weight, 1e-6) for name, (total, weight) in self.window.items()}
        self.window = {}
        return means

    def judge(self, loss: float, config: TrainConfig) -> None:
        """Early stopping as document B's: `patience` evaluations without a fall of the loss by `min_delta`."""
        if self.lowest is None or loss < self.lowest - config.min_delta:
            self.lowest, self.stale = loss, 0
        else:
            self.stale += 1
        if config.patience and self.stale >= config.patience:
            self.finished = (
                f"early stopping at step {self.step}: the validation loss did not fall {config.min_delta:g} below "
                f"{self.lowest:.4f} in {config.patience} evaluations"
            )
