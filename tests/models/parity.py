"""Compares a backbone with the network it follows: same parameters, same statistics, same pictures.

`torch` and torchvision come with the extra [parity]; test modules that use this are skipped without them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cspine_jax import models
from cspine_jax.models.backbones import family_of
from cspine_jax.models.pretrained import converted, from_torch, overlaid, torch_name

torch = pytest.importorskip("torch", reason="needs the extra [parity]; torch is never a dependency of the package")

# A torchvision whose compiled part does not fit torch lacks these at import; they live as long as the library does.
_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
for _operator in ("nms", "qnms"):
    try:
        _LIBRARY.define(f"{_operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except RuntimeError:
        pass  # this torchvision has them
torchvision = pytest.importorskip("torchvision", reason="needs the extra [parity]")

CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Case:
    """A backbone and how its reference is built.

    Attributes:
        name: in `models.names()`.
        levels: torch submodules whose outputs (`[B, C, H, W]` unless `channels_last`) are the pyramid, finest first.
        size: of the pictures, (H, W).
        batch: pictures in the evaluation and training comparisons.
        source: key of the family's `NAMES`.
        called: the reference's own name, where it is not `name`.
        options: of the reference's constructor.
        ours: options of `models.create`.
        channels_last: the levels come as `[B, H, W, C]`.
        level: submodule output `[B, ...]` -> `[B, C, H, W]`, for levels that are something else.
    """

    name: str
    levels: tuple[str, ...]
    size: tuple[int, int] = (64, 64)
    batch: int = 2
    source: str = "torchvision"
    called: str = ""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    ours: dict[str, Any] = dataclasses.field(default_factory=dict)
    channels_last: bool = False
    level: Callable[[Any], Any] | None = None

    def __str__(self) -> str:
        return self.called or self.name


def relative(a: Any, b: Any) -> float:
    """Largest difference over the largest magnitude."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(b).max())


def reference(case: Case) -> Any:
    """The torch network, batch statistics randomised, everything that drops turned off."""
    torch.manual_seed(0)
    if case.source == "timm":
        timm = pytest.importorskip("timm", reason="needs the extra [parity]")
        net = timm.create_model(str(case), num_classes=CLASSES, pretrained=False, **case.options)
    else:
        net = getattr(torchvision.models, str(case))(num_classes=CLASSES, **case.options)
    return randomise(net)


def randomise(net: Any) -> Any:
    for parameter in net.parameters():
        if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):  # or it would hide its part
            parameter.data += torch.empty_like(parameter).uniform_(-0.3, 0.3)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low in ((module.weight, 0.5), (module.bias, -0.2), (module.running_mean, -0.2)):
                torch.nn.init.uniform_(tensor, low, low + 0.4)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
        elif type(module).__name__ == "StochasticDepth":
            module.p = 0.0
        elif isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return net


def pictures(case: Case) -> np.ndarray:
    """float32 [B, H, W, 3]."""
    return np.random.default_rng(0).normal(size=(case.batch, *case.size, 3)).astype(np.float32)


def build(case: Case, net: Any) -> tuple[nnx.GraphDef, nnx.State]:
    """This package's network with the weights of `net`; every name and shape must be accounted for."""
    graph, state = nnx.split(
        nnx.eval_shape(
            lambda: models.create(
                case.name, num_outputs=CLASSES, dropout=0.0, drop_path=0.0, rngs=nnx.Rngs(0), **case.ours
            )
        )
    )
    table = {name: value.detach().numpy() for name, value in net.state_dict().items()}
    arrays, missing, misshapen, unexpected = converted(state, table, family_of(case.name).NAMES[case.source])
    assert not missing and not misshapen and not unexpected, (missing[:5], misshapen[:5], unexpected[:5])
    ours = sum(x.size for x in jax.tree.leaves(nnx.split_state(state, nnx.Param, ...)[0]))
    assert ours == sum(p.numel() for p in net.parameters())
    return graph, overlaid(state, arrays)


def check_inference(case: Case) -> None:
    """Logits and every pyramid level within 1e-4 of the reference, in float32."""
    net = reference(case).eval()
    graph, state = build(case, net)
    x = pictures(case)
    seen: dict[str, Any] = {}
    for name in case.levels:
        net.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: seen.__setitem__(name, o))
    with torch.no_grad():
        expected = net(torch.from_numpy(x).permute(0, 3, 1, 2))

    @jax.jit
    def both(state: nnx.State, x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        module = nnx.merge(graph, state)
        return module(x), module.pyramid(x)

    logits, levels = both(state, jnp.asarray(x))
    assert relative(logits, expected) < 1e-4
    module = nnx.merge(graph, state)
    assert len(levels) == len(case.levels) == len(module.channels) == len(module.reductions)
    for ours, name, channels in zip(levels, case.levels, module.channels, strict=True):
        theirs = seen[name] if case.level is None else case.level(seen[name])
        theirs = theirs if case.channels_last else theirs.permute(0, 2, 3, 1)
        assert ours.shape[-1] == channels
        assert relative(ours, theirs) < 1e-4, name


def check_training(case: Case) -> None:
    """Loss (auxiliary heads' included), gradients, and recorded statistics of one step in training mode.

    In float64: in float32 both sides' gradients of a random, ill-conditioned network are off by a few per cent.
    """
    net = reference(case)
    graph, state = build(case, net)
    x, target = pictures(case), np.arange(case.batch)
    with jax.enable_x64(True):
        state = jax.tree.map(lambda v: v.astype(jnp.float64), state)
        params, stats = nnx.split_state(state, nnx.Param, ...)

        @jax.jit
        def step(params: nnx.State, stats: nnx.State) -> Any:
            def loss(params: nnx.State) -> tuple[jax.Array, nnx.State]:
                model = nnx.merge(graph, params, stats, copy=True)
                logits, auxiliary = model.with_auxiliary(jnp.asarray(x, jnp.float64), train=True)
                losses = [-jax.nn.log_softmax(y)[target, target].mean() for y in (logits, *auxiliary)]
                return jnp.stack(losses).sum(), nnx.state(model, nnx.BatchStat)

            return jax.value_and_grad(loss, has_aux=True)(params)

        (loss, after), grads = step(params, stats)
    net = net.double().train()
    out = net(torch.from_numpy(x).double().permute(0, 3, 1, 2))
    outputs = [out] if isinstance(out, torch.Tensor) else list(out)
    expected = torch.stack([torch.nn.functional.cross_entropy(y, torch.from_numpy(target)) for y in outputs]).sum()
    expected.backward()
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-9)
    rules = family_of(case.name).NAMES[case.source]
    compare(grads, {name: p.grad for name, p in net.named_parameters()}, rules, 1e-4)
    compare(after, dict(net.named_buffers()), rules, 1e-6)


def compare(state: nnx.State, theirs: dict[str, Any], rules: Sequence, tolerance: float) -> None:
    """Every array of `state` against the tensor of the same name; tiny ones against the largest of all."""
    floats = (t for t in theirs.values() if t is not None and t.is_floating_point())
    largest = max((float(t.abs().max()) for t in floats), default=0.0)
    for path, variable in nnx.to_flat_state(state):
        name = torch_name(path, rules)
        expected = from_torch(theirs[name].detach().numpy(), variable.shape)
        assert expected is not None, name
        error = np.abs(np.asarray(variable[...]) - expected).max()
        assert error <= tolerance * max(np.abs(expected).max(), 1e-6 * largest), name
