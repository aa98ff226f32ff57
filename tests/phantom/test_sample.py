"""Plans drawn from the table: prevalence, co-occurrence, geometry, independence of labels."""

import numpy as np
import pytest

from cspine_jax.anatomy import VERTEBRAE
from cspine_jax.errors import ConfigError
from cspine_jax.phantom.plan import DISTRACTOR_KINDS, FRACTURE_KINDS
from cspine_jax.phantom.prevalence import PATTERNS, pattern_probabilities, quantile, sample_levels, statistics
from cspine_jax.phantom.sample import sample_study, study_uid

TABLE = statistics()
COUNTS = np.array([[TABLE["cooccurrence_counts"][a][b] for b in VERTEBRAE] for a in VERTEBRAE]) / TABLE["studies"]


@pytest.fixture(scope="module")
def plans():
    return [sample_study(3, index) for index in range(2500)]


def test_pattern_probabilities_reproduce_the_table_exactly():
    p = pattern_probabilities()
    assert p.sum() == pytest.approx(1)
    pairs = (PATTERNS * p[:, None]).T.astype(float) @ PATTERNS
    np.testing.assert_allclose(pairs, COUNTS, atol=1e-6)
    assert p[0] == pytest.approx(1058 / 2019, abs=1e-6)
    assert p[-1] == 0  # no study has all seven fractured


def test_20000_draws_match_prevalence_cooccurrence_and_counts():
    rng = np.random.default_rng(0)
    drawn = np.zeros((20_000, 7))
    for row in drawn:
        row[list(sample_levels(rng.random()))] = 1
    sd = np.sqrt(COUNTS * (1 - COUNTS) / len(drawn))
    assert (np.abs(drawn.T @ drawn / len(drawn) - COUNTS) < 4.5 * sd).all()
    per_study = np.bincount(drawn.sum(1).astype(int), minlength=8) / len(drawn)
    wanted = [TABLE["fractured_vertebrae_per_study"].get(str(k), 0) / TABLE["studies"] for k in range(8)]
    np.testing.assert_allclose(per_study, wanted, atol=0.015)


def test_quantile_inverts_the_percentile_table():
    table = {"mean": 5.0, "0": 1.0, "50": 3.0, "100": 11.0}
    assert [quantile(table, u) for u in (0, 0.25, 0.5, 0.75, 1)] == [1, 2, 3, 7, 11]


def test_geometry_follows_the_table(plans):
    q = [plan.acquisition for plan in plans]
    for values, name, tolerance in (
        ([a.slices for a in q], "slices_per_study", 0.10),
        ([a.spacing_mm for a in q], "slice_spacing_mm", 0.08),
        ([a.spacing_mm * (a.slices - 1) for a in q], "extent_mm", 0.04),
    ):
        for percent in (5, 25, 50, 75, 95):
            assert np.percentile(values, percent) == pytest.approx(TABLE[name][str(percent)], rel=tolerance), name
    assert np.mean([a.ascending for a in q]) == pytest.approx(197 / 2019, abs=0.02)
    assert 0 < np.mean([a.first_number != 1 for a in q]) < 0.015
    assert np.median([a.size * a.pixel_mm / 512 for a in q]) == pytest.approx(0.41, abs=0.01)
    assert np.mean([abs(a.thickness_mm - a.spacing_mm) > 0.01 for a in q]) == pytest.approx(877 / 2019, abs=0.06)
    noise = np.array([a.noise_hu for a in q])
    assert noise.min() >= 15 and noise.max() <= 60 and np.ptp(noise) > 40


def test_nothing_but_the_fractures_depends_on_the_labels(plans):
    positive = np.array([plan.labels[0] for plan in plans], bool)
    features = {
        "slices": [p.acquisition.slices for p in plans],
        "pixel": [p.acquisition.pixel_mm for p in plans],
        "noise": [p.acquisition.noise_hu for p in plans],
        "age": [p.anatomy.age for p in plans],
        "density": [p.anatomy.trabecular_hu for p in plans],
        "mimics": [len(p.distractors) for p in plans],
        "motion": [p.acquisition.motion_mm for p in plans],
    }
    for name, values in features.items():
        rank = np.argsort(np.argsort(np.array(values) + 1e-9 * np.arange(len(values))))
        auc = (rank[positive].mean() - (positive.sum() - 1) / 2) / (~positive).sum()
        assert auc == pytest.approx(0.5, abs=0.045), name  # 3.9 standard errors of 2,500 studies


def test_a_study_is_the_same_person_at_every_size_and_scale():
    a, b = sample_study(5, 8), sample_study(5, 8, size=96, scale=0.2, difficulty="hard")
    assert a.anatomy == b.anatomy and a.distractors == b.distractors and a.labels == b.labels
    assert [f.kind for f in a.fractures] == [f.kind for f in b.fractures]
    extents = [p.acquisition.spacing_mm * (p.acquisition.slices - 1) for p in (a, b)]
    assert extents[0] == pytest.approx(extents[1])
    assert a.acquisition.pixel_mm * 256 == pytest.approx(b.acquisition.pixel_mm * 96)
    assert b.acquisition.thickness_mm == a.acquisition.thickness_mm <= 1.0  # no averaging over the skipped slices
    assert a.uid != b.uid  # other bytes, other identity
    assert a == sample_study(5, 8) and a != sample_study(6, 8)


def test_kinds_and_lengths_are_in_range(plans):
    fractures = [f for plan in plans for f in plan.fractures]
    assert {f.kind for f in fractures} == set(FRACTURE_KINDS)
    families = [[(f.level, f.kind.split("_")[0]) for f in plan.fractures] for plan in plans]
    assert all(len(set(family)) == len(family) for family in families)  # no dens is broken in two ways
    assert any(len(family) > sum(plan.labels[1:]) for family, plan in zip(families, plans, strict=True))
    assert all(f.level in FRACTURE_KINDS[f.kind] and f.side in (-1, 0, 1) for f in fractures)
    assert all(0.4 <= f.gap_mm <= 3 and 0 < f.conspicuity <= 1 and f.displacement_mm >= 0 for f in fractures)
    assert {d.kind for plan in plans for d in plan.distractors} == set(DISTRACTOR_KINDS)
    assert any(d for plan in plans if not plan.fractures for d in plan.distractors)


def test_difficulty_orders_gap_displacement_and_conspicuity():
    means = []
    for difficulty in ("easy", "standard", "hard"):
        drawn = [f for i in range(300) for f in sample_study(0, i, difficulty=difficulty).fractures]
        means.append([np.mean([getattr(f, k) for f in drawn]) for k in ("gap_mm", "displacement_mm", "conspicuity")])
    means = np.array(means)
    assert (means[0] > means[1]).all() and (means[1] > means[2]).all()


def test_uid_is_a_valid_dicom_uid_of_128_bits():
    uid = study_uid(0, 1, "series")
    assert uid.startswith("2.25.") and len(uid) <= 64 and int(uid[5:]) < 2**128
    assert uid != study_uid(0, 2, "series")


@pytest.mark.parametrize(
    "arguments", [{"size": 8}, {"scale": 0.0}, {"difficulty": "medium"}, {"index": -1}, {"seed": -1}], ids=str
)
def test_impossible_arguments_are_refused_in_one_line(arguments):
    name, value = next(iter(arguments.items()))
    with pytest.raises(ConfigError, match=f"{name}=.*{value}") as error:
        sample_study(**{"seed": 0, "index": 0, **arguments})
    assert "\n" not in str(error.value)
