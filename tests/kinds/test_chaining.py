"""Vertebra models of every fold, their predictions joined, a fracture model on top: no model saw what it predicts."""

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest

from cspine_jax.data.probabilities import vertebra_probabilities
from cspine_jax.data.source import SliceTable
from cspine_jax.errors import DataError
from cspine_jax.experiment import Experiment
from cspine_jax.kinds import kind_of


@pytest.fixture(scope="module")
def folds(tiny, tmp_path_factory):
    """(pattern of the three tables, {fold: its rows}, {fold: the studies its model was given in training})."""
    runs, tables, seen = tmp_path_factory.mktemp("runs"), {}, {}
    for fold in range(3):
        config = tiny("vertebra_type1", data={"fold": fold}, train={"bf16": False})
        experiment = Experiment(config, runs / f"fold{fold}")
        given: set[int] = set()
        watch(experiment, given)
        experiment.train()
        with experiment.predict().open() as file:
            tables[fold] = list(csv.DictReader(file))
        seen[fold] = {str(experiment.kind.data.table.uids[study]) for study in given}
    return f"{runs}/fold*/predictions/slices.csv", tables, seen


def watch(experiment, given):
    """Notes every study that is in a training or a validation batch."""
    task, seen = experiment.kind, given
    loaders = task.loaders

    def watched():
        made = loaders()

        class Train:
            def __init__(self):
                self.batches = made.train()

            def __next__(self):
                batch = next(self.batches)
                seen.update(batch["study"].tolist())
                return batch

            def get_state(self):
                return self.batches.get_state()

        def validation():
            for batch in made.validation():
                seen.update(batch["study"].tolist())
                yield batch

        return type(made)(Train, made.train_examples, validation)

    task.loaders = watched


def test_no_study_is_predicted_by_a_model_that_saw_it(folds, data_dir):
    pattern, tables, seen = folds
    table = SliceTable.open(next(Path(data_dir).rglob("index.npz")).parent)
    joined = vertebra_probabilities(table, pattern)
    assert all(seen.values()) and not np.isnan(joined.values).any()
    for record in range(len(table)):
        uid = str(table.uids[table.study[record]])
        rows = {fold: np.array([float(rows[record][f"C{j}"]) for j in range(1, 8)]) for fold, rows in tables.items()}
        (fold,) = [fold for fold, values in rows.items() if np.allclose(values, joined.values[record], rtol=1e-4)]
        assert uid not in seen[fold] and tables[fold][record]["part"] == "test"
        assert tables[fold][record]["StudyInstanceUID"] == uid
        assert fold == table.folds[table.study[record]]


def test_a_type_2_model_reads_the_joined_table_and_refuses_a_single_one(folds, tiny, tmp_path):
    pattern, _, _ = folds
    kind = kind_of(tiny(model={"type": 2}, data={"vertebra_probs": pattern}))
    table, loaders = kind.data.table, kind.loaders()
    v = vertebra_probabilities(table, pattern).values
    for batch in (next(loaders.train()), next(iter(loaders.validation()))):
        np.testing.assert_array_equal(batch["vertebra_probs"], v[table.first[batch["study"]] + batch["index"]])
    one = pattern.replace("fold*", "fold0")
    single = Experiment(tiny(model={"type": 2}, data={"vertebra_probs": one}), tmp_path / "run")
    with pytest.raises(DataError, match="are of a model that learnt from it"):
        single.train()
    assert not (tmp_path / "run").exists()
    allowed = tiny(model={"type": 2}, data={"vertebra_probs": one, "in_sample_probs": True})
    next(kind_of(allowed).loaders().train())


def test_predicted_vertebrae_label_studies_without_a_mask_in_training_only(folds, tiny):
    pattern, _, _ = folds
    for fold in range(3):  # the fold in which the study without a mask is learnt from
        data = {"vertebra_probs": pattern, "fold": fold, "fracture_target": "level"}
        kind = kind_of(tiny(data={**data, "presence_from_probs": 0.3}))
        table = kind.data.table
        bare = int(np.flatnonzero(~table.has_mask)[0])
        if bare in kind.data.parts["train"]:
            break
    v = vertebra_probabilities(table, pattern).values
    loaders, plain = kind.loaders(), kind_of(tiny(data=data)).loaders()
    assert "1 studies without a mask take their levels from v >= 0.3" in kind.about(loaders)
    seen = 0
    for batch in itertools.islice(loaders.train(), 40):
        for row in np.flatnonzero(batch["study"] == bare):
            seen += 1
            record = table.first[bare] + batch["index"][row]
            np.testing.assert_array_equal(batch["presence"][row], v[record] >= 0.3)
            np.testing.assert_array_equal(batch["fracture"][row], (v[record] >= 0.3) * batch["labels"][row, 1:])
            assert batch["presence_known"][row] == batch["slice_known"][row] == 1
    assert seen
    for batch in itertools.islice(plain.train(), 20):
        assert not batch["presence_known"][batch["study"] == bare].any()
    batches = list(kind.in_order(np.array([bare])))  # evaluation reads the truth, not the other model's opinion
    assert batches and not any(batch["presence_known"].any() for batch in batches)
