"""`cspine build`: an RSNA-layout folder becomes records, one a slice."""

import argparse
import dataclasses

from cspine_jax.cli import HASH_UIDS
from cspine_jax.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags; they are spelt as those of `tfds build`."""
    parser.add_argument("--manual_dir", required=True, help="folder with train_images/, train.csv, segmentations/, ...")
    parser.add_argument("--data_dir", required=True, help="where the records go: DATA_DIR/rsna_cspine/CONFIG/VERSION")
    parser.add_argument("--config", default="native", help="layout: native (default), size160, document_c, ...")
    parser.add_argument("--size", type=int, default=0, help="in-plane matrix in pixels; 0 keeps the native one")
    parser.add_argument("--folds", type=int, default=0, help="folds to deal the studies into (default 5)")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 takes one a CPU")
    parser.add_argument("--retry", action="store_true", help="try the studies again that a finished build skipped")
    parser.add_argument("--hash_uids", nargs="?", const="", metavar="SALT", help=HASH_UIDS)
    parser.add_argument("--overwrite", action="store_true", help="throw away records that are there and start anew")


def run(args: argparse.Namespace) -> int:
    """Builds, or says that there is nothing to do."""
    from cspine_jax.data.build import build
    from cspine_jax.data.features import RecordConfig

    config = RecordConfig.from_name(args.config)
    if args.size and config.size and args.size != config.size:
        raise ConfigError(f"--config={args.config} --size={args.size}: the two sizes differ; give one of them")
    config = dataclasses.replace(config, size=config.size or args.size)
    result = build(
        args.manual_dir,
        args.data_dir,
        **dataclasses.asdict(config),
        num_folds=args.folds,
        workers=args.workers,
        retry=args.retry,
        overwrite=args.overwrite,
        hash_uids=args.hash_uids,
    )
    total = f"{result.studies} studies, {result.slices} slices"
    print(f"{result.path}: {total}" + ("" if result.new else "; nothing to do"))
    for note in result.skipped[:10]:
        print(f"  skipped {note.what} {note.uid}: {note.reason}")
    if result.skipped:
        print(f"  {len(result.skipped)} skipped in all: {result.path / 'skipped.csv'}")
    return 0
