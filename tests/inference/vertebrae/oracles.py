"""Stand-ins for the two networks, made from truth masks: what perfect or seeded-wrong weights would answer."""

import functools

import numpy as np
from scipy import ndimage

from cspine_jax.ct import Volume
from cspine_jax.ct.regrid import regrid, regrid_labels
from cspine_jax.inference.vertebrae import COLOURS
from cspine_jax.inference.vertebrae.fine import crop_round
from cspine_jax.inference.vertebrae.grids import Grid, normalise, pack, regridded
from cspine_jax.inference.vertebrae.instances import find_instances
from cspine_jax.inference.vertebrae.order import name_instances
from cspine_jax.phantom.dataset import make_study

CLASSES = 20


def shares_of(labels: np.ndarray, spacing_mm) -> np.ndarray:
    """float32 [d, h, w, 20]: share of each value in the voxels of the packed 2 mm grid."""
    packed = pack(regrid_labels(labels, spacing_mm, 2.0), fill=0)
    return np.stack([(packed == value).mean(axis=-1) for value in range(CLASSES)], axis=-1).astype(np.float32)


def centroids(labels: np.ndarray, spacing_mm) -> dict[int, np.ndarray]:
    """Mm (z, y, x) from the centre of voxel (0, 0, 0), of each mask value that is there."""
    values = [int(v) for v in np.unique(labels) if v]
    found = ndimage.center_of_mass(np.ones_like(labels), labels, values)
    return {v: np.array(c) * spacing_mm for v, c in zip(values, found, strict=True)}


def coarse(labels: np.ndarray, spacing_mm, blur: float = 0.6) -> tuple[np.ndarray, np.ndarray, Grid]:
    """Probabilities [d, h, w, 20], offsets [d, h, w, 3] and the 4 mm grid of a study."""
    grid = regridded(labels.shape, spacing_mm, 2.0).packed()
    shares = shares_of(labels, spacing_mm)
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
    _, y, x = ndimage.find_objects((study.labels > 0).astype(np.uint8))[0]
    around = tuple(slice(max(side.start - 8, 0), side.stop + 8) for side in (y, x))  # small, and the spine whole
    hu, labels = (np.ascontiguousarray(array[:, around[0], around[1]]) for array in (study.hu, study.labels))
    return hu, labels, (q.spacing_mm, q.pixel_mm, q.pixel_mm)


def make_volume(labels: np.ndarray, spacing_mm, *, hu: np.ndarray | None = None) -> Volume:
    """A volume of the size of a mask. Its HU are noise, by which `Oracle` finds out what part of it it is shown."""
    if hu is None:
        hu = np.random.default_rng(0).integers(-150, 900, labels.shape).astype(np.int16)
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = -spacing_mm[0], spacing_mm[1], spacing_mm[2], 1
    affine[:3, 3] = 30, -20, 100
    depth = np.arange(len(labels))
    return Volume(
        hu=hu,
        spacing_mm=tuple(float(s) for s in spacing_mm),
        affine=affine,
        study_uid="1.2.3",
        series_uid="1.2.3.4",
        slice_numbers=(depth + 1).astype(np.int32),
        positions_mm=affine[:3, 3] + depth[:, None] * affine[:3, 0],
        stored_shape=labels.shape,
        stored_affine=affine,
    )


class Oracle:
    """Both networks for one study, right but for what `corrupt` does to the coarse probabilities and offsets."""

    def __init__(self, labels: np.ndarray, volume: Volume, corrupt=None):
        self.labels, self.volume = labels, volume
        probabilities, offsets, self.grid = coarse(labels, volume.spacing_mm)
        if corrupt:
            probabilities, offsets = corrupt(probabilities, offsets)
        self.logits, self.offsets = np.log(np.maximum(probabilities, 1e-9)), offsets
        self.windows = 0
        found = find_instances(probabilities, offsets, self.grid.spacing_mm)
        levels = np.concatenate(([-1], name_instances(found).levels))
        named = levels[found.index] >= 0
        if named.any():
            box, _ = crop_round(named, self.grid, volume)
            self.image = pack(normalise(regrid(volume.hu[box], volume.spacing_mm, 1.0)))
            truth = regrid_labels(colours_of(labels)[box], volume.spacing_mm, 1.0)
            truth = np.stack([truth == value for value in range(1 + COLOURS)], axis=-1).astype(np.float32)
            truth = ndimage.gaussian_filter(truth, (0.5, 0.5, 0.5, 0))
            self.colours = np.log(np.maximum(0.98 * truth + 0.005, 1e-9))

    def spine(self, image: np.ndarray) -> dict[str, np.ndarray]:
        shape = image.shape[1:4]
        assert image.shape == (1, *shape, 8) and all(n % 16 == 0 for n in shape)
        pad = [(0, a - b) for a, b in zip(shape, self.logits.shape, strict=False)]
        logits = np.pad(self.logits, [*pad, (0, 0)], mode="edge")
        return {"logits": logits[None], "offsets": np.pad(self.offsets, [*pad, (0, 0)])[None]}

    def refine(self, x: np.ndarray) -> dict[str, np.ndarray]:
        out = np.zeros((len(x), *(2 * n for n in x.shape[1:4]), 4), np.float32)
        out[..., 0] = 20
        for one, answer in zip(np.asarray(x), out, strict=True):
            assert one.shape[-1] == 11
            self.windows += 1
            start = np.argwhere((self.image == one[0, 0, 0, :8]).all(axis=-1))
            assert len(start) == 1, "the window is no part of the image"
            part = self.colours[tuple(slice(2 * s, 2 * (s + n)) for s, n in zip(start[0], one.shape[:3], strict=True))]
            answer[tuple(slice(n) for n in part.shape[:3])] = part
        return {"logits": out}
