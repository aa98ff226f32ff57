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


def drawn_odds(fraction: float, prevalence: float) -> float:
    """By how much drawing examples raises the odds of a positive one.

    Args:
        fraction: share of positive examples in the batches of training; 0 where they are not drawn.
        prevalence: their share of all training examples, above 0 and below 1 where they are drawn.
    """
    return 1.0 if not fraction else fraction / (1 - fraction) * (1 - prevalence) / prevalence


def undrawn(p: np.ndarray, positive: np.ndarray, odds: float) -> np.ndarray:
    """Undoes the drawing of examples: outputs as if all had been equally often in training (Bayes' rule).

    Args:
        p: [N, ...] probabilities of N examples; each is of something that only a positive example has.
        positive: [N], probability that the example is positive, of the same network.
        odds: `drawn_odds`; 1 changes nothing.

    Returns:
        p / (odds - (odds - 1) positive), at most 1; float64. Where p is `positive` itself that is `unweighted`.
    """
    whole = np.asarray(positive, np.float64).reshape(-1, *[1] * (np.ndim(p) - 1))
    return np.minimum(np.asarray(p, np.float64) / (odds - (odds - 1) * whole), 1.0)
