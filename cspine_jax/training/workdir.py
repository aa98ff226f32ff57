"""The work folder of a run: one experiment a folder, one process training in it."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from cspine_jax import locks
from cspine_jax.config import Config, flatten, to_dict
from cspine_jax.errors import ConfigError, DataError


def check_same(
    workdir: Path,
    config: Config,
    *,
    ignore: tuple[str, ...] = (),
    only: tuple[str, ...] = ("",),
    must_exist: bool = False,
) -> None:
    """Refuses a work folder whose `config.json` is of another experiment.

    A field that the file does not name (it is of an older version) had what is now its default.

    Args:
        workdir: W.
        config: what is asked for now.
        ignore: field names and group prefixes that may differ.
        only: prefixes of the fields that are compared.
        must_exist: a folder without `config.json` is an error too.

    Raises:
        ConfigError: fields differ (all are named), or the file cannot be read.
        DataError: `must_exist`, and there is none.
    """
    path = workdir / "config.json"
    if not path.is_file():
        if must_exist:
            raise DataError(f"{workdir}: no config.json, so nothing was trained here; run --mode=train first")
        return
    try:
        before = flatten(to_dict(Config())) | flatten(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error}); give another --workdir") from None
    now = flatten(to_dict(config))
    fields = [f for f in sorted({*before, *now}) if f.startswith(only) and not (ignore and f.startswith(ignore))]
    differing = [
        f"{field}={now.get(field)!r} (there {before.get(field)!r})"
        for field in fields
        if before.get(field) != now.get(field)
    ]
    if differing:
        raise ConfigError(
            f"{path}: this run was started with other settings: {', '.join(differing)}; give those back or another "
            "--workdir"
        )


def read_json(path: Path, fix: str) -> dict[str, Any]:
    """A JSON object from a file; `fix` ends the message of what is wrong with it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; {fix}") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); {fix}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a JSON object; {fix}")
    return content


@contextlib.contextmanager
def only_process(workdir: Path) -> Iterator[None]:
    """Refuses a second training in the same folder at the same time; the lock dies with its process."""
    if jax.process_index() > 0:  # the first host of a job holds it for all
        yield
        return
    with (workdir / ".lock").open("w") as file:
        if not locks.acquire(file):
            raise DataError(f"{workdir}: another process is training here; wait for it or give another --workdir")
        yield


def say(line: str) -> None:
    """One line for the user, from the first host only."""
    if jax.process_index() == 0:
        print(line, flush=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all, from the first host only."""
    if jax.process_index() == 0:
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
