"""Builds that are stopped, repeated, mixed up or fed broken studies; those killed outright are in test_build_killed."""

import csv
import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from cspine_jax import locks
from cspine_jax.cli import main
from cspine_jax.data import build as build_module
from cspine_jax.data.build import build
from cspine_jax.data.source import SliceTable
from cspine_jax.errors import DataError
from tests.data.rsna_folder import make, write_dicom, write_folder, write_mask, write_tables


def digests(path):
    """Hash of every file but `metadata.json`, which names the folder they were made from."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.iterdir())
        if file.name != "metadata.json"
    }


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """Digests of an undisturbed build."""
    return digests(build(folder[0], tmp_path_factory.mktemp("whole"), workers=1).path)


def skipped(path):
    with (path / "skipped.csv").open() as file:
        return {(row["StudyInstanceUID"], row["what"]): row["reason"] for row in csv.DictReader(file)}


def test_building_again_does_nothing(folder, whole, tmp_path):
    first = build(folder[0], tmp_path, workers=1)
    assert (first.studies, first.slices, first.new) == (10, 89, 10)
    times = {file.name: file.stat().st_mtime_ns for file in first.path.iterdir()}
    again = build(folder[0], tmp_path, workers=1)
    assert again == build_module.BuildResult(first.path, 10, 89, (), new=0)
    assert {file.name: file.stat().st_mtime_ns for file in first.path.iterdir()} == times


@pytest.mark.parametrize("step", ["serialize", "save", "shard", "write_metadata", "_write_notes", "rmtree", "last"])
def test_a_build_that_stops_anywhere_is_completed(folder, whole, tmp_path, monkeypatch, step):
    """The first run breaks off at the named step, the second one without it ends as an undisturbed build."""

    class Stopped(BaseException):
        pass

    def breaking(function, after, when=lambda *args: True):
        calls = iter(range(10**6))

        def call(*args, **kwargs):
            if when(*args) and next(calls) >= after:
                raise Stopped
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        if step in ("serialize", "write_metadata", "_write_notes"):
            after = {"serialize": 40}.get(step, 0)
            patch.setattr(build_module, step, breaking(getattr(build_module, step), after))
        elif step == "save":
            patch.setattr(build_module.index, "save", breaking(build_module.index.save, 4))
        elif step == "rmtree":
            patch.setattr(build_module.shutil, "rmtree", breaking(shutil.rmtree, 0))
        elif step == "last":
            patch.setattr(
                build_module.os, "replace", breaking(os.replace, 0, lambda a, b: str(a).endswith(".building"))
            )
        else:
            patch.setattr(build_module, "shard_name", breaking(build_module.shard_name, 5))
        with pytest.raises(Stopped):
            build(folder[0], tmp_path, workers=1)
    final = tmp_path / "rsna_cspine" / "native" / "1.0.0"
    assert not final.exists()
    result = build(folder[0], tmp_path, workers=1)
    assert result.new == {"serialize": 6, "save": 6}.get(step, 0)
    assert digests(result.path) == whole
    assert sorted(path.name for path in final.parent.iterdir()) == [".lock", "1.0.0"]


def test_unreadable_studies_are_listed_and_the_rest_is_built(tmp_path):
    root = tmp_path / "rsna"
    made = write_folder(root, studies=6)
    images = root / "train_images"
    (images / "1.2.100" / "3.dcm").write_bytes(b"nothing")
    shutil.rmtree(images / "1.2.101")
    for file in (images / "1.2.102").iterdir():
        file.unlink()
    write_mask(root / "segmentations" / "1.2.103.nii.gz", made["1.2.103"].mask[:, :, :-1])
    write_dicom(images / "1.2.50", make("1.2.50"))
    write_mask(root / "segmentations" / "1.2.7.nii.gz", made["1.2.103"].mask)

    result = build(root, tmp_path / "out", workers=1)
    reasons = skipped(result.path)
    assert {key: bool(reason) for key, reason in reasons.items()} == dict.fromkeys(
        [("1.2.100", "study"), ("1.2.101", "study"), ("1.2.102", "study"), ("1.2.103", "mask"), ("1.2.7", "mask")], True
    )
    assert "train.csv" in reasons["1.2.101", "study"]
    assert {(note.uid, note.what) for note in result.skipped} == set(reasons)
    table = SliceTable.open(result.path)
    assert table.uids.tolist() == ["1.2.103", "1.2.104", "1.2.105", "1.2.50"]
    assert table.has_mask.tolist() == [False, False, True, False]
    assert table.has_labels.tolist() == [True, True, True, False]

    # Repaired studies join with --retry, and only then.
    shutil.rmtree(images / "1.2.102")
    write_dicom(images / "1.2.102", made["1.2.102"])
    assert build(root, tmp_path / "out", workers=1).new == 0
    (result.path / ".volumes").mkdir()  # by numbers of studies, which change now
    (result.path / ".volumes" / "000000.npy").touch()
    again = build(root, tmp_path / "out", workers=1, retry=True)
    assert (again.new, again.studies) == (1, 5) and not (again.path / ".volumes").exists()
    table = SliceTable.open(again.path)
    np.testing.assert_array_equal(table.read_study(0), made["1.2.102"].hu)
    np.testing.assert_array_equal(table.read_study(3), made["1.2.105"].hu)
    assert set(skipped(again.path)) == set(reasons) - {("1.2.102", "study")}


def test_another_folder_or_other_parameters_are_refused(tmp_path):
    write_folder(tmp_path / "rsna", studies=3)
    build(tmp_path / "rsna", tmp_path / "out", workers=1)
    with pytest.raises(DataError, match=r"num_folds=5 and not 3.*--data_dir.*--overwrite"):
        build(tmp_path / "rsna", tmp_path / "out", workers=1, num_folds=3)
    write_folder(tmp_path / "other", studies=4)
    with pytest.raises(DataError, match=r"other tables or masks than those now in .*other.*rsna"):
        build(tmp_path / "other", tmp_path / "out", workers=1)
    assert build(tmp_path / "other", tmp_path / "out", workers=1, overwrite=True).studies == 4
    assert build(tmp_path / "rsna", tmp_path / "out", workers=1, size=16).studies == 3


def test_folds_that_are_not_asked_for_are_those_that_are_there(folder, tmp_path):
    first = build(folder[0], tmp_path, workers=1, num_folds=3)
    assert build(folder[0], tmp_path, workers=1).new == 0
    assert SliceTable.open(first.path).folds.max() == 2


def test_a_full_disk_is_one_line(folder, tmp_path, monkeypatch):
    class Full:
        def __init__(self, *args):
            pass

        def write(self, data):
            pass

        def close(self):
            raise RuntimeError("write() failed: No space left on device; writing x\nmore")

    monkeypatch.setattr(build_module, "ArrayRecordWriter", Full)
    with pytest.raises(DataError, match=r"cannot write study 1\.2\.100: .*No space left.*studies are kept: make room"):
        build(folder[0], tmp_path, workers=1)


@pytest.mark.parametrize("after", [0, 1, 3, 5, 6, 7, 8])
def test_a_disk_that_fills_up_leaves_what_can_be_resumed(tmp_path, monkeypatch, after):
    """The n-th of the files that a build writes beside the shards does not fit."""
    left = iter(range(after))

    def full(function):
        def write(*args, **kwargs):
            if next(left, None) is None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*args, **kwargs)

        return write

    small = tmp_path / "rsna"
    write_folder(small, studies=4)
    expected = digests(build(small, tmp_path / "undisturbed", workers=1).path)
    with monkeypatch.context() as patch:
        patch.setattr(build_module.index, "save", full(build_module.index.save))
        for name in ("_write_text", "write_metadata", "_write_notes"):
            patch.setattr(build_module, name, full(getattr(build_module, name)))
        with pytest.raises(DataError, match=r"No space left on device; finished studies are kept: make room") as caught:
            build(small, tmp_path / "out", workers=1)
        assert "\n" not in str(caught.value)
    assert digests(build(small, tmp_path / "out", workers=1).path) == expected


_LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # inherited by the workers, as is the limit
from cspine_jax.cli import main
if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
    sys.exit(main(sys.argv[2:]))
"""


def test_shards_that_do_not_fit(tmp_path):
    """No file may outgrow the smallest shards: a real failure to write, in a worker."""
    (tmp_path / "limited.py").write_text(_LIMITED)
    rsna = tmp_path / "rsna"
    write_folder(rsna, studies=5)
    shutil.rmtree(rsna / "train_images" / "1.2.103")
    write_dicom(rsna / "train_images" / "1.2.103", make("1.2.103", depth=300))
    undisturbed = build(rsna, tmp_path / "undisturbed", workers=1)
    sizes = sorted(path.stat().st_size for path in undisturbed.path.glob("*.array_record-*"))
    assert sizes[-1] > sizes[0]
    command = ["build", f"--manual_dir={rsna}", f"--data_dir={tmp_path / 'out'}", "--workers=2"]
    run = subprocess.run(
        [sys.executable, tmp_path / "limited.py", str(sizes[0]), *command], capture_output=True, text=True
    )
    assert run.returncode == 2
    said = [line for line in run.stderr.splitlines() if "error" in line]
    assert len(said) == 1 and "Traceback" not in run.stderr
    assert re.search(r"cannot write study 1\.2\.103: .*finished studies are kept: make room", said[0])
    studies = tmp_path / "out" / "rsna_cspine" / "native" / ".1.0.0.building" / "studies"
    assert not list(studies.glob("*.tmp"))  # a full disk needs the room
    done = len(list(studies.glob("*.array_record")))
    result = build(rsna, tmp_path / "out", workers=1)
    assert 1 <= done < 5 and result.new == 5 - done and digests(result.path) == digests(undisturbed.path)


def test_only_one_build_at_a_time(folder, tmp_path):
    parent = tmp_path / "rsna_cspine" / "native"
    parent.mkdir(parents=True)
    for finished in (False, True):
        with build_module._Lock(parent) as lock:
            lock.take()
            with pytest.raises(DataError, match="another process is building"):
                build(folder[0], tmp_path, workers=1)
        assert build(folder[0], tmp_path, workers=1).new == (0 if finished else 10)


def test_a_look_at_the_records_is_not_refused_while_others_look(folder, tmp_path):
    final = build(folder[0], tmp_path, workers=1).path
    with build_module._Lock(final.parent) as looking:
        looking.share()
        assert build(folder[0], tmp_path, workers=1).new == 0
        threading.Timer(0.3, locks.release, [looking._file]).start()  # writing waits until nobody looks
        start = time.monotonic()
        assert build(folder[0], tmp_path, workers=1, overwrite=True).new == 10
        assert time.monotonic() - start > 0.25


def test_finished_records_where_nobody_may_write_are_found(folder, tmp_path, monkeypatch):
    build(folder[0], tmp_path, workers=1)
    opened = os.open

    def read_only(path, flags, *args, **kwargs):
        if flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", read_only)
    assert build(folder[0], tmp_path, workers=1).new == 0


def test_no_readable_study_is_an_error(tmp_path):
    made = make("1.2.3")
    write_dicom(tmp_path / "train_images" / made.uid, made)
    for file in (tmp_path / "train_images" / made.uid).iterdir():
        file.write_bytes(b"")
    write_tables(tmp_path, {made.uid: ()}, [])
    with pytest.raises(DataError, match="none of 1 studies can be read"):
        build(tmp_path, tmp_path / "out", workers=1)


def test_shards_that_lost_their_end_are_made_again(folder, whole, tmp_path, monkeypatch):
    """As after a power cut; a shard and the columns of another."""
    with monkeypatch.context() as patch:
        patch.setattr(build_module, "_finalise", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(folder[0], tmp_path, workers=1)
    studies = tmp_path / "rsna_cspine" / "native" / ".1.0.0.building" / "studies"
    for name in ("1.2.103.array_record", "1.2.105.npz"):
        (studies / name).write_bytes((studies / name).read_bytes()[:1000])
    result = build(folder[0], tmp_path, workers=1)
    assert result.new == 2
    assert digests(result.path) == whole


def test_command_line(folder, tmp_path, capsys):
    arguments = ["build", f"--manual_dir={folder[0]}", f"--data_dir={tmp_path}", "--size=16", "--workers=1"]
    assert main(arguments) == 0
    assert "size16/1.0.0: 10 studies, 89 slices\n" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main([*arguments, "--config=size32"]) == 2
    assert main(["build", "--manual_dir=/nowhere", f"--data_dir={tmp_path}"]) == 2
    assert "/nowhere/train_images: no such folder" in capsys.readouterr().err
