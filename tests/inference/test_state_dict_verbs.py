"""`cspine weights inspect|convert` on other people's weights."""

import numpy as np
import pytest

from cspine_jax.cli import main
from cspine_jax.models.backbones import resnet
from cspine_jax.models.published import load_pretrained
from cspine_jax.models.state_dict import read_state_dict
from tests.models.published_files import table_of, write


@pytest.fixture(autouse=True, scope="module")
def tiny_variant():
    resnet.VARIANTS["tiny_verbs"] = resnet.Config(blocks=(1,), bottleneck=False, width=8)
    yield
    del resnet.VARIANTS["tiny_verbs"]


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "w.safetensors", table_of("tiny_verbs"))


def test_inspect_says_what_is_in_a_file_and_whose_it_is(file, capsys):
    assert main(["weights", "inspect", str(file)]) == 0
    table = read_state_dict(file)
    values = sum(x.size for x in table.values())
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"{file}: {len(table)} arrays ({len(table)} float32), {values:,} values",
        "weights of tiny_verbs, by torchvision",
    ]
    assert main(["weights", "inspect", str(file), "--model", "tiny_verbs"]) == 0
    assert capsys.readouterr().out.splitlines() == lines


def test_inspect_lists_what_does_not_fit(file, tmp_path, capsys):
    table = {name: x for name, x in read_state_dict(file).items() if name != "fc.weight"} | {"more": np.zeros(2)}
    other = write(tmp_path / "o.npz", table)
    assert main(["weights", "inspect", str(other)]) == 0
    assert "fits none of the backbones; give --model NAME" in capsys.readouterr().out
    assert main(["weights", "inspect", str(other), "--model", "tiny_verbs"]) == 1
    assert capsys.readouterr().out.splitlines()[1:] == [
        "not weights of tiny_verbs by the names of torchvision:",
        "  missing: fc.weight",
        "  unexpected: more",
    ]
    assert main(["weights", "inspect", "--model", "tiny_verbs"]) == 2
    assert "tiny_verbs: no file; give the state dict of a backbone" in capsys.readouterr().err
    assert main(["weights", "inspect", "package:gold", "--model", "tiny_verbs"]) == 2
    assert "package:gold: whole networks with their card; give the state dict" in capsys.readouterr().err
    assert main(["weights", "inspect", str(other), "--model", "tiny_verb"]) == 2
    assert "did you mean tiny_verbs?" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_convert_writes_this_packages_names(file, tmp_path, ending, capsys):
    out = tmp_path / f"own.{ending}"
    assert main(["weights", "convert", str(file), "--model", "tiny_verbs", "--out", str(out)]) == 0
    assert f"use them by --config.model.pretrained={out}" in capsys.readouterr().out
    assert {"stem.conv.kernel", "head.bias", "layers.0.0.convs.1.bn.var"} < set(read_state_dict(out))
    for options in ({}, {"in_channels": 5, "unit_range": True}):
        expected, got = (load_pretrained("tiny_verbs", path, **options) for path in (file, out))
        assert expected.keys() == got.keys()
        for path in expected:
            np.testing.assert_allclose(got[path], expected[path], rtol=1e-5, atol=1e-6)
    assert main(["weights", "inspect", str(out)]) == 0
    assert "weights of tiny_verbs, by cspine_jax" in capsys.readouterr().out
    assert main(["weights", "convert", str(out), "--model", "resnet18", "--out", str(out)]) == 2
    assert "they look like weights of tiny_verbs" in capsys.readouterr().err


def test_convert_writes_no_other_endings(file, tmp_path, capsys):
    out = tmp_path / "own.pth"
    assert main(["weights", "convert", str(file), "--model", "tiny_verbs", "--out", str(out)]) == 2
    assert "weights are written as .safetensors or .npz" in capsys.readouterr().err and not out.exists()
