"""From what a network says to a probability."""

import numpy as np


def unweighted(q: np.ndarray, positive_weight: float) -> np.ndarray:
    """Undoes the loss weight of positives: trained with weight w a network tends to q = w p / (1 + (w - 1) p).

    Args:
        q: outputs, any shape.
        positive_weight: w > 0; 1 changes nothing, 2 gives `cspine_jax.metrics.clinical_probability`.

    Returns:
        p = q / (w - (w - 1) q), float64.
    """
    q = np.asarray(q, np.float64)
    return q / (positive_weight - (positive_weight - 1) * q)


def clinical_outputs(found: dict[str, np.ndarray], positive_weight: float) -> dict[str, np.ndarray]:
    """The table of a pass of a study-level task (see `training.evaluate.run_pass`) with every `*_prob` `unweighted`."""
    return {name: unweighted(x, positive_weight) if name.endswith("_prob") else x for name, x in found.items()}
