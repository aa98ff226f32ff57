"""launch.py end to end on a shrunk quickstart: train, run again, kill and resume, and every way to get it wrong."""

import csv
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "configs" / "quickstart.py"
SMALL = (
    "--config.data.phantom.studies=8",
    "--config.data.phantom.size=48",
    "--config.data.phantom.scale=0.06",
    "--config.data.size=48",
    "--config.data.batch_size=8",
    "--config.data.eval_batch_size=16",
    "--config.train.total_steps=8",
    "--config.train.total_epochs=0",
    "--config.train.eval_steps=4",
    "--config.train.eval_epochs=0",
    "--config.train.log_steps=2",
    "--config.train.checkpoint_steps=2",
    "--config.train.patience=0",
    "--config.eval.bootstrap=10",
    "--config.eval.examples_shown=1",
)


def command(workdir, data, *extra):
    return [sys.executable, str(ROOT / "launch.py"), f"--config={RECIPE}", f"--workdir={workdir}",
            f"--config.data.root={data}", *SMALL, *extra]  # fmt: skip


def environment(folder):
    """One device, as on a laptop, and one compilation cache for these tests."""
    return {**os.environ, "XLA_FLAGS": "", "CSPINE_JAX_CACHE": str(folder / "cache")}


def launch(folder, workdir, *extra):
    return subprocess.run(
        command(workdir, folder / "data", *extra),
        env=environment(folder), capture_output=True, text=True, timeout=300, cwd=folder, check=False,
    )  # fmt: skip


def curve(workdir):
    from cspine_jax.training.writer import TIMING, read_lines

    lines = [line for line in read_lines(workdir / "metrics.jsonl") if line["split"] != "run"]
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A finished run: (folder of all, work folder, what it printed)."""
    folder = tmp_path_factory.mktemp("launch")
    done = launch(folder, folder / "run")
    assert done.returncode == 0, done.stderr
    return folder, folder / "run", done


def test_the_whole_command_writes_what_it_promises(first):
    _, workdir, done = first
    for name in ("config.json", "metrics.jsonl", "evaluation/report.html", "evaluation/metrics.json"):
        assert (workdir / name).stat().st_size > 0
    with (workdir / "evaluation" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["StudyInstanceUID", "patient_overall", *(f"C{i}" for i in range(1, 8))]
    assert len(rows) >= 1
    assert json.loads((workdir / "config.json").read_text())["data"]["phantom"]["studies"] == 8
    assert [(line["step"], line["split"]) for line in curve(workdir)] == [
        (2, "train"), (4, "train"), (4, "validation"), (6, "train"), (8, "train"), (8, "validation"),
    ]  # fmt: skip
    for text in ("ours (phantom)", "document B (RSNA, theirs)", "report.html", "checkpoint: ", "wall time: ", "compil"):
        assert text in done.stdout
    assert "step/s" in done.stderr or "s/step" in done.stderr  # the progress bar, with time left
    assert not [line for line in done.stderr.splitlines() if "Traceback" in line or "Warning" in line]


def test_run_again_it_evaluates_again_and_does_not_train(first):
    folder, workdir, _ = first
    before = curve(workdir), (workdir / "evaluation" / "predictions.csv").read_bytes()
    again = launch(folder, workdir)
    assert again.returncode == 0, again.stderr
    assert "finished before (all 8 steps done)" in again.stdout and "ours (phantom)" in again.stdout
    assert (curve(workdir), (workdir / "evaluation" / "predictions.csv").read_bytes()) == before


def test_killed_at_any_moment_it_goes_on_to_the_same_result(first):
    folder, workdir, _ = first
    for signum, wanted in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)):
        other = folder / f"killed-{signum}"
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                command(other, folder / "data", "--config.train.total_steps=8"),
                env=environment(folder), stdout=log, stderr=log, cwd=folder,
            )  # fmt: skip
            deadline = time.monotonic() + 200
            while not any((other / "checkpoints").glob("[0-9]")) and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(signum)
            status = process.wait(100)
        said = (folder / "log").read_text()
        assert status in (wanted, 0), said  # 0: it was faster than the signal
        if status == 143:
            assert "go on with: python launch.py --config=" in said
        done = launch(folder, other)
        assert done.returncode == 0, done.stderr
        assert status == 0 or "resumed at step" in done.stdout or "finished before" in done.stdout
        assert curve(other) == curve(workdir)
        assert (other / "evaluation" / "predictions.csv").read_bytes() == (
            workdir / "evaluation" / "predictions.csv"
        ).read_bytes()


def test_a_stop_is_not_taken_for_a_damaged_checkpoint(first):
    folder, workdir, _ = first
    terminated_while_reading = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import launch
from cspine_jax.training.checkpoint import Checkpoints

Checkpoints.progress = lambda self, step: os.kill(os.getpid(), signal.SIGTERM)
sys.exit(launch.main(sys.argv[2:]))
"""
    done = subprocess.run(
        [sys.executable, "-c", terminated_while_reading, str(ROOT),
         *command(workdir, folder / "data", "--mode=evaluate")[2:]],
        env=environment(folder), capture_output=True, text=True, timeout=300, cwd=folder, check=False,
    )  # fmt: skip
    assert done.returncode == 143 and "launch: terminated; go on with: python launch.py" in done.stderr, done.stderr
    assert not list((workdir / "checkpoints").glob("*.unreadable"))


def test_predict_writes_every_slice_and_a_type_2_model_can_read_them(first):
    folder, workdir, _ = first
    done = launch(folder, workdir, "--mode=predict")
    assert done.returncode == 0, done.stderr
    with (workdir / "predictions" / "slices.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["part"] for row in rows} == {"train", "validation", "test"}
    assert len({row["StudyInstanceUID"] for row in rows}) == 8
    assert all(0 <= float(row["C4"]) <= 1 and 0 <= float(row["f_C4"]) <= 1 for row in rows)
    from cspine_jax.data.probabilities import vertebra_probabilities
    from cspine_jax.data.source import SliceTable

    table = SliceTable.open(next((folder / "data" / "records").rglob("index.npz")).parent)
    assert len(rows) == len(table)
    given = vertebra_probabilities(table, str(workdir / "predictions" / "slices.csv"))
    for row, values in zip(rows, given.values, strict=True):
        if row["part"] == "test":
            assert values[3] == pytest.approx(float(row["C4"]), rel=1e-4)
        else:
            assert np.isnan(values).all()  # never what it learnt from


def one_line_error(folder, workdir, *extra):
    done = launch(folder, workdir, *extra)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("launch: error: ")
    return line


def test_other_settings_on_an_old_work_folder_are_refused_by_name(first):
    folder, workdir, _ = first
    line = one_line_error(folder, workdir, "--config.optim.lr=0.5", "--config.data.workers=1")
    assert "optim.lr=0.5 (there 0.00" in line and "workers" not in line and "--workdir" in line


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--config.optim.learning_rate=1",), "--config.optim.learning_rate: no such field"),
        (("--config.optim.lrr=1",), "did you mean --config.optim.lr?"),
        (("--config.data.fold=x",), "--config.data.fold=x"),
        (("--config.data.depth=4",), "data.depth=4: a stack needs a centre slice; use 5"),
        (("--config.data.manual_dir=/no/such/rsna",), "data.manual_dir='/no/such/rsna': no such folder"),
        (("--config.model.backbone=resnet51",), "did you mean resnet50?"),
        (("--workdi=x",), "Unknown command line flag 'workdi'"),
        (("--mode=fly",), "mode"),
        (("evaluate",), "evaluate: not a flag"),
        (("--config=configs/quickstar.py",), "no such file"),
        (("--mode=evaluate",), "nothing was trained here"),
    ],
)
def test_every_mistake_is_one_line_and_exit_2(first, flags, words):
    folder, _, _ = first
    assert words in one_line_error(folder, folder / "none", *flags)


def test_a_work_folder_that_cannot_be_made_is_said_in_the_last_line(first):
    done = launch(first[0], "/dev/null/w")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1] == "launch: error: /dev/null/w: Not a directory"


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("launch")


@pytest.mark.parametrize("recipe", sorted(ROOT.glob("configs/*.py")), ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_says_how_to_run_it(module, recipe):
    from cspine_jax.kinds import kind_of

    config, workdir, _, _ = module.parse([f"--config={recipe}"])
    assert config.name == recipe.stem and workdir == Path("runs") / recipe.stem
    task = kind_of(config).task
    params, _ = jax.eval_shape(lambda: task.init(jax.random.key(0)))
    assert sum(x.size for x in jax.tree.leaves(params)) > 10_000
    text = recipe.read_text()
    assert f"python launch.py --config=configs/{recipe.name}" in text
    assert "cost" in text.lower() and "expect" in text.lower()
    assert "cspine_jax import" not in text and "import cspine_jax" not in text


def test_in_process_parsing(module, capsys):
    config, workdir, mode, cache = module.parse(
        [f"--config={RECIPE}", "--config.optim.lr", "1e-4", "--config.train.bf16", "--mode=evaluate"]
    )
    assert (config.optim.lr, config.train.bf16, str(workdir), mode, cache) == (
        1e-4, True, "runs/quickstart", "evaluate", "",
    )  # fmt: skip
    with pytest.raises(SystemExit) as done:
        module.parse(["--help"])
    assert done.value.code == 0 and "--config.train.patience=5" in capsys.readouterr().out
