"""All models under one metric: out-of-fold tables in, one result out."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cspine_jax import __version__
from cspine_jax.evaluation import resample
from cspine_jax.evaluation.compare import uncertainty
from cspine_jax.evaluation.compare.ensembles import ensembles
from cspine_jax.evaluation.compare.models import Aligned, Model, align, hidden_cells
from cspine_jax.evaluation.compare.nested import GROUPS, Calibrated, calibrate, fill_hidden, prevalence
from cspine_jax.evaluation.compare.scores import (
    COMPARED,
    Scored,
    best_of,
    calibration_figures,
    choose,
    decide,
    difference,
    score,
)
from cspine_jax.evaluation.resample import estimate
from cspine_jax.metrics import score_optimal


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of a comparison: bootstrap resamples and seed, bins of the calibration error, miss rate of conformal sets."""

    resamples: int = 1000
    seed: int = 0
    bins: int = 10
    miss: float = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One table, scored: a model, an ensemble or a constant.

    Attributes:
        name: of it.
        kind: "model", "outside table", "ensemble" or "constant".
        raw: `[S, 8]`, NaN where not visible.
        calibrated: `[S, 8]`, NaN where not visible.
        optimal: `[S, 8]` p' = 2p / (1 + p) of the calibrated p, hidden cells filled.
        scored: the raw table's figures, hidden cells filled.
        facts: JSON-ready.
        calibration: group -> calibrators' tables.
        sets: Mondrian conformal sets `[S, 7]`.
    """

    name: str
    kind: str
    raw: np.ndarray
    calibrated: np.ndarray
    optimal: np.ndarray
    scored: Scored
    facts: dict[str, Any]
    calibration: dict[str, Calibrated]
    sets: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` found.

    Attributes:
        aligned: studies that were compared, labels and tables.
        rows: constants, models, ensembles.
        facts: JSON-ready; everything that is printed.
        spread: `[S, 7]` over the models; None with one model.
    """

    aligned: Aligned
    rows: dict[str, Row]
    facts: dict[str, Any]
    spread: np.ndarray | None


def compare(
    models: Sequence[Model],
    labels: Mapping[str, np.ndarray],
    *,
    num_folds: int,
    data: str,
    settings: Settings | None = None,
    absent: Mapping[str, str] | None = None,
    incomplete: Mapping[str, str] | None = None,
) -> Comparison:
    """Compares models on the studies that all of them predicted out of fold.

    Args:
        models: their out-of-fold tables.
        labels: `[8]` 0 / 1 of each study.
        num_folds: of the whole experiment.
        data: "phantom" or "this data", what figures are labelled with.
        settings: defaults where None.
        absent: models that were asked for and are not here -> why.
        incomplete: models that are here with some of their folds -> which are missing.

    Raises:
        DataError: see `align`.
    """
    settings = settings or Settings()
    everything = align(models, labels, num_folds)
    aligned = everything.of_tested()
    y, fold = aligned.labels, aligned.fold
    drawn = resample.weights(len(y), settings.resamples, settings.seed)
    chance = prevalence(everything.labels, everything.fold)
    rows: dict[str, Row] = {}

    def add(name: str, kind: str, p: np.ndarray, **more: Any) -> None:
        rows[name] = _row(name, kind, p, everything, drawn, settings, more)

    add("constant 0.5", "constant", np.full(chance.shape, 0.5))
    add("constant prevalence", "constant", chance)
    for model in models:
        kind = "outside table" if model.outside else "model"
        folds = [] if model.outside else sorted({int(k) for k in model.fold})
        tables = {"folds_predicted": folds, "studies_predicted": len(model.uids), "cost": dict(model.cost)}
        add(model.name, kind, everything.p[model.name], **tables)
    facts: dict[str, Any] = {
        "data": data,
        "note": "Research only." + (" Phantom figures say nothing of clinical accuracy." if data == "phantom" else ""),
        "versions": {"cspine_jax": __version__, "numpy": np.__version__},
        "studies": len(y),
        "patients_fractured": int(y[:, 0].sum()),
        "vertebrae_fractured": int(y[:, 1:].sum()),
        "num_folds": num_folds,
        "folds": sorted({int(k) for k in fold}),
        "interval": f"95%: bootstrap, {settings.resamples} resamples of studies (the patient AUC: DeLong)",
        "miss_rate": settings.miss,
        "notes": [
            *(f"{name} is INCOMPLETE: {why}" for name, why in (incomplete or {}).items()),
            *_notes(everything, num_folds),
        ],
        "absent": dict(absent or {}),
        "chosen_on": _chosen_on(everything),
    }
    if len(models) > 1:
        mixed = ensembles(everything.p, everything.labels, everything.fold)
        for name, p in mixed.p.items():
            add(name, "ensemble", p)
        facts["ensemble_weights"] = {str(k): w for k, w in mixed.weights.items() if k >= 0}
        facts["ensemble_tests"] = _against_best(y, rows, [model.name for model in models])
    facts["pairs"] = _pairs(y, [rows[model.name] for model in models])
    spread = uncertainty.spread(np.stack([p[:, 1:] for p in aligned.p.values()])) if len(models) > 1 else None
    facts["uncertainty"] = _uncertainty(aligned, rows, spread)
    facts["rows"] = {name: row.facts for name, row in rows.items()}
    return Comparison(aligned, rows, facts, spread)


def _chosen_on(aligned: Aligned) -> str:
    """What thresholds, calibrators and fill values of a fold come from, in words that follow "on"."""
    if len(np.unique(aligned.fold[aligned.tested])) > 1:
        return "the other folds"
    return "nothing (defaults)" if aligned.tested.all() else "its validation studies"


def _notes(aligned: Aligned, num_folds: int) -> list[str]:
    notes = list(aligned.notes)
    present = np.unique(aligned.fold[aligned.tested])
    if len(present) < num_folds:
        notes.append(f"INCOMPLETE: only {len(present)} of {num_folds} folds are in this comparison.")
    if len(present) == 1 and not aligned.tested.all():
        notes.append(
            "One fold alone: fill values, thresholds, calibrators, conformal sets and the weights of ensembles are "
            f"chosen on its {int((~aligned.tested).sum())} validation studies, which have also chosen each model's "
            "checkpoint; the tested studies choose nothing."
        )
    elif len(present) == 1:
        notes.append(
            "One fold alone: nothing can be chosen on other folds; thresholds are 0.5, nothing is calibrated, what "
            "is not visible is filled with 0.5, and ensemble-rank is left out."
        )
    return notes


def _row(
    name: str,
    kind: str,
    p: np.ndarray,
    aligned: Aligned,
    drawn: np.ndarray,
    settings: Settings,
    more: Mapping[str, Any],
) -> Row:
    y, fold, keep = aligned.labels, aligned.fold, aligned.tested
    groups = {group: calibrate(y[:, columns], p[:, columns], fold) for group, columns in GROUPS.items()}
    calibrated = np.concatenate([groups[group].best for group in GROUPS], axis=1)
    filled = fill_hidden(y, p, fold), fill_hidden(y, calibrated, fold)
    chosen = choose(y, filled[0], fold, ~np.isnan(p))
    sets = {
        way: uncertainty.sets_across_folds(y[:, 1:], p[:, 1:], fold, settings.miss, mondrian=way == "by class")
        for way in ("by class", "overall")
    }
    # everything is chosen; from here on there are the tested studies only
    y, fold, p, calibrated = y[keep], fold[keep], p[keep], calibrated[keep]
    groups = {group: found.of(keep) for group, found in groups.items()}
    chosen = {group: found.of(keep) for group, found in chosen.items()}
    sets = {way: found[keep] for way, found in sets.items()}
    scored = score(y, filled[0][keep], fold, drawn, filled[1][keep], settings.bins, chosen=chosen)
    hidden = hidden_cells(aligned.of_tested().uids, p)
    facts = {
        "kind": kind,
        "studies": len(y),
        **more,
        "not_visible": {"count": sum(map(len, hidden.values())), "cells": hidden},
        "figures": scored.figures(),
        "thresholds": {
            group: {"source": t.sources(), "of_fold": {str(k): value for k, value in t.value.items()}}
            for group, t in scored.thresholds.items()
        },
        "calibration": {
            group: _calibration(y[:, columns], p[:, columns], groups[group], drawn, settings.bins)
            for group, columns in GROUPS.items()
        },
        "conformal": {way: uncertainty.describe_sets(y[:, 1:], found, drawn) for way, found in sets.items()},
    }
    return Row(name, kind, p, calibrated, score_optimal(filled[1][keep]), scored, facts, groups, sets["by class"])


def _calibration(labels, p, found: Calibrated, drawn, bins) -> dict[str, Any]:
    tables = {"before": p, **found.by, "chosen": found.best}
    return {
        "chosen_for_fold": {str(k): name for k, name in found.chosen.items()},
        **{
            name: {key: estimate(values) for key, values in calibration_figures(labels, table, drawn, bins).items()}
            for name, table in tables.items()
        },
    }


def _against_best(labels: np.ndarray, rows: Mapping[str, Row], members: Sequence[str]) -> list[dict[str, Any]]:
    """Each ensemble against the member that is best by the figure tested."""
    found = []
    member_scores = {name: rows[name].scored for name in members}
    for row in rows.values():
        if row.kind != "ensemble":
            continue
        for name in COMPARED:
            best = best_of(member_scores, name)
            if best is None:
                continue
            tested = difference(labels, row.scored, member_scores[best], name)
            found.append({"ensemble": row.name, "best_member": best, **tested})
    decide(found)
    verdict = {"a": "beats its best member", "b": "is worse than its best member", None: "no difference shown"}
    for entry in found:
        entry["verdict"] = verdict[entry["better"]]
    return found


def _pairs(labels: np.ndarray, models: Sequence[Row]) -> list[dict[str, Any]]:
    found = [
        {"a": a.name, "b": b.name, **difference(labels, a.scored, b.scored, name)}
        for a, b in itertools.combinations(models, 2)
        for name in COMPARED
    ]
    decide(found)
    return found


def _uncertainty(aligned: Aligned, rows: Mapping[str, Row], spread: np.ndarray | None) -> list[dict[str, Any]]:
    """Do members' spread and test-time augmentation point at the errors, and better than the probability itself?"""
    wanted: list[tuple[str, str, np.ndarray]] = []
    if spread is not None:
        wanted.append(("ensemble-mean", "spread of the models", spread))
    wanted += [(name, "spread over test-time augmentations", tta) for name, tta in aligned.tta.items()]
    result = []
    for name, what, values in wanted:
        row = rows[name]
        chosen = row.scored.thresholds["vertebra"]
        p = row.raw[:, 1:]
        wrong = chosen.yes != (aligned.labels[:, 1:] == 1)
        known = ~(np.isnan(values) | np.isnan(p))
        for title, u in (
            (what, values),
            ("nearness to the threshold", uncertainty.distance_to_threshold(p, chosen.of_study)),
        ):
            found = uncertainty.where_errors_lie(np.where(known, u, np.nan).ravel(), wrong.ravel())
            result.append({"table": name, "uncertainty": title, **found})
    return result
