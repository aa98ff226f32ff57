"""Memory of a training step of the 3D vision transformer, compiled but not run: no array is ever made.

    python benchmarks/vit3d_memory.py                       # document C's 105 x 256 x 256 x 6, batch 2, bf16, remat
    python benchmarks/vit3d_memory.py --no-remat --float32 --json

Forward, weighted loss, backward and AdamW; what is counted is what the compiler of the default back end allots.
"temporary" is the largest sum of intermediate arrays alive at once, "arguments" are parameters, their optimizer state
and the batch. The CPU back end computes bfloat16 in float32, so its figure is above that of an accelerator; where there
is one, run it there.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from cspine_jax.losses import rsna_loss
from cspine_jax.models.study.vit3d import ViT3D

GIB = 2**30


def lowered(args: argparse.Namespace) -> tuple[jax.stages.Lowered, int]:
    """(the training step, number of parameters)."""
    dtype = jnp.float32 if args.float32 else jnp.bfloat16

    def build() -> ViT3D:
        return ViT3D(
            in_channels=args.channels,
            tubelet=tuple(args.tubelet),
            features=args.features,
            heads=args.heads,
            depth=args.depth,
            remat=not args.no_remat,
            dtype=dtype,
            rngs=nnx.Rngs(0),
        )

    graph, params = nnx.split(nnx.eval_shape(build))
    optimizer = optax.adamw(1e-4)
    image = jax.ShapeDtypeStruct((args.batch, args.length, args.size, args.size, args.channels), dtype)
    mask = jax.ShapeDtypeStruct((args.batch, args.length), bool)
    labels = jax.ShapeDtypeStruct((args.batch, 8), jnp.float32)

    def step(params, opt, image, mask, labels, seed):
        def loss(params):
            logits = nnx.merge(graph, params)(image, mask, train=True, key=jax.random.key(seed))
            total, weight = rsna_loss(logits, labels, jnp.ones_like(labels))
            return total / weight

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt = optimizer.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt, value

    opt = jax.eval_shape(optimizer.init, params)
    seed = jax.ShapeDtypeStruct((), jnp.int32)
    count = sum(x.size for x in jax.tree.leaves(params))
    return jax.jit(step, donate_argnums=(0, 1)).lower(params, opt, image, mask, labels, seed), count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=105, help="slices of a study")
    parser.add_argument("--size", type=int, default=256, help="pixels of a side")
    parser.add_argument("--channels", type=int, default=6)
    parser.add_argument("--tubelet", type=int, nargs=3, default=[3, 16, 16], metavar=("Z", "Y", "X"))
    parser.add_argument("--features", type=int, default=384)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--no-remat", action="store_true")
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    step, parameters = lowered(args)
    started = time.perf_counter()
    memory = step.compile().memory_analysis()
    seconds = time.perf_counter() - started
    t, p, q = args.tubelet
    row = {
        "backend": jax.default_backend(),
        "tokens": 1 + -(-args.length // t) * -(-args.size // p) * -(-args.size // q),
        "parameters": parameters,
        "arguments_gib": memory.argument_size_in_bytes / GIB,
        "temporary_gib": memory.temp_size_in_bytes / GIB,
        "peak_gib": (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / GIB,
        "compile_seconds": seconds,
    }
    if args.json:
        print(json.dumps({**vars(args), **row}))
        return
    for name, value in row.items():
        print(f"{name:>18}  {value:.2f}" if isinstance(value, float) else f"{name:>18}  {value}")


if __name__ == "__main__":
    main()
