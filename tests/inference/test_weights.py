"""Weights files: what is written is what is read, and nothing else is."""

import dataclasses
import io
import pickle
import zipfile

import jax
import numpy as np
import pytest

from cspine_jax.cli import main
from cspine_jax.config import from_dict, to_dict
from cspine_jax.errors import DataError
from cspine_jax.inference import weights
from cspine_jax.training import weights_file
from cspine_jax.training.spine_task import SpineTask

CONFIG = from_dict({"task": "spine", "volume": {"levels": 2, "width": 4, "depth": 16, "height": 16, "width_px": 16}})


@pytest.fixture(scope="module")
def trees():
    return jax.jit(SpineTask(CONFIG).init)(jax.random.key(0))


@pytest.fixture
def file(tmp_path, trees):
    arrays = {}
    for part, tree in zip(("params", "stats"), trees, strict=True):
        arrays |= {k: np.asarray(x, np.float16) for k, x in weights_file.flatten(tree, f"spine/{part}").items()}
    card = weights_file.Card("tiny", "for tests", True, {"spine": {"config": to_dict(CONFIG)}}, {"jax": "0"})
    weights_file.write(tmp_path / "tiny.npz", arrays, card)
    return tmp_path / "tiny.npz"


def test_what_is_written_is_what_is_read(file, trees, capsys):
    arrays, card = weights_file.read(file)
    assert card.name == "tiny" and card.phantom
    network = weights.network_of("spine", arrays, card)
    image = np.random.default_rng(0).normal(size=(1, 4, 4, 4, 8)).astype(np.float32)
    out = network(image)
    assert out["logits"].shape == (1, 4, 4, 4, 20) and out["offsets"].shape == (1, 4, 4, 4, 3)
    wanted = jax.jit(SpineTask(CONFIG).packed)(*trees, image)
    np.testing.assert_allclose(out["logits"], wanted["logits"], atol=0.02)  # half precision
    assert main(["weights", "inspect", str(file)]) == 0
    assert '"for tests"' in capsys.readouterr().out


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("code of a weights file was run",))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", pickle.dumps(Trap()), b"no archive"])
def test_other_files_are_refused_and_execute_nothing(tmp_path, content):
    (tmp_path / "w.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"w\.npz: not a weights file"):
        weights_file.read(tmp_path / "w.npz")


def test_an_archive_with_a_pickle_inside_is_refused(tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, **{weights_file.CARD: np.array([Trap()], object)}, allow_pickle=True)
    (tmp_path / "w.npz").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match="not a weights file"):
        weights_file.read(tmp_path / "w.npz")


def test_damage_within_an_archive_and_odd_cards_are_one_line(tmp_path, file):
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        middle = max(archive.infolist(), key=lambda info: info.compress_size)
    at = middle.header_offset + 30 + len(middle.filename) + middle.compress_size // 2
    content[at : at + 8] = b"\xff" * 8
    (tmp_path / "w.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"w\.npz: not a weights file"):
        weights_file.read(tmp_path / "w.npz")
    weights_file.write(tmp_path / "w.npz", {}, weights_file.Card("odd", "", True, ["spine"], {}))
    with pytest.raises(DataError, match=r"w\.npz: not a weights file"):
        weights_file.read(tmp_path / "w.npz")


def test_an_unknown_name_lists_those_of_the_package():
    with pytest.raises(DataError, match=r"package:none: no weights of this name .* package:fracture, .*vertebrae"):
        weights_file.read("package:none")


def test_missing_left_over_and_misshapen_arrays_are_named(file):
    arrays, card = weights_file.read(file)
    name = next(iter(arrays))
    with pytest.raises(DataError, match="1 arrays of spine do not fit"):
        weights.network_of("spine", {k: x for k, x in arrays.items() if k != name}, card)
    with pytest.raises(DataError, match=r"e\.g\. spine/params/more"):
        weights.network_of("spine", {**arrays, "spine/params/more": arrays[name]}, card)
    with pytest.raises(DataError, match=name):
        weights.network_of("spine", {**arrays, name: arrays[name][None]}, card)
    with pytest.raises(DataError, match="does not describe the refine network"):
        weights.network_of("refine", arrays, card)


def test_a_file_that_is_not_there(tmp_path, capsys):
    assert main(["weights", "inspect", str(tmp_path / "none.npz")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_export_wants_both_runs_or_a_fracture_run(tmp_path, capsys):
    assert main(["weights", "export", "--spine", "a", "--out", str(tmp_path / "w.npz")]) == 2
    assert "give --spine and --refine, or --fracture alone" in capsys.readouterr().err
    assert main(["weights", "export", "--fracture", "a", "--out", str(tmp_path / "w")]) == 2
    assert f"a weights file ends in .npz; give {tmp_path / 'w.npz'}" in capsys.readouterr().err
    command = ["weights", "export", "--fracture", "package:fracture", "--out", str(tmp_path / "w.npz")]
    assert main(command) == 2
    assert "package:fracture: a weights file already; give the --workdir of a run" in capsys.readouterr().err
    command = ["weights", "export", "--spine", str(tmp_path), "--refine", str(tmp_path), "--out", "w.npz"]
    assert main(command) == 2
    assert "give the --workdir of a `launch.py` run" in capsys.readouterr().err


def test_values_beyond_half_precision_are_refused(tmp_path):
    card = weights_file.Card("big", "", True, {}, {})
    with pytest.raises(DataError, match="beyond half precision"):
        weights_file.write(tmp_path / "w.npz", {"a": np.array([np.inf], np.float16)}, card)
    assert dataclasses.asdict(card)["name"] == "big"


def test_the_package_brings_small_weights_that_say_what_they_are():
    assert weights_file.shipped() == ("package:fracture", "package:gold", "package:vertebrae")
    for name, networks in (
        (weights.SHIPPED, {"spine", "refine"}),
        ("package:fracture", {"fracture"}),
        ("package:gold", {"fracture"}),
    ):
        arrays, card = weights_file.read(name)
        assert networks <= card.networks.keys() and card.phantom
        assert "not for clinical use" in card.note and "phantom" in card.note
        assert sum(x.nbytes for x in arrays.values()) < 1e7
        assert all(x.dtype == np.float16 for x in arrays.values())
