"""`cspine compare` with a made-up run in place of training: resume, stop, failure, mistakes; once for real (slow)."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from cspine_jax import run_fold, run_folds
from cspine_jax.cli import compare as verb
from cspine_jax.cli import main
from cspine_jax.config import Config, from_dict
from cspine_jax.errors import ConfigError

ROOT = Path(__file__).parents[1]
HEADER = "StudyInstanceUID,patient_overall,C1,C2,C3,C4,C5,C6,C7"

FAKE = textwrap.dedent(
    '''
    """Writes what a run writes. seed 7, fold 1: fails. seed 8, fold 1: the first time waits for a signal."""
    import json, signal, sys, time
    from pathlib import Path
    import numpy as np

    config, w = json.load(sys.stdin), Path(sys.argv[1])
    fold, seed = config["data"]["fold"], config["seed"]
    (w / "config.json").write_text(json.dumps(config))
    (w / "calls").open("a").write("x")
    if seed == 7 and fold == 1:
        print("step 1\\rstep 2")
        sys.exit("error: out of memory, or so")
    if seed == 8 and fold == 1 and not (w / "saved").exists():
        def stop(signum, frame):
            (w / "saved").write_text(str(signum))
            sys.exit(128 + signum)
        signal.signal(signal.SIGINT, stop); signal.signal(signal.SIGTERM, stop)
        (w / "waiting").write_text("")
        time.sleep(60)
    rng = np.random.default_rng(0)
    levels = (rng.random((40, 7)) < 0.2).astype(int)
    labels = np.c_[levels.max(1), levels]
    p = np.clip(0.2 + 0.5 * labels + 0.15 * np.random.default_rng(seed).normal(size=labels.shape), 0.01, 0.99)
    own = [i for i in range(40) if i % config["data"]["num_folds"] == fold]
    (w / "evaluation").mkdir(exist_ok=True)
    for path, table in (("evaluation/predictions.csv", p), ("labels.csv", labels)):
        rows = [",".join([f"1.2.{i}", *(f"{x:g}" for x in table[i])]) for i in own]
        (w / path).write_text("\\n".join(["HEADER", *rows]) + "\\n")
    cost = {"finished": True, "phantom": True, "wall_seconds": 2, "training_seconds": 1,
            "prediction_seconds_a_study": 0.5, "peak_memory_mb": 100 + fold}
    (w / "cost.json").write_text(json.dumps(cost))
    '''
).replace("HEADER", HEADER)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """(folder, command that compares with made-up runs)."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    monkeypatch.setattr(verb, "start", lambda job: [sys.executable, str(script), str(job.workdir)])
    for name in ("a", "b"):
        recipe = (
            f"from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({{'name': '{name}'}})\n"
        )
        (tmp_path / f"{name}.py").write_text(recipe)
    w = tmp_path / "w"

    def call(*more, recipes=("a", "b")):
        paths = [str(tmp_path / f"{name}.py") for name in recipes]
        return main(["compare", *paths, "--folds", "3", "--workdir", str(w), "--resamples", "20", *more])

    return w, call


def calls(w):
    return {str(path.parent.relative_to(w)): len(path.read_text()) for path in w.rglob("calls")}


def rows(w):
    with (w / "comparison" / "comparison.csv").open() as file:
        return {row["model"]: row for row in csv.DictReader(file)}


def test_all_folds_of_all_recipes_once_and_then_never_again(fake, capsys):
    w, call = fake
    assert call("--set", "seed=3") == 0
    out = capsys.readouterr().out
    assert calls(w) == {f"{name}/fold{k}": 1 for name in "ab" for k in range(3)}
    assert "[6/6] b fold 2 done" in out and "40 studies" in out and "3 of 3 folds" in out
    row = rows(w)["a"]
    assert (row["status"], row["data"], row["studies"], row["folds"]) == ("compared", "phantom", "40", "0 1 2")
    assert (float(row["wall_seconds"]), float(row["peak_memory_mb"])) == (6, 102)
    config = from_dict(json.loads((w / "a" / "fold1" / "config.json").read_text()))
    assert (config.data.fold, config.data.num_folds, config.seed) == (1, 3, 3)
    first = (w / "comparison" / "comparison.csv").read_bytes()
    assert call("--set", "seed=3", "data.workers=2") == 0  # a field that changes nothing that is learnt
    assert "6 of 6 runs were finished before" in capsys.readouterr().out
    assert set(calls(w).values()) == {1} and (w / "comparison" / "comparison.csv").read_bytes() == first


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    bronze = str(ROOT / "configs/bronze.py:smoke")
    for command in (["compare", bronze, "--folds", "3", "--workdir"], ["phantom", "--studies", "1", "--out"]):
        assert main([*command, str(tmp_path / "file" / "x")]) == 2
        err = capsys.readouterr().err
        assert "Not a directory" in err and str(tmp_path) in err and err.count("\n") == 1


def test_other_settings_are_refused_by_name_before_anything_starts(fake, capsys):
    w, call = fake
    assert call(recipes=("a",)) == 0
    assert call("--set", "optim.lr=0.5") == 2
    err = capsys.readouterr().err
    assert "optim.lr=0.5 (there 0.001)" in err and "another --workdir" in err and err.count("\n") == 1
    assert not (w / "b").exists()


def test_a_finished_run_that_lost_a_file_runs_again(fake):
    w, call = fake
    assert call() == 0
    (w / "a" / "fold0" / "labels.csv").unlink()
    assert call() == 0
    assert calls(w)["a/fold0"] == 2 and sum(calls(w).values()) == 7


def test_a_run_whose_drawing_of_examples_is_still_in_its_answers_is_evaluated_again(fake):
    """Its probabilities are on another scale than those that are written today."""
    w, call = fake
    recipe = w.parent / "a.py"
    study = "{'task': 'crops', 'study': {'fractured_fraction': 0.4}, 'name'"
    recipe.write_text(recipe.read_text().replace("{'name'", study))
    assert call("--no-run") == 2 and call() == 1  # the made-up runs write no metrics.json
    for k in range(3):
        (w / "a" / f"fold{k}" / "evaluation" / "metrics.json").write_text('{"seen": {"drawn_odds": 6.0}}')
    assert call() == 0
    assert {k: n for k, n in calls(w).items() if k.startswith("a")} == {f"a/fold{k}": 1 for k in range(3)}
    (w / "a" / "fold1" / "evaluation" / "metrics.json").write_text('{"seen": {"tta": 0}}')
    assert call("--only", "0") == 0 and calls(w)["a/fold1"] == 1
    assert call() == 1 and calls(w)["a/fold1"] == 2


def test_a_run_that_was_asked_for_other_views_is_evaluated_again(fake, capsys):
    w, call = fake
    recipe = w.parent / "a.py"
    recipe.write_text(recipe.read_text().replace("{'name'", "{'task': 'crops', 'name'"))
    assert call(recipes=("a",)) == 0
    for k in range(3):
        (w / "a" / f"fold{k}" / "evaluation" / "metrics.json").write_text('{"seen": {"tta": 2}}')
    assert call("--set", "eval.tta=2", recipes=("a",)) == 0 and sum(calls(w).values()) == 3
    capsys.readouterr()
    assert call("--no-run", recipes=("a",)) == 2  # made with two views, asked for none
    assert "fold 0 (to be evaluated again: by other views, or by an older version)" in capsys.readouterr().err
    call(recipes=("a",))
    assert sum(calls(w).values()) == 6


def test_a_slice_run_without_the_table_of_its_validation_studies_is_evaluated_again(fake):
    w, call = fake
    assert call(recipes=("a",)) == 0
    evaluation = w / "a" / "fold1" / "evaluation"
    (evaluation / "metrics.json").write_text('{"counts": {"validation": {"slices": 9}}}')
    call(recipes=("a",))
    assert calls(w) == {"a/fold0": 1, "a/fold1": 2, "a/fold2": 1}


def test_a_table_that_this_call_would_overwrite_is_refused(fake, capsys):
    w, call = fake
    assert call(recipes=("a",)) == 0
    table = w / "comparison" / "tables" / "a" / "oof.csv"
    assert call("--predictions", f"x={table}", recipes=("a",)) == 2
    assert "lies where this call writes its own; copy it elsewhere" in capsys.readouterr().err and table.is_file()


def test_what_predicts_no_fractures_is_refused_before_anything_runs(fake, capsys):
    w, call = fake
    recipe = w.parent / "b.py"
    recipe.write_text(recipe.read_text().replace("{'name'", "{'task': 'spine', 'name'"))
    assert call() == 2
    assert "b.py: task='spine' predicts no fractures of studies; leave it out" in capsys.readouterr().err
    assert not w.exists()


def test_costs_are_those_of_the_folds_that_are_compared(fake):
    w, call = fake
    assert call(recipes=("a",)) == 0 and call("--only", "0") == 0
    rows = json.loads((w / "comparison/comparison.json").read_text())["rows"]
    assert rows["a"]["studies"] == rows["b"]["studies"] == 14
    assert rows["a"]["cost"]["training_seconds"] == rows["b"]["cost"]["training_seconds"] == 1


@pytest.mark.parametrize("trained", [False, True])
def test_a_run_that_is_terminated_keeps_what_its_training_took(tmp_path, monkeypatch, trained):
    """SIGTERM in the evaluation, and the same command again."""

    def work(config, workdir, seconds, keep):
        seconds["training"] = 100.0
        if trained:
            keep()
            assert json.loads((tmp_path / "cost.json").read_text())["training_seconds"] in (100, 200)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(run_fold, "_train_and_evaluate", work)
    monkeypatch.setattr(run_fold, "_die_with_parent", lambda parent: None)
    try:
        for turn in (1, 2):
            monkeypatch.setattr(sys, "stdin", io.StringIO("{}"))
            assert run_fold.main([str(tmp_path)]) == 143
            cost = json.loads((tmp_path / "cost.json").read_text())
            assert (cost["training_seconds"], cost["calls"], cost["finished"]) == (100.0 * turn, turn, False)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_failing_run_is_named_the_others_go_on_and_it_is_never_mixed_in(fake, capsys):
    w, call = fake
    recipe = w.parent / "a.py"
    recipe.write_text(recipe.read_text().replace("{'name'", "{'seed': 7, 'name'"))
    assert call() == 1
    out, err = capsys.readouterr()
    assert "a fold 1 FAILED" in out and "step 2 | error: out of memory, or so" in out
    assert "a: FAILED, not in the table" in out and "a: 1 of 3 folds are missing: fold 1 (exit status 1" in err
    assert (w / "b" / "fold2" / "cost.json").exists() and (w / "a" / "fold2" / "cost.json").exists()
    assert rows(w)["a"]["status"].startswith("failed") and rows(w)["b"]["studies"] == "40"
    assert "oof.csv" not in str(list((w / "comparison" / "tables").glob("a/*")))
    assert call("--partial") == 1
    out, _ = capsys.readouterr()
    assert "a is INCOMPLETE: 1 of 3 folds are missing" in out and "INCOMPLETE: only 2 of 3 folds" in out
    assert rows(w)["a"]["folds"] == rows(w)["b"]["folds"] == "0 2" and rows(w)["b"]["studies"] == "27"
    recipe.write_text(recipe.read_text().replace("'seed': 7, ", ""))
    assert call(recipes=("a",)) == 2  # a repaired recipe is another one
    assert "seed=0 (there 7)" in capsys.readouterr().err


def test_some_folds_now_and_the_others_another_day(fake, capsys):
    w, call = fake
    assert call("--only", "1") == 0
    found = capsys.readouterr()
    assert sorted(path.parent.name for path in w.glob("*/fold*/calls")) == ["fold1", "fold1"]
    assert "a: 2 of 3 folds are missing: fold 0 (not run), fold 2 (not run)" in found.err and "error" not in found.err
    facts = json.loads((w / "comparison/comparison.json").read_text())
    assert facts["folds"] == [1] and facts["rows"]["a"]["studies"] == 13
    assert call() == 0  # the others; nothing is run twice
    assert {(w / f"a/fold{k}/calls").read_text() for k in range(3)} == {"x"}
    assert call("--only", "3") == 2
    assert "--only 3: there are the folds 0 to 2" in capsys.readouterr().err


def test_no_recipe_complete_is_an_error(fake, capsys):
    w, call = fake
    assert call("--set", "seed=7") == 2
    assert "no recipe is complete: a: 1 of 3 folds" in capsys.readouterr().err
    assert not (w / "comparison").exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_run_which_saves_and_the_same_command_goes_on(fake, signum):
    w, _ = fake
    program = (
        "import sys\nfrom cspine_jax.cli import compare, main\n"
        f"compare.start = lambda job: [sys.executable, {str(w.parent / 'fake.py')!r}, str(job.workdir)]\n"
        f"sys.exit(main(['compare', {str(w.parent / 'a.py')!r}, '--folds', '3', '--workdir', {str(w)!r}, "
        "'--resamples', '5', '--set', 'seed=8']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    deadline = time.monotonic() + 100
    while not (w / "a" / "fold1" / "waiting").exists():
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, err
    assert "run the same command again" in err and "it saves a checkpoint first" in out and "Traceback" not in err
    assert (w / "a" / "fold1" / "saved").read_text() == str(int(signum)) and not (w / "a" / "fold2").exists()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert calls(w) == {"a/fold0": 1, "a/fold1": 2, "a/fold2": 1}


def test_a_run_whose_starter_is_gone_stops(tmp_path):
    code = (
        "import os, signal, sys, threading, time\nfrom cspine_jax.run_fold import _die_with_parent\n"
        "signal.signal(signal.SIGTERM, lambda *_: (open(sys.argv[1], 'w').close(), os._exit(0)))\n"
        "threading.Thread(target=_die_with_parent, args=(os.getppid(),), daemon=True).start()\n"
        "print('up', flush=True)\ntime.sleep(60)\n"
    )
    starter = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {code!r}, {str(tmp_path / 'gone')!r}])\n"
    process = subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 30
    while not (tmp_path / "gone").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def table(path, values, uids):
    path.write_text("\n".join([HEADER, *(",".join([u, *map(str, v)]) for u, v in zip(uids, values, strict=True))]))
    return str(path)


def test_tables_from_elsewhere_beside_runs_and_alone(fake, capsys):
    w, call = fake
    uids = [f"1.2.{k}" for k in range(40)]
    theirs = table(w.parent / "theirs.csv", np.full((40, 8), 0.25), uids)
    assert call("--predictions", f"radiologist={theirs}", "--markdown", str(w.parent / "r.md"), recipes=("a",)) == 0
    assert rows(w)["radiologist"]["kind"] == "outside table" and "| radiologist |" in (w.parent / "r.md").read_text()
    assert "radiologist is a table from elsewhere" in capsys.readouterr().out
    assert call("--predictions", theirs, recipes=()) == 2
    assert "--labels=train.csv" in capsys.readouterr().err
    labels = table(w.parent / "train.csv", np.eye(40, 8, dtype=int) | (np.arange(8) == 0), uids)
    assert call("--predictions", theirs, "--labels", labels, recipes=()) == 0
    assert rows(w)["theirs"]["data"] == "this data"


def test_no_run_compares_what_is_there(fake, capsys):
    w, call = fake
    assert call(recipes=("a",)) == 0
    assert call("--no-run") == 1
    assert "b: 3 of 3 folds are missing: fold 0 (not run)" in capsys.readouterr().err
    assert rows(w)["b"]["status"].startswith("failed") and not (w / "b").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--folds", "2"], "--folds=2: must be at least 3"),
        (["--set", "optim.lrr=1"], "did you mean optim.lr?"),
        (["--set", "optim.lr=x"], "--set optim.lr=x: must be float"),
        (["--set", "seed=1.5"], "seed=1.5: must be int"),
        (["--set", "gold:seed=1"], "--set gold:seed=1: no recipe is called 'gold'; there are"),
        (["--set", "data.fold=1"], "give --folds"),
        (["--set", "configs/x.py"], "recipes stand before --set"),
        (["--miss", "0"], "--miss=0.0"),
        (["--predictions", "/no/such.csv"], "/no/such.csv"),
        (["--predictions", "a=/no/such.csv"], "a: a recipe and a table from elsewhere have this name"),
        (["--predictions", "ensemble-x=/no.csv"], "cannot be a name"),
        (["--markdown", "README.md"], "where the table is to go"),
    ],
)
def test_every_mistake_is_one_line_before_anything_runs(fake, capsys, monkeypatch, more, words):
    w, call = fake
    monkeypatch.chdir(w.parent)
    Path("README.md").write_text("no marks")
    assert call(*more) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1 and not w.exists()


def test_names_come_from_the_recipe_and_are_not_given_twice(fake, capsys):
    w, call = fake
    assert verb._named(["configs/gold.py:smoke", "x=configs/gold.py"], verb.run_name) == {
        "gold_smoke": "configs/gold.py:smoke", "x": "configs/gold.py",
    }  # fmt: skip
    assert call(recipes=("a", "a")) == 2
    assert "a is already the name of" in capsys.readouterr().err
    assert main(["compare", "--workdir", str(w)]) == 2
    assert "nothing to compare" in capsys.readouterr().err


def test_settings_may_be_of_one_recipe(tmp_path):
    """Those come last, wherever they stand; a colon in a value is no name."""
    (tmp_path / "r.py").write_text(
        "from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict()\n"
    )
    recipes = dict.fromkeys(("one", "two"), str(tmp_path / "r.py"))
    jobs = run_folds.plan(recipes, 3, tmp_path, ["two:seed=5", "seed=4", "data.root=/a:b", "one:optim.lr=1e-2"])
    one, two = (jobs[name][0].config for name in ("one", "two"))
    assert (one.seed, two.seed, one.optim.lr, two.optim.lr, two.data.root) == (4, 5, 0.01, 1e-3, "/a:b")


def test_settings_are_typed(tmp_path):
    (tmp_path / "r.py").write_text(
        "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict()\n"
    )
    sets = ["data.root=/big", "train.bf16=true", "optim.lr=1e-4", "seed=5", "name=12"]
    job = run_folds.plan({"r": str(tmp_path / "r.py")}, 4, tmp_path, sets)["r"][2]
    assert (job.config.data.root, job.config.train.bf16, job.config.optim.lr) == ("/big", True, 1e-4)
    assert (job.config.seed, job.config.name, job.config.data.fold, job.config.data.num_folds) == (5, "12", 2, 4)
    assert str(job.workdir) == str(tmp_path / "r" / "fold2") and Config() != job.config
    with pytest.raises(ConfigError, match="no such file"):
        run_folds.plan({"r": "no.py"}, 3, tmp_path)


@pytest.mark.parametrize(
    ("values", "whose"),
    [
        ({"task": "crops"}, "true masks"),
        ({"task": "crops", "crops": {"masks": "seg/fold*"}}, "the masks in seg/fold*"),
        ({"task": "study", "study": {"model": "vit3d", "with_mask": True}}, "true masks"),
        ({"task": "study", "study": {"model": "cnn3d", "clip_depth": 8}}, "true masks"),
        ({"task": "study", "study": {"model": "cnn3d"}}, ""),
        ({"model": {"type": 2}}, "true masks"),
        ({"model": {"type": 2}, "data": {"vertebra_probs": "seg/slices.csv"}}, ""),
        ({}, ""),
    ],
)
def test_it_is_known_who_shows_a_model_the_vertebrae(values, whose):
    assert verb._by_masks(from_dict(values)) == whose


def test_help_imports_no_jax():
    code = "import sys; from cspine_jax.cli import main\ntry: main(['compare', '--help'])\nexcept SystemExit: pass\n"
    code += "assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)


def test_peak_memory_is_that_of_this_process():
    assert 10 < run_fold.peak_memory_mb() < 100_000


@pytest.mark.slow
def test_two_recipes_on_three_folds_for_real(tmp_path):
    settings = (
        f"data.root={tmp_path / 'data'} data.phantom.studies=12 data.phantom.size=48 data.phantom.scale=0.06 "
        "data.size=48 data.batch_size=8 data.eval_batch_size=16 train.total_steps=8 train.total_epochs=0 "
        "train.eval_steps=4 train.eval_epochs=0 train.log_steps=2 train.checkpoint_steps=2 train.patience=0 "
        "eval.bootstrap=10 eval.examples_shown=1"
    )
    recipes = [f"slow={ROOT / 'configs' / 'quickstart.py'}", f"fast={tmp_path / 'fast.py'}"]
    arguments = [sys.executable, "-m", "cspine_jax.cli", "compare", *recipes, "--folds", "3"]
    arguments += ["--workdir", str(tmp_path / "w"), "--resamples", "50", "--set", *settings.split()]
    text = (ROOT / "configs" / "quickstart.py").read_text().replace('"lr": 3e-3', '"lr": 3e-2')
    (tmp_path / "fast.py").write_text(text)
    environment = {**os.environ, "XLA_FLAGS": "", "CSPINE_JAX_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    w = tmp_path / "w"
    table = rows(w)
    for name in ("slow", "fast"):
        assert (table[name]["studies"], table[name]["data"]) == ("12", "phantom")
        for k in range(3):
            cost = json.loads((w / name / f"fold{k}" / "cost.json").read_text())
            assert cost["finished"] and cost["studies_predicted"] == 4 and cost["peak_memory_mb"] > 100
            assert cost["wall_seconds"] > cost["training_seconds"] > 0 < cost["prediction_seconds_a_study"]
    assert table["slow"]["rsna_p_A"] != table["fast"]["rsna_p_A"]
    again = subprocess.run(arguments, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert "6 of 6 runs were finished before" in again.stdout and rows(w) == table
