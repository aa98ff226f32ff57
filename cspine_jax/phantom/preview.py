"""One sheet that shows what a phantom study looks like, for a reader's eye."""

import os
from pathlib import Path

import numpy as np

from cspine_jax.anatomy import VERTEBRAE
from cspine_jax.phantom.dataset import Study, make_study
from cspine_jax.phantom.sample import sample_study

WINDOW_LEVEL, WINDOW_WIDTH = 400.0, 1800.0
_AXIAL = ("C1", "C2", "C4", "C6", "C7")


def draw_preview(
    path: str | os.PathLike,
    *,
    seed: int,
    first: int = 0,
    studies: int = 1,
    size: int = 256,
    scale: float = 1.0,
    difficulty: str = "standard",
    fov: float = 1.0,
    variety: str = "rsna",
) -> None:
    """Makes the first fractured study of a range (the first study if none is) and draws its sheet to `path` (PNG)."""
    kwargs = {"size": size, "scale": scale, "difficulty": difficulty, "fov": fov, "variety": variety}
    wanted = range(first, first + studies)
    index = next((i for i in wanted if sample_study(seed, i, **kwargs).fractures), first)
    draw_study(path, make_study(seed, index, **kwargs))


def draw_study(path: str | os.PathLike, study: Study) -> None:
    """Draws axial, midsagittal and coronal views, the same with masks, and a close view of one fracture."""
    from matplotlib.figure import Figure  # a second of import nobody else pays

    q = study.plan.acquisition
    spacing = (q.spacing_mm, q.pixel_mm, q.pixel_mm)
    figure = Figure(figsize=(20, 9.6), facecolor="black", layout="constrained")
    axes = figure.subplots(2, 5)
    for ax, name in zip(axes[0], _AXIAL, strict=True):
        k = _middle(study.labels == VERTEBRAE.index(name) + 1)[0]
        _show(ax, study.hu[k], (spacing[1], spacing[2]), f"{name}, slice {k + 1} of {q.slices}")
    x = _middle(study.labels == 4)[2]
    y = _middle(study.labels == 4)[1]
    sides = (spacing[0], spacing[1])
    _show(axes[1, 0], study.hu[:, :, x], sides, "midsagittal")
    _show(axes[1, 1], study.hu[:, :, x], sides, "masks and fractures", study.labels[:, :, x], study.fractures[:, :, x])
    _show(axes[1, 2], study.hu[:, y], sides, "coronal through C4")
    _close_up(axes[1, 3], axes[1, 4], study, spacing)
    broken = ", ".join(f"{VERTEBRAE[f.level]} {f.kind.replace('_', ' ')}" for f in study.plan.fractures) or "none"
    a = study.plan.anatomy
    figure.suptitle(
        f"Synthetic study: {a.sex} {a.age:.0f} y, {q.size} x {q.size} x {q.slices}, pixel {q.pixel_mm:.2f} mm, "
        f"spacing {q.spacing_mm:.2f} mm, noise {q.noise_hu:.0f} HU. Fractures: {broken}",
        color="white",
        fontsize=16,
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, facecolor="black")


def _close_up(plain, marked, study: Study, spacing: tuple[float, float, float]) -> None:
    """The slice with most fracture voxels, 50 mm wide, without and with the truth drawn in."""
    fractures, hu, labels = study.fractures, study.hu, study.labels
    if not fractures.any():
        for ax in (plain, marked):
            ax.set_axis_off()
        return
    k = int(fractures.astype(bool).sum(axis=(1, 2)).argmax())
    ys, xs = np.nonzero(fractures[k])
    r = round(25 / spacing[1])
    y, x = (int(np.clip(np.median(v), r, n - r)) for v, n in ((ys, hu.shape[1]), (xs, hu.shape[2])))
    window = (k, slice(max(0, y - r), y + r), slice(max(0, x - r), x + r))
    level = VERTEBRAE[int(fractures[k][fractures[k] > 0][0]) - 1]
    _show(plain, hu[window], spacing[1:], f"fracture of {level}, slice {k + 1}, 50 mm")
    _show(marked, hu[window], spacing[1:], "the same, marked", labels[window], fractures[window])


def _middle(mask: np.ndarray) -> tuple[int, int, int]:
    """Index (z, y, x) of the middle of a mask; the middle of the volume where it is empty."""
    if not mask.any():
        depth, height, width = mask.shape
        return depth // 2, height // 2, width // 2
    z, y, x = (int(np.median(v)) for v in np.nonzero(mask))
    return z, y, x


def _show(ax, plane: np.ndarray, spacing: tuple[float, ...], title: str, labels=None, fractures=None) -> None:
    low = WINDOW_LEVEL - WINDOW_WIDTH / 2
    aspect = spacing[0] / spacing[1]
    ax.imshow(plane, cmap="gray", vmin=low, vmax=low + WINDOW_WIDTH, aspect=aspect, interpolation="bilinear")
    if labels is not None:
        shown = np.ma.masked_equal(labels, 0)
        ax.imshow(shown, cmap="tab20", vmin=1, vmax=20, alpha=0.3, aspect=aspect, interpolation="nearest")
    if fractures is not None:
        red = np.zeros((*plane.shape, 4))
        red[fractures > 0] = (1, 0, 0, 0.8)
        ax.imshow(red, aspect=aspect, interpolation="nearest")
    ax.set_title(title, color="white", fontsize=14)
    ax.set_axis_off()
