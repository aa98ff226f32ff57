"""The volume every room works on: HU in (z, y, x) order with the geometry that places it in the patient."""

import dataclasses
import functools
import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from cspine_jax.ct.quality import Quality


@dataclasses.dataclass(frozen=True, eq=False)
class Volume:
    """A CT series as one array.

    Attributes:
        hu: int16 [D, H, W] Hounsfield units; superior slice first, rows towards posterior, columns towards the
            patient's left.
        spacing_mm: voxel size (z, y, x) in mm; z from the slice positions, never from SliceThickness.
        affine: float64 [4, 4]; maps voxel index (z, y, x, 1) to LPS millimetres (x, y, z, 1).
        study_uid: StudyInstanceUID.
        series_uid: SeriesInstanceUID of the series that was read.
        slice_numbers: int32 [D]; k of `k.dcm` (else InstanceNumber), so that bounding boxes find their slice;
            -1 where no single file holds the slice (interpolated, or not acquired axially).
        positions_mm: float64 [D, 3]; centre of the first voxel of each slice in LPS mm (ImagePositionPatient where
            the acquisition is axial).
        thickness_mm: SliceThickness as the header says, None where absent. Not the spacing.
        kernel: ConvolutionKernel, "" where absent.
        contrast_agent: whether the header names one; None where the container cannot tell.
        transfer_syntax: transfer syntax UID of the first slice, "" for other containers.
        stored_shape: shape in (z, y, x) order of what the files hold; `shape` where nothing was resampled.
        stored_affine: its affine; `affine` where nothing was resampled.
        turned: how the stack of images (slice, row, column) became (z, y, x): the stack axis of each, and which are
            reversed.
        resampling: how the stored slices were brought onto the regular grid; None where every voxel is as stored.
        warnings: what a careful reader would want to know, one line each.
    """

    hu: np.ndarray
    spacing_mm: tuple[float, float, float]
    affine: np.ndarray
    study_uid: str
    series_uid: str
    slice_numbers: np.ndarray
    positions_mm: np.ndarray
    thickness_mm: float | None = None
    kernel: str = ""
    contrast_agent: bool | None = None
    transfer_syntax: str = ""
    turned: tuple[tuple[int, int, int], tuple[bool, bool, bool]] = ((0, 1, 2), (False, False, False))
    resampling: "Resampling | None" = None
    stored_shape: tuple[int, int, int] = (0, 0, 0)
    stored_affine: np.ndarray = dataclasses.field(default_factory=lambda: np.eye(4))
    warnings: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W)."""
        return self.hu.shape  # type: ignore[return-value]

    @functools.cached_property
    def quality(self) -> "Quality":
        """Measurements and verdict of the quality gate."""
        from cspine_jax.ct.quality import assess  # it needs this module

        return assess(self)

    @functools.cached_property
    def content(self) -> str:
        """32 hex digits that tell one volume from another: of its HU and where they lie, whatever its UIDs say."""
        digest = hashlib.blake2b(np.ascontiguousarray(self.hu).data, digest_size=16)
        digest.update(np.round(self.affine, 4).tobytes())
        return digest.hexdigest()

    @property
    def extent_mm(self) -> float:
        """Distance from the first to the last slice centre."""
        return float(np.linalg.norm(self.affine[:3, 0])) * (self.shape[0] - 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Resampling:
    """How a stored stack [n, rows, columns] becomes a regular one [D, H, W].

    Linear along the stack, and a shift of each slice in its plane.

    Attributes:
        source: float64 [D]; position of each output slice in the stored stack (3.25 lies between slices 3 and 4).
        shift: float64 [n, 2]; (row, column) pixels by which each stored slice moves on the output canvas.
        shape: (D, H, W) of the output, before the axes are turned to (z, y, x).
        gaps: one line for each gap that is not the nominal spacing.
        tilt_degrees: angle between the slice normal and the direction in which the slices advance.
    """

    source: np.ndarray
    shift: np.ndarray
    shape: tuple[int, int, int]
    gaps: tuple[str, ...] = ()
    tilt_degrees: float = 0.0
