"""A CT volume in a NIfTI file -> `Volume`."""

import dataclasses
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError

from cspine_jax.ct import geometry, limits
from cspine_jax.ct.volume import Volume
from cspine_jax.errors import StudyError

_DEFLATE_CEILING = 1_032
"""gzip packs no byte into less than 1/1032; memory is set aside only for what a file can hold."""

MOST_SHEAR_DEGREES = 1.0
"""A volume whose axes are further from right angles is refused."""

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def is_nifti(path: str | os.PathLike) -> bool:
    """Whether the name says NIfTI."""
    return os.fspath(path).lower().endswith((".nii", ".nii.gz"))


@dataclasses.dataclass(frozen=True)
class Image:
    """A NIfTI file whose header is read and sound.

    Attributes:
        name: the file.
        shape: of its three axes.
        dtype: of a stored value.
        offset: of the first value in the (inflated) file.
        scale: slope and intercept that make a stored value a value.
        affine: [4, 4] index -> LPS mm.
        oriented: whether the header says where the axes point.
        warnings: one line each.
    """

    name: str
    shape: tuple[int, int, int]
    dtype: np.dtype
    offset: int
    scale: tuple[float, float]
    affine: np.ndarray
    oriented: bool
    warnings: tuple[str, ...]

    def planes(self) -> Iterator[np.ndarray]:
        """Yields the stored planes [first axis, second axis] along the third, one in memory at a time.

        Raises:
            StudyError: the file is truncated or damaged.
        """
        size = self.shape[0] * self.shape[1] * self.dtype.itemsize
        try:
            with ImageOpener(self.name) as file:
                file.seek(self.offset)
                for index in range(self.shape[2]):
                    data = file.read(size)
                    if len(data) < size:
                        raise StudyError(
                            f"{self.name}: not a readable NIfTI file: truncated in plane {index + 1} of "
                            f"{self.shape[2]}; copy it again"
                        )
                    yield np.frombuffer(data, self.dtype).reshape(self.shape[:2], order="F")
        except (OSError, EOFError, zlib.error) as error:
            raise _unreadable(self.name, error) from None


def open_image(path: str | os.PathLike, what: str) -> Image:
    """Reads the header of a NIfTI file.

    Args:
        path: `.nii` or `.nii.gz`.
        what: what it should be, for messages.

    Returns:
        The image, nothing of its values read yet.

    Raises:
        StudyError: the file is missing, damaged, of the wrong shape, or has no usable affine.
    """
    name = os.fspath(path)
    if not Path(name).is_file():
        raise StudyError(f"{name}: no such {what} file")
    try:
        image: Any = nibabel.load(name)
        shape, dtype = tuple(image.shape), image.dataobj.dtype
        scale = float(image.dataobj.slope), float(image.dataobj.inter)
        affine = np.asarray(image.affine, np.float64)
        offset = int(image.dataobj.offset)
        unit = image.header.get_xyzt_units()[0] if hasattr(image.header, "get_xyzt_units") else "mm"
        forms = [form for form in (_form(image, "sform"), _form(image, "qform")) if form is not None]
    except Exception as error:  # nibabel, zlib and the file system each have their own
        raise _unreadable(name, error) from None
    if unit not in ("mm", "unknown"):
        raise StudyError(f"{name}: its lengths are in {unit}; save it in mm")
    if dtype.kind not in "iufb":
        raise StudyError(f"{name}: {'colours' if dtype.names else dtype}: no {what} of numbers; convert it again")
    claimed = float(np.prod(shape, dtype=float))
    if claimed * 2 > limits.MAX_VOLUME_BYTES:
        raise StudyError(f"{name}: {shape} voxels exceed the limit; give one study")
    packed, there = _DEFLATE_CEILING if name.lower().endswith(".gz") else 1, Path(name).stat().st_size
    if claimed * dtype.itemsize > packed * there:
        raise StudyError(f"{name}: damaged or truncated: {there} bytes cannot hold {shape} voxels; copy it again")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        raise StudyError(f"{name}: {len(shape)} dimensions {shape}; a {what} has 3")
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise StudyError(f"{name}: its affine is not invertible; save it again with the study's geometry")
    notes = () if len(forms) < 2 else _compare_forms(name, forms[0], forms[1])
    return Image(name, shape, dtype, offset, scale, _RAS_TO_LPS @ affine, bool(forms), notes)


def load(path: str | os.PathLike, what: str) -> tuple[np.ndarray, tuple[float, float], np.ndarray]:
    """Loads a NIfTI file whole.

    Args:
        path: `.nii` or `.nii.gz`.
        what: what it should be, for messages.

    Returns:
        The array as stored, 3 axes; the slope and intercept that make it values; its affine [4, 4] to LPS mm.

    Raises:
        StudyError: the file is missing, damaged, of the wrong shape, or has no usable affine.
    """
    image = open_image(path, what)
    data = np.empty(image.shape, image.dtype, order="F")
    for index, plane in enumerate(image.planes()):
        data[:, :, index] = plane
    return data, image.scale, image.affine


def _form(image: Any, which: str) -> np.ndarray | None:
    """One of the two affines a header may carry; None where it is not set or damaged."""
    try:
        affine, code = getattr(image.header, f"get_{which}")(coded=True)
    except (AttributeError, ValueError, HeaderDataError):
        return None
    return affine if code and affine is not None and np.isfinite(affine).all() else None


def _compare_forms(name: str, sform: np.ndarray, qform: np.ndarray) -> tuple[str, ...]:
    """Refuses two forms whose axes point elsewhere; a warning where only the place differs."""
    with np.errstate(all="ignore"):
        first, second = (form[:3, :3] / np.linalg.norm(form[:3, :3], axis=0) for form in (sform, qform))
        cosine = float(np.min((first * second).sum(axis=0)))
    if not cosine > np.cos(np.radians(5)):
        axes = ["".join(str(code) for code in nibabel.aff2axcodes(form)) for form in (sform, qform)]
        raise StudyError(
            f"{name}: its sform and qform disagree on where the axes point ({axes[0]} and {axes[1]}); save it with one "
            "of them"
        )
    off = float(np.linalg.norm(sform[:3, 3] - qform[:3, 3]))
    voxel = float(np.linalg.norm(sform[:3, :3], axis=0).min())
    return (f"sform and qform place it {off:.3g} mm apart: the sform was taken",) if off > voxel else ()


def _unreadable(name: str, error: Exception) -> StudyError:
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return StudyError(f"{name}: not a readable NIfTI file ({reason}); copy it again")


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
    image = open_image(path, "volume")
    name, affine = image.name, image.affine
    slope, intercept = image.scale
    if min(image.shape) < 2:
        raise StudyError(f"{name}: {image.shape} voxels: no volume; convert the CT again")
    if not image.oriented:
        raise StudyError(f"{name}: neither sform nor qform: left and right are unknown; convert the CT again")
    unit = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    shear = np.degrees(np.arcsin(min(np.abs(unit.T @ unit - np.eye(3)).max(), 1.0)))
    if shear > MOST_SHEAR_DEGREES:
        raise StudyError(
            f"{name}: its axes are sheared by {shear:.1f} degrees (gantry tilt); give the DICOM files, or resample it"
        )
    warnings = list(image.warnings)
    hu = np.empty(image.shape, np.int16, order="F")
    low, high = np.inf, -np.inf
    for index, plane in enumerate(image.planes()):
        with np.errstate(all="ignore"):  # what overflows is not finite, and refused
            values = plane.astype(np.float64) * slope + intercept
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        if not np.isfinite(values).all():
            raise StudyError(f"{name}: holds values that are not numbers (NaN, infinity); convert the CT again")
        hu[:, :, index] = np.clip(np.rint(values), -32768, 32767)
    if low > limits.MOST_AIR_HU:
        raise StudyError(f"{name}: lowest value {low:g}: no air in it, so no HU; convert the CT again without scaling")
    if low < -32768 or high > 32767:
        warnings.append("HU beyond the int16 range were clipped")
    axes, flips = geometry.to_axial(affine)
    turned = geometry.turned_affine(affine, hu.shape, axes, flips)
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
