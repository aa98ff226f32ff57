"""The slices a researcher looks at first: where the model was surest and right, and where it was surest and wrong."""

import dataclasses

import numpy as np

from cspine_jax.anatomy import VERTEBRAE
from cspine_jax.evaluation.predictions import Aggregated, SplitPredictions


@dataclasses.dataclass(frozen=True)
class Example:
    """One slice: where it is, what the model said (`probability`, `kind` of TP FP FN TN) and what is true."""

    uid: str
    index: int
    probability: float
    kind: str
    truth_levels: str
    named_levels: str

    @property
    def right(self) -> bool:
        """Was the model right at its threshold?"""
        return self.kind in ("TP", "TN")


def pick_examples(
    split: SplitPredictions, aggregated: Aggregated, threshold: float, count: int, presence_threshold: float = 0.5
) -> tuple[list[Example], list[Example]]:
    """The most confident right and wrong slices.

    Confidence is the distance of the log odds from the threshold's. Half of each list are slices called fractured, half
    slices called clear, as far as there are any. Every study's best slice comes before any study's second, so that one
    odd study does not fill the page. A clear slice without a vertebra (truth, else named) is too easy to show.

    Args:
        split: predictions and truth; slices of unknown truth are left out.
        aggregated: its aggregation.
        threshold: of the slice probability.
        count: how many of each.
        presence_threshold: a vertebra is named where v is at least this.

    Returns:
        `(right, wrong)`, most confident first.
    """
    truth, p = split.slice_fracture, np.nan_to_num(aggregated.slices, nan=0.0)
    named = split.vertebra >= presence_threshold
    present = np.where(split.presence_known[:, None], split.presence, named)
    margin = np.abs(_log_odds(p) - _log_odds(np.asarray(threshold)))
    margin[np.isnan(aggregated.slices)] = 0.0  # no vertebra named, so no answer: nothing to be sure of
    yes = p >= threshold
    usable = split.slice_known & (present.any(axis=1) | (truth != yes))
    kinds = {"TP": yes & truth, "TN": ~yes & ~truth, "FP": yes & ~truth, "FN": ~yes & truth}
    result = []
    for called, cleared in (("TP", "TN"), ("FP", "FN")):
        pools = {kind: _ranked(np.flatnonzero(usable & kinds[kind]), margin, split.study) for kind in (called, cleared)}
        half = max(count - count // 2, count - len(pools[cleared]))
        rows = [(kind, row) for kind, take in ((called, half), (cleared, count)) for row in pools[kind][:take]][:count]
        rows.sort(key=lambda item: -margin[item[1]])
        result.append([_example(split, p, kind, row, named) for kind, row in rows])
    return result[0], result[1]


def _log_odds(p: np.ndarray) -> np.ndarray:
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return np.log(p / (1 - p))


def _ranked(rows: np.ndarray, margin: np.ndarray, study: np.ndarray) -> np.ndarray:
    """By margin, but every study's best before any study's second."""
    rows = rows[np.argsort(-margin[rows], kind="stable")]
    turn, seen = np.zeros(len(rows), int), {}
    for i, row in enumerate(rows):
        turn[i] = seen[study[row]] = seen.get(study[row], -1) + 1
    return rows[np.argsort(turn, kind="stable")]


def _example(split: SplitPredictions, p: np.ndarray, kind: str, row: int, named: np.ndarray) -> Example:
    truth = _names(split.presence[row]) if split.presence_known[row] else "unknown"
    return Example(
        uid=str(split.uids[split.study[row]]),
        index=int(split.index[row]),
        probability=float(p[row]),
        kind=kind,
        truth_levels=truth,
        named_levels=_names(named[row]),
    )


def _names(present: np.ndarray) -> str:
    return ", ".join(VERTEBRAE[j] for j in np.flatnonzero(present)) or "none"
