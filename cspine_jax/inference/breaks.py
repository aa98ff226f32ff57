"""One picture of what a model of crops found: each vertebra where a break is likeliest, and its map of breaks."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cspine_jax.anatomy import VERTEBRAE
from cspine_jax.inference.findings import Findings, slice_name

if TYPE_CHECKING:
    from cspine_jax.inference.crops_run import CropsAnswer

PICTURE = "breaks.png"

LEVEL, WIDTH = 400.0, 1800.0
"""HU window."""

_CALLED, _NOT = "#ff6b5a", "white"


def draw_breaks(path: Path, findings: Findings, answer: "CropsAnswer") -> None:
    """Draws it: a column a vertebra, above the slice at its surest position, below the same under the map (if any).

    Args:
        path: the PNG.
        findings: of the study.
        answer: of the model.
    """
    from matplotlib.figure import Figure  # a second of import nobody else pays

    figure = Figure(figsize=(19.6, 3.4 if answer.breaks is None else 6.1), facecolor="black")
    rows = 1 if answer.breaks is None else 2
    numbers = {each.index: each.slice_number for each in findings.slices}
    height = 0.8 / rows
    for j, vertebra in enumerate(findings.vertebrae):
        if vertebra.probability is None:
            figure.text(
                (j + 0.5) / len(VERTEBRAE), 0.5, f"{vertebra.name}\nnot visible", color="gray", fontsize=12, ha="center"
            )
            continue
        record, position = answer.table.record[0, j], answer.surest(j)
        hu = answer.table.read(np.array([record]))[0][0, position, :, :, answer.table.layout.radius]
        title = f"{vertebra.name}  p = {vertebra.probability:.2f}"
        if vertebra.spread is not None:
            title += f" ({vertebra.spread:.2f})"
        z = round(float(answer.table.slice_index[record, position]))
        title += f"\n{slice_name(z, numbers.get(z, -1))}"
        for row in range(rows):
            ax = figure.add_axes(
                (
                    j / len(VERTEBRAE) + 0.003,
                    0.06 + (rows - 1 - row) * height,
                    1 / len(VERTEBRAE) - 0.006,
                    height * 0.97,
                )
            )
            ax.imshow(hu, cmap="gray", vmin=LEVEL - WIDTH / 2, vmax=LEVEL + WIDTH / 2, interpolation="bilinear")
            if row:
                assert answer.breaks is not None
                _lay_over(ax, answer.breaks[j, position], hu.shape)
            else:
                ax.set_title(title, color=_CALLED if vertebra.fractured else _NOT, fontsize=11)
            ax.set_axis_off()
    patient = findings.patient_probability
    said = "no vertebra found" if patient is None else f"patient p = {patient:.2f}"
    below = "" if answer.breaks is None else "; below: where the model looks for a break, p of a cell from 0 to 1"
    figure.text(
        0.5, 0.965, f"{said}   (red: at or above the threshold{below})", color="white", fontsize=12, ha="center"
    )
    figure.text(0.5, 0.015, findings.note, color="white", fontsize=11, ha="center")
    figure.savefig(path, dpi=75, facecolor="black")


def _lay_over(ax, cells: np.ndarray, shape: tuple[int, ...]) -> None:
    """Cells of 2^n pixels over the picture; the last ones may reach beyond it."""
    pixels = (2 ** round(np.log2(n / m)) for n, m in zip(shape, cells.shape, strict=True))
    bottom, right = (count * size - 0.5 for count, size in zip(cells.shape, pixels, strict=True))
    ax.imshow(
        cells, cmap="inferno", vmin=0, vmax=1, alpha=np.minimum(1.5 * cells, 0.7), extent=(-0.5, right, bottom, -0.5),
        interpolation="bilinear",
    )  # fmt: skip
    ax.set_xlim(-0.5, shape[1] - 0.5)
    ax.set_ylim(shape[0] - 0.5, -0.5)
