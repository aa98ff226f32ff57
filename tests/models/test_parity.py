"""ResNets against the networks they follow: same parameters, statistics and pictures, same answers and gradients.

Names of levels and sizes only; `parity` does the work. The other families have files of their own.
"""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

pytest.importorskip("torch", reason="needs the extra [parity]; torch is never a dependency of the package")

from cspine_jax import models
from cspine_jax.models.backbones import resnet
from tests.models.parity import Case, check_inference, check_training

STAGES = ("layer1", "layer2", "layer3", "layer4")

CASES = [
    Case("resnet18", ("relu", *STAGES), batch=4),
    Case("resnet18d", ("act1", *STAGES), batch=4, source="timm"),
    Case("resnet50", ("relu", *STAGES), batch=4),
    Case("resnext50_32x4d", ("relu", *STAGES), batch=4),
]

ODD = [
    Case("resnet18", ("relu", *STAGES), size=(75, 97)),
    Case("resnet18d", ("act1", *STAGES), size=(75, 97), source="timm"),
    Case("resnext50_32x4d", ("act1", *STAGES), size=(75, 33), source="timm"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_answers_and_pyramid(case):
    check_inference(case)


@pytest.mark.parametrize("case", ODD, ids=str)
def test_sizes_that_do_not_divide(case):
    check_inference(case)


@pytest.mark.parametrize("case", [*CASES[:2], pytest.param(CASES[2], marks=pytest.mark.slow), CASES[3]], ids=str)
def test_a_training_step(case):
    check_training(case)


def test_stochastic_depth_rises_as_in_the_reference(monkeypatch):
    timm = pytest.importorskip("timm", reason="needs the extra [parity]")
    rates = []
    monkeypatch.setattr(resnet, "drop_path", lambda x, rate, key, train: rates.append(rate) or x)
    module = nnx.eval_shape(lambda: models.create("resnet18d", drop_path=0.3, rngs=nnx.Rngs(0)))
    nnx.eval_shape(lambda m: m(jnp.zeros((1, 32, 32, 3)), train=True, key=jax.random.key(0)), module)
    net = timm.create_model("resnet18d", drop_path_rate=0.3)
    assert rates == pytest.approx([0.0, *(m.drop_prob for m in net.modules() if type(m).__name__ == "DropPath")])


def test_residual_branches_of_the_d_form_begin_at_zero(monkeypatch):
    for d in (False, True):
        monkeypatch.setitem(resnet.VARIANTS, "tiny_resnet", resnet.Config((1,), bottleneck=False, width=4, d=d))
        modules = nnx.iter_modules(models.create("tiny_resnet", rngs=nnx.Rngs(0)))
        (block,) = (module for _, module in modules if isinstance(module, resnet.Block))
        assert [float(conv.bn.scale[...].max()) for conv in block.convs] == [1.0, 0.0 if d else 1.0]
