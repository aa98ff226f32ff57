"""Vertebra segmentation against the same networks in PyTorch: CPU, same weights, same run.

    python benchmarks/segment.py                 # needs `pip install torch monai` (CPU)
    python benchmarks/segment.py --slices 300 --size 512 --repeat 3 --json

Training step: forward, Dice + cross-entropy, backward and Adam of the coarse and of the fine network on one crop, no
augmentation on either side. Whole study: the coarse network once over everything at 4 mm, the fine one in windows along
the spine's box at 2 mm; on the PyTorch side with MONAI's `sliding_window_inference` (Gaussian weights, same window and
overlap) and plain Conv3d, channels_last_3d. The outputs are checked to agree. Both sides alternate; what is reported
is the median of the ratios PyTorch / JAX: above 1 means that JAX is faster. Then the whole of `cspine segment` on a
study of `--slices` x `--size` x `--size`, in seconds and peak memory.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from torch import nn

from cspine_jax import xla
from cspine_jax.config import VolumeConfig
from cspine_jax.inference.vertebrae.sliding import slide
from cspine_jax.losses import segmentation_loss
from cspine_jax.models.layers3d import redraw_kernels
from cspine_jax.models.spine import widths
from cspine_jax.models.unet3d import UNet3d

SPINE = {"in": 8, "out": 23, "unpacked": False, "config": VolumeConfig(levels=4, light=True)}
REFINE = {"in": 11, "out": 4, "unpacked": True, "config": VolumeConfig(levels=3)}
WINDOW, OVERLAP = (48, 48, 48), 0.25


class Unit(nn.Module):
    def __init__(self, i: int, o: int, size: int = 3):
        super().__init__()
        self.conv = nn.Conv3d(i, o, size, padding=size // 2, bias=False)
        self.bn = nn.BatchNorm3d(o)

    def forward(self, x):
        return torch.relu(self.bn(self.conv(x)))


class Residual(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.first = Unit(c, c)
        self.conv, self.bn = nn.Conv3d(c, c, 3, padding=1, bias=False), nn.BatchNorm3d(c)

    def forward(self, x):
        return torch.relu(x + self.bn(self.conv(self.first(x))))


def torch_pack(x):
    b, c, d, h, w = x.shape
    x = x.reshape(b, c, d // 2, 2, h // 2, 2, w // 2, 2).permute(0, 3, 5, 7, 1, 2, 4, 6)
    return x.reshape(b, 8 * c, d // 2, h // 2, w // 2)


def torch_unpack(x):
    b, c, d, h, w = x.shape
    x = x.reshape(b, 2, 2, 2, c // 8, d, h, w).permute(0, 4, 5, 1, 6, 2, 7, 3)
    return x.reshape(b, c // 8, 2 * d, 2 * h, 2 * w)


class TorchUNet3d(nn.Module):
    def __init__(self, i: int, o: int, w: tuple[int, ...], unpacked: bool, light: bool):
        super().__init__()
        self.unpacked, self.light = unpacked, int(light)
        pairs = list(itertools.pairwise(w))
        self.stem = Unit(i, w[0])
        self.encoder = nn.ModuleList(Residual(c) for c in w[self.light :])
        self.down = nn.ModuleList(Unit(8 * a, b, 1) for a, b in pairs)
        self.up = nn.ModuleList(Unit(b, a, 1) for a, b in pairs)
        self.merge = nn.ModuleList(Unit(2 * a, a) for a, _ in pairs)
        self.decoder = nn.ModuleList(Unit(a, a) for a, _ in pairs[self.light :])
        self.head = nn.Conv3d(w[0], o * (8 if unpacked else 1), 1)

    def forward(self, x):
        x, skips = self.stem(x), []
        for level in range(len(self.down) + 1):
            if level:
                x = self.down[level - 1](torch_pack(x))
            if level >= self.light:
                x = self.encoder[level - self.light](x)
            skips.append(x)
        for level in reversed(range(len(self.up))):
            x = nn.functional.interpolate(self.up[level](x), scale_factor=2, mode="nearest")
            x = self.merge[level](torch.cat([skips[level], x], 1))
            if level >= self.light:
                x = self.decoder[level - self.light](x)
        x = self.head(x)
        return torch_unpack(x) if self.unpacked else x


def both(spec: dict):
    """The network on both sides with the same weights: (graph, params, stats), torch module."""
    config = spec["config"]

    def build():
        return UNet3d(
            spec["in"], spec["out"], widths(config), unpacked=spec["unpacked"], light=config.light, rngs=nnx.Rngs(0)
        )

    graph, state = nnx.split(nnx.eval_shape(build))
    shapes = [nnx.to_pure_dict(part) for part in nnx.split_state(state, nnx.Param, ...)]
    params, stats = jax.tree.map(lambda a: jnp.ones(a.shape), shapes)
    params = redraw_kernels(params, jax.random.key(0))
    stats = jax.tree_util.tree_map_with_path(lambda path, x: x * 0 if path[-1].key == "mean" else x, stats)
    params = jax.tree_util.tree_map_with_path(lambda path, x: x * 0 if path[-1].key == "bias" else x, params)
    module = TorchUNet3d(spec["in"], spec["out"], widths(config), spec["unpacked"], config.light)
    names = {"scale": "weight", "mean": "running_mean", "var": "running_var", "kernel": "weight", "bias": "bias"}
    target = module.state_dict()
    for tree in (params, stats):
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            keys = [str(key.key) for key in path]
            value = np.asarray(leaf)
            if value.ndim == 5:
                value = value.transpose(4, 3, 0, 1, 2)
            target[".".join([*keys[:-1], names[keys[-1]]])] = torch.from_numpy(value.copy())
    module.load_state_dict(target)
    return graph, params, stats, module.to(memory_format=torch.channels_last_3d)


def alternate(ours: Callable, theirs: Callable, repeat: int) -> tuple[float, float, float]:
    """(ours s, theirs s, median of the ratios theirs / ours)."""
    ours(), theirs()
    pairs = []
    for _ in range(repeat):
        pair = []
        for run in (ours, theirs):
            start = time.perf_counter()
            run()
            pair.append(time.perf_counter() - start)
        pairs.append(pair)
    a, b = (statistics.median(side) for side in zip(*pairs, strict=True))
    return a, b, statistics.median(t / o for o, t in pairs)


def training_step(spec: dict, repeat: int) -> tuple[float, float, float]:
    graph, params, stats, module = both(spec)
    shape, rng = (40, 40, 40), np.random.default_rng(0)
    x = rng.normal(size=(1, *shape, spec["in"])).astype(np.float32)
    out = tuple(2 * n for n in shape) if spec["unpacked"] else shape
    classes = 4 if spec["unpacked"] else 20
    labels = rng.integers(0, classes, (1, *out))
    optimizer = optax.adam(1e-4)
    box = {"state": (params, stats, optimizer.init(params))}

    @xla.jit
    def step(params, stats, state, x, labels):
        def loss(params):
            model = nnx.merge(graph, params, stats)
            total, weight, _ = segmentation_loss(model(x, train=True)[..., :classes], labels, jnp.ones(1), "dice_ce")
            return total / weight, nnx.to_pure_dict(nnx.split_state(nnx.state(model), nnx.Param, ...)[1])

        (value, stats_), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), stats_, state, value

    jx, jl = jnp.asarray(x), jnp.asarray(labels)

    def ours():
        *state, value = step(*box["state"], jx, jl)
        box["state"] = state
        return float(value)

    tx = torch.from_numpy(x.transpose(0, 4, 1, 2, 3).copy()).to(memory_format=torch.channels_last_3d)
    tl = torch.from_numpy(labels)
    module.train()
    adam = torch.optim.Adam(module.parameters(), 1e-4)

    def theirs():
        adam.zero_grad()
        logits = module(tx)[:, :classes]
        p = logits.softmax(1)
        truth = nn.functional.one_hot(tl, classes).permute(0, 4, 1, 2, 3).float()
        axes = (2, 3, 4)
        dice = 1 - 2 * (p * truth).sum(axes)[:, 1:] / (p.sum(axes) + truth.sum(axes))[:, 1:]
        value = dice.mean() + nn.functional.cross_entropy(logits, tl)
        value.backward()
        adam.step()
        return float(value)

    one, two = ours(), theirs()
    assert abs(one - two) < 2e-2 * abs(two), (one, two)
    return alternate(ours, theirs, repeat)


def whole_study(repeat: int) -> tuple[float, float, float]:
    """Coarse once over 64 x 64 x 80 voxels of 4 mm, fine in windows over 100 x 60 x 60 voxels of 2 mm."""
    from monai.inferers import sliding_window_inference

    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(1, 80, 64, 64, 8)).astype(np.float32)
    fine = rng.normal(size=(100, 60, 60, 11)).astype(np.float32)
    jobs = []
    for spec in (SPINE, REFINE):
        graph, params, stats, module = both(spec)
        run = xla.jit(lambda x, g=graph, p=params, s=stats: nnx.merge(g, p, s)(x))
        jobs.append((run, module.eval()))

    def ours():
        a = np.asarray(jobs[0][0](coarse))
        return a, slide(lambda x: np.asarray(jobs[1][0](x)), fine, WINDOW, overlap=OVERLAP)

    tc, tf = (
        torch.from_numpy(np.moveaxis(x, -1, 1).copy()).to(memory_format=torch.channels_last_3d)
        for x in (coarse, fine[None])
    )

    @torch.inference_mode()
    def theirs():
        a = jobs[0][1](tc)
        return a, sliding_window_inference(tf, WINDOW, 1, jobs[1][1], overlap=OVERLAP, mode="gaussian")

    (a, b), (c, d) = ours(), theirs()
    np.testing.assert_allclose(a[0], c[0].permute(1, 2, 3, 0).numpy(), atol=2e-2 * float(np.abs(a).max()))
    assert b.shape == tuple(d[0].permute(1, 2, 3, 0).shape)
    return alternate(ours, theirs, repeat)


def command(slices: int, size: int) -> dict[str, float]:
    """Seconds and peak memory of `cspine segment` on one study, in its own process."""
    import subprocess
    import sys

    from cspine_jax.phantom.dataset import write_dataset

    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder) / "data", 1, seed=5, size=size, scale=1.0)
        study = next((Path(folder) / "data" / "train_images").iterdir())
        for extra in sorted(study.iterdir(), key=lambda f: int(f.stem))[slices:]:
            extra.unlink()
        code = (
            "import sys; from cspine_jax.cli import main; status = main(sys.argv[1:]); "
            # not ru_maxrss: that of a child begins at its parent's, which holds PyTorch
            "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))); "
            "sys.exit(status)"
        )
        argv = [sys.executable, "-c", code, "segment", str(study), "--out", f"{folder}/out", "--json"]
        subprocess.run(argv, check=True, capture_output=True)  # compiles
        start = time.perf_counter()
        done = subprocess.run(argv, check=True, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        report = json.loads(done.stdout.splitlines()[0])
        peak = int(done.stdout.splitlines()[-1]) / 2**20
        return {"slices": len(list(study.iterdir())), "seconds": seconds, "peak_gib": peak, **report["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = {
        "training step, coarse": training_step(SPINE, args.repeat),
        "training step, fine": training_step(REFINE, args.repeat),
        "whole study, both networks": whole_study(args.repeat),
    }
    study = command(args.slices, args.size)
    if args.json:
        print(json.dumps({"ratios": rows, "command": study}, indent=1))
        return
    for name, (ours, theirs, ratio) in rows.items():
        print(f"{name}: JAX {ours * 1e3:.0f} ms, PyTorch {theirs * 1e3:.0f} ms, ratio {ratio:.2f}")
    print("cspine segment: " + ", ".join(f"{k} {v:.2f}" for k, v in study.items()))


if __name__ == "__main__":
    main()
