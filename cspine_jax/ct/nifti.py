"""A CT volume in a NIfTI file -> `Volume`."""

import os
from pathlib import Path

import nibabel
import numpy as np

from cspine_jax.ct import geometry, limits
from cspine_jax.ct.volume import Volume
from cspine_jax.errors import StudyError

_DEFLATE_CEILING = 1_032
"""gzip packs no byte into less than 1/1032; memory is set aside only for what a file can hold."""

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def is_nifti(path: str | os.PathLike) -> bool:
    """Whether the name says NIfTI."""
    return os.fspath(path).lower().endswith((".nii", ".nii.gz"))


def load(path: str | os.PathLike, what: str) -> tuple[np.ndarray, tuple[float, float], np.ndarray]:
    """Loads a NIfTI file.

    Args:
        path: `.nii` or `.nii.gz`.
        what: what it should be, for messages.

    Returns:
        The array as stored, 3 axes; the slope and intercept that make it values; its affine [4, 4] to LPS mm.

    Raises:
        StudyError: the file is missing, damaged, of the wrong shape, or has no usable affine.
    """
    name = os.fspath(path)
    if not Path(name).is_file():
        raise StudyError(f"{name}: no such {what} file")
    try:
        image = nibabel.load(name)
        claimed = np.prod(image.shape, dtype=float)  # type: ignore[attr-defined]
        if claimed * 2 > limits.MAX_VOLUME_BYTES:
            raise StudyError(f"{name}: {image.shape} voxels exceed the limit; give one study")  # type: ignore[attr-defined]
        packed = _DEFLATE_CEILING if name.lower().endswith(".gz") else 1
        if claimed * image.get_data_dtype().itemsize > packed * Path(name).stat().st_size:  # type: ignore[attr-defined]
            raise StudyError(
                f"{name}: damaged or truncated: {Path(name).stat().st_size} bytes cannot hold {image.shape} voxels; "  # type: ignore[attr-defined]
                "copy it again"
            )
        data = np.asanyarray(image.dataobj.get_unscaled())  # type: ignore[attr-defined]
        scale = float(image.dataobj.slope), float(image.dataobj.inter)  # type: ignore[attr-defined]
        affine = np.asarray(image.affine, np.float64)  # type: ignore[attr-defined]
    except StudyError:
        raise
    except Exception as error:  # nibabel, zlib and the file system each have their own
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise StudyError(f"{name}: not a readable NIfTI file ({reason}); copy it again") from None
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        raise StudyError(f"{name}: {data.ndim} dimensions; a {what} has 3")
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise StudyError(f"{name}: its affine is not invertible; save it again with the study's geometry")
    return data, scale, _RAS_TO_LPS @ affine


def read_nifti(path: str | os.PathLike) -> Volume:
    """Reads a CT volume in HU.

    Args:
        path: `.nii` or `.nii.gz`; its name without suffix stands for the study's UID, slices are numbered 1, 2, ...
            from the head.

    Returns:
        The volume.

    Raises:
        StudyError: the file is no CT volume.
    """
    name = os.fspath(path)
    data, (slope, intercept), affine = load(path, "volume")
    if min(data.shape) < 2 or data.dtype.kind not in "iuf":
        raise StudyError(f"{name}: {data.shape} of {data.dtype}: no volume of numbers; convert the CT again")
    warnings: list[str] = []
    hu = np.empty(data.shape, np.int16)
    low, high = np.inf, -np.inf
    for index, plane in enumerate(data):  # plane by plane: a float volume takes four times the memory
        values = plane.astype(np.float64) * slope + intercept
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        if not np.isfinite(values).all():
            raise StudyError(f"{name}: holds values that are not numbers (NaN, infinity); convert the CT again")
        hu[index] = np.clip(np.rint(values), -32768, 32767)
    if low > -200:
        raise StudyError(f"{name}: lowest value {low:g}: no air in it, so no HU; convert the CT again without scaling")
    if low < -32768 or high > 32767:
        warnings.append("HU beyond the int16 range were clipped")
    axes, flips = geometry.to_axial(affine)
    turned = geometry.turned_affine(affine, data.shape, axes, flips)
    hu = geometry.turn(hu, axes, flips)
    spacing = np.linalg.norm(turned[:3, :3], axis=0)
    depth = hu.shape[0]
    return Volume(
        hu=hu,
        spacing_mm=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        affine=turned,
        study_uid=Path(name).name.split(".nii")[0],
        series_uid="",
        slice_numbers=np.arange(1, depth + 1, dtype=np.int32),
        positions_mm=turned[:3, 3] + np.arange(depth)[:, None] * turned[:3, 0],
        stored_shape=hu.shape,
        stored_affine=turned,
        warnings=tuple(warnings),
    )
