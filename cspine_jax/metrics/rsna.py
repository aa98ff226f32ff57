"""The RSNA 2022 metric in its three normalisations, and what its weights do to a probability."""

import numpy as np

from cspine_jax.anatomy import NUM_VERTEBRAE, PATIENT_WEIGHTS, VERTEBRA_WEIGHTS

_NEGATIVE, _POSITIVE = (
    np.array([p, *[v] * NUM_VERTEBRAE]) for p, v in zip(PATIENT_WEIGHTS, VERTEBRA_WEIGHTS, strict=True)
)


def rsna_log_loss(
    labels: np.ndarray,
    probabilities: np.ndarray,
    normalisation: str = "A",
    eps: float = 1e-15,
    weights: np.ndarray | None = None,
) -> float | np.ndarray:
    """Weighted log loss, w = 1 / 2 for a negative / positive vertebra and 7 / 14 for patient_overall.

    l = -(y log p + (1 - y) log(1 - p)). Public implementations normalise it in three ways:
        A: per study sum(w l) / sum(w), then the mean over studies;
        B: sum(w l) / sum(w) over everything;
        C: per column sum(w l) / sum(w), patient_overall's times 7, the sum of the eight divided by 14.

    Args:
        labels: `[S, 8]` 0 / 1, columns as in `anatomy.TARGETS`.
        probabilities: `[S, 8]`.
        normalisation: "A", "B" or "C".
        eps: probabilities are clipped to eps..1 - eps.
        weights: `[..., S]` how often each study counts; None counts each once.

    Returns:
        The loss, of shape `[...]` (a float without weights); lower is better; NaN in, NaN out.

    Raises:
        ValueError: shapes do not fit, a label is not 0 or 1, or the normalisation is unknown.
    """
    y, p = np.asarray(labels, np.float64), np.asarray(probabilities, np.float64)
    if y.shape != p.shape or y.ndim != 2 or y.shape[1] != len(_NEGATIVE):
        raise ValueError(f"labels {y.shape} and probabilities {p.shape} must both be [studies, {len(_NEGATIVE)}]")
    if not np.isin(y, (0.0, 1.0)).all():
        raise ValueError("labels must be 0 or 1")
    p = np.clip(p, eps, 1.0 - eps)
    loss = -np.where(y == 1, np.log(p), np.log1p(-p))
    w = np.where(y == 1, _POSITIVE, _NEGATIVE)
    count = np.ones(len(y)) if weights is None else np.asarray(weights, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        if normalisation == "A":
            result = count @ ((w * loss).sum(1) / w.sum(1)) / count.sum(-1)
        elif normalisation == "B":
            result = count @ (w * loss).sum(1) / (count @ w.sum(1))
        elif normalisation == "C":
            columns = (count @ (w * loss)) / (count @ w)
            result = (columns[..., 0] * 7.0 + columns[..., 1:].sum(-1)) / 14.0
        else:
            raise ValueError(f"normalisation={normalisation!r}: must be A, B or C")
    return float(result) if weights is None else result


def score_optimal(p: np.ndarray) -> np.ndarray:
    """P' = 2 p / (1 + p): what to submit to the metric when the event has probability p.

    Positives weigh twice as much, so the expected loss -2 p log p' - (1 - p) log(1 - p') is least at p', above p. That
    is so where weights are fixed (normalisation B; nearly so in C). In A each study's weights are divided by their sum,
    14 where intact and 21 + n with n fractured vertebrae: a positive then weighs about 1.25 times a negative, and p
    itself usually scores better than p'.
    It is no probability of the event: never show it to a user as one.
    """
    p = np.asarray(p, np.float64)
    return 2.0 * p / (1.0 + p)


def clinical_probability(p_score: np.ndarray) -> np.ndarray:
    """P = p' / (2 - p'): the probability of the event behind a score-optimal output; inverse of `score_optimal`.

    It is also what to take the output of a network for that was trained with positives weighted 2 to 1.
    """
    p_score = np.asarray(p_score, np.float64)
    return p_score / (2.0 - p_score)
