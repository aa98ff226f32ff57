"""One picture that shows whether the right vertebrae were found: sagittal, coronal, and a slice through each level."""

from pathlib import Path

import numpy as np

from cspine_jax.anatomy import LABEL_VALUES
from cspine_jax.ct import Volume
from cspine_jax.inference.findings import slice_name
from cspine_jax.inference.vertebrae.result import ABSENT, CUT_OFF, Vertebra, Vertebrae

WINDOW_LEVEL, WINDOW_WIDTH = 350.0, 1700.0
MARGIN_MM = 30.0
AXIAL_MM = 45.0

_COLOURS = ("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#b56ce8", "#42d4f4")
_AXIAL = 8


def draw_preview(path: Path, volume: Volume, found: Vertebrae, note: str) -> None:
    """Draws the picture.

    The sagittal and the coronal view follow the spine: each row of pixels is taken where the masks run at that height.

    Args:
        path: the PNG.
        volume: the study.
        found: its vertebrae.
        note: written under it.
    """
    from matplotlib.figure import Figure  # a second of import nobody else pays

    there = [v for v in found.levels if v.state != ABSENT]
    figure = Figure(figsize=(18, 8.6), facecolor="black")
    box = _box(volume, there)
    rows = np.arange(box[0].start, box[0].stop)
    x, y = _course(found.labels, there, rows, volume)
    dz, dy, dx = volume.spacing_mm
    for place, title, take, side, pixel in (
        ((0.005, 0.06, 0.2, 0.84), "sagittal, along the spine", lambda a: a[rows, :, x][:, box[1]], 1, dy),
        ((0.21, 0.06, 0.2, 0.84), "coronal, through the bodies", lambda a: a[rows, y][:, box[2]], 2, dx),
    ):
        ax = figure.add_axes(place)
        labels = take(found.labels)
        _show(ax, take(volume.hu), labels, dz / pixel, title)
        for v in there:
            _name(ax, v, labels, box[0].start, in_front=side == 1)
    for k, v in enumerate(there[:_AXIAL]):
        assert v.centroid is not None
        ax = figure.add_axes((0.42 + 0.145 * (k % 4), 0.48 - 0.42 * (k // 4), 0.14, 0.42))
        z = round(v.centroid[0])
        part = _around(v, volume)
        _show(ax, volume.hu[z][part], found.labels[z][part], dy / dx, _title(v, z, int(volume.slice_numbers[z])))
    figure.text(0.5, 0.965, _headline(found), color="white", fontsize=14, ha="center")
    figure.text(0.5, 0.015, note, color="white", fontsize=11, ha="center")
    figure.savefig(path, dpi=75, facecolor="black")


def _headline(found: Vertebrae) -> str:
    states = [f"{v.name} {v.state}" for v in found.levels if v.state != "visible"]
    named = [v.name for v in found.levels if v.state != ABSENT]
    if not named:
        return "no vertebra found"
    return f"{named[0]} to {named[-1]}" + (f"; {', '.join(states)}" if states else "")


def _title(v: Vertebra, z: int, number: int) -> str:
    return f"{v.name}  p = {v.confidence:.2f}  {slice_name(z, number)}" + (f"  {CUT_OFF}" if v.state == CUT_OFF else "")


def _box(volume: Volume, there: list[Vertebra]) -> tuple[slice, slice, slice]:
    """The part of the volume that is shown; all of it where nothing was found."""
    if not there:
        depth, height, width = volume.shape
        return slice(0, depth), slice(0, height), slice(0, width)
    sides = []
    for axis in range(3):
        margin = MARGIN_MM / volume.spacing_mm[axis]
        low = min(v.box[0][axis] for v in there if v.box is not None) - margin
        high = max(v.box[1][axis] for v in there if v.box is not None) + margin
        sides.append(slice(max(0, int(low)), min(volume.shape[axis], int(high) + 1)))
    return sides[0], sides[1], sides[2]


def _around(v: Vertebra, volume: Volume) -> tuple[slice, slice]:
    """Rows and columns within `AXIAL_MM` of a vertebra's centroid."""
    assert v.centroid is not None
    sides = []
    for axis in (1, 2):
        reach, middle = AXIAL_MM / volume.spacing_mm[axis], v.centroid[axis]
        sides.append(slice(max(0, int(middle - reach)), min(volume.shape[axis], int(middle + reach) + 1)))
    return sides[0], sides[1]


def _course(
    labels: np.ndarray, there: list[Vertebra], rows: np.ndarray, volume: Volume
) -> tuple[np.ndarray, np.ndarray]:
    """Column of the spine's middle and row of the vertebral bodies at each height."""
    if not there:
        middle = np.full(len(rows), 1)
        return middle * (volume.shape[2] // 2), middle * (volume.shape[1] // 2)
    z, x, y = [], [], []
    whole = [v for v in there if v.state != CUT_OFF]  # what is left of a cut vertebra may be a process alone
    for v in whole or there:
        assert v.centroid is not None and v.box is not None
        box = tuple(slice(a, b) for a, b in zip(*v.box, strict=True))
        depth = np.nonzero(labels[box] == LABEL_VALUES[v.name])[1]
        z.append(v.centroid[0])
        x.append(v.centroid[2])
        y.append(v.box[0][1] + np.quantile(depth, 0.25))  # the body is the front part of a vertebra
    return np.rint(np.interp(rows, z, x)).astype(int), np.rint(np.interp(rows, z, y)).astype(int)


def _show(ax, plane: np.ndarray, labels: np.ndarray, aspect: float, title: str) -> None:
    low = WINDOW_LEVEL - WINDOW_WIDTH / 2
    ax.imshow(plane, cmap="gray", vmin=low, vmax=low + WINDOW_WIDTH, aspect=aspect, interpolation="bilinear")
    overlay = np.zeros((*labels.shape, 4))
    for value in np.unique(labels[labels > 0]):
        overlay[labels == value] = (*_rgb(int(value)), 0.4)
    ax.imshow(overlay, aspect=aspect, interpolation="nearest")
    ax.set_title(title, color="white", fontsize=11)
    ax.set_axis_off()


def _name(ax, v: Vertebra, labels: np.ndarray, first: int, in_front: bool) -> None:
    """Writes the name beside the masks of a view, at the height of the body."""
    assert v.centroid is not None
    rows, columns = np.nonzero(labels == LABEL_VALUES[v.name])
    if not len(rows):
        return
    front = np.quantile(columns, 0.15)
    row = rows[columns <= front].mean() if in_front else v.centroid[0] - first
    column = columns.min() - 4 if in_front else columns.max() + 4
    ax.text(
        column,
        row,
        v.name,
        color=_COLOURS[(LABEL_VALUES[v.name] - 1) % len(_COLOURS)],
        fontsize=12,
        fontweight="bold",
        ha="right" if in_front else "left",
        va="center",
        bbox={"boxstyle": "round,pad=0.15", "facecolor": "black", "alpha": 0.55, "linewidth": 0},
    )


def _rgb(value: int) -> tuple[float, float, float]:
    text = _COLOURS[(value - 1) % len(_COLOURS)]
    red, green, blue = (int(text[k : k + 2], 16) / 255 for k in (1, 3, 5))
    return red, green, blue
