"""One series -> the stacks in it: scanners and archives file under one UID what is no single volume.

Images part by matrix, pixel size and orientation; where several lie at one place, by the header element that leaves a
whole stack with one image a place (phases, kernels, repeated acquisitions); and along the stack, where its spacing
changes for good or nothing was scanned over a wide gap (a neck and a thorax).
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cspine_jax.ct.fields import MARKS
from cspine_jax.ct.geometry import FARTHEST_MM, ROUNDING_MM, SAME_PLACE_MM
from cspine_jax.ct.headers import SliceHeader

WHOLE = 0.9
"""Share of all places that a stack must have images at to stand for the series."""

FAR_MM = 30.0
"""Across a gap wider than this (and than `FAR_SLICES` spacings) nothing is interpolated: what lies beyond is another
stack."""

FAR_SLICES = 8

OTHER_SPACING = 0.25
"""Relative change of the slice spacing that, kept up over `RUN` gaps, begins another stack."""

RUN = 8

MISSING = 2.5
"""A spacing up to so many times the other, at the same slice thickness, is that of a stack which lost slices."""

_SAME_COSINE = 0.01
_SAME_PIXEL = 1e-3
_SHOWN = ("AcquisitionNumber", "TemporalPositionIdentifier", "KVP", "ReconstructionDiameter", "SliceThickness")


@dataclasses.dataclass(frozen=True)
class Part:
    """Images of a series that may form one volume; `what` tells them from the others, "" where there are none."""

    headers: tuple[SliceHeader, ...]
    what: str = ""


def split(headers: Sequence[SliceHeader]) -> list[Part]:
    """Parts a series into stacks.

    Args:
        headers: images of one series.

    Returns:
        One part where the series is one stack, or where nothing tells for sure that it is not: it is then refused,
        image and cause named, where it is put in order.
    """
    parts = [Part(tuple(headers))]
    for cut in (_by_grid, _by_marks, _by_blocks):
        parts = [
            Part(piece.headers, ", ".join(filter(None, (part.what, piece.what))))
            for part in parts
            for piece in cut(part.headers)
        ]
    return parts


def _by_grid(headers: Sequence[SliceHeader]) -> list[Part]:
    """By matrix, pixel size and orientation, unless that would tear a hole into the largest group."""
    groups: list[list[SliceHeader]] = []
    for header in headers:
        for group in groups:
            if _same_grid(header, group[0]):
                group.append(header)
                break
        else:
            groups.append([header])
    groups.sort(key=len, reverse=True)
    whole = [Part(tuple(headers))]
    if len(groups) == 1 or any(_fills_a_hole(header, groups[0]) for group in groups[1:] for header in group):
        return whole
    return [Part(tuple(group), _grid_name(group[0])) for group in groups]


def _same_grid(a: SliceHeader, b: SliceHeader) -> bool:
    if (a.rows, a.columns) != (b.rows, b.columns):
        return False
    for first, second, relative, absolute in (
        (a.spacing, b.spacing, _SAME_PIXEL, 0.0),
        (a.orientation, b.orientation, 0.0, _SAME_COSINE),
    ):
        if first and second and not np.allclose(first, second, rtol=relative, atol=absolute):
            return False
    return True


def _grid_name(header: SliceHeader) -> str:
    pixel = f" of {header.spacing[0]:.3g} x {header.spacing[1]:.3g} mm" if header.spacing else ""
    return f"{header.rows} x {header.columns} pixels{pixel}"


def _fills_a_hole(header: SliceHeader, group: Sequence[SliceHeader]) -> bool:
    """Whether the image lies where the group lacks one: it is then one of its slices, and damaged."""
    depths = _depths(group)
    if depths is None or header.position is None:
        return True
    places = np.unique(depths)
    if len(places) < 2:
        return False
    gaps = np.diff(places)
    depth = float(np.asarray(header.position) @ _normal(group))
    below = int(np.searchsorted(places, depth)) - 1
    return 0 <= below < len(gaps) and gaps[below] > 1.5 * float(np.median(gaps))


def _by_marks(headers: Sequence[SliceHeader]) -> list[Part]:
    """By the element, or the two, that part images at one place (or stacks that run into each other)."""
    depths = _depths(headers)
    if depths is None or len(headers) < 2:
        return [Part(tuple(headers))]
    places = _places(depths)
    repeats = len(set(places)) < len(places)
    if not repeats and _even(np.sort(depths)):
        return [Part(tuple(headers))]
    for count in (1, 2):
        for marks in itertools.combinations(range(len(MARKS)), count):
            groups = _grouped(range(len(headers)), lambda i, marks=marks: tuple(headers[i].marks[m] for m in marks))
            if 1 < len(groups) and (_cleanly(groups, places) if repeats else _run_into_each_other(groups, depths)):
                return [
                    Part(tuple(headers[i] for i in group), _mark_name(marks, value, number + 1, len(groups)))
                    for number, (value, group) in enumerate(sorted(groups.items()))
                ]
        if not repeats:
            break
    return [Part(tuple(headers))]


def _grouped(items, key: Callable) -> dict[Any, list]:
    groups: dict[Any, list] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def _cleanly(groups: dict, places: np.ndarray) -> bool:
    """Whether one group at least has one image at each place."""
    total = len(set(places))
    return any(len(set(places[group])) == len(group) >= max(2, WHOLE * total) for group in groups.values())


def _run_into_each_other(groups: dict, depths: np.ndarray) -> bool:
    """Whether an uneven stack is made of even ones that overlap."""
    stacks = sorted((np.sort(depths[group]) for group in groups.values()), key=lambda stack: stack[0])
    if not all(len(stack) >= RUN and _even(stack) for stack in stacks):
        return False
    return any(low[-1] > high[0] for low, high in itertools.pairwise(stacks))


def _mark_name(marks: Sequence[int], values: Sequence[str], number: int, total: int) -> str:
    shown = []
    for mark, value in zip(marks, values, strict=True):
        name = MARKS[mark]
        plain = (name in _SHOWN and re.fullmatch(r"[0-9.]{1,12}", value)) or (
            name == "ConvolutionKernel" and re.fullmatch(r"[A-Za-z]{1,8}[0-9]{0,3}[a-z]?", value)
        )
        shown.append(f"{name} {value}" if plain else f"{number} of {total} by {name}")
    return ", ".join(dict.fromkeys(shown))


def _by_blocks(headers: Sequence[SliceHeader]) -> list[Part]:
    """Along the stack: at wide gaps, and where the spacing changes for good."""
    depths = _depths(headers)
    if depths is None or len(headers) < 3:
        return [Part(tuple(headers))]
    order = np.argsort(depths, kind="stable")
    places = _places(depths)[order]
    first_of = np.flatnonzero(np.diff(places, prepend=-1))  # index in `order` of the first image of each place
    gaps = np.diff(depths[order][first_of])
    if not len(gaps):
        return [Part(tuple(headers))]
    thickness = np.array([headers[i].thickness or 0.0 for i in order[first_of]])
    far = np.flatnonzero(gaps > max(FAR_MM, FAR_SLICES * float(np.median(gaps)))) + 1
    cuts: set[int] = set(far.tolist())
    bounds = [0, *far.tolist(), len(gaps) + 1]
    for low, high in itertools.pairwise(bounds):
        cuts.update(low + cut for cut in _changes(gaps[low : high - 1], thickness[low:high]))
    if not cuts:
        return [Part(tuple(headers))]
    edges = [0, *sorted(cuts), len(first_of)]
    parts = []
    for number, (low, high) in enumerate(itertools.pairwise(edges), 1):
        last = first_of[high] if high < len(first_of) else len(order)
        chosen = order[first_of[low] : last]
        parts.append(Part(tuple(headers[i] for i in chosen), f"block {number} of {len(edges) - 1} along it"))
    return parts


def _changes(gaps: np.ndarray, thickness: np.ndarray) -> list[int]:
    """Slices at which another spacing begins that lasts, and is not that of missing slices."""
    runs: list[list[int]] = []  # first and last gap
    for index, gap in enumerate(gaps):
        if runs and _alike(gap, float(np.median(gaps[runs[-1][0] : runs[-1][1] + 1]))):
            runs[-1][1] = index
        else:
            runs.append([index, index])
    lasting = [run for run in runs if run[1] - run[0] + 1 >= RUN]
    cuts = []
    for low, high in itertools.pairwise(lasting):
        before, after = (float(np.median(gaps[run[0] : run[1] + 1])) for run in (low, high))
        thick = [float(np.median(thickness[run[0] + 1 : run[1] + 1])) for run in (low, high)]
        same = abs(thick[0] - thick[1]) <= 0.1 * max(thick)
        if _alike(before, after) or (same and max(before, after) <= MISSING * min(before, after)):
            continue
        if high[0] == low[1] + 1:  # the slice between them belongs to the finer one
            cuts.append(high[0] + (1 if before < after else 0))
        else:
            cuts.append(low[1] + 2 + int(gaps[low[1] + 1 : high[0]].argmax()))
    return cuts


def _alike(a: float, b: float) -> bool:
    return abs(a - b) <= OTHER_SPACING * min(a, b) + ROUNDING_MM


def _even(depths: np.ndarray) -> bool:
    gaps = np.diff(depths)
    return bool(np.abs(gaps - np.median(gaps)).max() <= 0.1 * np.median(gaps) + 2 * ROUNDING_MM)


def _places(depths: np.ndarray) -> np.ndarray:
    """Int [n]: which place along the stack each image lies at."""
    order = np.argsort(depths, kind="stable")
    places = np.empty(len(depths), int)
    places[order] = np.cumsum(np.diff(depths[order], prepend=depths[order][0]) >= SAME_PLACE_MM)
    return places


def _normal(headers: Sequence[SliceHeader]) -> np.ndarray:
    """The slice normal, towards the feet, the back or the left: blocks are numbered along it."""
    oriented = next((header.orientation for header in headers if header.orientation), (1.0, 0, 0, 0, 1.0, 0))
    normal = np.cross(oriented[:3], oriented[3:])
    axis = int(np.abs(normal).argmax())
    return normal if normal[axis] * (-1 if axis == 2 else 1) > 0 else -normal


def _depths(headers: Sequence[SliceHeader]) -> np.ndarray | None:
    """float64 [n] along the slice normal; None where a position is missing or impossible."""
    if any(header.position is None for header in headers):
        return None
    positions = np.array([header.position for header in headers], float)
    return positions @ _normal(headers) if np.abs(positions).max() < FARTHEST_MM else None
