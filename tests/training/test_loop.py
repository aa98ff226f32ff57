"""The loop on a toy task: curves, resuming to the bit, early stopping, signals, one compilation."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import toy_task as toy

from cspine_jax.config import TrainConfig
from cspine_jax.errors import CspineError, DataError
from cspine_jax.training import loop
from cspine_jax.training.checkpoint import Checkpoints
from cspine_jax.training.counters import Counters, duration
from cspine_jax.training.sharding import place
from cspine_jax.training.signals import Interrupted
from cspine_jax.training.writer import TIMING, Writer, read_lines


def curve(workdir):
    """Every figure of a run that does not depend on the clock."""
    return [{k: v for k, v in line.items() if k not in TIMING} for line in read_lines(workdir / "metrics.jsonl")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    fit = loop.fit(toy.ToyTask(), toy.config(), toy.loaders(), workdir)
    return workdir, fit


def test_a_run_learns_and_logs_everything(undisturbed):
    workdir, fit = undisturbed
    lines = curve(workdir)
    assert (fit.step, fit.resumed_from, fit.finished) == (12, 0, "all 12 steps done")
    train = [line for line in lines if line["split"] == "train"]
    validation = [line for line in lines if line["split"] == "validation"]
    assert [line["step"] for line in train] == [2, 4, 6, 8, 10, 12]
    assert [line["step"] for line in validation] == [4, 8, 12]
    assert validation[-1]["loss"] < 0.8 * train[0]["loss"]
    assert train[0]["half"] == pytest.approx(train[0]["loss"] / 2, rel=1e-6)
    assert set(train[0]) >= {"loss", "grad_norm", "lr", "half"}
    assert 0 <= validation[-1]["accuracy"] <= 1
    assert list((workdir / "tensorboard").glob("events*"))


def test_best_and_last_checkpoints_are_kept(undisturbed):
    workdir, _ = undisturbed
    with Checkpoints(workdir / "checkpoints", 2, 1) as checkpoints:
        steps = checkpoints.steps
        assert list(steps) == [9, 12]  # falling loss: the best is among the last two
        assert checkpoints.best_step == 12
        saved = checkpoints.progress(12)
        assert saved["config"]["seed"] == 5 and saved["data"] == {"position": 12} and saved["seed"] == 5


def test_a_finished_run_is_not_trained_again(undisturbed):
    workdir, _ = undisturbed
    before = (workdir / "metrics.jsonl").read_bytes()

    def never(step):
        raise AssertionError("a finished run took a step")

    again = loop.fit(toy.ToyTask(), toy.config(), toy.loaders(), workdir, on_step=never)
    assert (again.step, again.resumed_from) == (12, 12)
    assert (workdir / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("stop_at", [1, 4, 5, 11])
def test_interrupted_and_resumed_equals_undisturbed(undisturbed, tmp_path, stop_at):
    def stop(step):
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as caught:
        loop.fit(toy.ToyTask(), toy.config(), toy.loaders(), tmp_path, on_step=stop)
    assert caught.value.exit_status == 143 and caught.value.step == stop_at
    resumed = loop.fit(toy.ToyTask(), toy.config(), toy.loaders(), tmp_path)
    assert resumed.resumed_from == stop_at
    assert curve(tmp_path) == curve(undisturbed[0])


def test_killed_and_resumed_equals_undisturbed(undisturbed, tmp_path):
    """kill -9 right after step 8: the last checkpoint on disk is older, the log is ahead of it."""
    code = (
        "import os, signal; import conftest, toy_task as toy; from cspine_jax.training import loop\n"
        "kill = lambda step: os.kill(os.getpid(), signal.SIGKILL) if step == 11 else None\n"
        f"loop.fit(toy.ToyTask(), toy.config(), toy.loaders(), {str(tmp_path)!r}, on_step=kill)"
    )
    here = Path(__file__).parent
    path = {"PYTHONPATH": os.pathsep.join(map(str, (here, here.parent)))}
    died = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **path}, capture_output=True, timeout=120, check=False
    )
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert curve(tmp_path)[-1]["step"] == 10  # ahead of the checkpoint
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "spl')  # a line cut in the middle
    resumed = loop.fit(toy.ToyTask(), toy.config(), toy.loaders(), tmp_path)
    assert resumed.resumed_from in (8, 9)
    assert curve(tmp_path) == curve(undisturbed[0])


def stopped_at(tmp_path, step):
    def stop(done):
        if done == step:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted) as caught:
        loop.fit(toy.ToyTask(), toy.config(), toy.loaders(), tmp_path, on_step=stop)
    assert caught.value.exit_status == 130


HALF_WRITTEN = "orbax-checkpoint-tmp"
"""The ending that orbax gives a checkpoint until it is whole."""

# orbax's own threads leave tasks behind when a read fails
leftovers = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@leftovers
def test_an_unreadable_checkpoint_is_named_and_skipped(undisturbed, tmp_path):
    stopped_at(tmp_path, 7)
    for path in (tmp_path / "checkpoints" / "7").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:40])
    with pytest.warns(UserWarning, match=r"checkpoints/7 \(.*cannot be read; trying the one before it"):
        resumed = loop.fit(toy.ToyTask(), toy.config(), toy.loaders(), tmp_path)
    assert resumed.resumed_from == 6
    assert curve(tmp_path) == curve(undisturbed[0])
    assert (tmp_path / "checkpoints" / "7.unreadable").is_dir()


@leftovers
def test_no_readable_checkpoint_never_starts_over_silently(tmp_path):
    stopped_at(tmp_path, 2)
    for path in (tmp_path / "checkpoints" / "2").rglob("_METADATA"):
        path.unlink()
    for _ in range(2):  # the same command again
        with (
            pytest.warns(UserWarning, match="cannot be read"),
            pytest.raises(DataError, match="no readable checkpoint"),
        ):
            loop.fit(toy.ToyTask(), toy.config(), toy.loaders(), tmp_path)
        assert (tmp_path / "checkpoints" / "2").is_dir()  # memory may have been short, and be there next time
    lines = curve(tmp_path)
    (tmp_path / "checkpoints" / "2").rename(tmp_path / "checkpoints" / "2.unreadable")
    with pytest.raises(DataError, match=r"2\.unreadable: no other checkpoint is left; take the ending away"):
        loop.fit(toy.ToyTask(), toy.config(), toy.loaders(), tmp_path)
    assert curve(tmp_path) == lines


def test_a_validation_loss_that_is_no_number_ends_the_run_and_is_not_kept(tmp_path):
    class Breaking(toy.ToyTask):
        def predict(self, params, stats, batch):
            total, *rest = super().predict(params, stats, batch)
            return total / (params["b"] * 0 + broken), *rest

    config = dataclasses.replace(toy.config(), train=dataclasses.replace(toy.config().train, keep_last=9))
    broken = 1.0
    stopped_at(tmp_path, 5)
    broken = float("nan")
    with pytest.raises(CspineError, match=r"the validation loss is nan at step 8.*another --workdir"):
        loop.fit(Breaking(), config, toy.loaders(), tmp_path)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert 8 not in checkpoints.steps and checkpoints.best_step == 4


def test_who_looks_at_a_running_training_leaves_it_alone(tmp_path):
    """Its log is added to, by both; what it is writing at this moment stays."""
    with Writer(tmp_path) as training:
        training.write(1, "train", {"loss": 0.5})
        with Writer(tmp_path, None) as other:
            other.write(1, "run", {"seconds": 2.0})
        training.write(2, "train", {"loss": 0.4})
    assert [(line["step"], line["split"]) for line in read_lines(tmp_path / "metrics.jsonl")] == [
        (1, "train"), (1, "run"), (2, "train"),
    ]  # fmt: skip
    stopped_at(tmp_path / "run", 5)
    written = next((tmp_path / "run" / "checkpoints").glob("4")).name
    half = tmp_path / "run" / "checkpoints" / f"6.{HALF_WRITTEN}"
    shutil.copytree(tmp_path / "run" / "checkpoints" / written, half)
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        assert 6 not in checkpoints.steps
    assert half.is_dir()


def test_one_and_eight_devices_take_the_same_steps(undisturbed, tmp_path):
    assert len(jax.devices()) == 8
    loop.fit(toy.ToyTask(), toy.config(), toy.loaders(), tmp_path, placement=place(jax.devices()[:1]))
    for one, eight in zip(curve(tmp_path), curve(undisturbed[0]), strict=True):
        assert one.keys() == eight.keys()
        np.testing.assert_allclose(one["loss"], eight["loss"], rtol=1e-5)


def test_early_stopping_counts_evaluations_without_a_fall():
    train = TrainConfig(min_delta=0.01, patience=2)
    counters = Counters()
    for loss, finished in [(0.5, False), (0.495, False), (0.48, False), (0.475, False), (0.471, True)]:
        counters.judge(loss, train)
        assert bool(counters.finished) == finished
    assert "0.4800" in counters.finished


def test_early_stopping_ends_the_run(tmp_path):
    fit = loop.fit(toy.ToyTask(), toy.config(patience=1, min_delta=10.0), toy.loaders(), tmp_path)
    assert fit.step == 8 and fit.finished.startswith("early stopping at step 8")
    assert loop.fit(toy.ToyTask(), toy.config(patience=1, min_delta=10.0), toy.loaders(), tmp_path).resumed_from == 8


def test_a_run_may_be_chosen_by_its_auc(tmp_path):
    """The highest AUC is kept as the best, whatever the loss does; one that is not defined is the lowest."""
    aucs = {4: 0.8, 8: 0.7, 12: float("nan")}

    class Ranked(toy.ToyTask):
        passes = 0

        def metrics(self, table):
            self.passes += 1
            return {"vertebra_auc": aucs[4 * self.passes], "patient_auc": 0.5}

    config = toy.config(keep_last=1)
    train = dataclasses.replace(config.train, choose_by="vertebra_auc")
    config = dataclasses.replace(config, task="crops", train=train)
    loop.fit(Ranked(), config, toy.loaders(), tmp_path)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps == {4: -0.8, 12: 0.0} and checkpoints.best_step == 4


def test_a_loss_that_is_not_finite_is_one_line(tmp_path):
    class Broken(toy.ToyTask):
        def loss(self, params, stats, batch, key):
            total, weight, parts, stats = super().loss(params, stats, batch, key)
            return total * np.nan, weight, parts, stats

    with pytest.raises(CspineError, match=r"optim.lr=0.05: the training loss is nan at step 2"):
        loop.fit(Broken(), toy.config(), toy.loaders(), tmp_path)


def test_each_step_is_traced_once(tmp_path):
    traced = []

    class Counting(toy.ToyTask):
        def loss(self, *args):
            traced.append("train")
            return super().loss(*args)

        def predict(self, *args):
            traced.append("eval")
            return super().predict(*args)

    loop.fit(Counting(), toy.config(), toy.loaders(), tmp_path)
    assert sorted(traced) == ["eval", "train"]


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({"total_steps": 7, "total_epochs": 0.0}, 7),
        ({"total_epochs": 2.0}, 19),  # 2 x 300 examples, 32 a step: 18.75
        ({"total_examples": 65, "total_epochs": 0.0}, 3),
    ],
)
def test_durations(fields, steps):
    assert duration(TrainConfig(**fields), "total", 32, 300) == steps


def test_metrics_are_json_lines_with_null_for_nan(tmp_path):
    with Writer(tmp_path) as writer:
        writer.write(1, "validation", {"auc": float("nan"), "loss": 0.5})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 1,
        "split": "validation",
        "auc": None,
        "loss": 0.5,
    }


def test_a_run_may_start_from_the_weights_of_another(undisturbed, tmp_path):
    workdir, _ = undisturbed
    config = toy.config()
    warm = dataclasses.replace(config, train=dataclasses.replace(config.train, init_from=str(workdir)))
    loop.fit(toy.ToyTask(), warm, toy.loaders(), tmp_path / "warm")
    cold, first = curve(workdir), curve(tmp_path / "warm")
    assert first[0]["loss"] < 0.8 * cold[0]["loss"]
    last = [line["loss"] for line in cold if line["split"] == "validation"][-1]
    assert first[0]["loss"] < 1.3 * last
    loop.fit(toy.ToyTask(), warm, toy.loaders(), tmp_path / "warm")  # finished: nothing is started anew
    assert curve(tmp_path / "warm") == first
    nowhere = dataclasses.replace(config, train=dataclasses.replace(config.train, init_from=str(tmp_path / "no")))
    with pytest.raises(DataError, match="give the --workdir of a finished run"):
        loop.fit(toy.ToyTask(), nowhere, toy.loaders(), tmp_path / "cold")
