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

    out = write_dataset(
        args.out,
        args.studies,
        seed=args.seed,
        size=args.size,
        scale=args.scale,
        difficulty=args.difficulty,
        fov=args.fov,
        workers=args.workers,
        mask_fraction=args.mask_fraction,
        box_fraction=args.box_fraction,
        first=args.first,
        codec=args.codec,
    )
    if args.preview:
        from cspine_jax.phantom.preview import draw_preview

        draw_preview(
            args.preview,
            seed=args.seed,
            first=args.first,
            studies=args.studies,
            size=args.size,
            scale=args.scale,
            difficulty=args.difficulty,
            fov=args.fov,
        )
        print(args.preview)
    print(out)
    return 0
