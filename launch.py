"""Runs an experiment.

    python launch.py --config=configs/quickstart.py [--workdir=W] [--mode=train|evaluate|predict] [--config.a.b=value]

train    finds or makes the data, trains (or resumes what is in W), evaluates, prints the table. The default.
evaluate only evaluates the best checkpoint in W.
predict  writes the best checkpoint's answers for all of the data: of every slice, study or mask, as the task has it.

A recipe with variants takes one after a colon: `--config=configs/gold_type1.py:smoke`.
Every field of `cspine_jax/config` can be set, e.g. `--config.data.manual_dir=/data/rsna --config.optim.lr=3e-4`.
Exit status: 0 done, 2 unusable input (one line says what and the fix), 130 or 143 stopped by a signal; the same command
goes on from there.
"""

import difflib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import ConfigDict, config_flags

from cspine_jax.config import Config, flatten, from_dict, to_dict
from cspine_jax.errors import ConfigError, CspineError, in_one_line
from cspine_jax.recipes import load_recipe, run_name
from cspine_jax.training.signals import Interrupted, Terminated, terminable

if TYPE_CHECKING:
    from cspine_jax.experiment import Experiment

# Heavy imports (jax, the package's rooms) happen in `main`: the worker processes that write phantoms and read DICOM
# import this file too.


def main(argv: Sequence[str]) -> int:
    """Runs one command.

    Args:
        argv: arguments after the program's name.

    Returns:
        The exit status.
    """
    started = time.perf_counter()
    terminable()
    again = f"go on with: python launch.py {' '.join(argv)}"
    try:
        config, workdir, mode, cache = parse(argv)
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
        from cspine_jax import xla
        from cspine_jax.experiment import Experiment
        from cspine_jax.training.compiling import CompileClock, enable_cache
        from cspine_jax.training.sharding import initialize_distributed

        xla.tune_process()
        enable_cache(cache)
        initialize_distributed()
        try:
            with CompileClock() as clock:
                experiment = Experiment(config, workdir)
                run(experiment, mode)
                experiment.log_costs(time.perf_counter() - started, clock.seconds)
        except Interrupted as interrupted:
            print(f"launch: {interrupted}, checkpoint saved in {workdir}; {again}", file=sys.stderr)
            return interrupted.exit_status
    except CspineError as error:
        print(f"launch: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # what cannot be written; what cannot be read is said where it is read
        print(f"launch: error: {in_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"launch: interrupted; {again}", file=sys.stderr)
        return 130
    except Terminated:
        print(f"launch: terminated; {again}", file=sys.stderr)
        return 143
    return 0


def run(experiment: "Experiment", mode: str) -> None:
    """The steps of a mode."""
    if mode == "train":
        experiment.train()
    if mode == "predict":
        experiment.predict()
    else:
        experiment.evaluate()


def parse(argv: Sequence[str]) -> tuple[Config, Path, str, str]:
    """The command line.

    Args:
        argv: arguments after the program's name.

    Returns:
        (config, work folder, mode, compilation cache).

    Raises:
        ConfigError: a flag or field is unknown, a value does not fit, the recipe cannot be loaded.
    """
    recipe, rest = _take_recipe(list(argv))
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", "", "Work folder of the run; default runs/<recipe>.", flag_values=values)
    flags.DEFINE_enum("mode", "train", ["train", "evaluate", "predict"], "What to do.", flag_values=values)
    flags.DEFINE_string(
        "compilation_cache",
        "",
        "Folder for compiled programs, or 'off'; default ~/.cache/cspine_jax/xla.",
        flag_values=values,
    )
    flags.DEFINE_bool("help", False, "Show this.", short_name="h", flag_values=values)
    defaults = to_dict(from_dict(load_recipe(recipe))) if recipe else to_dict(Config())
    _check_fields(rest, set(flatten(defaults)))
    config_flags.DEFINE_config_dict("config", ConfigDict(defaults), flag_values=values, sys_argv=["launch.py", *rest])
    try:
        left = values(["launch.py", *rest])[1:]
    except flags.Error as error:
        raise ConfigError(f"{' '.join(str(error).split())}; see python launch.py --help") from None
    if values.help:
        fields = "\n".join(f"  --config.{name}={value!r}" for name, value in flatten(defaults).items())
        print(f"{__doc__}\nFields and their values{f' in {recipe}' if recipe else ''}:\n{fields}")
        raise SystemExit(0)
    if left:
        raise ConfigError(f"{left[0]}: not a flag; write --config=FILE, --workdir=W, --mode=M or --config.a.b=value")
    if not recipe:
        raise ConfigError("no recipe: give one, e.g. --config=configs/quickstart.py")
    config = from_dict(values.config.to_dict())
    workdir = Path(values.workdir or Path("runs") / run_name(recipe))
    return config, workdir, values.mode, values.compilation_cache


def _take_recipe(argv: list[str]) -> tuple[str, list[str]]:
    """Splits `--config=FILE` (or `--config FILE`) from the other arguments; the last one counts."""
    recipe, rest = "", []
    arguments = iter(argv)
    for argument in arguments:
        if argument in ("--config", "-config"):
            recipe = next(arguments, "")
        elif argument.startswith(("--config=", "-config=")):
            recipe = argument.split("=", 1)[1]
        else:
            rest.append(argument)
    return recipe, rest


def _check_fields(argv: list[str], known: set[str]) -> None:
    for argument in argv:
        if argument.startswith(("--config.", "-config.")):
            name = argument.split("=", 1)[0].split("config.", 1)[1]
            if (
                name not in known
                and name.rpartition(".")[0] + "." + name.rpartition(".")[2].removeprefix("no") not in known
            ):
                near = difflib.get_close_matches(name, known, n=1)
                fix = f"did you mean --config.{near[0]}?" if near else "see python launch.py --help"
                raise ConfigError(f"--config.{name}: no such field; {fix}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
