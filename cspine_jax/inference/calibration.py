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
