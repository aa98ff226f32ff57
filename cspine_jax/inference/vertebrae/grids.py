"""Coarser grids over a volume: where their voxels lie, packing of 2 x 2 x 2 voxels into channels, mirror images."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from cspine_jax.ct.regrid import target_length
from cspine_jax.inference.vertebrae import AIR


def normalise(hu: np.ndarray) -> np.ndarray:
    """HU -> what both networks are trained on: clip((hu + 200) / 1200, -0.4, 1.6), float32."""
    return np.clip((hu.astype(np.float32) + np.float32(200)) / np.float32(1200), np.float32(-0.4), np.float32(1.6))


PADDING = float(normalise(np.array(AIR))[()])
"""Air as the networks see it: what lies outside the volume."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """A grid over a volume, its axes parallel to the volume's.

    Attributes:
        shape: voxels (z, y, x).
        origin: voxel index in the volume at which the centre of voxel (0, 0, 0) lies.
        step: distance of its voxels, in voxels of the volume.
        spacing_mm: the same in mm.
    """

    shape: tuple[int, int, int]
    origin: tuple[float, float, float]
    step: tuple[float, float, float]
    spacing_mm: tuple[float, float, float]

    def to_volume(self, index: ArrayLike) -> np.ndarray:
        """[..., 3] indices of this grid -> of the volume."""
        return np.asarray(self.origin) + np.asarray(index) * np.asarray(self.step)

    def from_volume(self, index: ArrayLike) -> np.ndarray:
        """[..., 3] indices of the volume -> of this grid."""
        return (np.asarray(index) - np.asarray(self.origin)) / np.asarray(self.step)

    def packed(self) -> "Grid":
        """The grid of `pack`ed voxels: half as many, the centre of each between the two it holds."""
        return Grid(
            tuple(-(-n // 2) for n in self.shape),  # type: ignore[arg-type]
            tuple(o + 0.5 * s for o, s in zip(self.origin, self.step, strict=True)),  # type: ignore[arg-type]
            tuple(2 * s for s in self.step),  # type: ignore[arg-type]
            tuple(2 * s for s in self.spacing_mm),  # type: ignore[arg-type]
        )


def regridded(
    shape: Sequence[int], spacing_mm: Sequence[float], target_mm: float, start: Sequence[int] = (0, 0, 0)
) -> Grid:
    """The grid that `cspine_jax.ct.regrid.regrid` resamples to: ceil(n s / t) voxels, concentric with the input.

    Args:
        shape: of the array that is resampled.
        spacing_mm: its voxel size.
        target_mm: voxel size of the result.
        start: voxel of the volume at which the array begins.
    """
    out = [target_length(n, s, target_mm) for n, s in zip(shape, spacing_mm, strict=True)]
    step = [target_mm / s for s in spacing_mm]
    origin = [begin + (n - 1) / 2 - (m - 1) / 2 * b for begin, n, m, b in zip(start, shape, out, step, strict=True)]
    return Grid(tuple(out), tuple(origin), tuple(step), (target_mm,) * 3)  # type: ignore[arg-type]


def pack(image: np.ndarray, fill: float = PADDING) -> np.ndarray:
    """Space to depth: [D, H, W] -> [ceil(D / 2), ceil(H / 2), ceil(W / 2), 8].

    Channel 4 dz + 2 dy + dx holds voxel (2 z + dz, 2 y + dy, 2 x + dx); odd sides are padded at their end.
    """
    image = np.pad(image, [(0, n % 2) for n in image.shape], constant_values=fill)
    d, h, w = (n // 2 for n in image.shape)
    return image.reshape(d, 2, h, 2, w, 2).transpose(0, 2, 4, 1, 3, 5).reshape(d, h, w, 8)


def unpack(packed: np.ndarray) -> np.ndarray:
    """Depth to space, the inverse of `pack`: [d, h, w, 8] -> [2 d, 2 h, 2 w]."""
    d, h, w, _ = packed.shape
    return packed.reshape(d, h, w, 2, 2, 2).transpose(0, 3, 1, 4, 2, 5).reshape(2 * d, 2 * h, 2 * w)


def mirror_packed(x: np.ndarray) -> np.ndarray:
    """Left-right mirror image of [..., w, 8 + n]: the packed columns change places, further channels stay."""
    order = np.array([channel ^ 1 if channel < 8 else channel for channel in range(x.shape[-1])])
    return x[..., ::-1, :][..., order]


def mirrored_spine(spine):
    """A `spine` network that answers the mean of an image and its mirror image.

    Args:
        spine: image [B, d, h, w, 8] -> {"logits" [B, d, h, w, 20], "offsets" [B, d, h, w, 3] in mm (z, y, x)}.

    Returns:
        A function of the same form; the mirrored x offsets change sign. Logits are averaged.
    """

    def answer(image):
        straight, mirrored = spine(image), spine(mirror_packed(image))
        back = mirrored["offsets"][..., ::-1, :] * np.array([[[[[1, 1, -1]]]]], np.float32)
        return {
            "logits": 0.5 * (straight["logits"] + mirrored["logits"][..., ::-1, :]),
            "offsets": 0.5 * (straight["offsets"] + back),
        }

    return answer


def mirrored_refine(refine):
    """A `refine` network that answers the mean logits of its input and its mirror image."""

    def answer(x):
        straight, mirrored = refine(x)["logits"], refine(mirror_packed(x))["logits"]
        return {"logits": 0.5 * (straight + mirrored[..., ::-1, :])}

    return answer
