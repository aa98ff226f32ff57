"""Weights of networks in one small file, and the ones that come with the package.

The file is a plain `.npz` that numpy reads without running anything from it: float16 arrays, and the card as JSON.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cspine_jax.config import Config, from_dict
from cspine_jax.config.study import FINDS_FRACTURES, STUDY_LEVEL
from cspine_jax.errors import ConfigError, DataError
from cspine_jax.training.task import Task
from cspine_jax.training.workdir import write_text

PACKAGE = "package:"
"""What a name begins with that stands for a file which comes with the package: "package:gold"."""

CARD = "card.json"
FRACTURE = "fracture"
"""The network that finds fractures, in the names of a file's arrays and in its card: a file has one, of any recipe."""


@dataclasses.dataclass(frozen=True)
class Card:
    """Where weights come from and what they are for.

    Attributes:
        name: of the weights.
        note: what every output made with them must say.
        phantom: they have only seen synthetic studies.
        networks: for "spine" and "refine", or "fracture": configuration, step, training data, figures.
        versions: of the software that wrote them.
        digest: of the file they were read from, not written in it.
    """

    name: str
    note: str
    phantom: bool
    networks: dict[str, Any]
    versions: dict[str, str]
    digest: str = ""


@dataclasses.dataclass(frozen=True)
class Stored:
    """A network that finds fractures, as a file has it.

    Attributes:
        card: of the file.
        facts: of the network, out of the card.
        config: of the run that it was exported from.
        params: its arrays, float32.
        stats: its statistics (and frozen parts), float32.
    """

    card: Card
    facts: dict[str, Any]
    config: Config
    params: Any
    stats: Any


def shipped() -> tuple[str, ...]:
    """Names of the files that come with the package, such as "package:gold"."""
    files = resources.files("cspine_jax.weights").iterdir()
    return tuple(sorted(PACKAGE + file.name[:-4] for file in files if file.name.endswith(".npz")))


def is_weights_file(source: str | Path) -> bool:
    """Whether this names a weights file, the package's or another, and not the folder of a run."""
    return str(source).endswith(".npz") or str(source).startswith(PACKAGE)


def read(source: str | Path) -> tuple[dict[str, np.ndarray], Card]:
    """The arrays (`spine/params/...`, `fracture/stats/...`) and the card of a weights file.

    Args:
        source: the file, or one of `shipped`.

    Raises:
        DataError: the file is not there, or not such a file.
    """
    with _opened(source) as (archive, card):
        return {key: archive[key] for key in archive.files if key != CARD}, card


def read_card_alone(source: str | Path) -> Card:
    """The card of a weights file, whose arrays are left packed; argument and errors as `read`."""
    with _opened(source) as (_, card):
        return card


@contextlib.contextmanager
def _opened(source: str | Path) -> Iterator[tuple[Any, Card]]:
    """The archive, whose arrays are unpacked as they are asked for, and its card; whatever is wrong is one line."""
    name = str(source)
    if name.startswith(PACKAGE) and name not in shipped():
        raise DataError(f"{name}: no weights of this name come with the package; there are {', '.join(shipped())}")
    own = resources.files("cspine_jax.weights").joinpath(f"{name.removeprefix(PACKAGE)}.npz")
    file = own if name in shipped() else Path(source).expanduser()
    try:
        content = file.read_bytes()
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            card = Card(**json.loads(bytes(archive[CARD]).decode()), digest=digest([content]))
            if not isinstance(card.networks, dict):
                raise TypeError("networks")
            yield archive, card
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or error}; give a file of `cspine weights export`") from error
    except (ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        # numpy's own words advise to unpickle the file
        raise DataError(
            f"{name}: not a weights file ({type(error).__name__} while reading); give one of `cspine weights export`"
        ) from error


def read_fracture(source: str | Path) -> Stored:
    """The network that finds fractures, of a weights file.

    Args:
        source: as `read` takes it.

    Raises:
        DataError: as `read`; or the file is of other networks.
    """
    arrays, card = read(source)
    config = config_of_fracture(card)
    shapes = jax.eval_shape(lambda: fracture_task(config).init(jax.random.key(0)))
    return Stored(card, card.networks[FRACTURE], config, *trees(FRACTURE, shapes, arrays, card.name))


def config_of_fracture(card: Card) -> Config:
    """The configuration of the network that finds fractures, out of a card.

    Raises:
        DataError: the card is of other networks.
    """
    if not isinstance(card.networks.get(FRACTURE), dict):
        raise DataError(f"{card.name}: weights of another kind; give a file of `cspine weights export --fracture`")
    config = config_of(FRACTURE, card)
    if config.task not in FINDS_FRACTURES:
        raise DataError(f"{card.name}: task={config.task!r} in its card finds no fractures; export it again")
    return config


def fracture_task(config: Config) -> Task:
    """The task of a configuration that finds fractures: on slices, crops of vertebrae or whole studies."""
    if config.task in STUDY_LEVEL:  # imported here: they load what reads records, which slice models do without
        from cspine_jax.training.crops_task import study_level_task

        return study_level_task(config)
    from cspine_jax.training.slice_task import SliceTask

    return SliceTask(config)


def write(out: Path, arrays: Mapping[str, np.ndarray], card: Card) -> None:
    """Writes a weights file, and its card beside it as `.json`.

    Raises:
        DataError: half precision does not hold the arrays.
    """
    lost = [key for key, x in arrays.items() if not np.isfinite(x).all()]
    if lost:
        raise DataError(f"{lost[0]}: values beyond half precision; train with weight decay")
    about = {name: value for name, value in dataclasses.asdict(card).items() if name != "digest"}
    text = json.dumps(about, indent=1)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as file:
        np.savez_compressed(file, **{CARD: np.frombuffer(text.encode(), np.uint8)}, **arrays)  # type: ignore[arg-type]
    write_text(out.with_suffix(".json"), text + "\n")


def halves(kind: str, params: Any, stats: Any) -> dict[str, np.ndarray]:
    """The arrays of one network as they are written: float16, by `flatten`'s names."""
    return {
        name: np.asarray(x, np.float16)
        for part, tree in (("params", params), ("stats", stats))
        for name, x in flatten(tree, f"{kind}/{part}").items()
    }


def digest(parts: Iterable[bytes]) -> str:
    """Twelve hexadecimal digits that tell weights from others."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:12]


def digest_of(*trees: Any) -> str:
    """`digest` of arrays in memory."""
    return digest(np.asarray(x).tobytes() for x in jax.tree.leaves(jax.device_get(trees)))


def trees(kind: str, shapes: Any, arrays: Mapping[str, np.ndarray], name: str) -> tuple[Any, Any]:
    """(params, statistics) of one network out of a file's arrays, float32.

    Args:
        kind: "spine", "refine" or "fracture": the arrays' prefix.
        shapes: the two trees as the network wants them (`jax.eval_shape`).
        arrays: of the file.
        name: of the weights, for messages.

    Raises:
        DataError: arrays are missing, left over or misshapen.
    """
    made = []
    for part, tree in zip(("params", "stats"), shapes, strict=True):
        wanted = flatten(tree, f"{kind}/{part}")
        there = {key: x for key, x in arrays.items() if key.startswith(f"{kind}/{part}/")}
        wrong = sorted({*wanted} ^ {*there}) or [k for k, x in wanted.items() if x.shape != there[k].shape]
        if wrong:
            raise DataError(f"{name}: {len(wrong)} arrays of {kind} do not fit its network, e.g. {wrong[0]}")
        made.append(jax.tree.unflatten(jax.tree.structure(tree), [there[key].astype(np.float32) for key in wanted]))
    return made[0], made[1]


def flatten(tree: Any, prefix: str) -> dict[str, Any]:
    """`{"prefix/a/b": leaf}` in the order of the tree's leaves."""
    return {
        "/".join([prefix, *(str(getattr(key, "key", key)) for key in path)]): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def config_of(kind: str, card: Card) -> Config:
    """The configuration of one network, out of a card."""
    try:
        return from_dict(card.networks[kind]["config"])
    except (KeyError, TypeError, ConfigError) as error:
        raise DataError(f"{card.name}: its card does not describe the {kind} network ({error})") from error
