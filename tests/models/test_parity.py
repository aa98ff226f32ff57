"""ResNets against torchvision: same parameters, same statistics, same pictures, same answers and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cspine_jax import models

torch = pytest.importorskip("torch", reason="needs the extra [parity]; torch is never a dependency of the package")


@pytest.fixture(scope="module")
def torchvision():
    # a torchvision whose compiled part does not fit torch lacks these at import; they live as long as the library does
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        try:
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except RuntimeError:
            pass
    yield pytest.importorskip("torchvision", reason="needs the extra [parity]")


def torch_name(path: tuple) -> str:
    """`layers.0.1.conv1.kernel` -> `layer1.1.conv1.weight`."""
    parts = [str(part) for part in path]
    if parts[0] == "layers":
        parts[:2] = [f"layer{int(parts[1]) + 1}"]
    if "downsample" in parts:
        parts[-2] = {"conv": "0", "bn": "1"}[parts[-2]]
    leaf = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    return ".".join([*parts[:-1], leaf.get(parts[-1], parts[-1])]).replace("head.", "fc.")


def from_torch(x) -> np.ndarray:
    x = x.detach().numpy()
    return x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T


def relative(a, b) -> float:
    a, b = np.asarray(a), np.asarray(b)
    return float(np.abs(a - b).max() / np.abs(b).max())


def reference(torchvision, name):
    torch.manual_seed(0)
    net = getattr(torchvision.models, name)(num_classes=10)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low in ((module.weight, 0.5), (module.bias, -0.2), (module.running_mean, -0.2)):
                torch.nn.init.uniform_(tensor, low, low + 0.4)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return net


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnet_equals_torchvision(torchvision, name):
    net = reference(torchvision, name)
    weights = {key: value for key, value in net.state_dict().items() if not key.endswith("num_batches_tracked")}
    graph, state = nnx.split(nnx.eval_shape(lambda: models.create(name, num_outputs=10, rngs=nnx.Rngs(0))))
    names = {torch_name(path) for path, _ in nnx.to_flat_state(state)}
    assert names == set(weights)
    state = nnx.map_state(lambda path, x: x.replace(jnp.asarray(from_torch(weights[torch_name(path)]))), state)

    x = np.random.default_rng(0).normal(size=(4, 64, 64, 3)).astype(np.float32)
    image = torch.from_numpy(x).permute(0, 3, 1, 2)

    assert relative(nnx.merge(graph, state)(x), net.eval()(image).detach()) < 1e-4
    stages = {}
    for k in range(1, 5):
        getattr(net, f"layer{k}").register_forward_hook(lambda m, i, o, k=k: stages.__setitem__(k, o))
    net(image)
    for level, k in zip(nnx.merge(graph, state).pyramid(jnp.asarray(x))[1:], stages, strict=True):
        assert relative(level, stages[k].detach().permute(0, 2, 3, 1)) < 1e-4

    with jax.enable_x64(True):  # in float32 both sides' gradients are 2% off: the random network is ill-conditioned
        compare_training(net.double(), graph, jax.tree.map(lambda v: v.astype(jnp.float64), state), x)


def compare_training(net, graph, state, x):
    """Loss, gradients and recorded batch statistics of one step."""
    target = np.arange(len(x))
    image = torch.from_numpy(x).double().permute(0, 3, 1, 2)
    params, stats = nnx.split_state(state, nnx.Param, ...)

    @jax.jit
    def step(params, stats):
        def loss(params):
            model = nnx.merge(graph, params, stats, copy=True)
            logits = jax.nn.log_softmax(model(jnp.asarray(x, jnp.float64), train=True))
            return -logits[target, target].mean(), nnx.state(model, nnx.BatchStat)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, after), grads = step(params, stats)
    expected = torch.nn.functional.cross_entropy(net.train()(image), torch.from_numpy(target))
    expected.backward()
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-6)
    theirs = dict(net.named_parameters())
    for path, grad in nnx.to_flat_state(grads):
        assert relative(grad[...], from_torch(theirs[torch_name(path)].grad)) < 1e-4, path
    buffers = dict(net.named_buffers())
    for path, value in nnx.to_flat_state(after):
        assert relative(value[...], from_torch(buffers[torch_name(path)])) < 1e-6, path
