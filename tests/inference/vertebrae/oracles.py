"""Stand-ins for the two networks, made from truth masks: what perfect or seeded-wrong weights would answer."""

import functools

import numpy as np
from scipy import ndimage

from cspine_jax.inference.vertebrae import COLOURS
from cspine_jax.inference.vertebrae.grids import Grid, regridded
from cspine_jax.phantom.dataset import make_study

CLASSES = 20


def area_average(labels: np.ndarray, grid: Grid, classes: int) -> np.ndarray:
    """float32 [d, h, w, classes]: share of each value in each voxel of `grid`; outside the volume is value 0."""
    index = [
        np.rint((np.arange(n) - origin) / step).astype(int)
        for n, origin, step in zip(labels.shape, grid.origin, grid.step, strict=True)
    ]
    where = np.ravel_multi_index(
        np.meshgrid(*(np.clip(i, 0, m - 1) for i, m in zip(index, grid.shape, strict=True)), indexing="ij"), grid.shape
    )
    flat = where.ravel() * classes + labels.ravel()
    counts = np.bincount(flat, minlength=int(np.prod(grid.shape)) * classes).reshape(*grid.shape, classes)
    total = counts.sum(axis=-1, keepdims=True)
    shares = np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)
    shares[..., 0][total[..., 0] == 0] = 1
    return shares.astype(np.float32)


def centroids(labels: np.ndarray, spacing_mm) -> dict[int, np.ndarray]:
    """Mm (z, y, x) from the centre of voxel (0, 0, 0), of each mask value that is there."""
    values = [int(v) for v in np.unique(labels) if v]
    found = ndimage.center_of_mass(np.ones_like(labels), labels, values)
    return {v: np.array(c) * spacing_mm for v, c in zip(values, found, strict=True)}


def coarse(labels: np.ndarray, spacing_mm, blur: float = 0.6) -> tuple[np.ndarray, np.ndarray, Grid]:
    """Probabilities [d, h, w, 20], offsets [d, h, w, 3] and the 4 mm grid of a study."""
    grid = regridded(labels.shape, spacing_mm, 2.0).packed()
    shares = area_average(labels, grid, CLASSES)
    if blur:
        shares = ndimage.gaussian_filter(shares, (blur, blur, blur, 0))
    shares = 0.97 * shares + 0.03 / CLASSES
    probabilities = shares / shares.sum(axis=-1, keepdims=True)
    offsets = np.zeros((*grid.shape, 3), np.float32)
    place = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1)
    place_mm = grid.to_volume(place) * spacing_mm
    nearest = probabilities[..., 1:].argmax(axis=-1) + 1
    for value, centroid in centroids(labels, spacing_mm).items():
        own = nearest == value
        offsets[own] = centroid - place_mm[own]
    return probabilities.astype(np.float32), offsets, grid


def colours_of(labels: np.ndarray) -> np.ndarray:
    """0 background, 1 + level mod 3."""
    return np.where(labels > 0, (labels.astype(int) - 1) % COLOURS + 1, 0).astype(np.uint8)


@functools.lru_cache(maxsize=4)
def neck(index: int = 9, size: int = 112) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Image int16, truth labels uint8 and spacing of a phantom whose C1..C7 are whole."""
    study = make_study(7, index, size=size, scale=0.4)
    q = study.plan.acquisition
    return study.hu, study.labels, (q.spacing_mm, q.pixel_mm, q.pixel_mm)
