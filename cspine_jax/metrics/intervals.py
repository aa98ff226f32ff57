"""Bootstrap intervals that resample whole studies: slices and vertebrae of one patient are not independent."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

_CELLS_AT_ONCE = 4_000_000


def resample_counts(num_studies: int, resamples: int, seed: int = 0) -> np.ndarray:
    """How often each study is drawn in each resample of `num_studies` with replacement: `[R, S]` float64."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_studies, np.full(num_studies, 1.0 / num_studies), size=resamples).astype(np.float64)


def percentile_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of resampled values `[R]`; resamples where the score is undefined (NaN) are left out."""
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


class Estimate(NamedTuple):
    """A score and the ends of its interval."""

    value: float
    low: float
    high: float


def plain(value: Any) -> Any:
    """What JSON knows: estimates become `{"value", "low", "high"}`, numpy scalars Python's, what is not finite null."""
    if isinstance(value, Estimate):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def bootstrap(
    score: Callable[[np.ndarray], np.ndarray | float],
    num_examples: int,
    *,
    study: np.ndarray | None = None,
    resamples: int = 500,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """A score with a percentile bootstrap interval (Efron 1979), clustered by study.

    Args:
        score: takes weights `[R, N]`, gives values `[R]`: e.g. `lambda w: roc_auc(labels, scores, weights=w)`.
        num_examples: N.
        study: `[N]` int >= 0, study of each example; None where every example is its own study.
        resamples: R; 0 gives an interval of NaN.
        seed: of the resampling; the same seed draws the same studies for every score, so scores can be compared.
        level: coverage.

    Returns:
        The score on the data as they are, and the interval.
    """
    value = float(np.asarray(score(np.ones((1, num_examples))))[0])
    if resamples == 0 or num_examples == 0:
        return Estimate(value, float("nan"), float("nan"))
    index = np.arange(num_examples) if study is None else np.unique(study, return_inverse=True)[1]
    counts = resample_counts(int(index.max()) + 1, resamples, seed)
    step = max(1, _CELLS_AT_ONCE // num_examples)
    values = [np.asarray(score(counts[k : k + step][:, index])) for k in range(0, resamples, step)]
    return Estimate(value, *percentile_interval(np.concatenate(values), level))
