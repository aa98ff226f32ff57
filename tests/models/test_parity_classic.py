"""AlexNet, VGG, GoogLeNet, Inception v3 and DenseNet against torchvision and timm; `parity` does the work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("torch", reason="needs the extra [parity]; torch is never a dependency of the package")

from cspine_jax import models
from cspine_jax.errors import ConfigError
from cspine_jax.models import conv
from cspine_jax.models.backbones import densenet
from cspine_jax.models.pretrained import converted
from cspine_jax.models.slices import init_model
from tests.models.parity import (
    CLASSES,
    Case,
    build,
    check_inference,
    check_training,
    pictures,
    reference,
    relative,
    torch,
)

ALEXNET = ("features.1", "features.4", "features.11", "features.12")
VGG = ("features.5", "features.12", "features.22", "features.32", "features.42", "features.43")
GOOGLENET = ("conv1", "conv3", "inception3b", "inception4e", "inception5b")
INCEPTION = ("Conv2d_2b_3x3", "Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c")
DENSENET = ("relu0", "transition1.relu", "transition2.relu", "transition3.relu", "norm5")
NO_AUX = {"aux_logits": False, "init_weights": False}
AUX = {"aux_logits": True, "init_weights": False}


def slow(case):
    return pytest.param(case, marks=pytest.mark.slow)


def googlenet(options, **case):
    return Case("googlenet", GOOGLENET, options=options, ours={"aux_heads": options["aux_logits"]}, **case)


def inception(options, **case):
    return Case("inception_v3", INCEPTION, options=options, ours={"aux_heads": options["aux_logits"]}, **case)


def dense(name, **case):
    """Levels after their ReLU, which torchvision takes of the last one in place, outside of the hooked module."""
    return Case(name, tuple(f"features.{level}" for level in DENSENET), level=torch.relu, **case)


def dense_nano(**case):
    options = {"growth_rate": 8, "block_config": (2, 3, 1, 2), "num_init_features": 16, "bn_size": 2}
    return dense("densenet_nano", called="DenseNet", options=options, **case)


def dense_timm(**case):
    """timm's normalisations have the ReLU in them."""
    levels = ("features.norm0", *(f"features.transition{k}.norm" for k in (1, 2, 3)), "features.norm5")
    return Case("densenet121", levels, source="timm", **case)


INFERENCE = [
    Case("alexnet", ALEXNET, (63, 79)),
    Case("alexnet", ALEXNET, (224, 250)),  # 6 and 7 cells a side
    Case("vgg16_bn", VGG, (33, 75)),
    slow(Case("vgg16_bn", VGG, (224, 224))),
    googlenet(NO_AUX, size=(64, 76)),
    googlenet(AUX, size=(97, 75)),
    inception(NO_AUX, size=(75, 98)),
    inception(AUX, size=(80, 75)),
    slow(Case("inception_v3", INCEPTION, (75, 75), source="timm")),
    dense_nano(),
    dense_nano(size=(97, 75)),
    slow(dense("densenet121")),
    slow(dense("densenet121", size=(97, 75))),
    slow(dense_timm()),
]
TRAINING = [
    Case("alexnet", ALEXNET, (64, 71)),
    slow(Case("vgg16_bn", VGG, (64, 64))),
    slow(googlenet(NO_AUX, size=(71, 64), batch=4)),
    slow(googlenet(AUX, batch=4)),
    slow(inception(NO_AUX, size=(111, 107), batch=4)),
    slow(inception(AUX, size=(299, 299))),
    dense_nano(size=(64, 75), batch=4),
    slow(dense("densenet121", batch=4)),
]


@pytest.fixture(autouse=True)
def nano(monkeypatch):
    config = densenet.Config(blocks=(2, 3, 1, 2), width=16, growth=8, bottleneck=2)
    monkeypatch.setitem(densenet.VARIANTS, "densenet_nano", config)


@pytest.mark.parametrize("case", INFERENCE, ids=str)
def test_answers_and_pyramid(case):
    check_inference(case)


@pytest.mark.parametrize("case", TRAINING, ids=str)
def test_a_training_step(case):
    check_training(case)


@pytest.mark.parametrize(
    "case", [googlenet(AUX, size=(71, 64), batch=4), slow(inception(AUX, size=(299, 310)))], ids=str
)
def test_auxiliary_logits(case):
    net = reference(case).train()
    graph, state = build(case, net)
    x = pictures(case)
    with torch.no_grad():
        expected, *theirs = net(torch.from_numpy(x).permute(0, 3, 1, 2))
    run = jax.jit(lambda state, x: nnx.merge(graph, state).with_auxiliary(x, train=True))
    logits, auxiliary = run(state, jnp.asarray(x))
    assert relative(logits, expected) < 1e-3  # batch statistics of few cells
    assert len(auxiliary) == len(theirs)
    for ours, expected in zip(auxiliary, reversed(theirs), strict=True):
        assert ours.dtype == jnp.float32
        assert relative(ours, expected) < 1e-3


def test_names_of_published_densenet_files():
    """Torchvision renames `norm.1` of its files to `norm1` and so on when it loads them."""
    rules = densenet.NAMES["torchvision_file"]
    state = nnx.state(nnx.eval_shape(lambda: models.create("densenet121", num_outputs=CLASSES, rngs=nnx.Rngs(0))))
    names = set(converted(state, {}, rules)[1])
    assert {
        "features.denseblock4.denselayer16.norm.2.running_var",
        "features.denseblock1.denselayer1.conv.1.weight",
    } <= names
    assert {"features.conv0.weight", "features.norm5.bias", "features.transition1.norm.weight"} <= names


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize(("window", "stride", "padding"), [(3, 1, 1), (2, 2, 0), (5, 3, 0), ((4, 5), (2, 1), (1, 2))])
def test_avg_pool(backend, window, stride, padding):
    x = np.random.default_rng(0).normal(size=(2, 11, 9, 3)).astype(np.float32)
    theirs = torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_()
    expected = torch.nn.functional.avg_pool2d(theirs, window, stride, padding)
    (expected**2).sum().backward()
    with conv.assume_backend(backend):
        out, pull = jax.vjp(lambda x: conv.avg_pool(x, window, stride, padding), jnp.asarray(x))
        (grad,) = pull(2 * out)
    np.testing.assert_allclose(out, expected.detach().permute(0, 2, 3, 1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grad, theirs.grad.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [7, (6, 4), 1])
@pytest.mark.parametrize("image", [(7, 7), (14, 21), (9, 20), (1, 3), (13, 6)])
def test_adaptive_avg_pool(image, size):
    x = np.random.default_rng(0).normal(size=(2, *image, 3)).astype(np.float32)
    expected = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(x).permute(0, 3, 1, 2), size)
    out = conv.adaptive_avg_pool(jnp.asarray(x), size)
    np.testing.assert_allclose(out, expected.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-6)


def test_averages_of_bfloat16_are_summed_wider():
    x = jnp.full((1, 16, 16, 1), 1.0078125, jnp.bfloat16)
    for pooled in (conv.avg_pool(x, 16, 16), conv.adaptive_avg_pool(x, 1)):
        assert pooled.dtype == jnp.bfloat16
        assert float(pooled[0, 0, 0, 0]) == 1.0078125


@pytest.mark.parametrize(
    ("name", "least"),
    [("alexnet", 63), ("vgg16_bn", 32), ("googlenet", 15), ("inception_v3", 75), ("densenet121", 29)],
)
def test_images_too_small_are_refused(name, least):
    graph, state = nnx.split(nnx.eval_shape(lambda: models.create(name, features_only=True, rngs=nnx.Rngs(0))))

    def levels(*size):
        x = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
        return jax.eval_shape(lambda state, x: nnx.merge(graph, state)(x), state, x)

    assert min(levels(least, least)[-1].shape) == 1
    with pytest.raises(ConfigError, match=f"images of {least} x {least - 1} pixels: {name} needs {least} x {least}"):
        levels(least, least - 1)


def heads(name, **options):
    build = lambda: models.create(name, num_outputs=4, in_channels=2, aux_heads=True, rngs=nnx.Rngs(0), **options)  # noqa: E731
    graph, state = nnx.split(nnx.eval_shape(build))

    def run(size, **how):
        x = jax.ShapeDtypeStruct((2, size, size, 2), jnp.float32)
        return jax.eval_shape(lambda state, x: nnx.merge(graph, state).with_auxiliary(x, **how), state, x)

    return run


def test_auxiliary_heads_where_there_are_none():
    assert heads("densenet121")(64)[1] == []
    levels, none = heads("googlenet", features_only=True)(64)
    assert len(levels) == 5 and none == []


def test_the_auxiliary_head_of_inception_needs_its_size():
    logits, (auxiliary,) = heads("inception_v3", dtype=jnp.bfloat16)(299)
    assert logits.shape == auxiliary.shape == (2, 4)
    assert logits.dtype == auxiliary.dtype == jnp.float32
    with pytest.raises(ConfigError, match=r"images of 298 x 298 pixels: the auxiliary head of inception_v3 needs 299"):
        heads("inception_v3")(298)


def test_auxiliary_dropout_is_off_where_dropout_is():
    heads("googlenet", dropout=0.0)(64, train=True)
    with pytest.raises(ValueError, match=r"dropout at rate 0.7 in training needs a key"):
        heads("googlenet")(64, train=True)


@pytest.mark.parametrize("name", ["alexnet", "googlenet"])
def test_dropout_lies_where_the_reference_has_it(name):
    """AlexNet: before both hidden layers, not before the head. GoogLeNet with auxiliary heads: the same as without."""
    graph, state = init_model(
        lambda rngs: models.create(name, num_outputs=3, aux_heads=True, dropout=0.5, rngs=rngs), jax.random.key(0)
    )
    x = jnp.asarray(pictures(Case(name, (), (63, 63))))

    @jax.jit
    def run(state, x, key):
        module = nnx.merge(graph, state)
        embedding = module.embed(x, True, jax.random.split(key)[0])
        return module(x, True, key), module.with_auxiliary(x, True, key)[0], module.head(embedding)

    answer, with_auxiliary, undropped = run(state, x, jax.random.key(1))
    np.testing.assert_allclose(answer, with_auxiliary, rtol=1e-4, atol=1e-6)
    assert np.allclose(answer, undropped, rtol=1e-4, atol=1e-6) == (name == "alexnet")
    other = run(state, x, jax.random.key(2))[0]
    assert not np.allclose(answer, other, rtol=1e-3)
