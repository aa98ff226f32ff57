"""Training step of the Type 3 slice model against the same network in PyTorch: CPU, same batch, same run.

    python benchmarks/train_step.py                         # needs `pip install torch` (CPU)
    python benchmarks/train_step.py --models basic_cnn --batch 32 --json

Both sides hold the same weights (copied; the losses are checked to agree), and time forward, weighted loss, backward
and Adam on all cores; PyTorch eager runs channels_last. Steps of the two alternate, so that a busy machine slows both,
and what is reported is the median of the ratios PyTorch / JAX: above 1 means that JAX is faster.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from torch import nn

from cspine_jax import xla
from cspine_jax.config import LossConfig, ModelConfig
from cspine_jax.losses import slice_loss
from cspine_jax.models.backbones import basic_cnn
from cspine_jax.models.slices import SliceModel, init_model

DEPTH = 5


class Unit(nn.Module):
    def __init__(self, i: int, o: int, kernel: int = 3, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(i, o, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(o)

    def forward(self, x):
        return self.bn(self.conv(x))


class Block(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.first, self.second = Unit(c, c), Unit(c, c)

    def forward(self, x):
        return torch.relu(x + self.second(torch.relu(self.first(x))))


class Stage(nn.Module):
    def __init__(self, i: int, o: int, kernel: int, stride: int, blocks: int):
        super().__init__()
        self.down = Unit(i, o, kernel, stride)
        self.blocks = nn.ModuleList(Block(o) for _ in range(blocks))

    def forward(self, x):
        x = torch.relu(self.down(x))
        for block in self.blocks:
            x = block(x)
        return x


class TorchBasicCNN(nn.Module):
    def __init__(self, config: basic_cnn.Config):
        super().__init__()
        self.fold = config.fold
        widths = (DEPTH * config.fold**2, *config.widths)
        self.stages = nn.ModuleList(
            Stage(widths[k], widths[k + 1], 1 if k == 0 else 3, 1 if k == 0 else 2, n)
            for k, n in enumerate(config.blocks)
        )
        self.width = widths[-1]

    def forward(self, x):
        b, c, h, w = x.shape
        f = self.fold  # (row, column, channel) order, as `fold_pixels`
        x = x.reshape(b, c, h // f, f, w // f, f).permute(0, 3, 5, 1, 2, 4).reshape(b, f * f * c, h // f, w // f)
        x = x.contiguous(memory_format=torch.channels_last)
        for stage in self.stages:
            x = stage(x)
        return x


class TorchHead(nn.Module):
    def __init__(self, width: int, hidden: int, outputs: int = 7):
        super().__init__()
        self.hidden, self.prelu, self.out = nn.Linear(width, hidden), nn.PReLU(), nn.Linear(hidden, outputs)

    def forward(self, x):
        return self.out(self.prelu(self.hidden(x)))


class TorchLevelHead(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.common, self.own = TorchHead(width, hidden, 1), TorchHead(width, hidden)

    def forward(self, x):
        return self.common(x) + self.own(x)


class TorchSliceModel(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.backbone = TorchBasicCNN(basic_cnn.VARIANTS[config.backbone])
        self.fracture = TorchLevelHead(2 * self.backbone.width, config.hidden)
        self.vertebra = TorchHead(2 * self.backbone.width, config.hidden)

    def forward(self, x):
        x = self.backbone(x)
        x = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
        return {"fracture": self.fracture(x), "vertebra": self.vertebra(x)}


def copy_weights(state: nnx.State, module: nn.Module) -> None:
    """Same names on both sides but for the leaf; kernels are transposed to torch's order."""
    leaf = {"kernel": "weight", "scale": "weight", "slope": "weight", "mean": "running_mean", "var": "running_var"}
    table = {}
    for path, variable in nnx.to_flat_state(state):
        value = np.asarray(variable[...])
        if path[-1] == "kernel":
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        name = ".".join(map(str, (*path[:-1], leaf.get(str(path[-1]), path[-1]))))
        table[name] = torch.tensor(value.reshape(1) if value.ndim == 0 else value.copy())
    missing, unexpected = module.load_state_dict(table, strict=False)
    left = [name for name in missing if not name.endswith("num_batches_tracked")]
    if left or unexpected:
        raise SystemExit(f"the two networks differ: missing {left}, unexpected {unexpected}")


def make_batch(batch: int, size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    presence = (rng.random((batch, 7)) < 0.2).astype(np.float32)
    return {
        "image": rng.random((batch, size, size, DEPTH), np.float32),
        "presence": presence,
        "presence_known": np.ones(batch, np.float32),
        "fracture": presence * (rng.random((batch, 7)) < 0.3),
        "fracture_known": np.ones((batch, 7), np.float32),
        "valid": np.ones(batch, bool),
    }


def jax_step(config: ModelConfig, batch: dict[str, np.ndarray]) -> tuple[Callable[[], float], nnx.State, float]:
    """(one step: loss, initial weights, compile seconds)."""
    graph, state = init_model(lambda rngs: SliceModel(config, DEPTH, rngs=rngs), jax.random.key(0))
    params, stats = nnx.split_state(state, nnx.Param, ...)
    optimizer = optax.adam(1e-4)
    on_device = jax.tree.map(jnp.asarray, batch)

    def loss(params, stats, batch):
        model = nnx.merge(graph, params, stats, copy=True)
        total, weight, _ = slice_loss(model(batch["image"], train=True), batch, LossConfig())
        return total / weight, nnx.state(model, nnx.BatchStat)

    def step(carry, batch):
        params, stats, opt = carry
        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params, stats, batch)
        updates, opt = optimizer.update(grads, opt)
        return (optax.apply_updates(params, updates), stats, opt), value

    carry = jax.tree.map(jnp.copy, (params, stats, optimizer.init(params)))
    started = time.perf_counter()
    compiled = xla.jit(step, donate_argnums=0).lower(carry, on_device).compile()
    seconds = time.perf_counter() - started

    def run() -> float:
        nonlocal carry
        carry, value = compiled(carry, on_device)
        return float(value)

    return run, state, seconds


def torch_step(config: ModelConfig, batch: dict[str, np.ndarray], state: nnx.State) -> Callable[[], float]:
    model = TorchSliceModel(config)
    copy_weights(state, model)
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    data = {name: torch.from_numpy(np.asarray(value)) for name, value in batch.items()}
    image = data["image"].permute(0, 3, 1, 2)  # a channels_last view
    loss_config = LossConfig()

    def part(logits, targets, mask):
        weight = mask * (1 + (loss_config.positive_weight - 1) * targets)
        each = nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return (weight * each).sum() / weight.sum()

    def run() -> float:
        optimizer.zero_grad()
        out = model(image)
        loss = loss_config.alpha * part(out["fracture"], data["fracture"], data["presence"])
        loss = loss + part(out["vertebra"], data["presence"], torch.ones_like(data["presence"]))
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return run


def timed(run: Callable[[], float], steps: int) -> float:
    started = time.perf_counter()
    for _ in range(steps):
        run()
    return (time.perf_counter() - started) / steps


def measure(name: str, batch_size: int, size: int, repeats: int) -> dict[str, float | str]:
    config = ModelConfig(backbone=name, dropout=0.0)
    batch = make_batch(batch_size, size)
    ours, state, compile_seconds = jax_step(config, batch)
    theirs = torch_step(config, batch, state)
    first, second = ours(), theirs()
    if abs(first - second) > 1e-3 * abs(second):
        raise SystemExit(f"{name}: the losses differ, JAX {first} and PyTorch {second}")
    once = timed(ours, 1)
    steps = max(1, round(0.7 / once))
    pairs = [(timed(ours, steps), timed(theirs, steps)) for _ in range(repeats)]
    return {
        "model": name,
        "batch": batch_size,
        "size": size,
        "jax_ms_a_slice": 1e3 * statistics.median(a for a, _ in pairs) / batch_size,
        "torch_ms_a_slice": 1e3 * statistics.median(b for _, b in pairs) / batch_size,
        "ratio": statistics.median(b / a for a, b in pairs),
        "compile_seconds": compile_seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["basic_cnn"], choices=sorted(basic_cnn.VARIANTS))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    xla.tune_process()  # as programs that train do
    torch.set_num_threads(os.cpu_count() or 1)
    rows = [measure(name, args.batch, args.size, args.repeats) for name in args.models]
    if args.json:
        print(json.dumps({"torch": torch.__version__, "jax": jax.__version__, "rows": rows}, indent=2))
        return
    print(
        f"jax {jax.__version__}, torch {torch.__version__}, {os.cpu_count()} cores, batch {args.batch}, {args.size} px"
    )
    print(f"{'model':<12}{'JAX ms/slice':>14}{'torch ms/slice':>16}{'torch / JAX':>13}{'compile s':>11}")
    for row in rows:
        print(
            f"{row['model']:<12}{row['jax_ms_a_slice']:>14.2f}{row['torch_ms_a_slice']:>16.2f}"
            f"{row['ratio']:>13.2f}{row['compile_seconds']:>11.1f}"
        )


if __name__ == "__main__":
    main()
