"""Bone onto the canvas: cortical shell, textured trabecular inside, clefts, labels; partial volume throughout."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from cspine_jax.phantom.field import Box, Field, Grid
from cspine_jax.phantom.noise import Texture
from cspine_jax.phantom.shapes import Part

BLOOD_HU = np.float32(60.0)


@dataclasses.dataclass(frozen=True)
class Canvas:
    """The volumes being painted, [D, H, W] each: `hu` float32, `labels` and `fractures` uint8."""

    grid: Grid
    hu: np.ndarray
    labels: np.ndarray
    fractures: np.ndarray


@dataclasses.dataclass(frozen=True)
class Marrow:
    """What a person's bone is made of: HU of compact and trabecular bone, and the two textures."""

    cortical: float
    trabecular: float
    grain: Texture
    surface: Texture
    uneven: float = 0.0
    """Slow unevenness of the surface in mm, for bones built from few large shapes (the skull)."""


class Mark(Protocol):
    """Something that changes bone locally after its shape is known: a fracture's cleft or a mimic."""

    @property
    def fracture(self) -> bool:
        """Whether what it covers belongs to the ground truth."""
        ...

    def change(self, points: np.ndarray, width: float, bone: np.ndarray, weight: np.ndarray) -> np.ndarray | None:
        """Alters `bone` (HU times occupancy, [n]) in place at local `points` [3, n]; returns its share of each."""
        ...


def _to_slices(field: Field, index: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int], Box]:
    """Flat indices in a field -> flat indices in its box of the acquisition grid, that box' shape, and the box."""
    sub = field.grid.sub
    d, h, w = field.distance.shape
    box = (slice(field.box[0].start // sub, field.box[0].stop // sub), field.box[1], field.box[2])
    if sub > 1:
        plane = index // (h * w)
        index = index - (plane - plane // sub) * (h * w)
    return index, (d // sub, h, w), box


def _gather(index: np.ndarray, values: np.ndarray, shape: tuple[int, int, int], sub: int) -> np.ndarray:
    """Sub-plane values averaged into slices, float32 of `shape`."""
    if sub == 1:
        out = np.zeros(shape, np.float32)
        out.ravel()[index] = values
        return out
    total = np.bincount(index, values, minlength=shape[0] * shape[1] * shape[2])
    return (total * (1 / sub)).astype(np.float32).reshape(shape)


def paint_bone(canvas: Canvas, field: Field, marrow: Marrow, label: int = 0, marks: Sequence[Mark] = ()) -> None:
    """Paints a finished distance field.

    Args:
        canvas: volumes to paint on.
        field: the bone.
        marrow: its substance.
        label: mask value, 0 for bones that are not vertebrae.
        marks: fractures and mimics, in order.
    """
    width = canvas.grid.width / np.float32(field.frame.scale)
    index = np.flatnonzero(field.distance < width / 2 + 0.6 + 2 * marrow.uneven)
    if not index.size:
        return
    x, y, z, d, shell = (v.ravel()[index] for v in (field.x, field.y, field.z, field.distance, field.shell))
    rough = marrow.surface(x, y, z)
    d = d + 0.22 * rough
    if marrow.uneven:
        d += np.float32(marrow.uneven) * marrow.surface(0.3 * x, 0.3 * y, 0.3 * z)
    shell = shell * (1 - 0.22 * marrow.surface(x + 17.0, y, z))
    weight = np.clip(0.5 - d / width, 0, 1)
    core = np.clip(0.5 - (d + shell) / width, 0, 1)
    depth = np.maximum(-(d + shell), 0)
    # Trabeculae are denser under the shell and uneven throughout.
    grain = marrow.grain(x, y, z)
    spongy = marrow.trabecular * (0.45 + 0.3 * grain + 1.0 * np.minimum(shell, 1.5)) + 0.3 * marrow.cortical * np.exp(
        -depth / 0.9
    )
    compact = marrow.cortical * (1 + 0.05 * grain + 0.1 * rough)
    bone = compact * (weight - core) + np.maximum(spongy, -20) * core

    target, shape, box = _to_slices(field, index)
    sub = canvas.grid.sub
    for mark in marks:
        cover = mark.change(np.stack([x, y, z]), float(width), bone, weight)
        if mark.fracture and cover is not None:
            _record(canvas.fractures[box], _gather(target, cover * weight, shape, sub), label)
    occupied = _gather(target, weight, shape, sub)
    hu = canvas.hu[box]
    hu *= 1 - occupied
    hu += _gather(target, bone, shape, sub)
    if label:
        canvas.labels[box][occupied > 0.5] = label


def _record(fractures: np.ndarray, cover: np.ndarray, level: int) -> None:
    """Marks the voxels of a cleft: those it fills noticeably, the best it has where it is finer than a voxel."""
    best = float(cover.max(initial=0.0))
    if best > 0:
        fractures[cover > min(0.25, 0.5 * best)] = level


def paint_soft(canvas: Canvas, field: Field, part: Part, hu: float, *, only_air: bool = False) -> None:
    """Paints a plain solid of soft tissue given in a bone's frame (a disc, the brain), or only its part in air."""
    box = field.within(part.low, part.high)
    if box is None:
        return
    distance = part.distance(field.x[box], field.y[box], field.z[box])
    weight = np.clip(0.5 - distance * np.float32(field.frame.scale / canvas.grid.width), 0, 1)
    sub = canvas.grid.sub
    if sub > 1:
        z0, z1 = (box[0].start // sub), -(-box[0].stop // sub)
        padded = np.zeros(((z1 - z0) * sub, *weight.shape[1:]), np.float32)
        padded[box[0].start - z0 * sub : box[0].stop - z0 * sub] = weight
        weight = padded.reshape(z1 - z0, sub, *weight.shape[1:]).mean(axis=1)
    else:
        z0, z1 = box[0].start, box[0].stop
    offset = [s.start for s in field.box]
    target = canvas.hu[
        offset[0] // sub + z0 : offset[0] // sub + z1,
        offset[1] + box[1].start : offset[1] + box[1].stop,
        offset[2] + box[2].start : offset[2] + box[2].stop,
    ]
    if only_air:
        weight = weight * (target < -400)
    target += weight * (np.float32(hu) - target)
