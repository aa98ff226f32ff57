"""`cspine segment` from DICOM to files, with networks that know the truth."""

import csv
import json
import shutil

import numpy as np
import pytest
from oracles import Oracle, neck

from cspine_jax.anatomy import VERTEBRAE
from cspine_jax.cli import main
from cspine_jax.ct import read_mask, read_study
from cspine_jax.ct.identity import Identity
from cspine_jax.inference import weights
from cspine_jax.inference.vertebrae.stored import write_mask
from tests.ct.dicom_factory import write_series

NOTE = "Trained on phantoms."


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A DICOM folder stored from the feet up, and its truth on the volume's grid."""
    _, labels, spacing = neck()
    rng = np.random.default_rng(1)
    hu = np.where(labels > 0, 500, 0) + rng.integers(-150, 150, labels.shape)
    hu[:, :2] = -1000 + rng.integers(0, 99, hu[:, :2].shape)
    folder = tmp_path_factory.mktemp("studies") / "one"
    write_series(folder, hu.astype(np.int16), spacing_mm=spacing, flips=(True, False, False))
    return folder, labels


@pytest.fixture
def oracle(study, monkeypatch):
    folder, labels = study
    oracle = Oracle(labels, read_study(folder))
    card = weights.Card("oracle", NOTE, True, {}, {})
    monkeypatch.setattr(weights, "load", lambda path=None: (oracle.spine, oracle.refine, card))
    return oracle


def test_segment_writes_mask_report_table_and_picture(study, oracle, tmp_path, capsys):
    folder, labels = study
    empty = tmp_path / "bad"
    empty.mkdir()
    assert main(["segment", str(empty), str(folder), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "left out" in said.err and str(empty) in said.err
    assert "C4 visible" in said.out and NOTE in said.out and "(1 left out)" in said.out
    volume = read_study(folder)
    (out,) = (path for path in (tmp_path / "out").iterdir() if path.is_dir())
    mask = read_mask(out / "vertebrae.nii.gz", volume)
    for value in range(1, 8):
        a, b = labels == value, mask == value
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.95
    report = json.loads((out / "vertebrae.json").read_text())
    assert NOTE in report["note"] and report["model"]["trained_on_phantoms_only"]
    assert set(report["seconds"]) == {"read", "coarse", "naming", "fine", "masks"}
    assert report["study_uid"] == volume.study_uid and report["grid"]["shape"] == list(volume.shape)
    for vertebra in report["vertebrae"]:
        where = np.argwhere(mask == report_value(report, vertebra["name"]))
        np.testing.assert_allclose(vertebra["centroid"], where.mean(axis=0), rtol=1e-4)
        mm = volume.affine @ [*where.mean(axis=0), 1]
        np.testing.assert_allclose(vertebra["centroid_mm"], mm[:3], atol=0.01)
        np.testing.assert_array_equal(vertebra["box"][0], where.min(axis=0))
    assert (out / "preview.png").read_bytes().startswith(b"\x89PNG")
    with open(tmp_path / "out" / "slices.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(labels) and rows[0]["slice_index"] == "0"
    np.testing.assert_array_equal([int(row["slice_number"]) for row in rows], volume.slice_numbers)
    v = np.array([[float(row[name]) for name in VERTEBRAE] for row in rows])
    shown = np.stack([(labels == value).any(axis=(1, 2)) for value in range(1, 8)], axis=1)
    assert ((v >= 0.5) == shown).mean() > 0.98


def report_value(report, name):
    return next(int(value) for value, other in report["mask"]["labels"].items() if other == name)


def test_json_on_stdout_is_one_object_a_study_and_uids_are_hashed_everywhere(study, oracle, tmp_path, capsys):
    uid = read_study(study[0]).study_uid
    assert main(["segment", str(study[0]), "--out", str(tmp_path), "--json", "--hash_uids=salt"]) == 0
    said = capsys.readouterr().out
    assert [v["name"] for v in json.loads(said)["vertebrae"]][:7] == list(VERTEBRAE)
    texts = [path.read_text() for path in tmp_path.rglob("*") if path.suffix in (".json", ".csv")]
    assert len(texts) == 3 and not any(uid in text for text in (*texts, said))
    assert not any(uid in str(path) for path in tmp_path.rglob("*"))


def test_nothing_usable_is_an_error(oracle, tmp_path, capsys):
    assert main(["segment", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert "none of 1 studies could be used" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_truth_is_scored_where_it_is_there(study, oracle, tmp_path, capsys):
    folder, labels = study
    volume = read_study(folder)
    truth = tmp_path / "truth"
    truth.mkdir()
    out = tmp_path / "out"
    assert main(["segment", str(folder), "--out", str(out), "--truth", str(truth)]) == 0
    assert "holds no mask" in capsys.readouterr().out and not (out / "scores.csv").exists()
    write_mask(truth / f"{volume.study_uid}.nii.gz", labels, volume)
    assert main(["segment", str(folder), "--out", str(out), "--truth", str(truth)]) == 0
    scores = json.loads((out / "scores.json").read_text())
    assert scores["studies"] == 1 and scores["dice"] > 0.95 and scores["identification_rate"] == 1.0
    assert "1 studies with truth: Dice" in capsys.readouterr().out
    assert main(["segment", str(folder), "--out", str(out), "--truth", str(tmp_path / "no")]) == 2
    assert main(["segment", str(folder), "--out", str(out), "--truth", str(truth), "--hash_uids=s"]) == 2
    err = capsys.readouterr().err
    assert "no such folder" in err and "give one of the two" in err


def test_what_is_done_is_not_done_again(study, oracle, tmp_path, capsys, monkeypatch):
    folder, out = study[0], tmp_path / "out"
    uid = read_study(folder).study_uid
    named = tmp_path / uid  # as in the RSNA layout
    shutil.copytree(folder, named)
    assert main(["segment", str(named), "--out", str(out)]) == 0
    first = capsys.readouterr().out
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert len(files) == 5 and out / "slices.csv" in files and "done before" not in first

    class AgainError(BaseException):
        pass

    def refuse(*args):
        raise AgainError

    monkeypatch.setattr("cspine_jax.inference.vertebrae.segment.Segmenter.__call__", refuse)
    (out / "slices.csv").unlink()
    assert main(["segment", str(folder), "--out", str(out)]) == 0  # it is known by its UID, once read
    with monkeypatch.context() as unread:
        unread.setattr("cspine_jax.cli.segment.read_study", refuse)
        assert main(["segment", str(named), "--out", str(out)]) == 0  # or by the name of its folder
    said = capsys.readouterr()
    assert first.splitlines()[0] in said.out and "1 studies (0 left out, 1 done before)" in said.out
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == files
    for name in ("vertebrae.nii.gz", "slices.csv"):  # killed between two files
        (out / uid / name).rename(tmp_path / "away")
        with pytest.raises(AgainError):
            main(["segment", str(named), "--out", str(out)])
        (tmp_path / "away").rename(out / uid / name)
    for flags in (["--overwrite"], ["--flip"]):
        with pytest.raises(AgainError):
            main(["segment", str(named), "--out", str(out), *flags])


def test_a_second_call_adds_to_the_table(study, oracle, tmp_path):
    """One that other weights segmented stays out of the table, and true UIDs out of the hashed ones'."""
    folder, out = str(study[0]), tmp_path / "out"
    assert main(["segment", folder, "--out", str(out)]) == 0
    assert main(["segment", folder, "--out", str(out), "--hash_uids=a"]) == 0

    def uids_in_table():
        with open(out / "slices.csv", encoding="utf-8") as file:
            return [row["StudyInstanceUID"] for row in csv.DictReader(file)]

    assert uids_in_table() == [Identity("a").uid(read_study(folder).study_uid)] * len(study[1])
    assert main(["segment", folder, "--out", str(out)]) == 0
    uids = uids_in_table()
    assert len(uids) == 2 * len(study[1]) and len(set(uids)) == 2
    (report,) = (path for path in out.glob("*/vertebrae.json") if uids[-1] in path.read_text())
    report.write_text(report.read_text().replace('"oracle"', '"others"'))
    assert main(["segment", folder, "--out", str(out)]) == 0
    assert set(uids_in_table()) == {uids[0]} != {uids[-1]}


def test_an_odd_study_does_not_end_a_batch(study, oracle, tmp_path, capsys, monkeypatch):
    other = tmp_path / "other"
    shutil.copytree(study[0], other)
    read = read_study
    trip = lambda path, **more: 1 / 0 if path == str(other) else read(path, **more)  # noqa: E731
    monkeypatch.setattr("cspine_jax.cli.segment.read_study", trip)
    assert main(["segment", str(other), str(study[0]), "--out", str(tmp_path / "out")]) == 0
    assert f"left out: {other}: ZeroDivisionError" in capsys.readouterr().err
