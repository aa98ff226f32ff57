"""A work folder holds one experiment; one of an older version, which knew fewer fields, still opens."""

import dataclasses
import json

import jax
import pytest

from cspine_jax.config import Config, LossConfig, from_dict, to_dict
from cspine_jax.data.lock import BusyError
from cspine_jax.errors import ConfigError, DataError
from cspine_jax.experiment import Experiment, harmless
from cspine_jax.kinds import kind_of
from cspine_jax.training.workdir import check_same, only_process


def write(folder, values):
    (folder / "config.json").write_text(json.dumps(values))


def old(config):
    """As written before there were tasks."""
    values = to_dict(config)
    del values["task"], values["loss"]["segmentation"], values["model"]["network"]
    return values


def test_an_old_folder_opens_as_a_fracture_run(tmp_path):
    config = Config(loss=LossConfig(alpha=3.0))
    write(tmp_path, old(config))
    check_same(tmp_path, config)
    assert from_dict(old(config)) == config and config.task == "fracture"
    assert type(kind_of(config)).__name__ == "Fracture"
    with pytest.raises(ConfigError, match=r"loss.segmentation='ce' \(there 'dice_ce'\)"):
        check_same(tmp_path, dataclasses.replace(config, loss=LossConfig(alpha=3.0, segmentation="ce")))


def test_differences_are_named_ignored_or_outside_of_the_question(tmp_path):
    write(tmp_path, to_dict(Config()))
    other = Config(name="other", seed=3)
    with pytest.raises(ConfigError, match=r"name='other' \(there 'experiment'\), seed=3 \(there 0\)"):
        check_same(tmp_path, other)
    check_same(tmp_path, other, ignore=("name", "seed"))
    check_same(tmp_path, other, only=("model.",))
    check_same(tmp_path / "new", other)
    with pytest.raises(DataError, match="nothing was trained here"):
        check_same(tmp_path / "new", other, must_exist=True)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        check_same(tmp_path, other)


def test_one_process_trains_in_a_folder(tmp_path):
    with only_process(tmp_path), pytest.raises(DataError, match="another process is training here"):
        with only_process(tmp_path):
            pass
    with only_process(tmp_path):  # the lock is gone with its holder
        pass


def test_records_alone_are_what_is_learnt_from(tmp_path):
    """With the folder that they are of they may lie anywhere."""
    of_folder = {"manual_dir": "/rsna", "data_dir": "/a"}
    write(tmp_path, to_dict(from_dict({"data": of_folder})))
    moved = from_dict({"data": {**of_folder, "data_dir": "/b"}})
    check_same(tmp_path, moved, ignore=harmless(moved))
    write(tmp_path, to_dict(from_dict({"data": {"data_dir": "/a"}})))
    other = from_dict({"data": {"data_dir": "/b"}})
    with pytest.raises(ConfigError, match=r"data\.data_dir='/b' \(there '/a'\)"):
        check_same(tmp_path, other, ignore=harmless(other))


@pytest.mark.parametrize("hosts", [1, 2])
def test_a_host_waits_for_records_that_another_builds(tmp_path, monkeypatch, hosts):
    experiment = Experiment(Config(), tmp_path)
    turns = iter([BusyError("being built"), BusyError("being built"), None])

    def prepare():
        if error := next(turns):
            raise error

    monkeypatch.setattr(experiment.kind, "prepare", prepare)
    monkeypatch.setattr("cspine_jax.experiment.WAIT", 0.0)
    monkeypatch.setattr(jax, "process_count", lambda: hosts)
    if hosts == 1:
        with pytest.raises(DataError, match="being built"):
            experiment._prepare()
    else:
        experiment._prepare()
        assert experiment._prepared
