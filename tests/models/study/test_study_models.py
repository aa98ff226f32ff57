"""Outputs of each study model, what they follow, and that training reaches all of it."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cspine_jax.config import LossConfig
from cspine_jax.losses import copies_loss, rsna_loss, sequence_loss
from cspine_jax.models.backbones import basic_cnn
from cspine_jax.models.pretrained import converted, overlaid
from cspine_jax.models.study.cnn3d import Block
from cspine_jax.models.study.gold import NAMES, PatientSequence
from cspine_jax.models.study.vit3d import ViT3D
from tests.models.drawn import drawn
from tests.models.study.test_exact_padding import MODELS, studies


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(basic_cnn.VARIANTS, "study_tiny", basic_cnn.Config(widths=(4,), blocks=(0,)))


def outputs(build, image, mask):
    graph, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    return jax.eval_shape(lambda state, *args: nnx.merge(graph, state)(*args), state, image, mask)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("classifier", (3, 8)), ("bronze", (3, 9)), ("gold vertebra", (3, 9)), ("silver", (3, 9)), ("levels", (3, 8))],
)
def test_outputs_in_bfloat16_are_float32_logits(name, shape):
    image, mask = studies(name.startswith("levels"))
    y = outputs(MODELS[name], image.astype(jnp.bfloat16), mask)
    assert y.shape == shape and y.dtype == jnp.float32


def test_document_cs_volume_fits_the_3d_vit_and_any_other_does():
    def build(rngs):
        return ViT3D(dtype=jnp.bfloat16, rngs=rngs)

    for shape in [(2, 105, 256, 256, 6), (1, 31, 250, 100, 6)]:
        y = outputs(build, jax.ShapeDtypeStruct(shape, jnp.bfloat16), jax.ShapeDtypeStruct(shape[:2], bool))
        assert y.shape == (shape[0], 8) and y.dtype == jnp.float32


def test_gold_after_the_encoder_is_the_published_network():
    torch = pytest.importorskip("torch", reason="needs the extra [parity]; torch is never a dependency of the package")
    nn = torch.nn

    class Published(nn.Module):
        def __init__(self):
            super().__init__()
            for k in ("", "2"):
                lstm = nn.LSTM(4, 6, num_layers=2, bidirectional=True, batch_first=True)
                head = nn.Sequential(
                    nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.LeakyReLU(0.1), nn.Linear(6, 1)
                )
                head[1].running_mean.uniform_(-0.1, 0.1)
                head[1].running_var.uniform_(0.5, 2)
                setattr(self, f"lstm{k}", lstm)
                setattr(self, f"head{k}", head)

        def forward(self, x):
            slices, _ = self.lstm(x)
            patient, _ = self.lstm2(x)
            return self.head(slices.reshape(-1, 12)).reshape(x.shape[:2]), self.head2(patient[:, 0])[:, 0]

    torch.manual_seed(0)
    net = Published().eval()
    model = nnx.eval_shape(lambda: PatientSequence("study_tiny", in_channels=2, hidden=6, rngs=nnx.Rngs(0)))
    model.encoder = None
    graph, state = nnx.split(model)
    table = {name: value.numpy() for name, value in net.state_dict().items()}
    arrays, missing, misshapen, unexpected = converted(state, table, NAMES)
    assert not missing and not misshapen and not unexpected
    x = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)

    @jax.jit
    def run(state, x):
        model = nnx.merge(graph, state)
        model.encoder = types.SimpleNamespace(look=lambda image, *_: (image, None))
        return model(x)

    y = run(overlaid(state, arrays), x)
    with torch.no_grad():
        slices, patient = net(torch.from_numpy(x))
    np.testing.assert_allclose(y["slice"], slices, atol=1e-5)
    np.testing.assert_allclose(y["patient"], patient, atol=1e-5)


def test_factorised_blocks_have_as_many_weights():
    def kernels(factorised):
        block = nnx.eval_shape(lambda: Block(16, factorised=factorised, dtype=None, rngs=nnx.Rngs(0)))
        return [x for x in jax.tree.leaves(nnx.state(block, nnx.Param)) if len(x.shape) == 5]

    assert [x.shape[:3] for x in kernels(True)].count((1, 3, 3)) == 2 == len(kernels(False))
    assert [x.shape[:3] for x in kernels(True)].count((3, 1, 1)) == 2
    assert sum(x.size for x in kernels(True)) == sum(x.size for x in kernels(False))


def test_levels_model_wants_seven_vertebrae():
    with pytest.raises(ValueError, match="the 7 vertebrae"):
        outputs(MODELS["levels"], jnp.zeros((1, 6, 2, 8, 8, 2)), jnp.ones((1, 6, 2), bool))


LABELS = np.random.default_rng(0).integers(0, 2, (3, 8)).astype(np.float32)


def loss_of(name, y, mask):
    ones = np.ones((3, 8), np.float32)
    if name == "gold patient":
        total, weight, _ = sequence_loss(y, LABELS, ones, mask, LossConfig())
    elif name.startswith(("bronze", "gold vertebra", "silver")):
        total, weight = copies_loss(y, LABELS[:, 0], mask, LossConfig())
    else:
        total, weight = rsna_loss(y, LABELS, ones)
    return total / weight


def step(name, build, image, mask):
    """(loss, new statistics, gradients) of a training step."""
    graph, state = drawn(build)
    params, stats = nnx.split_state(state, nnx.Param, ...)

    @jax.jit
    def run(params, image):
        def loss(params):
            model = nnx.merge(graph, params, stats, copy=True)
            y = model(image, mask, True, jax.random.key(0))
            return loss_of(name, y, mask), nnx.state(model, nnx.BatchStat)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (value, after), grads = run(params, image)
    return value, after, grads


EXPECTED = (
    r"head2?\.hidden\.bias",  # batch normalisation takes it away
    r"lstm2\.layers\.0\.directions\.0\.weight_hh",  # the patient is read at the first slice, before any recurrence
)


def unreached(grads):
    """Names of what no finite gradient other than zero reaches, but should."""
    names = {".".join(map(str, path)): np.asarray(g[...]) for path, g in nnx.to_flat_state(grads)}
    dead = [name for name, g in names.items() if not (np.isfinite(g).all() and np.abs(g).max() > 0)]
    return [name for name in dead if not re.fullmatch("|".join(EXPECTED), name)]


QUICK = ("classifier", "gold vertebra", "cnn3d")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in MODELS])
def test_training_reaches_everything_and_padding_nothing(name):
    if name == "gold patient":
        image, mask = (x.reshape(3, 63, *x.shape[3:]) for x in studies(True))
    else:
        image, mask = studies(name.startswith("levels"))
    value, stats, grads = step(name, MODELS[name], image, mask)
    assert not unreached(grads)
    cleared = step(name, MODELS[name], np.nan_to_num(image), mask)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), (value, stats, grads), cleared)
