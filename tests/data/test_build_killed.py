"""Builds killed at random moments, and on a disk that is truly full."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cspine_jax.data.build import build
from cspine_jax.data.source import SliceTable
from tests.data.rsna_folder import write_folder
from tests.data.test_build import digests

STUDIES, WORKERS, KILLS = 12, 2, 20

# Every study takes a while to read, so that most moments fall on the reading and writing of studies as in a real build;
# what is read is logged.
_SCRIPT = """
import os, sys, time
from cspine_jax.data import build
load = build.load_study
def slowly(entry, *args):
    with open(os.environ["LOADED"], "a") as file:
        file.write(entry.uid + "\\n")
    time.sleep(0.1)
    return load(entry, *args)
build.load_study = slowly
if __name__ == "__main__":
    build.build(sys.argv[1], sys.argv[2], workers=int(sys.argv[3]))
"""


class Killed:
    """Starts builds in processes of their own, and ends them."""

    def __init__(self, folder: Path, rsna: Path):
        self.script, self.rsna = folder / "script.py", rsna
        self.script.write_text(_SCRIPT)

    def run(self, out: Path, reads: int, seconds: float) -> None:
        """Builds into `out`; kills it with its workers `seconds` after the studies of `out` were read `reads` times."""
        process = subprocess.Popen(
            [sys.executable, self.script, self.rsna, out, str(WORKERS)],
            env=os.environ | {"LOADED": str(out) + ".loaded"},
            stderr=subprocess.DEVNULL,
        )
        while loaded(out).total() < reads and process.poll() is None:
            time.sleep(0.005)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        children = _children(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 60
        while any(os.path.exists(f"/proc/{child}") for child in children):  # they follow their parent
            time.sleep(0.01)
            assert time.monotonic() < deadline, "workers outlive their parent"


def _children(process: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def finished(out: Path) -> set[str]:
    """Studies whose shard and columns are in place."""
    studies = out / "rsna_cspine" / "native" / ".1.0.0.building" / "studies"
    return {path.stem for path in studies.glob("*.array_record")}


def loaded(out: Path) -> Counter[str]:
    """How often each study was read."""
    path = Path(str(out) + ".loaded")
    return Counter(path.read_text().split()) if path.exists() else Counter()


@pytest.mark.slow
def test_killed_at_20_random_moments(tmp_path):
    """Half of the builds are killed a second time while they go on. Seeded, but the machine's speed has its say."""
    rsna = tmp_path / "rsna"
    write_folder(rsna, studies=STUDIES)
    killed = Killed(tmp_path, rsna)
    undisturbed = build(rsna, tmp_path / "undisturbed", workers=1)
    expected = digests(undisturbed.path) | {"metadata.json": (undisturbed.path / "metadata.json").read_bytes()}
    rng = np.random.default_rng(0)
    kills, moments, build_number = 0, [], 0
    while kills < KILLS:
        out = tmp_path / f"out{build_number}"
        for _ in range(1 + build_number % 2):
            before, reads = finished(out), loaded(out)
            killed.run(out, int(rng.integers(reads.total(), STUDIES + 1)), float(rng.uniform(0, 0.3)))
            kills += 1
            moments.append(len(finished(out)))
            assert not before & set(loaded(out) - reads), "a finished study was read again"
            assert before <= finished(out) or (out / "rsna_cspine" / "native" / "1.0.0").is_dir()
        result = build(rsna, out, workers=1)
        again = loaded(out)  # what the last call read is not logged: it runs in this process
        in_flight = WORKERS * (1 + build_number % 2)
        assert again.total() + result.new <= STUDIES + in_flight, again
        assert (result.studies, result.slices) == (undisturbed.studies, undisturbed.slices)
        assert digests(result.path) | {"metadata.json": (result.path / "metadata.json").read_bytes()} == expected
        assert sorted(path.name for path in result.path.parent.iterdir()) == [".lock", "1.0.0"]
        build_number += 1
    assert len(SliceTable.open(result.path).uids) == STUDIES
    print(f"\n{kills} kills; studies finished at each: {moments}")
    assert len(set(moments)) > 4


@pytest.mark.slow
def test_a_full_file_system(tmp_path):
    """A real one, where the system lets us mount it: grown step by step until the build fits."""
    rsna, disk = tmp_path / "rsna", tmp_path / "disk"
    write_folder(rsna, studies=8)
    expected = digests(build(rsna, tmp_path / "undisturbed", workers=1).path)
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        refused = 0
        command = [sys.executable, "-m", "cspine_jax.cli", "build", f"--manual_dir={rsna}", f"--data_dir={disk}"]
        for size in (16, 160, 320, 480, 4096):
            subprocess.run(["mount", "-o", f"remount,size={size}k", str(disk)], check=True)
            run = subprocess.run([*command, "--workers=2"], capture_output=True, text=True, check=False)
            if run.returncode == 0:
                break
            refused += 1
            said = run.stderr.splitlines()[-1]
            assert run.returncode == 2 and "Traceback" not in run.stderr, run.stderr
            assert "error: " in said and "finished studies are kept: make room" in said, run.stderr
        assert refused > 2
        assert digests(disk / "rsna_cspine" / "native" / "1.0.0") == expected
    finally:
        subprocess.run(["umount", str(disk)], check=True)
