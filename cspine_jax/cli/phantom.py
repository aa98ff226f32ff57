"""`cspine phantom`: write synthetic studies in the RSNA 2022 layout."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of this verb."""
    parser.add_argument(
        "--out", required=True, help="folder to write; run again to go on or, with more studies, to add"
    )
    parser.add_argument("--studies", type=int, required=True, help="how many studies")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default 0)")
    parser.add_argument("--first", type=int, default=0, help="index of the first study (default 0)")
    parser.add_argument("--size", type=int, default=256, help="in-plane matrix (default 256)")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of slices (default 1.0)")
    parser.add_argument(
        "--difficulty", choices=("easy", "standard", "hard"), default="standard", help="of seeing the fractures"
    )
    parser.add_argument("--fov", type=float, default=1.0, help="factor on the field of view (default 1.0)")
    parser.add_argument(
        "--variety",
        choices=("rsna", "wide"),
        default="rsna",
        help="people and scans as in the challenge, or far beyond (to train networks that carry over)",
    )
    parser.add_argument(
        "--codec",
        choices=("explicit", "mixed"),
        default="explicit",
        help="explicit VR little endian, or mixed: three studies in ten as JPEG-Lossless",
    )
    parser.add_argument("--mask_fraction", type=float, default=1.0, help="share of studies with masks (default 1)")
    parser.add_argument("--box_fraction", type=float, default=1.0, help="share of fractured studies with boxes (1)")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one for each core")
    parser.add_argument("--preview", metavar="FILE.png", help="also draw a sheet of the first fractured study")


def run(args: argparse.Namespace) -> int:
    """Writes the studies and says where."""
    from cspine_jax.phantom.dataset import write_dataset

    look = {name: getattr(args, name) for name in ("seed", "first", "size", "scale", "difficulty", "fov", "variety")}
    files = {name: getattr(args, name) for name in ("workers", "mask_fraction", "box_fraction", "codec")}
    out = write_dataset(args.out, args.studies, **look, **files)
    if args.preview:
        from cspine_jax.phantom.preview import draw_preview

        draw_preview(args.preview, studies=args.studies, **look)
        print(args.preview)
    print(out)
    return 0
