"""Records -> stacks: this package's loader against TFDS's own data source, on the same records.

    python benchmarks/records.py [--studies 12] [--size 160] [--depth 5] [--batches 20] [--repeat 3] [--records FOLDER]

The obvious way: a stack of D slices is D full records from `builder.as_data_source()`, each decoded with all its
features, stacked by grain with as many threads. Both give the same shuffled batches of 32 and take turns; the median
rates and the median of the ratios are printed. "in order" is evaluation, where neighbouring stacks share slices.
Without `--records` a phantom is made and built first.
"""

import argparse
import dataclasses
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

import grain
import numpy as np
import tensorflow_datasets as tfds

from cspine_jax.config import DataConfig
from cspine_jax.data.batches import Batches
from cspine_jax.data.build import build
from cspine_jax.data.loader import eval_batches, train_batches
from cspine_jax.data.source import SliceTable
from cspine_jax.phantom.dataset import write_dataset


def naive_batches(path: str, table: SliceTable, rows: np.ndarray, config: DataConfig, threads: int) -> Iterator:
    """Batches of full decodes: D records a stack, the labels from its centre record."""
    source = tfds.builder_from_directory(path).as_data_source("train")

    def stack(record: int) -> dict[str, np.ndarray]:
        near = table.neighbours(np.array([record]), config.depth, config.stride)[0]
        examples = [source[int(row)] for row in near]
        centre = examples[len(examples) // 2]
        image = np.stack([example["image"] for example in examples])
        return {"image": image, "labels": centre["labels"], "presence": centre["presence"]}

    batches = grain.MapDataset.source(rows).map(stack).batch(config.batch_size)
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * 32)))


def rate(batches: Iterator, count: int) -> float:
    """Stacks a second, the first batch (start-up) left out."""
    next(batches)
    start = time.perf_counter()
    stacks = sum(len(batch["image"]) for batch in itertools.islice(batches, count))
    return stacks / (time.perf_counter() - start)


def compare(ways: dict[str, Callable[[], float]], repeat: int) -> None:
    """Runs all ways in turn and prints rates and the ratios to the first."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeat):
        for name, run in ways.items():
            rates[name].append(run())
    base = next(iter(rates.values()))
    for name, values in rates.items():
        ratio = statistics.median(value / other for value, other in zip(values, base, strict=True))
        middle = statistics.median(values)
        print(f"{name:34s} {middle:9.0f} stacks/s   {1e3 / middle:6.3f} ms a stack   x{ratio:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--studies", type=int, default=12)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--depth", type=int, default=5)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--records", default="")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        path = args.records
        if not path:
            write_dataset(f"{folder}/phantom", studies=args.studies, size=args.size, scale=0.25)
            path = build(f"{folder}/phantom", f"{folder}/records", size=args.size).path
        config = DataConfig(size=args.size, depth=args.depth, num_folds=3, batch_size=32, eval_batch_size=32)
        table, cached = SliceTable.open(path), SliceTable.open(path, cache_mb=4096)
        studies = np.arange(len(table.uids), dtype=np.int32)
        in_order = table.records_of(studies)
        shuffled = np.random.default_rng(0).permutation(in_order)
        threads = 2
        config = dataclasses.replace(config, workers=threads)
        wanted = min(args.batches, len(table) // 32 - 2)

        first = next(naive_batches(str(path), table, shuffled, config, threads))["image"]
        np.testing.assert_array_equal(first, Batches(table, config).read(shuffled[:32])["image"])
        for batch in eval_batches(cached, config, studies):  # fill the cache
            del batch

        height, width = table.check_shape(studies)
        print(f"{len(table)} records of {height} x {width}, depth {args.depth}, {threads} threads")
        print("shuffled (training)")
        ways = {
            "TFDS data source, full decode": lambda: rate(
                naive_batches(str(path), table, shuffled, config, threads), wanted
            ),
            "train_batches, no cache": lambda: rate(train_batches(table, config, 0, studies=studies), wanted),
            "train_batches, cached": lambda: rate(train_batches(cached, config, 0, studies=studies), wanted),
        }
        compare(ways, args.repeat)
        print("in order (evaluation)")
        ways = {
            "TFDS data source, full decode": lambda: rate(
                naive_batches(str(path), table, in_order, config, threads), wanted
            ),
            "eval_batches, no cache": lambda: rate(iter(eval_batches(table, config, studies)), wanted),
            "eval_batches, cached": lambda: rate(iter(eval_batches(cached, config, studies)), wanted),
        }
        compare(ways, args.repeat)


if __name__ == "__main__":
    main()
