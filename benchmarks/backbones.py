"""Every backbone against the network it follows in torchvision or timm: parity, speed on the CPU, compile time.

    python benchmarks/backbones.py --out backbones.jsonl                       # needs the extra [parity]
    python benchmarks/backbones.py --out backbones.jsonl --write docs/backbones.md

Inference and one training step (cross-entropy, SGD) of the same weights on the same batch, `--batch` pictures of
`--size` pixels (224 for vit_b_16). PyTorch runs eagerly, channels_last, on as many threads as there are cores, in
processes of its own (in ours its threads and XLA's would wait for each other): one as it comes, and one that keeps
freed memory, as this package's programs do. All run in turns; a ratio is the median of theirs / ours: above 1 means
that this package is faster. Models already in `--out` are not run again, so that a long run can be done in pieces.
FLOPs are XLA's count of the compiled inference, a picture.
"""

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from timing import seconds_a_call  # beside this file

from cspine_jax import models, xla
from cspine_jax.models.backbones import family_of
from cspine_jax.models.pretrained import converted, overlaid
from cspine_jax.training.sharding import place

NO_REFERENCE = ("basic_cnn",)
PAUSE_S = 0.02
"""Between turns: threads that have just worked wait for more, each on a core, before they sleep."""

TURN_S = 0.3
"""What a turn is to last: a network is called again and again in it, as one that trains or reads studies is."""


@contextlib.contextmanager
def torch_process(threads: int, keep: bool) -> Iterator[Connection]:
    """A process that runs PyTorch's networks, see `torch_side.serve`."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs, threads, keep), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join()


def _serve(pipe: Connection, threads: int, keep: bool) -> None:
    import torch_side  # beside this file; torch must not be imported in the process that measures ours

    torch_side.serve(pipe, threads, keep)


def asked(pipe: Connection, *message: Any) -> Any:
    """The answer of a `torch_process`."""
    pipe.send(message)
    return pipe.recv()


def ours(name: str, source: str, table: dict[str, np.ndarray]) -> tuple[nnx.GraphDef, nnx.State]:
    """The backbone with the weights of a state dict of torchvision or timm."""
    graph, state = nnx.split(nnx.eval_shape(lambda: models.create(name, dropout=0.0, drop_path=0.0, rngs=nnx.Rngs(0))))
    arrays, missing, misshapen, _ = converted(state, table, family_of(name).NAMES[source])
    if missing or misshapen:
        raise SystemExit(f"{name}: the two networks differ: missing {missing[:3]}, misshapen {misshapen[:3]}")
    return graph, overlaid(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state), arrays)


def in_turns(run: Callable[[], Any], what: str, pipes: list[Connection], repeats: int) -> tuple[float, list[float]]:
    """(median seconds of `run`, for each process the median of its seconds / `run`'s).

    Who has just waited finds its caches full of the others' weights and its threads asleep, so the first call of a turn
    is not counted, nor is the first turn.
    """
    turns = []
    calls = min(max(round(TURN_S / seconds_a_call(run, 1)), 1), 30)
    for _ in range(repeats + 1):
        turn = [seconds_a_call(run, calls)]
        for pipe in pipes:
            time.sleep(PAUSE_S)
            turn.append(asked(pipe, what, calls))
        time.sleep(PAUSE_S)
        turns.append(turn)
    counted = np.array(turns[1:])
    return float(np.median(counted[:, 0])), np.median(counted[:, 1:] / counted[:, :1], axis=0).tolist()


def measure(name: str, batch: int, size: int, repeats: int, pipes: list[Connection]) -> dict[str, Any]:
    """One row of the table; `pipes` to PyTorch as it comes, and to one that keeps freed memory."""
    size = {"inception_v3": max(size, 75), "vit_b_16": 224}.get(name, size)  # what torchvision's allow
    rng = np.random.default_rng(0)
    x, target = rng.normal(size=(batch, size, size, 3)).astype(np.float32), rng.integers(0, 1000, batch)
    (source, table, expected), *_ = [asked(pipe, "build", name, x, target) for pipe in pipes]
    graph, state = ours(name, source, table)
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
    logits = np.asarray(compiled[0](state, on_device))
    runs = {
        "inference": lambda: jax.block_until_ready(compiled[0](state, on_device)),
        "training": lambda: jax.block_until_ready(compiled[1](params, stats, on_device)),
    }
    inference, training = (in_turns(run, what, pipes, repeats) for what, run in runs.items())
    return {
        "model": name,
        "batch": batch,
        "size": size,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "gflops": costs.get("flops", math.nan) / batch / 1e9,
        "error": float(np.abs(logits - expected).max() / np.abs(expected).max()),
        "inference_ms": 1e3 * inference[0] / batch,
        "inference_ratio": inference[1][0],
        "inference_ratio_kept": inference[1][1],
        "training_ms": 1e3 * training[0] / batch,
        "training_ratio": training[1][0],
        "training_ratio_kept": training[1][1],
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
    both = ("inference_ratio", "training_ratio")
    means = {
        kept: [statistics.geometric_mean(r[ratio + kept] for r in rows) for ratio in both] for kept in ("", "_kept")
    }
    return (
        HEAD
        + "".join(lines)
        + f"\nGeometric mean of the ratios over {len(rows)} networks: inference {means[''][0]:.2f}, training step "
        f"{means[''][1]:.2f}.\nAgainst PyTorch in a process that keeps freed memory, too: inference "
        f"{means['_kept'][0]:.2f}, training step {means['_kept'][1]:.2f}.\n"
    )


BEGIN, END = "<!-- table -->\n", "<!-- /table -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name for name in models.names() if name not in NO_REFERENCE]
    parser.add_argument("--models", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--devices", type=int, default=1, help="CPU devices that a batch is divided over")
    parser.add_argument("--out", type=Path, required=True, help="one JSON line a model, added to")
    parser.add_argument("--write", type=Path, help="put the table of --out between the marks in this file")
    args = parser.parse_args()
    xla.tune_process()  # as programs that train do
    jax.config.update("jax_num_cpu_devices", args.devices)
    done = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.is_file() else []
    todo = [name for name in args.models if name not in {row["model"] for row in done}]
    cores = os.cpu_count() or 1
    for name in todo:  # fresh processes a network: none inherits another's memory
        with torch_process(cores, keep=False) as plain, torch_process(cores, keep=True) as keeping:
            done.append(measure(name, args.batch, args.size, args.repeats, [plain, keeping]))
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
