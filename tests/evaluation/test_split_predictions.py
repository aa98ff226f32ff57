import dataclasses

import numpy as np
import pytest
from made_up import make_split, read_rows

from cspine_jax.errors import DataError
from cspine_jax.evaluation.predictions import SplitPredictions, aggregate, clinical, write_predictions, write_slices
from cspine_jax.metrics import clinical_probability


def two_slices(**changes):
    """One study, two slices: C1 on the first, C1 and C2 on the second; nothing else is seen."""
    v = np.zeros((2, 7))
    v[0, 0], v[1, 0], v[1, 1] = 0.8, 0.4, 0.6
    f = np.full((2, 7), 0.9)
    f[0, 0], f[1, 0], f[1, 1] = 0.5, 0.2, 0.1
    values = {
        "uids": ["a"],
        "study": np.zeros(2, int),
        "index": np.arange(2),
        "fracture": f,
        "vertebra": v,
        "presence": v > 0,
        "presence_known": np.ones(2),
        "slice_fracture": np.array([1, 0]),
        "slice_known": np.ones(2),
        "labels": np.array([[1, 1, 0, 0, 0, 0, 0, 0]], float),
    }
    return SplitPredictions(**(values | changes))


def test_document_b_by_hand():
    result = aggregate(two_slices(), 0.3)
    np.testing.assert_allclose(result.slices, [0.5, (0.2 * 0.4 + 0.1 * 0.6) / 1.0])
    c1, c2 = (0.5 * 0.8 + 0.2 * 0.4) / 1.2, 0.1
    np.testing.assert_allclose(result.targets[0, 1:3], [c1, c2])
    assert np.isnan(result.targets[0, 3:]).all()
    assert result.targets[0, 0] == pytest.approx(1 - (1 - c1) * (1 - c2))


def test_a_level_below_the_visibility_has_no_probability_and_no_say():
    result = aggregate(two_slices(), 0.7)
    assert np.isnan(result.targets[0, 2:]).all()
    assert result.targets[0, 0] == pytest.approx(result.targets[0, 1])
    assert np.isnan(result.slices[1])


def test_type_1_uses_one_probability_a_slice():
    result = aggregate(two_slices(fracture=np.array([[0.5], [0.2]])), 0.3)
    np.testing.assert_allclose(result.slices, [0.5, 0.2])
    np.testing.assert_allclose(result.targets[0, 1:3], [(0.5 * 0.8 + 0.2 * 0.4) / 1.2, 0.2])


def test_the_loss_weight_is_undone():
    split = two_slices()
    undone = clinical(split, 2.0, vertebra=False)
    np.testing.assert_allclose(undone.fracture, clinical_probability(split.fracture))
    np.testing.assert_array_equal(undone.vertebra, split.vertebra)
    np.testing.assert_allclose(clinical(split, 2.0, vertebra=True).vertebra, clinical_probability(split.vertebra))
    np.testing.assert_allclose(clinical(split, 1.0, vertebra=True).fracture, split.fracture)
    with pytest.raises(DataError, match="positive_weight=0"):
        clinical(split, 0.0, vertebra=True)


def test_tables_leave_cells_empty_where_nothing_is_known(tmp_path):
    split = two_slices(slice_known=np.array([1, 0]))
    aggregated = aggregate(split, 0.3)
    write_predictions(tmp_path / "p.csv", split, aggregated)
    write_slices(tmp_path / "s.csv", split, aggregated)
    (row,) = read_rows(tmp_path / "p.csv")
    assert list(row) == ["StudyInstanceUID", "patient_overall", *(f"C{i}" for i in range(1, 8))]
    assert float(row["C1"]) == pytest.approx(0.4, abs=1e-6)
    assert row["C3"] == row["C7"] == ""
    slices = read_rows(tmp_path / "s.csv")
    assert [r["truth_fracture"] for r in slices] == ["1", ""]
    assert float(slices[1]["v_C2"]) == pytest.approx(0.6) and float(slices[0]["f_C1"]) == pytest.approx(0.5)


def test_slices_are_written_in_anatomical_order(tmp_path):
    split = make_split(2, 64)
    shuffled = np.random.default_rng(0).permutation(128)
    names = [f.name for f in dataclasses.fields(split) if f.name not in ("uids", "labels")]
    mixed = dataclasses.replace(split, **{name: getattr(split, name)[shuffled] for name in names})
    np.testing.assert_allclose(aggregate(mixed, 0.5).targets, aggregate(split, 0.5).targets)
    for name, part in (("a.csv", split), ("b.csv", mixed)):
        write_slices(tmp_path / name, part, aggregate(part, 0.5))
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_document_bs_slice_truth():
    truth, known = two_slices().level_fracture()
    assert truth.tolist() == [True, True] and known.all()
    _, known = two_slices(presence_known=np.zeros(2)).level_fracture()
    assert not known.any()
    truth, known = two_slices(presence_known=np.zeros(2), labels=np.zeros((1, 8))).level_fracture()
    assert known.all() and not truth.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fracture": np.full((2, 7), 1.5)}, "outside 0..1"),
        ({"vertebra": np.full((2, 7), np.nan)}, "NaN"),
        ({"labels": np.zeros((2, 8))}, r"labels has shape \(2, 8\), expected \(1, 8\)"),
        ({"study": np.array([0, 1])}, "study runs 0..1"),
    ],
)
def test_inconsistent_predictions_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        two_slices(**changes)
