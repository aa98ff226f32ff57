"""`cspine <verb>`: parse, call, print. One module a verb, imported only when that verb runs."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cspine_jax import __version__
from cspine_jax.errors import CspineError, in_one_line

if TYPE_CHECKING:
    from cspine_jax.ct.identity import Identity

VERBS: dict[str, str] = {
    "phantom": "write synthetic studies in the RSNA 2022 layout",
    "inspect": "say what is in a study",
    "build": "turn an RSNA-layout folder into records",
    "segment": "find the vertebrae of new studies: masks, levels, visible slices",
    "predict": "find fractures in new studies with a trained checkpoint",
    "score": "score a predictions table against a label table",
    "compare": "run recipes on every fold and compare them, and other tables, under one metric",
    "weights": "look at weights files, or write a run as one",
}


SERIES = "SeriesInstanceUID or number; #k behind it: its k-th stack; all: all as one"

HASH_UIDS = "replace every UID in what is written and said by its hash; give a secret salt: --hash_uids=SALT"


def say_left_out(verb: str, study: str, error: Exception, identity: "Identity | None") -> None:
    """One line on stderr: why a study of a batch is left out.

    Args:
        verb: of the command.
        study: as it was given, without its UID where that is hashed.
        error: what it raised; that of another kind than our own says of which, and of which study.
        identity: hashes the UIDs that such an error may name; None keeps them.
    """
    text = str(error)
    if not isinstance(error, CspineError):
        text = f"{study}: {type(error).__name__}: {error}"
        text = text if identity is None else identity.text(text)
    print(f"cspine {verb}: left out: {text}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Args:
        argv: arguments without the program name; None takes them from the command line.

    Returns:
        The exit status: 0 done, 2 unusable input (one line on stderr says which file, which value and the fix).
    """
    parser = argparse.ArgumentParser(
        prog="cspine", description="Cervical-spine fractures in CT: data, models, scores. Research only."
    )
    parser.add_argument("--version", action="version", version=f"cspine_jax {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = next((a for a in arguments if not a.startswith("-")), None)
    for verb, help_text in VERBS.items():
        sub = verbs.add_parser(verb, help=help_text, description=help_text)
        if verb == chosen:  # the others' modules (and jax with them) are not imported just to print help
            importlib.import_module(f"cspine_jax.cli.{verb}").add_arguments(sub)
    # Without its salt the flag must not take the study that follows it for one.
    arguments = ["--hash_uids=" if argument == "--hash_uids" else argument for argument in arguments]
    args = parser.parse_args(arguments)
    try:
        return importlib.import_module(f"cspine_jax.cli.{args.verb}").run(args)
    except CspineError as error:
        print(f"cspine {args.verb}: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # what cannot be written; what cannot be read is said where it is read
        print(f"cspine {args.verb}: error: {in_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"cspine {args.verb}: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
