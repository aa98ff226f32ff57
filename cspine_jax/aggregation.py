"""From slices to vertebrae to the patient: document B's three formulas, and the winners'; numpy float64.

    slice      p_i = sum_j f_ij v_ij / sum_j v_ij        (Type 1: p_i is the network's output)
    vertebra   p_j = sum_i f_ij v_ij / sum_i v_ij        (Type 1: f_i in place of f_ij)
    patient    p   = 1 - prod_j (1 - p_j)

f_ij is the fracture probability of vertebra j on slice i, v_ij the probability that the slice shows it. A sum of v that
is zero makes 0 / 0: the formulas have nothing to say, so the result is NaN, "not visible", never 0. A slice that shows
no vertebra, and a level that no slice shows, are NaN; a NaN level is left out of the patient's product, and a patient
without any visible level is NaN. `min_visibility` widens that to networks, whose v is never exactly zero: the largest v
that went into the sum must reach it.

The winners' networks see one vertebra at a time, in S slices of its own:

    vertebra   p_j = mean of the five largest f_sj
    patient    p   = 0.4 (1 - prod_j (1 - m_j)) + 0.01 max_j m_j + 0.6 q,   m_j = max_s f_sj

with q the patient's own output. A level without any slice is NaN there, too.
"""

import numpy as np

TOP_SLICES = 5
ANY_WEIGHT, MAX_WEIGHT, HEAD_WEIGHT = 0.4, 0.01, 0.6


def slice_probability(f: np.ndarray, v: np.ndarray, min_visibility: float = 0.0) -> np.ndarray:
    """p_i = sum_j f_ij v_ij / sum_j v_ij.

    Args:
        f: `[N, 7]` fracture probabilities, or `[N]` / `[N, 1]` of Type 1, which are returned as they are.
        v: `[N, 7]` vertebra probabilities.
        min_visibility: below this largest v of the slice, it shows no vertebra.

    Returns:
        `[N]` float64, NaN where the slice shows no vertebra.
    """
    f, v = np.asarray(f, np.float64), np.asarray(v, np.float64)
    if f.ndim == 1 or f.shape[-1] == 1:
        return f.reshape(len(v)).copy()
    _check(f, v)
    return _ratio((f * v).sum(1), v.sum(1), v.max(1, initial=0.0), min_visibility)


def vertebra_probability(f: np.ndarray, v: np.ndarray, min_visibility: float = 0.0) -> np.ndarray:
    """p_j = sum_i f_ij v_ij / sum_i v_ij over the slices of one study.

    Args:
        f: `[N, 7]` fracture probabilities, or `[N]` / `[N, 1]` of Type 1, used for every vertebra.
        v: `[N, 7]` vertebra probabilities.
        min_visibility: below this largest v of the level, the study does not show it.

    Returns:
        `[7]` float64, NaN where the level is not visible.
    """
    return study_probabilities(f, v, np.zeros(len(v), np.int64), 1, min_visibility)[0]


def patient_probability(p: np.ndarray) -> np.ndarray:
    """P = 1 - prod_j (1 - p_j) over the visible levels.

    Args:
        p: `[..., 7]` vertebra probabilities, NaN where not visible.

    Returns:
        `[...]` float64, NaN where no level is visible.
    """
    p = np.asarray(p, np.float64)
    seen = ~np.isnan(p)
    return np.where(seen.any(-1), 1.0 - np.where(seen, 1.0 - p, 1.0).prod(-1), np.nan)


def study_probabilities(
    f: np.ndarray, v: np.ndarray, study: np.ndarray, num_studies: int, min_visibility: float = 0.0
) -> np.ndarray:
    """`vertebra_probability` of many studies at once; slices may come in any order.

    Args:
        f: `[N, 7]`, or `[N]` / `[N, 1]` of Type 1.
        v: `[N, 7]`.
        study: `[N]` int, study of each slice, 0 <= study < num_studies.
        num_studies: S.
        min_visibility: see `vertebra_probability`.

    Returns:
        `[S, 7]` float64, NaN where a study does not show the level (a study without slices shows none).
    """
    f, v = np.asarray(f, np.float64), np.asarray(v, np.float64)
    if f.ndim == 1 or f.shape[-1] == 1:
        f = np.broadcast_to(f.reshape(len(v), 1), v.shape)
    _check(f, v)
    study = np.asarray(study, np.int64)
    if study.shape != (len(v),) or (len(study) and not 0 <= study.min() <= study.max() < num_studies):
        raise ValueError(f"study {study.shape} must hold one id in 0..{num_studies - 1} for each of {len(v)} slices")
    weighted, visible, largest = np.zeros((3, num_studies, v.shape[1]))
    np.add.at(weighted, study, f * v)
    np.add.at(visible, study, v)
    np.maximum.at(largest, study, v)
    return _ratio(weighted, visible, largest, min_visibility)


def study_targets(
    f: np.ndarray, v: np.ndarray, study: np.ndarray, num_studies: int, min_visibility: float = 0.0
) -> np.ndarray:
    """Slices of many studies to the eight targets.

    Returns:
        `[S, 8]` float64 in the order of `anatomy.TARGETS`: patient_overall, C1..C7; NaN where not visible.
    """
    levels = study_probabilities(f, v, study, num_studies, min_visibility)
    return np.concatenate([patient_probability(levels)[:, None], levels], axis=1)


def top_mean(f: np.ndarray, valid: np.ndarray | None = None, count: int = TOP_SLICES) -> np.ndarray:
    """The winners' vertebra: the mean of its `count` largest slices, of all of them where there are fewer.

    Args:
        f: `[..., S]` probabilities of the slices.
        valid: `[..., S]`, above 0 for the slices that are there, whatever (even NaN) the rest is; None for all.
        count: how many.

    Returns:
        `[...]` float64, NaN where no slice is there.
    """
    f, there = _slices(f, valid)
    largest = -np.sort(-np.where(there, f, -np.inf), axis=-1)[..., :count]
    used = np.minimum(there.sum(-1), count)
    return np.divide(
        np.where(np.isinf(largest), 0.0, largest).sum(-1), used, out=np.full(used.shape, np.nan), where=used > 0
    )


def gold_patient(f: np.ndarray, head: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """The winners' patient: 0.4 (1 - prod_j (1 - m_j)) + 0.01 max_j m_j + 0.6 head, at most 1; m_j = max_s f_js.

    Args:
        f: `[..., 7, S]` probabilities of the slices of each vertebra.
        head: `[...]` the network's own probability of the patient.
        valid: `[..., 7, S]`, see `top_mean`; levels without any slice are left out.

    Returns:
        `[...]` float64, NaN where no level is there.
    """
    f, there = _slices(f, valid)
    levels = np.where(there, f, 0.0).max(-1)
    fused = ANY_WEIGHT * (1.0 - (1.0 - levels).prod(-1)) + MAX_WEIGHT * levels.max(-1)
    return np.where(there.any((-2, -1)), np.minimum(fused + HEAD_WEIGHT * np.asarray(head, np.float64), 1.0), np.nan)


def gold_targets(
    f: np.ndarray, head: np.ndarray, valid: np.ndarray | None = None, count: int = TOP_SLICES
) -> np.ndarray:
    """Slices of seven vertebrae to the eight targets, as the winners do.

    Returns:
        `[..., 8]` float64 in the order of `anatomy.TARGETS`; NaN where not visible. Arguments as `gold_patient` and
        `top_mean`.
    """
    return np.concatenate([gold_patient(f, head, valid)[..., None], top_mean(f, valid, count)], axis=-1)


def _slices(f: np.ndarray, valid: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    f = np.asarray(f, np.float64)
    there = np.ones(f.shape, bool) if valid is None else np.asarray(valid) > 0
    if there.shape != f.shape:
        raise ValueError(f"valid {there.shape} must say of each slice in f {f.shape} whether it is there")
    return f, there


def _check(f: np.ndarray, v: np.ndarray) -> None:
    if f.shape != v.shape or v.ndim != 2:
        raise ValueError(f"f {f.shape} and v {v.shape} must both be [slices, vertebrae]")


def _ratio(weighted: np.ndarray, visible: np.ndarray, largest: np.ndarray, min_visibility: float) -> np.ndarray:
    seen = (visible > 0) & (largest >= min_visibility)
    return np.divide(weighted, visible, out=np.full(visible.shape, np.nan), where=seen)
