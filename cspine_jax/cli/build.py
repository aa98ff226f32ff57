"""`cspine build`: an RSNA-layout folder becomes records, one a slice, or one a vertebra with `--crops`."""

import argparse
import dataclasses

from cspine_jax.cli import HASH_UIDS
from cspine_jax.config import CropsConfig
from cspine_jax.errors import ConfigError

_CROP_FLAGS = ("positions", "radius", "stride", "margin", "oriented", "masks")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags; they are spelt as those of `tfds build`."""
    parser.add_argument("--manual_dir", required=True, help="folder with train_images/, train.csv, segmentations/, ...")
    parser.add_argument("--data_dir", required=True, help="where the records go: DATA_DIR/rsna_cspine/CONFIG/VERSION")
    parser.add_argument(
        "--config", help="layout: native (default), size160, document_c, ...; crops15r2_size224, ... for vertebra crops"
    )
    parser.add_argument(
        "--size", type=int, help="in-plane matrix in pixels; 0 (default) keeps the native one; crops: 224"
    )
    parser.add_argument("--folds", type=int, default=0, help="folds to deal the studies into (default 5)")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 takes one a CPU")
    parser.add_argument("--retry", action="store_true", help="try the studies again that a finished build skipped")
    parser.add_argument("--hash_uids", nargs="?", const="", metavar="SALT", help=HASH_UIDS)
    parser.add_argument("--overwrite", action="store_true", help="throw away records that are there and start anew")
    crops = parser.add_argument_group("vertebra crops", "one record a vertebra instead of one a slice")
    crops.add_argument(
        "--crops", nargs="?", const="", metavar="NAME", help="build crops, of the layout NAME or of the flags below"
    )
    crops.add_argument("--positions", type=int, help="planes from a vertebra's top to its bottom (15)")
    crops.add_argument("--radius", type=int, help="neighbouring slices on each side of a plane (2)")
    crops.add_argument("--stride", type=float, help="mm between neighbours; 0 (default): the study's own next slices")
    crops.add_argument("--margin", type=float, help="room around the mask's box, a share of its longer side (0.1)")
    crops.add_argument("--oriented", action="store_true", default=None, help="planes perpendicular to the spine")
    crops.add_argument(
        "--masks",
        metavar="DIR",
        help="'true' (default: segmentations/), or the folder that `cspine segment` wrote (a pattern: one a fold)",
    )


def run(args: argparse.Namespace) -> int:
    """Builds, or says that there is nothing to do."""
    crops = _crops(args)
    shared = {
        "num_folds": args.folds,
        "workers": args.workers,
        "retry": args.retry,
        "overwrite": args.overwrite,
        "hash_uids": args.hash_uids,
    }
    if crops is not None:
        from cspine_jax.data.crops import build_crops

        result = build_crops(args.manual_dir, args.data_dir, crops, **shared)
    else:
        from cspine_jax.data.build import build
        from cspine_jax.data.features import RecordConfig

        size = args.size or 0
        config = RecordConfig.from_name(args.config or "native")
        if size and config.size and size != config.size:
            raise ConfigError(f"--config={args.config} --size={size}: the two sizes differ; give one of them")
        config = dataclasses.replace(config, size=config.size or size)
        result = build(args.manual_dir, args.data_dir, **dataclasses.asdict(config), **shared)
    total = f"{result.studies} studies, {result.slices} {'slices' if crops is None else 'crops'}"
    print(f"{result.path}: {total}" + ("" if result.new else "; nothing to do"))
    for note in result.skipped[:10]:
        print(f"  skipped {note.what} {note.uid}: {note.reason}")
    if result.skipped:
        print(f"  {len(result.skipped)} skipped in all: {result.path / 'skipped.csv'}")
    return 0


def _crops(args: argparse.Namespace) -> CropsConfig | None:
    """What the flags say of crops; None where slices are wanted.

    Raises:
        ConfigError: flags contradict each other.
    """
    given = {name: getattr(args, name) for name in _CROP_FLAGS if getattr(args, name) is not None}
    name = args.crops
    if args.config is not None and args.config.startswith("crops"):
        if name:
            raise ConfigError(f"--config={args.config} --crops={name}: give one of them")
        name = args.config
    elif name is not None and args.config is not None:
        raise ConfigError(f"--config={args.config} --crops: slices or crops; give one of them")
    if name is None:
        if given:
            raise ConfigError(f"--{next(iter(given))} is about vertebra crops; add --crops")
        return None
    given |= {} if args.size is None else {"size": args.size}
    if not name:
        return CropsConfig(**given)

    from cspine_jax.data.crops import CropLayout

    layout = CropLayout.from_name(name)
    other = next((flag for flag, value in given.items() if flag != "masks" and value != getattr(layout, flag)), None)
    if other:
        raise ConfigError(f"--crops={name} --{other}={given[other]}: the two differ; give one of them")
    return layout.config(given.get("masks"))
