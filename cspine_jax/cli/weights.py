"""`cspine weights`: look at the weights of the vertebra networks, or write such a file from two runs."""

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of this verb."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    inspect = actions.add_parser("inspect", help="print the card of a weights file")
    inspect.add_argument("file", nargs="?", help="of `cspine weights export`; default: those of the package")
    export = actions.add_parser("export", help="join a spine and a refine run in one file of half precision")
    export.add_argument("--spine", required=True, metavar="WORKDIR", help="run of configs/segment_unet3d.py")
    export.add_argument("--refine", required=True, metavar="WORKDIR", help="run of configs/segment_refine3d.py")
    export.add_argument("--out", required=True, metavar="FILE.npz", help="what to write; the card goes beside it")
    export.add_argument("--name", default="", help="of the weights (default: the file's)")
    export.add_argument("--facts", metavar="FILE.json", help="more for the card, e.g. figures on held-out studies")


def run(args: argparse.Namespace) -> int:
    """Prints the card."""
    import dataclasses

    from cspine_jax.errors import DataError

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
    from cspine_jax.inference.export import export

    card = export(args.spine, args.refine, args.out, name=args.name or Path(args.out).stem, facts=facts)
    print(f"{args.out}: {Path(args.out).stat().st_size / 1e6:.1f} MB; {card.note}")
    return 0
