"""Masks back onto the images they were made from: the inverse of what reading did to the stored slices.

`cspine_jax.ct.read_mask` is the way there; a mask written here and read with it lands where it was, exactly where no
slice was made up, and within half a slice and half a pixel where the study was resampled.
"""

import gzip
from pathlib import Path

import nibabel
import numpy as np

from cspine_jax.ct import Volume

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

_SHEAR = 1e-3
"""Cosine between two axes from which a grid is sheared; a qform cannot say so."""


def to_stack(labels: np.ndarray, volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Labels on the grid of the files.

    Args:
        labels: uint8 [D, H, W] on the volume's grid.
        volume: the study.

    Returns:
        uint8 [n, rows, columns], the stack of images as stored (slices in spatial order), and its affine [4, 4]:
        index (slice, row, column, 1) -> LPS mm.
    """
    axes, flips = volume.turned
    back = np.argsort(axes)
    stack = labels[tuple(slice(None, None, -1 if flip else 1) for flip in flips)].transpose(back)
    if volume.resampling is not None:
        stack = _unsample(stack, volume)
    # Index (z, y, x) of the stored grid = turn @ index (slice, row, column).
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for output, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        turn[output, axis] = -1 if flip else 1
        turn[output, 3] = volume.stored_shape[output] - 1 if flip else 0
    return stack, volume.stored_affine @ turn


def write_mask(path: Path, labels: np.ndarray, volume: Volume) -> bool:
    """Writes labels as NIfTI on the grid of the files: axes (column, row, slice), affine to RAS mm in sform and qform.

    Args:
        path: `.nii.gz`.
        labels: uint8 [D, H, W] on the volume's grid, `anatomy.LABEL_NAMES`.
        volume: the study.

    Returns:
        Whether the grid is orthogonal. That of a tilted gantry is not: its sform is right, its qform is marked unknown,
        and viewers that go by the qform alone show it straight.
    """
    stack, affine = to_stack(labels, volume)
    ras = _LPS_TO_RAS @ affine @ np.eye(4)[[2, 1, 0, 3]]
    image = nibabel.Nifti1Image(stack.transpose(2, 1, 0), ras)  # type: ignore[attr-defined]
    image.header.set_xyzt_units("mm")
    unit = ras[:3, :3] / np.linalg.norm(ras[:3, :3], axis=0)
    orthogonal = bool(np.abs(unit.T @ unit - np.eye(3)).max() < _SHEAR)
    image.set_sform(ras, code=1)
    image.set_qform(ras, code=1 if orthogonal else 0, strip_shears=True)
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))
    return orthogonal


def _unsample(stack: np.ndarray, volume: Volume) -> np.ndarray:
    """Each stored slice from the nearest slice of the regular grid, its own shift taken back."""
    plan = volume.resampling
    assert plan is not None
    shape = [volume.stored_shape[axis] for axis in np.argsort(volume.turned[0])]
    out = np.zeros(shape, stack.dtype)
    nearest = np.rint(np.interp(np.arange(shape[0]), plan.source, np.arange(len(plan.source)))).astype(int)
    for k, source in enumerate(nearest):
        down, right = np.rint(plan.shift[k]).astype(int)
        part = stack[source, down : down + shape[1], right : right + shape[2]]
        out[k, : part.shape[0], : part.shape[1]] = part
    return out
