"""`cspine weights`: look at the weights of the vertebra networks, or write such a file from two runs."""

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of this verb."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    inspect = actions.add_parser("inspect", help="print the card of a weights file")
    inspect.add_argument("file", nargs="?", help="of `cspine weights export`; default: those of the package")
    export = actions.add_parser(
        "export", help="write runs as a file of half precision: --spine and --refine together, or --fracture"
    )
    export.add_argument("--spine", metavar="WORKDIR", help="run of configs/segment_unet3d.py")
    export.add_argument("--refine", metavar="WORKDIR", help="run of configs/segment_refine3d.py")
    export.add_argument("--fracture", metavar="WORKDIR", help="evaluated run of a fracture recipe")
    export.add_argument("--out", required=True, metavar="FILE.npz", help="what to write; the card goes beside it")
    export.add_argument("--name", default="", help="of the weights (default: the file's)")
    export.add_argument("--facts", metavar="FILE.json", help="more for the card, e.g. figures on held-out studies")


def run(args: argparse.Namespace) -> int:
    """Prints the card."""
    import dataclasses

    from cspine_jax.errors import ConfigError, DataError

    if args.action == "inspect":
        from cspine_jax.inference import weights

        arrays, card = weights.read(args.file)
        print(json.dumps(dataclasses.asdict(card), indent=1))
        print(f"{len(arrays)} arrays, {sum(x.size for x in arrays.values()):,} values")
        return 0
    facts = {}
    if args.facts:
        try:
            facts = json.loads(Path(args.facts).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{args.facts}: {error}; give a JSON file") from error
    name = args.name or Path(args.out).stem
    if args.fracture and not (args.spine or args.refine):
        card = _fracture(args.fracture, args.out, name, facts)
    elif args.spine and args.refine and not args.fracture:
        from cspine_jax.inference.export import export

        card = export(args.spine, args.refine, args.out, name=name, facts=facts)
    else:
        raise ConfigError("give --spine and --refine, or --fracture alone")
    print(f"{args.out}: {Path(args.out).stat().st_size / 1e6:.1f} MB; {card.note}")
    return 0


def _fracture(workdir: str, out: str, name: str, facts: dict):
    """Exports a fracture run, with the field of view and the slice distance of the records it learnt from."""
    import numpy as np

    from cspine_jax.inference.export import export_fracture
    from cspine_jax.inference.run import from_folder
    from cspine_jax.kinds.records import find_records

    table = find_records(from_folder(Path(workdir)).config.data).table
    spacing, shapes = np.asarray(table.spacing_mm, float), np.asarray(table.shapes, float)
    field, apart = float(np.median(spacing[:, 2] * shapes[:, 1])), float(np.median(spacing[:, 0]))
    return export_fracture(workdir, out, name=name, field_mm=round(field, 1), slice_mm=round(apart, 2), facts=facts)
