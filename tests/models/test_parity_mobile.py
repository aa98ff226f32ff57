"""RegNet, MobileNet, MNASNet and ShuffleNet against torchvision's: same answers, gradients, statistics, beginnings."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("torch", reason="needs the extra [parity]; torch is never a dependency of the package")

from cspine_jax import models
from cspine_jax.models.backbones import family_of, mobilenet, regnet, shufflenet
from cspine_jax.models.backbones.mobilenet import Row
from cspine_jax.models.layers import BatchNorm
from cspine_jax.models.pretrained import module_arrays, torch_name
from cspine_jax.models.slices import init_model
from tests.models.parity import Case, check_inference, check_training, torch, torchvision

REGNET = ("stem", *(f"trunk_output.block{k}" for k in (1, 2, 3, 4)))
MOBILENET = tuple(f"features.{k}" for k in (1, 3, 6, 12, 16))
MNASNET = tuple(f"layers.{k}" for k in (7, 8, 9, 11, 16))
SHUFFLENET = ("conv1", "maxpool", "stage2", "stage3", "conv5")

CASES = [
    Case("regnet_y_8gf", REGNET, batch=4),
    Case("mobilenet_v3_large", MOBILENET, batch=4),
    Case("mnasnet1_3", MNASNET, batch=4),
    Case("shufflenet_v2_x2_0", SHUFFLENET, batch=4),
]

ODD = [
    Case("regnet_y_8gf", ("stem", "s1", "s2", "s3", "s4"), size=(75, 33), source="timm", called="regnety_080_tv"),
    Case("mobilenet_v3_large", MOBILENET, size=(75, 97)),
    Case("mnasnet1_3", MNASNET, size=(75, 97)),
    Case("shufflenet_v2_x2_0", SHUFFLENET, size=(75, 97)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_answers_and_pyramid(case):
    check_inference(case)


@pytest.mark.parametrize("case", ODD, ids=str)
def test_sizes_that_do_not_divide(case):
    check_inference(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_training_step(case):
    check_training(case)


def tiny_regnet(**options):
    """Of two stages, 2 and 1 blocks of 16 and 32 channels in groups of 8."""
    family = torchvision.models.regnet
    blocks = family.BlockParams([2, 1], [16, 32], [8, 8], [1.0, 1.0], [2, 2], se_ratio=0.25)
    return family.RegNet(blocks, stem_width=8, **options)


def tiny_mobilenet(**options):
    """With and without expansion, gate, hard-swish, shortcut."""
    family = torchvision.models.mobilenetv3
    row = partial(family.InvertedResidualConfig, dilation=1, width_mult=1.0)
    rows = [
        row(16, 3, 16, 16, False, "RE", 1),
        row(16, 5, 64, 24, True, "RE", 2),
        row(24, 3, 72, 24, True, "HS", 1),
    ]
    return family.MobileNetV3(rows, 32, **options)


def tiny_shufflenet(**options):
    """Two blocks a stage."""
    return torchvision.models.shufflenetv2.ShuffleNetV2([2, 2, 2], [8, 16, 32, 64, 64], **options)


ROWS = (Row(3, 16, 16), Row(5, 64, 24, 16, stride=2), Row(3, 72, 24, 24, jax.nn.hard_swish))
TINY = {
    "tiny_regnet": (regnet, regnet.Config((2, 1), (16, 32), 8, stem=8), tiny_regnet),
    "tiny_mobilenet": (mobilenet, mobilenet.Config(16, ROWS, 144, 32), tiny_mobilenet),
    "tiny_shufflenet": (shufflenet, shufflenet.Config(8, (16, 32, 64), 64, (2, 2, 2)), tiny_shufflenet),
}
"""Every kind of block, in networks that compile in seconds."""


@pytest.fixture
def tiny(request, monkeypatch):
    """The name of a tiny network that both libraries know."""
    family, config, build = TINY[request.param]
    monkeypatch.setitem(family.VARIANTS, request.param, config)
    monkeypatch.setattr(torchvision.models, request.param, lambda weights=None, **o: build(**o), raising=False)
    return request.param


@pytest.mark.parametrize("tiny", TINY, indirect=True)
def test_a_training_step_of_every_block(tiny):
    check_training(Case(tiny, (), size=(19, 32), batch=4))


@pytest.mark.parametrize("name", ["regnet_y_8gf", "mobilenet_v3_large", "mnasnet1_3", "shufflenet_v2_x2_0"])
def test_kernels_begin_as_wide_as_the_references(name):
    torch.manual_seed(0)
    theirs = dict(getattr(torchvision.models, name)(weights=None).named_parameters())
    _, state = init_model(lambda rngs: models.create(name, rngs=rngs), jax.random.key(0))
    compared = 0
    for path, variable in module_arrays(state).items():
        if len(variable.shape) > 1 and variable.size > 1000:
            compared += 1
            expected = theirs[torch_name(path, family_of(name).NAMES["torchvision"])].detach().numpy()
            kernel = np.asarray(variable[...])
            assert kernel.std() == pytest.approx(expected.std(), rel=5 / np.sqrt(variable.size)), path
            assert np.abs(kernel).max() == pytest.approx(np.abs(expected).max(), rel=0.5), path
    assert compared > 20


@pytest.mark.parametrize("name", ["mnasnet1_3", "mobilenet_v3_large"])
def test_momentum_and_eps_are_the_references(name):
    net = getattr(torchvision.models, name)(weights=None)
    theirs = {(m.eps, m.momentum) for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    module = nnx.eval_shape(lambda: models.create(name, rngs=nnx.Rngs(0)))
    ours = {(m.eps, m.momentum) for _, m in nnx.iter_modules(module) if isinstance(m, BatchNorm)}
    assert ours == theirs


@pytest.mark.parametrize(("family", "name"), [(regnet, "regnet_y_8gf"), (mobilenet, "mobilenet_v3_large")])
def test_stochastic_depth_rises(family, name, monkeypatch):
    rates = []
    monkeypatch.setattr(family, "drop_path", lambda x, rate, key, train: rates.append(rate) or x)
    module = nnx.eval_shape(lambda: models.create(name, drop_path=0.3, rngs=nnx.Rngs(0)))
    nnx.eval_shape(lambda m: m(jnp.zeros((1, 32, 32, 3)), train=True, key=jax.random.key(0)), module)
    assert rates == sorted(rates)
    assert 0.2 < rates[-1] <= 0.3
