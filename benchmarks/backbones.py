"""Every backbone against the network it follows in torchvision or timm: parity, speed on the CPU, compile time.

    python benchmarks/backbones.py --out backbones.jsonl                       # needs the extra [parity]
    python benchmarks/backbones.py --out backbones.jsonl --write docs/backbones.md

Inference and one training step (cross-entropy, SGD) of the same weights on the same batch, `--batch` pictures of
`--size` pixels (224 for vit_b_16). Both sides run in turns; a ratio is the median of theirs / ours: above 1 means that
this package is faster. PyTorch runs eagerly, channels_last, on as many threads as there are cores. Models already in
`--out` are not run again, so that a long run can be done in pieces. FLOPs are XLA's count of the compiled inference, a
picture.
"""

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from cspine_jax import models, xla
from cspine_jax.memory import keep_freed_memory
from cspine_jax.models.backbones import family_of
from cspine_jax.models.pretrained import converted, overlaid
from cspine_jax.training.sharding import place

LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
for operator in ("nms", "qnms"):  # a torchvision whose compiled part does not fit torch lacks these at import
    try:
        LIBRARY.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except RuntimeError:
        pass
import timm  # noqa: E402
import torchvision  # noqa: E402

TIMM = {name: name for name in ("resnet18d", "tf_efficientnetv2_s", "tf_efficientnetv2_l")}
TIMM["efficientnet_lite0"] = "tf_efficientnet_lite0"
AUXILIARY = ("googlenet", "inception_v3")
NO_REFERENCE = ("basic_cnn",)


def reference(name: str) -> torch.nn.Module:
    if name in TIMM:
        return timm.create_model(TIMM[name], num_classes=1000, drop_rate=0.0, drop_path_rate=0.0)
    options: dict[str, Any] = {"aux_logits": False, "init_weights": False} if name in AUXILIARY else {}
    net = getattr(torchvision.models, name)(**options)
    if name == "vit_b_16":  # its head begins as zeros, and so would all logits
        torch.nn.init.normal_(net.get_submodule("heads.head").weight, std=0.01)
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout) or type(module).__name__ == "StochasticDepth":
            module.p = 0.0
    return net


def settle(net: torch.nn.Module, image: torch.Tensor) -> None:
    """Takes the statistics of one batch: without, a deep untrained network fades to zeros and parity says nothing."""
    norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        net.train()(image)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum


def ours(name: str, net: torch.nn.Module) -> tuple[nnx.GraphDef, nnx.State]:
    """The backbone with the weights of `net`."""
    graph, state = nnx.split(nnx.eval_shape(lambda: models.create(name, dropout=0.0, drop_path=0.0, rngs=nnx.Rngs(0))))
    table = {key: value.detach().numpy() for key, value in net.state_dict().items()}
    names = family_of(name).NAMES["timm" if name in TIMM else "torchvision"]
    arrays, missing, misshapen, _ = converted(state, table, names)
    if missing or misshapen:
        raise SystemExit(f"{name}: the two networks differ: missing {missing[:3]}, misshapen {misshapen[:3]}")
    return graph, overlaid(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state), arrays)


def in_turns(a: Callable[[], None], b: Callable[[], None], repeats: int) -> tuple[float, float]:
    """(median seconds of a, median of b / a)."""
    a(), b()
    pairs = []
    for _ in range(repeats):
        start = time.perf_counter()
        a()
        middle = time.perf_counter()
        b()
        pairs.append((middle - start, time.perf_counter() - middle))
    return statistics.median(x for x, _ in pairs), statistics.median(y / x for x, y in pairs)


def measure(name: str, batch: int, size: int, repeats: int) -> dict[str, Any]:
    size = {"inception_v3": max(size, 75), "vit_b_16": 224}.get(name, size)  # what torchvision's allow
    torch.manual_seed(0)
    net = reference(name).to(memory_format=torch.channels_last)
    rng = np.random.default_rng(0)
    x, target = rng.normal(size=(batch, size, size, 3)).astype(np.float32), rng.integers(0, 1000, batch)
    image, labels = torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(target)
    settle(net, image)
    graph, state = ours(name, net.eval())
    params, stats = nnx.split_state(state, nnx.Param, ...)

    def answer(state: nnx.State, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(x)

    def step(params: nnx.State, stats: nnx.State, x: jax.Array) -> tuple[nnx.State, nnx.State]:
        def loss(params: nnx.State) -> tuple[jax.Array, nnx.State]:
            model = nnx.merge(graph, params, stats, copy=True)
            logits = jax.nn.log_softmax(model(x, train=True))
            return -logits[np.arange(batch), target].mean(), nnx.split_state(nnx.state(model), nnx.Param, ...)[1]

        grads, after = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads), after

    seconds, compiled = [], []
    placement = place()
    on_device = jax.device_put(x, placement.split)
    state, params, stats = jax.device_put((state, params, stats), placement.replicated)
    for function, args in ((answer, (state, on_device)), (step, (params, stats, on_device))):
        start = time.perf_counter()
        shardings = placement.split if function is answer else placement.replicated
        compiled.append(xla.jit(function, out_shardings=shardings).lower(*args).compile())
        seconds.append(time.perf_counter() - start)
    costs = compiled[0].cost_analysis() or {}
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)

    def torch_answer() -> None:
        with torch.inference_mode():
            net(image)

    def torch_step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(image), labels).backward()
        optimizer.step()

    with torch.inference_mode():
        expected = net(image).numpy()
    logits = np.asarray(compiled[0](state, on_device))
    inference = in_turns(lambda: jax.block_until_ready(compiled[0](state, on_device)), torch_answer, repeats)
    net.train()
    training = in_turns(lambda: jax.block_until_ready(compiled[1](params, stats, on_device)), torch_step, repeats)
    return {
        "model": name,
        "batch": batch,
        "size": size,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "gflops": costs.get("flops", math.nan) / batch / 1e9,
        "error": float(np.abs(logits - expected).max() / np.abs(expected).max()),
        "inference_ms": 1e3 * inference[0] / batch,
        "inference_ratio": inference[1],
        "training_ms": 1e3 * training[0] / batch,
        "training_ratio": training[1],
        "compile_inference_s": seconds[0],
        "compile_training_s": seconds[1],
    }


HEAD = (
    "| backbone | parameters | GFLOPs | parity error | inference ms an image | ratio | training ms an image | ratio | "
    "compile s, inference / training |\n|---|---|---|---|---|---|---|---|---|\n"
)


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"| {r['model']} | {r['parameters'] / 1e6:.1f} M | {r['gflops']:.2f} | {r['error']:.0e} | "
        f"{r['inference_ms']:.1f} | {r['inference_ratio']:.2f} | {r['training_ms']:.0f} | {r['training_ratio']:.2f} | "
        f"{r['compile_inference_s']:.0f} / {r['compile_training_s']:.0f} |\n"
        for r in sorted(rows, key=lambda r: r["model"])
    ]
    inference, training = (
        statistics.geometric_mean(r[f"{what}_ratio"] for r in rows) for what in ("inference", "training")
    )
    return (
        HEAD
        + "".join(lines)
        + f"\nGeometric mean of the ratios over {len(rows)} networks: inference {inference:.2f}, training step "
        f"{training:.2f}.\n"
    )


BEGIN, END = "<!-- table -->\n", "<!-- /table -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[n for n in models.names() if n not in NO_REFERENCE])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--devices", type=int, default=1, help="CPU devices that a batch is divided over")
    parser.add_argument("--out", type=Path, required=True, help="one JSON line a model, added to")
    parser.add_argument("--write", type=Path, help="put the table of --out between the marks in this file")
    args = parser.parse_args()
    keep_freed_memory()  # as training does, for both sides
    torch.set_num_threads(os.cpu_count() or 1)
    jax.config.update("jax_num_cpu_devices", args.devices)
    done = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.is_file() else []
    for name in args.models:
        if name not in {row["model"] for row in done}:
            done.append(measure(name, args.batch, args.size, args.repeats))
            with args.out.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
            jax.clear_caches()
            print(table(done[-1:]).splitlines()[2], flush=True)
    if args.write:
        before, rest = args.write.read_text().split(BEGIN)
        args.write.write_text(before + BEGIN + table(done) + END + rest.split(END)[1])
    else:
        print(table(done))


if __name__ == "__main__":
    main()
