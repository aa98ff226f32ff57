"""`cspine weights`: look at weights, of this package or of others; write this package's from runs, or from others'."""

import argparse
import json
import zipfile
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of this verb."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    inspect = actions.add_parser(
        "inspect", help="print the card of a weights file, or what is in a state dict and which backbone it fits"
    )
    inspect.add_argument(
        "file",
        nargs="?",
        help="of `cspine weights export`, or .safetensors, .pth, or the name of one of the package "
        "(package:fracture, package:vertebrae: the default)",
    )
    inspect.add_argument("--model", metavar="NAME", help="say what is missing or unexpected for this backbone")
    export = actions.add_parser(
        "export", help="write runs as a file of half precision: --spine and --refine together, or --fracture"
    )
    export.add_argument("--spine", metavar="WORKDIR", help="run of configs/segment_unet3d.py")
    export.add_argument("--refine", metavar="WORKDIR", help="run of configs/segment_refine3d.py")
    export.add_argument("--fracture", metavar="WORKDIR", help="evaluated run of any recipe that finds fractures")
    export.add_argument("--out", required=True, metavar="FILE.npz", help="what to write; the card goes beside it")
    export.add_argument("--name", default="", help="of the weights (default: the file's)")
    export.add_argument("--facts", metavar="FILE.json", help="more for the card, e.g. figures on held-out studies")
    convert = actions.add_parser("convert", help="write a state dict of torchvision or timm with this package's names")
    convert.add_argument("file", help="state dict (.safetensors, .pth), or `imagenet`")
    convert.add_argument("--model", required=True, metavar="NAME", help="backbone that the weights are of")
    convert.add_argument("--out", required=True, metavar="FILE", help="what to write: X.safetensors or X.npz")


def run(args: argparse.Namespace) -> int:
    """Inspects, exports or converts."""
    if args.action == "inspect":
        if args.file is None or _has_card(args.file):
            return _inspect_card(args.file, args.model)
        return _inspect_state_dict(args.file, args.model)
    return _export(args) if args.action == "export" else _convert(args.file, args.model, args.out)


def _has_card(path: str) -> bool:
    """Whether a file is one of `cspine weights export`, judged by its table of contents, or one of the package's."""
    from cspine_jax.training.weights_file import CARD, PACKAGE

    if path.startswith(PACKAGE):
        return True
    try:
        with zipfile.ZipFile(path) as file:
            return any(name.startswith(CARD) for name in file.namelist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


def _inspect_card(path: str | None, model: str | None) -> int:
    import dataclasses

    from cspine_jax.errors import ConfigError
    from cspine_jax.inference.weights import SHIPPED
    from cspine_jax.training.weights_file import read

    if model is not None:
        what = f"{path}: whole networks with their card" if path else "no file"
        raise ConfigError(f"--model={model}: {what}; give the state dict of a backbone, or leave --model out")
    arrays, card = read(path or SHIPPED)
    print(json.dumps(dataclasses.asdict(card), indent=1))
    print(f"{len(arrays)} arrays, {sum(x.size for x in arrays.values()):,} values")
    return 0


def _inspect_state_dict(path: str, model: str | None) -> int:
    """Prints what is in a state dict; 1 if it does not fit the backbone that it should."""
    from collections import Counter

    from cspine_jax.models.published import identify, locate, match_of
    from cspine_jax.models.state_dict import read_state_dict

    file = locate(model, path) if model else Path(path)
    table = read_state_dict(file)
    types = ", ".join(f"{count} {dtype}" for dtype, count in Counter(str(x.dtype) for x in table.values()).items())
    print(f"{file}: {len(table)} arrays ({types}), {sum(x.size for x in table.values()):,} values")
    if model is None:
        match = identify(table)
        print(
            f"weights of {match.name}, by {match.source}" if match else "fits none of the backbones; give --model NAME"
        )
        return 0
    match = match_of(model, table)
    if not match.wrong:
        print(f"weights of {model}, by {match.source}")
        return 0
    print(f"not weights of {model} by the names of {match.source}:")
    for what in ("missing", "unexpected", "misshapen"):
        for name in getattr(match, what):
            print(f"  {what}: {name}")
    return 1


def _convert(path: str, model: str, out: str) -> int:
    import numpy as np

    from cspine_jax.models.pretrained import own_name
    from cspine_jax.models.published import INPUT_MEAN, INPUT_STD, fitting_file
    from cspine_jax.models.state_dict import write_state_dict

    match, _ = fitting_file(model, path)
    arrays = {own_name(place): array for place, array in match.arrays.items()}
    seen = {INPUT_MEAN: np.asarray(match.input.mean), INPUT_STD: np.asarray(match.input.std)}
    write_state_dict(out, {**arrays, **seen})
    size = Path(out).expanduser().stat().st_size / 1e6
    print(f"{out}: {len(arrays)} arrays of {model}, {size:.1f} MB; use them by --config.model.pretrained={out}")
    return 0


def _export(args: argparse.Namespace) -> int:
    from cspine_jax.errors import ConfigError, DataError

    facts: dict[str, Any] = {}
    if args.facts:
        try:
            facts = json.loads(Path(args.facts).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{args.facts}: {error}; give a JSON file") from error
        if not isinstance(facts, dict):
            raise DataError(f"{args.facts}: not a JSON object; give one of names and values")
    out = Path(args.out).expanduser()
    if out.suffix != ".npz":
        raise ConfigError(f"--out={args.out}: a weights file ends in .npz; give {out.with_suffix('.npz')}")
    name = args.name or out.stem
    if args.fracture and not (args.spine or args.refine):
        from cspine_jax.inference.export import export_fracture

        card = export_fracture(args.fracture, out, name=name, facts=facts)
    elif args.spine and args.refine and not args.fracture:
        from cspine_jax.inference.export import export

        card = export(args.spine, args.refine, out, name=name, facts=facts)
    else:
        raise ConfigError("give --spine and --refine, or --fracture alone")
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB; {card.note}")
    return 0
