"""Vertebra detection from records to report: trains, evaluates beside document B, predicts every slice."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from cspine_jax.data.source import SliceTable
from cspine_jax.errors import ConfigError, DataError
from cspine_jax.experiment import Experiment
from cspine_jax.kinds import kind_of


def test_a_run_of_type_2(tiny, tmp_path, capsys):
    """Type 1 runs in the tests of chaining."""
    config = tiny("vertebra_type2")
    assert (config.task, config.model.type, config.train.bf16) == ("vertebra", 2, True)
    experiment = Experiment(config, tmp_path)
    experiment.train()
    metrics = experiment.evaluate()
    said = capsys.readouterr().out
    assert "studies with a mask" in said
    assert "Vertebra presence, a slice" in said and "0.945" in said and "0.959" in said
    assert "ours (phantom)" in said and "synthetic" in said
    presence = metrics["presence"]
    assert presence["questions"] == 7 * metrics["counts"]["test"]["slices_presence_known"] > 0
    assert 0 <= presence["accuracy"]["value"] <= 1 and presence["mean_auc"]["value"] is not None
    assert json.loads((tmp_path / "evaluation" / "metrics.json").read_text()) == metrics
    report = (tmp_path / "evaluation" / "report.html").read_text()
    assert "Type 2" in report and "phantom data" in report and "</html>" in report
    validation = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (line,) = [line for line in validation if line["split"] == "validation"]
    assert {"loss", "presence_auc", "presence_accuracy"} <= set(line)

    with experiment.predict().open() as file:
        rows = list(csv.DictReader(file))
    table: SliceTable = kind_of(config).data.table
    assert list(rows[0]) == ["StudyInstanceUID", "slice_index", "part", *(f"C{i}" for i in range(1, 8))]
    assert [(row["StudyInstanceUID"], int(row["slice_index"])) for row in rows] == list(
        zip(table.uids[table.study].tolist(), table.index.tolist(), strict=True)
    )
    assert {row["part"] for row in rows} == {"train", "validation", "test"}


def test_only_masked_studies_are_learnt_from_and_measured(tiny, tmp_path):
    kind = kind_of(tiny(task="vertebra", model={"type": 1}))
    table, parts = kind.data.table, kind.data.parts
    bare = np.flatnonzero(~table.has_mask)
    assert len(bare) == 1 and sum(len(kind.studies(part)) for part in parts) == 5
    loaders = kind.loaders()
    masked = kind.studies("train")
    assert loaders.train_examples == table.count[masked].sum()
    seen = {int(study) for batch in loaders.validation() for study in batch["study"]}
    assert seen == set(kind.studies("validation").tolist())


def test_a_part_without_masks_is_refused(tiny, tmp_path):
    kind = kind_of(tiny(task="vertebra", model={"type": 1}))
    table = kind.data.table
    bare = table.has_mask & ~np.isin(np.arange(len(table.uids)), kind.data.parts["test"])
    kind.data = dataclasses.replace(kind.data, table=dataclasses.replace(table, has_mask=bare))
    with pytest.raises(DataError, match="no test study has a mask to learn vertebrae from"):
        kind.prepare()


def test_type_3_is_not_one_of_vertebra_detection(tiny):
    with pytest.raises(ConfigError, match=r"model\.type=3: vertebra detection has Types 1"):
        tiny(task="vertebra", model={"type": 3})
