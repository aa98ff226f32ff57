"""Vertebra probabilities from each source, and the join of several models' tables: out of fold or not at all."""

import numpy as np
import pytest

from cspine_jax.config import DataConfig
from cspine_jax.data.probabilities import vertebra_probabilities
from cspine_jax.errors import ConfigError, DataError
from tests.data.test_targets import study, table_of

HEADER = "StudyInstanceUID,slice_index,part,C1,C2,C3,C4,C5,C6,C7\n"


def test_probabilities_of_the_mask_and_of_nothing():
    table = table_of(study(slices=((3,),)), study(slices=((3,),), mask=False))
    assert vertebra_probabilities(table, "mask").values.tolist() == [[0, 0, 1, 0, 0, 0, 0], [0.5] * 7]
    assert vertebra_probabilities(table, "none").values.tolist() == [[0.5] * 7] * 2


@pytest.mark.parametrize(("column", "shift"), [("slice_index", 0), ("slice_number", 1)])
def test_probabilities_of_a_table(tmp_path, column, shift):
    table = table_of(study(slices=((3,), (4,))), study(slices=((3,),)))
    path = tmp_path / "p.csv"
    header = f"StudyInstanceUID,{column},C1,C2,C3,C4,C5,C6,C7\n"
    path.write_text(f"{header}1.0,{1 + shift},0,.1,.2,.3,.4,.5,1\nother,0,0,0,0,0,0,0,0\n")
    out = vertebra_probabilities(table, str(path))
    np.testing.assert_allclose(out.values[1], [0, 0.1, 0.2, 0.3, 0.4, 0.5, 1])
    assert np.isnan(out.values[[0, 2]]).all()
    out.require(table, np.array([1]))
    with pytest.raises(DataError, match=r"p\.csv: no row for slice_index 0 of study 1\.0 \(2 slices are missing\)"):
        out.require(table, np.arange(3))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1.0,0,0,0,0,0,0,0,1.5", "within 0..1"),
        ("1.0,0,0,0,0,x,0,0,0", "p.csv:2"),
        ("1.0,0,0,0,0,0,0,0,0\n1.0,0,0,0,0,0,0,0,0", "named twice"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path, row, message):
    path = tmp_path / "p.csv"
    path.write_text(f"StudyInstanceUID,slice_index,C1,C2,C3,C4,C5,C6,C7\n{row}\n")
    with pytest.raises(DataError, match=message):
        vertebra_probabilities(table_of(study(slices=((3,),))), str(path))


def test_a_missing_table_is_refused():
    with pytest.raises(DataError, match="must be mask, none or the path"):
        vertebra_probabilities(table_of(study(slices=((3,),))), "masks")


def write(path, **parts):
    """A table of three studies of one slice each; `s0="train:0.2"` is the part of study 1.0 and its v."""
    rows = [(f"1.{name[1:]}", *value.split(":")) for name, value in parts.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEADER + "".join(f"{uid},0,{part}{f',{v}' * 7}\n" for uid, part, v in rows))


@pytest.fixture
def folds(tmp_path):
    """Tables of three folds' models; study 1.3 has no labels, so no part."""
    write(tmp_path / "fold0" / "p.csv", s0="test:0.1", s1="validation:0.9", s2="train:0.9", s3="none:0.2")
    write(tmp_path / "fold1" / "p.csv", s0="train:0.8", s1="test:0.2", s2="validation:0.8", s3="none:0.4")
    write(tmp_path / "fold2" / "p.csv", s0="validation:0.7", s1="train:0.7", s2="test:0.3", s3="none:0.6")
    return tmp_path, table_of(*[study(slices=((3,),))] * 4)


def test_each_study_comes_from_the_model_that_had_it_in_its_test_part(folds):
    folder, table = folds
    out = vertebra_probabilities(table, f"{folder}/fold*/p.csv")
    np.testing.assert_allclose(out.values[:, 0], [0.1, 0.2, 0.3, 0.4], rtol=1e-6)  # of no part: the mean
    assert not out.in_sample.any()
    out.require(table, np.arange(4))


def test_one_folds_table_is_refused_by_name_for_what_it_learnt_from(folds):
    folder, table = folds
    out = vertebra_probabilities(table, f"{folder}/fold0/p.csv")
    out.require(table, np.array([0, 3]))
    assert np.isnan(out.values[[1, 2]]).all() and out.in_sample.tolist() == [False, True, True, False]
    for record in (1, 2):
        with pytest.raises(
            DataError, match=rf"study 1\.{record} \(1 such studies\) are of a model that learnt from it"
        ):
            out.require(table, np.array([0, record]))


def test_in_sample_rows_are_taken_only_when_asked_for_and_never_before_others(folds):
    folder, table = folds
    out = vertebra_probabilities(table, f"{folder}/fold0/p.csv", in_sample=True)
    np.testing.assert_allclose(out.values[:, 0], [0.1, 0.9, 0.9, 0.2], rtol=1e-6)
    every = vertebra_probabilities(table, f"{folder}/fold*/p.csv", in_sample=True)
    np.testing.assert_allclose(every.values[:, 0], [0.1, 0.2, 0.3, 0.4], rtol=1e-6)


def test_tables_that_contradict_each_other_are_refused(folds):
    folder, table = folds
    write(folder / "fold3" / "p.csv", s0="test:0.5")
    with pytest.raises(DataError, match=r"study 1\.0 is out of fold in another table too"):
        vertebra_probabilities(table, f"{folder}/fold*/p.csv")
    write(folder / "odd.csv", s0="tests:0.5")
    with pytest.raises(DataError, match=r"odd\.csv:2: part 'tests' must be"):
        vertebra_probabilities(table, f"{folder}/odd.csv")
    with pytest.raises(DataError, match="no such file"):
        vertebra_probabilities(table, f"{folder}/fold*/q.csv")


def test_labels_from_probabilities_need_a_table():
    with pytest.raises(ConfigError, match=r"presence_from_probs=0\.5: needs a predicted table"):
        DataConfig(presence_from_probs=0.5)
    DataConfig(presence_from_probs=0.5, vertebra_probs="p.csv")
