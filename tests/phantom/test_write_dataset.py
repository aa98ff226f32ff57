"""A folder of studies: layout, same bytes, resuming, refusing, labels that agree with voxels."""

import csv
import fcntl
import json
import threading

import nibabel as nib
import numpy as np
import pytest

from cspine_jax.anatomy import TARGETS
from cspine_jax.cli import main
from cspine_jax.errors import ConfigError, DataError
from cspine_jax.phantom import dataset, make_study, sample_study, write_dataset

SMALL = {"seed": 4, "size": 48, "scale": 0.05}


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("phantom") / "whole", 5, workers=1, **SMALL)


def test_layout_and_tables(whole):
    labels = rows(whole / "train.csv")
    assert list(labels[0]) == ["StudyInstanceUID", *TARGETS] and len(labels) == 5
    uids = [row["StudyInstanceUID"] for row in labels]
    assert sorted(p.name for p in (whole / "train_images").iterdir()) == sorted(uids)
    for name in ("segmentations", "fractures"):
        assert sorted(p.name for p in (whole / name).iterdir()) == sorted(f"{uid}.nii.gz" for uid in uids)
    boxes = rows(whole / "train_bounding_boxes.csv")
    assert list(boxes[0]) == ["StudyInstanceUID", "x", "y", "width", "height", "slice_number"]
    for row in labels:
        levels = [int(row[name]) for name in TARGETS]
        assert levels[0] == max(levels[1:])
        seen = np.unique(np.asarray(nib.load(whole / "fractures" / f"{row['StudyInstanceUID']}.nii.gz").dataobj))
        assert {j + 1 for j in range(7) if levels[j + 1]} == set(seen.tolist()) - {0}
        mine = [box for box in boxes if box["StudyInstanceUID"] == row["StudyInstanceUID"]]
        assert bool(mine) == bool(levels[0])
        for box in mine:
            assert (whole / "train_images" / row["StudyInstanceUID"] / f"{box['slice_number']}.dcm").is_file()
    assert not (whole / ".partial").exists()


def test_bytes_do_not_depend_on_workers_number_or_interruption(whole, tmp_path, monkeypatch):
    write_dataset(tmp_path / "parallel", 5, workers=2, **SMALL)
    assert contents(tmp_path / "parallel") == contents(whole)

    broken, write = tmp_path / "broken", dataset._write_study

    def dies(out, parameters, index):
        if index == 2:
            (out / ".partial" / "leftover").mkdir(parents=True)
            raise KeyboardInterrupt
        write(out, parameters, index)

    monkeypatch.setattr(dataset, "_write_study", dies)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(broken, 3, workers=1, **SMALL)
    assert not (broken / "train.csv").exists()
    monkeypatch.setattr(dataset, "_write_study", write)
    kept = contents(broken / ".studies")
    write_dataset(broken, 3, workers=1, **SMALL)
    assert contents(broken / ".studies").items() >= kept.items() and len(kept) == 2
    write_dataset(broken, 5, workers=1, **SMALL)  # grows
    assert contents(broken) == contents(whole)


def test_a_finished_folder_is_left_alone(whole, monkeypatch):
    monkeypatch.setattr(dataset, "_write_study", lambda *_: pytest.fail("wrote a finished study again"))
    before = contents(whole)
    write_dataset(whole, 5, workers=1, **SMALL)
    assert contents(whole) == before


def test_first_picks_the_same_studies(whole, tmp_path):
    write_dataset(tmp_path, 2, first=3, workers=1, **SMALL)
    assert rows(tmp_path / "train.csv") == rows(whole / "train.csv")[3:]


@pytest.mark.parametrize("change", [{"size": 64}, {"seed": 5}, {"difficulty": "hard"}, {"codec": "mixed"}], ids=str)
def test_other_parameters_are_refused(whole, change):
    name, value = next(iter(change.items()))
    with pytest.raises(DataError, match=f"{name}=.*{value!r}"):
        write_dataset(whole, 5, **{**SMALL, **change})


def test_fewer_studies_and_foreign_folders_are_refused(whole, tmp_path):
    with pytest.raises(DataError, match="already has 5"):
        write_dataset(whole, 4, **SMALL)
    (tmp_path / "train_images").mkdir()
    with pytest.raises(DataError, match="not a phantom"):
        write_dataset(tmp_path, 1, **SMALL)
    with pytest.raises(ConfigError, match="studies=0"):
        write_dataset(tmp_path / "new", 0, **SMALL)
    with pytest.raises(ConfigError, match=r"mask_fraction=1\.5"):
        write_dataset(tmp_path / "new", 1, mask_fraction=1.5, **SMALL)
    assert not (tmp_path / "new").exists()


def test_fractions_of_masks_and_boxes(tmp_path):
    write_dataset(tmp_path, 4, workers=1, mask_fraction=0, box_fraction=0, **SMALL)
    assert not (tmp_path / "segmentations").exists()
    assert len(rows(tmp_path / "train.csv")) == 4 and rows(tmp_path / "train_bounding_boxes.csv") == []


def test_a_fracture_that_leaves_no_voxel_is_drawn_again_or_not_labelled(monkeypatch):
    index = next(i for i in range(50) if sample_study(4, i).labels[0])
    render, calls = dataset.scene.render, []

    def blind(plan):
        calls.append(plan)
        rendered = render(plan)
        rendered.fractures[:] = 0
        return rendered

    monkeypatch.setattr(dataset.scene, "render", blind)
    study = make_study(4, index, size=48, scale=0.05)
    assert study.plan.labels == (0,) * 8 and not study.fractures.any()
    assert len(calls) == 4 and calls[0].fractures != calls[1].fractures != calls[2].fractures
    assert calls[0].labels == calls[1].labels == calls[2].labels and not calls[3].fractures


def test_command_line(tmp_path, capsys):
    out, sheet = tmp_path / "out", tmp_path / "sheets" / "sheet.png"
    arguments = ["phantom", "--out", str(out), "--studies", "2", "--seed", "4", "--size", "48", "--scale", "0.05"]
    assert main([*arguments, "--workers", "1", "--preview", str(sheet)]) == 0
    assert sheet.read_bytes()[:4] == b"\x89PNG"
    assert json.loads((out / "phantom.json").read_text())["studies"] == 2
    assert main([*arguments, "--difficulty", "hard"]) == 2
    assert "difficulty='standard'" in capsys.readouterr().err


def test_a_second_process_waits_for_the_first(whole, tmp_path, capfd):
    out = tmp_path / "shared"
    out.mkdir()
    second = threading.Thread(target=write_dataset, args=(out, 1), kwargs={"workers": 1, **SMALL})
    with (out / ".lock").open("w") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        second.start()
        second.join(1.0)
        assert second.is_alive() and [path.name for path in out.iterdir()] == [".lock"]
        assert f"another process is making {out}; waiting for it" in capfd.readouterr().err
    second.join(60)
    assert not second.is_alive() and len(rows(out / "train.csv")) == 1
