import csv
import dataclasses
import json
import shutil

import numpy as np
import pydicom
import pytest
from untrained_run import write_run

from cspine_jax.cli import main
from cspine_jax.ct import read_study
from cspine_jax.ct.identity import Identity
from cspine_jax.data.loader import eval_batches
from cspine_jax.data.source import SliceTable
from cspine_jax.errors import DataError
from cspine_jax.evaluation.predictions import aggregate, clinical
from cspine_jax.inference.findings import folder_name, read_findings, write_findings
from cspine_jax.inference.predict import findings_of, predict_study
from cspine_jax.inference.run import SliceRun
from cspine_jax.kinds.fracture import split_predictions
from cspine_jax.training.evaluate import run_pass
from cspine_jax.training.sharding import place
from cspine_jax.training.slice_task import SliceTask
from cspine_jax.training.step import evaluator


@pytest.fixture(scope="module")
def run(workdir):
    return SliceRun(workdir)


def rows_of(path):
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def studies_in(folder):
    return sorted((folder / "train_images").iterdir())


def test_predicting_a_study_gives_what_evaluating_its_records_gives(run, folder, records, config):
    table, placement = SliceTable.open(records), place()
    batches = eval_batches(table, config.data, np.arange(len(table.uids)))
    result = run_pass(evaluator(SliceTask(config), placement), run._params, run._stats, batches, placement)
    assert result is not None
    split = split_predictions(table, np.arange(len(table.uids)), result[1])
    split = clinical(split, config.loss.positive_weight, vertebra=True)
    aggregated = aggregate(split, 0.3)
    for number, uid in enumerate(split.uids):
        found = predict_study(run, folder / "train_images" / uid)
        np.testing.assert_allclose(found.probabilities(), aggregated.targets[number], rtol=1e-4)
        own = [np.nan if s.fracture_probability is None else s.fracture_probability for s in found.slices]
        np.testing.assert_allclose(own, aggregated.slices[split.study == number], rtol=1e-4)


def test_the_batch_size_changes_nothing(run, workdir, folder):
    volume = read_study(studies_in(folder)[0])
    for ours, theirs in zip(run.slices(volume.hu), SliceRun(workdir, batch=5).slices(volume.hu), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_visibility_slices_and_calls(run, folder):
    volume = read_study(studies_in(folder)[1])
    depth = len(volume.hu)
    f, v = np.full((depth, 7), 0.2), np.full((depth, 7), 0.01)
    v[3:6, 0] = [0.5, 0.9, 0.4]
    v[1, 0] = 0.35  # a lone slice elsewhere is not part of C1's run
    v[5:9, 1] = 0.8
    f[4:6, 0] = [0.7, 0.9]

    class Told(SliceRun):
        def __init__(self):
            self.config, self.card, self.step = run.config, run.card, 1

        def slices(self, hu, vertebra_probs=None, stride=1):
            return f, v

    found = findings_of(Told(), volume)
    c1, c2, c3 = found.vertebrae[:3]
    assert c1.probability == pytest.approx((f[:, 0] * v[:, 0]).sum() / v[:, 0].sum())
    assert c1.slices == (3, 5) and c1.surest_slice == 5 and c1.fractured is True
    assert c1.slice_numbers == (volume.slice_numbers[3], volume.slice_numbers[5])
    assert c2.slices == (5, 8) and c2.fractured is False and c2.probability == pytest.approx(0.2)
    assert (c3.visible, c3.probability, c3.fractured, c3.slices) == (False, None, None, None)
    assert found.patient_probability == pytest.approx(1 - (1 - c1.probability) * 0.8)
    p = found.patient_probability
    assert found.patient_score_optimal == pytest.approx(2 * p / (1 + p))
    assert found.slices[5].vertebrae == ("C1", "C2") and found.slices[0].fracture_probability is None
    assert any("C3, C4, C5, C6, C7 not visible" in line for line in found.warnings)


def test_nothing_visible_is_no_answer(run, folder):
    volume = read_study(studies_in(folder)[1])

    class Blind(SliceRun):
        def __init__(self):
            self.config, self.card, self.step = run.config, run.card, 1

        def slices(self, hu, vertebra_probs=None, stride=1):
            return np.full((len(hu), 7), 0.9), np.full((len(hu), 7), 0.01)

    found = findings_of(Blind(), volume)
    assert found.patient_probability is None and found.patient_score_optimal is None
    assert np.isnan(found.probabilities()).all()


def test_cspine_predict_goes_on_past_a_bad_study(workdir, folder, tmp_path, capsys):
    good, other = studies_in(folder)[:2]
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "1.dcm").write_bytes(b"not a DICOM file")
    copy = tmp_path / "copy"
    shutil.copytree(good, copy)
    out = tmp_path / "out"
    status = main(
        [
            "predict",
            str(good),
            str(bad),
            str(copy),
            str(other),
            "--no_segment",
            "--checkpoint",
            str(workdir),
            "--out",
            str(out),
        ]
    )
    printed = capsys.readouterr()
    assert status == 0
    assert f"left out: {bad}" in printed.err and "was given before" in printed.err
    assert "(2 left out)" in printed.out and "Research only" in printed.out
    uids = [good.name, other.name]
    assert sorted(p.name for p in out.iterdir()) == sorted([*uids, "predictions.csv", "submission.csv"])
    table = rows_of(out / "predictions.csv")
    assert [row["StudyInstanceUID"] for row in table] == uids
    submission = {row["row_id"]: float(row["fractured"]) for row in rows_of(out / "submission.csv")}
    assert len(submission) == 16
    for row in table:
        found = json.loads((out / row["StudyInstanceUID"] / "findings.json").read_text())
        assert "synthetic studies only" in found["note"] and found["versions"].keys() == {"cspine_jax", "jax", "numpy"}
        assert [level["name"] for level in found["vertebrae"]] == [f"C{i}" for i in range(1, 8)]
        p = found["patient_probability"]
        assert p == pytest.approx(float(row["patient_overall"]), rel=1e-4)
        assert submission[f"{row['StudyInstanceUID']}_patient_overall"] == pytest.approx(2 * p / (1 + p), rel=1e-4)
        for level in found["vertebrae"]:
            if level["visible"]:
                assert level["probability"] == pytest.approx(float(row[level["name"]]), rel=1e-4)
            else:
                assert row[level["name"]] == ""


def test_what_is_answered_is_not_asked_again(workdir, folder, tmp_path, capsys, monkeypatch):
    one, two = studies_in(folder)[:2]
    other = tmp_path / "other"  # not named by its UID: it is read, and then known
    shutil.copytree(two, other)
    out = tmp_path / "out"
    command = ["predict", str(one), str(other), "--no_segment", "--checkpoint", str(workdir), "--out", str(out)]
    assert main(command) == 0
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    first = capsys.readouterr().out
    assert len(files) == 4 and "done before" not in first

    class AgainError(BaseException):
        pass

    def refuse(*args, **more):
        raise AgainError

    with monkeypatch.context() as patch:
        patch.setattr(SliceRun, "slices", refuse)
        (out / "predictions.csv").unlink()
        assert main(command) == 0
        said = capsys.readouterr().out
        assert "2 studies (0 left out, 2 done before)" in said and first.splitlines()[0] in said
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == files
        patch.setattr("cspine_jax.inference.predict.read_study", refuse)
        assert main([*command[:2], *command[3:]]) == 0  # in the RSNA layout it is not even read
        assert "1 studies (0 left out, 1 done before) and 1 of earlier calls" in capsys.readouterr().out
        tables = {path: path.read_bytes() for path in out.glob("*.csv")}
        assert tables == {path: files[path] for path in tables}  # what was answered before is still in them
        with pytest.raises(AgainError):
            main([*command, "--overwrite"])
    # another threshold is another answer, and so are other weights
    found = out / one.name / "findings.json"
    for old, new in (('"vertebra": 0.35', '"vertebra": 0.36'), ('"digest": "', '"digest": "0')):
        text = files[found].decode()
        assert old in text
        found.write_text(text.replace(old, new))
        assert main(command) == 0
        assert "1 done before" in capsys.readouterr().out
    found.write_text("{")
    assert main(command) == 0 and "1 done before" in capsys.readouterr().out


def test_findings_come_back_as_they_were(run, folder, tmp_path):
    found = predict_study(run, studies_in(folder)[0])
    write_findings(tmp_path / "f.json", found)
    assert read_findings(tmp_path / "f.json") == found
    for text in ("", "{}", "[]", (tmp_path / "f.json").read_text()[:-20]):
        (tmp_path / "f.json").write_text(text)
        assert read_findings(tmp_path / "f.json") is None


def test_an_odd_study_does_not_end_a_batch(workdir, folder, tmp_path, capsys, monkeypatch):
    one, two = studies_in(folder)[:2]
    read = read_study
    trip = lambda path, **more: 1 / 0 if path == str(one) else read(path, **more)  # noqa: E731
    monkeypatch.setattr("cspine_jax.inference.predict.read_study", trip)
    command = ["predict", str(one), str(two), "--no_segment", "--checkpoint", str(workdir), "--out", str(tmp_path)]
    assert main(command) == 0
    assert f"left out: {one}: ZeroDivisionError" in capsys.readouterr().err


def test_a_hidden_level_is_empty_and_its_prevalence_is_submitted(run, folder, tmp_path):
    from cspine_jax.inference.findings import write_tables

    found = predict_study(run, studies_in(folder)[0])
    level = dataclasses.replace(found.vertebrae[6], visible=False, probability=None, fractured=None)
    write_tables(tmp_path, [dataclasses.replace(found, vertebrae=(*found.vertebrae[:6], level))], run.card.prevalence)
    assert rows_of(tmp_path / "predictions.csv")[0]["C7"] == ""
    submitted = {row["row_id"].rsplit("_", 1)[1]: row["fractured"] for row in rows_of(tmp_path / "submission.csv")}
    assert float(submitted["C7"]) == pytest.approx(2 * 0.45 / 1.45, rel=1e-5)


def test_no_usable_study_is_exit_2(workdir, tmp_path, capsys):
    assert (
        main(
            [
                "predict",
                "--no_segment",
                str(tmp_path / "none"),
                "--checkpoint",
                str(workdir),
                "--out",
                str(tmp_path / "o"),
            ]
        )
        == 2
    )
    assert "none of 1 studies" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_what_is_not_a_run_is_refused_and_left_alone(workdir, config, tmp_path, capsys):
    with pytest.raises(DataError, match=r"config.json.*finished"):
        SliceRun(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    with pytest.raises(DataError, match=r"checkpoints: no such folder"):
        SliceRun(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(DataError, match="no checkpoint"):
        SliceRun(tmp_path)
    type1 = json.loads((workdir / "config.json").read_text())
    type1["model"]["type"] = 1
    (tmp_path / "config.json").write_text(json.dumps(type1))
    with pytest.raises(DataError, match="no checkpoint"):
        SliceRun(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        SliceRun(tmp_path)


def test_a_run_of_another_task_is_refused(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "run")
    values = json.loads((workdir / "config.json").read_text())
    values |= {"task": "vertebra", "model": {**values["model"], "type": 1}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match="task='vertebra' finds no fractures; give the --workdir of a fracture run"):
        SliceRun(tmp_path / "run")


def test_a_run_that_was_never_evaluated_says_so(config, folder, tmp_path):
    run = SliceRun(write_run(tmp_path, config))
    assert run.card.thresholds["patient"] == 0.5 and run.card.phantom and not run.card.evaluated
    found = predict_study(run, studies_in(folder)[0])
    assert any("no evaluation/metrics.json" in line for line in found.warnings)


def test_a_damaged_card_is_named(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / "evaluation" / "metrics.json").write_text("{}")
    with pytest.raises(DataError, match=r"metrics.json.*thresholds"):
        SliceRun(tmp_path / "run")


@pytest.mark.parametrize(
    ("uid", "name"),
    [("1.2.3", "1.2.3"), ("../../etc", "_.._etc"), ("", "study"), ("a/b\\c\0", "a_b_c_"), ("..", "study")],
)
def test_a_uid_cannot_leave_the_output_folder(uid, name, tmp_path):
    assert folder_name(uid) == name
    assert (tmp_path / folder_name(uid)).resolve().parent == tmp_path.resolve()


def test_a_negative_batch_is_refused(workdir, tmp_path, capsys):
    assert main(["predict", "x", "--checkpoint", str(workdir), "--out", str(tmp_path), "--batch", "-1"]) == 2
    assert "--batch=-1" in capsys.readouterr().err


def test_another_study_of_the_same_name_is_not_taken_for_it(workdir, folder, tmp_path, capsys):
    """As NIfTI files are that are all called ct.nii.gz, and as are two series of one study."""
    good = studies_in(folder)[0]
    other = tmp_path / "other"
    shutil.copytree(good, other)
    for file in other.glob("*.dcm"):
        dataset = pydicom.dcmread(file)
        dataset.PixelData = (np.frombuffer(dataset.PixelData, np.uint16) ^ 1).tobytes()
        dataset.save_as(file)
    command = ["predict", "--no_segment", "--checkpoint", str(workdir), "--out", str(tmp_path / "out")]
    assert main([*command, str(good)]) == 0
    findings = tmp_path / "out" / good.name / "findings.json"
    before = json.loads(findings.read_text())
    assert before["content"] == read_study(good).content != read_study(other).content
    assert main([*command, str(other)]) == 2
    assert "holds results of another study (or series) of the same name" in capsys.readouterr().err
    assert json.loads(findings.read_text()) == before
    copy = tmp_path / "copy"
    shutil.copytree(good, copy)
    assert main([*command, str(copy)]) == 0 and "1 done before" in capsys.readouterr().out
    assert main([*command, "--overwrite", str(other)]) == 0
    assert json.loads(findings.read_text())["content"] == read_study(other).content
    assert main([*command, "--series", "no.such.one", str(other)]) == 2
    assert "no.such.one" in capsys.readouterr().err


def test_what_is_written_under_hashed_uids_is_not_beside_the_true_ones(workdir, folder, tmp_path):
    first, second = studies_in(folder)[:2]
    command = ["predict", "--no_segment", "--checkpoint", str(workdir), "--out", str(tmp_path / "out")]
    assert main([*command, str(first), str(second)]) == 0
    assert main([*command, "--hash_uids=s", str(first)]) == 0
    rows = rows_of(tmp_path / "out" / "predictions.csv")
    assert [row["StudyInstanceUID"] for row in rows] == [Identity("s").uid(first.name)]
    hashed = json.loads((tmp_path / "out" / rows[0]["StudyInstanceUID"] / "findings.json").read_text())
    assert hashed["content"] == Identity("s").uid(read_study(first).content)


def test_what_the_quality_gate_says_stands_beside_the_answer(run, folder):
    volume = read_study(studies_in(folder)[0])
    bright = dataclasses.replace(volume, hu=np.maximum(volume.hu, -100))
    notes = findings_of(run, bright).warnings
    assert any(note.startswith("not usable: ") and "air" in note for note in notes)
    assert not any("air" in note for note in findings_of(run, volume).warnings)
