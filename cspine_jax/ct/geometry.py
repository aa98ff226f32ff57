"""Headers of one series -> an ordered stack: slice order, duplicates, gaps, tilt, and the affine.

All vectors are LPS mm. The stack's array axes are (slice, row, column): rows advance along the second half of
ImageOrientationPatient, columns along the first (DICOM PS3.3, C.7.6.2.1.1).
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from cspine_jax.ct.headers import SliceHeader
from cspine_jax.errors import StudyError

SAME_PLACE_MM = 0.005
"""Slices closer together than this lie at the same place."""

UNEVEN = 0.1
"""A slice further than this share of the spacing from its place on a regular grid makes the stack uneven."""

ROUNDING_MM = 0.06
"""Positions are written with one decimal at times: a slice this close to its place is in it."""

FARTHEST_MM = 1e5
"""No position lies further from the scanner's centre."""

DRIFT_PX = 0.5
"""Slices that move sideways further than this across the stack are tilted."""

# Array axes (z, y, x) of a volume advance towards the feet, the back and the left of the patient.
_TARGET = np.array([[0.0, 0.0, -1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])


@dataclasses.dataclass(frozen=True, eq=False)
class Stack:
    """Images in spatial order.

    Attributes:
        headers: one a slice, in the order of the stack axis.
        duplicates: (index in `headers`, image at the same place); to be compared by their pixels.
        positions: float64 [n, 3]; centre of each slice's first pixel.
        depths: float64 [n]; distance of each slice from the first along the slice normal, increasing.
        drift: float64 [n, 2]; (row, column) pixels by which each slice lies off the first one's normal.
        directions: float64 [3, 3]; unit vectors of the (slice, row, column) axes, the first along the normal.
        pixel_mm: (row, column) spacing.
        warnings: one line each.
    """

    headers: tuple[SliceHeader, ...]
    duplicates: tuple[tuple[int, SliceHeader], ...]
    positions: np.ndarray
    depths: np.ndarray
    drift: np.ndarray
    directions: np.ndarray
    pixel_mm: tuple[float, float]
    warnings: tuple[str, ...]

    @property
    def spacing_mm(self) -> float:
        """Mean distance between slices along the normal."""
        return float(self.depths[-1]) / (len(self.depths) - 1)

    @property
    def even(self) -> bool:
        """Whether every slice lies on a regular grid, rounding of the positions apart."""
        index = np.arange(len(self.depths))
        slope, start = np.polyfit(index, self.depths, 1)
        return bool(np.abs(self.depths - start - slope * index).max() <= max(UNEVEN * self.spacing_mm, ROUNDING_MM))

    @property
    def tilted(self) -> bool:
        """Whether the slices move sideways as they advance (gantry tilt, or a table that rose)."""
        return bool(np.ptp(self.drift, axis=0).max() > DRIFT_PX)

    @property
    def tilt_degrees(self) -> float:
        """Angle between the slice normal and the direction in which the slices advance."""
        step = self.positions[-1] - self.positions[0]
        along = abs(float(step @ self.directions[0]))
        return float(np.degrees(np.arctan2(np.sqrt(max(step @ step - along**2, 0.0)), along)))

    @property
    def affine(self) -> np.ndarray:
        """Float64 [4, 4]: (slice, row, column, 1) index -> LPS mm, with the stack's own direction of advance."""
        affine = np.eye(4)
        affine[:3, 0] = (self.positions[-1] - self.positions[0]) / (len(self.positions) - 1)
        affine[:3, 1] = self.directions[1] * self.pixel_mm[0]
        affine[:3, 2] = self.directions[2] * self.pixel_mm[1]
        affine[:3, 3] = self.positions[0]
        return affine


def arrange(headers: Sequence[SliceHeader], where: str) -> Stack:
    """Orders the images of one series along their normal.

    The stack runs towards the feet (axial), the back (coronal) or the left (sagittal), as the volume will.

    Args:
        headers: images of one series, in any order.
        where: the study's folder, for messages.

    Returns:
        The ordered stack without duplicates.

    Raises:
        StudyError: sizes, spacings or orientations differ, the geometry is impossible, or there is but one slice.
    """
    notes: list[str] = []
    _same_shape(headers)
    pixel_mm = _pixel_spacing(headers)
    directions = _directions(headers, where, notes)
    positions = _positions(headers, directions[0], where, notes)
    if positions.size and not np.abs(positions).max() < FARTHEST_MM:
        worst = int(np.abs(positions).max(axis=1).argmax())
        raise StudyError(
            f"{headers[worst].name}: ImagePositionPatient {_triple(positions[worst])}: beyond 100 m; export it again"
        )
    axis = int(np.abs(directions[0]).argmax())
    if directions[0][axis] * (-1 if axis == 2 else 1) < 0:
        directions[0] = -directions[0]
    depths = positions @ directions[0]
    # Of repeated images the one with a numbered name is kept: bounding boxes refer to it.
    order = sorted(range(len(headers)), key=lambda i: (round(depths[i], 4), *_age(headers[i])))
    kept: list[int] = []
    duplicates: list[tuple[int, SliceHeader]] = []
    for index in order:
        if kept and depths[index] - depths[kept[-1]] < SAME_PLACE_MM:
            duplicates.append((len(kept) - 1, headers[index]))
            if np.abs(positions[index] - positions[kept[-1]]).max() > min(pixel_mm):
                raise StudyError(
                    f"{headers[index].name}: in one plane with {headers[kept[-1]].name} but at another position; "
                    "remove one of the two"
                )
        else:
            kept.append(index)
    if len(kept) < 2:
        raise StudyError(f"{where}: all {len(headers)} images lie at one position; a study needs at least 2 slices")
    positions, depths = positions[kept], depths[kept] - depths[kept[0]]
    offset = positions - positions[0] - depths[:, None] * directions[0]
    drift = np.stack((offset @ directions[1] / pixel_mm[0], offset @ directions[2] / pixel_mm[1]), axis=1)
    return Stack(
        headers=tuple(headers[index] for index in kept),
        duplicates=tuple(duplicates),
        positions=positions,
        depths=depths,
        drift=drift,
        directions=directions,
        pixel_mm=pixel_mm,
        warnings=tuple(notes),
    )


def to_axial(affine: np.ndarray) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """How to turn an array's axes to (z, y, x): superior first, then anterior first, then right first.

    Args:
        affine: [4, 4] array index -> LPS mm.

    Returns:
        For each output axis, the input axis it comes from, and whether that axis is reversed.
    """
    unit = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    along = _TARGET @ unit  # [output axis, input axis]
    axes = max(itertools.permutations(range(3)), key=lambda order: sum(abs(along[i, order[i]]) for i in range(3)))
    return axes, tuple(bool(along[i, axes[i]] < 0) for i in range(3))  # type: ignore[return-value]


def turned_affine(affine: np.ndarray, shape: Sequence[int], axes: Sequence[int], flips: Sequence[bool]) -> np.ndarray:
    """The affine after axes were permuted and then reversed.

    Args:
        affine: [4, 4] of the array before.
        shape: its shape.
        axes: input axis of each output axis.
        flips: which output axes are reversed.

    Returns:
        float64 [4, 4] of the array after.
    """
    turned = np.eye(4)
    turned[:3, 3] = affine[:3, 3]
    for output, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        turned[:3, output] = -affine[:3, axis] if flip else affine[:3, axis]
        if flip:
            turned[:3, 3] += affine[:3, axis] * (shape[axis] - 1)
    return turned


def turn(array: np.ndarray, axes: Sequence[int], flips: Sequence[bool]) -> np.ndarray:
    """Permutes, then reverses axes; a contiguous copy only where something moves."""
    turned = array.transpose(axes)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    return np.ascontiguousarray(turned)


def _same_shape(headers: Sequence[SliceHeader]) -> None:
    shapes = [(header.rows, header.columns) for header in headers]
    usual = max(set(shapes), key=lambda shape: (shapes.count(shape), shape))
    for header, shape in zip(headers, shapes, strict=True):
        if shape != usual:
            raise StudyError(
                f"{header.name}: {shape[0]} x {shape[1]} pixels but the series has {usual[0]} x {usual[1]}; "
                "remove it or choose another series"
            )


def _pixel_spacing(headers: Sequence[SliceHeader]) -> tuple[float, float]:
    first = headers[0].spacing
    for header in headers:
        if header.spacing is None:
            raise StudyError(
                f"{header.name}: PixelSpacing is missing (ImagerPixelSpacing is the detector's): sizes in mm are "
                "unknown; export the study again"
            )
        if not all(0.01 <= side <= 100 for side in header.spacing):
            raise StudyError(f"{header.name}: PixelSpacing {header.spacing}: must be 0.01 to 100 mm; export again")
        if first is not None and not np.allclose(header.spacing, first, rtol=1e-3):
            raise StudyError(
                f"{header.name}: PixelSpacing {header.spacing} mm but {headers[0].name} has {first}; "
                "remove it or choose another series"
            )
    assert first is not None
    return first


def _directions(headers: Sequence[SliceHeader], where: str, notes: list[str]) -> np.ndarray:
    """Unit vectors [3, 3] of normal, row axis (down the rows) and column axis (along the columns)."""
    missing = [header for header in headers if header.orientation is None]
    if len(missing) == len(headers):
        notes.append("ImageOrientationPatient is missing: taken as plain axial; left and right cannot be verified")
        return np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    if missing:
        raise StudyError(
            f"{missing[0].name}: ImageOrientationPatient is missing, other slices have it; export it again"
        )
    cosines = np.array([header.orientation for header in headers], float)  # [n, 6]
    usual = np.median(cosines, axis=0)
    worst = int(np.abs(cosines - usual).max(axis=1).argmax())
    if np.abs(cosines[worst] - usual).max() > 1e-3:
        raise StudyError(
            f"{headers[worst].name}: ImageOrientationPatient {_triple(cosines[worst])} differs from the other slices; "
            "remove it or choose another series"
        )
    along_columns, along_rows = usual[:3], usual[3:]
    lengths = np.linalg.norm(along_columns), np.linalg.norm(along_rows)
    if not np.allclose(lengths, 1, atol=0.05) or abs(along_columns @ along_rows) > 0.02:
        raise StudyError(
            f"{headers[0].name}: ImageOrientationPatient {_triple(usual)}: must be two perpendicular unit vectors; "
            "export the study again"
        )
    along_columns = along_columns / lengths[0]
    along_rows = along_rows - along_columns * (along_rows @ along_columns)
    along_rows = along_rows / np.linalg.norm(along_rows)
    return np.stack((np.cross(along_columns, along_rows), along_rows, along_columns))


def _positions(headers: Sequence[SliceHeader], normal: np.ndarray, where: str, notes: list[str]) -> np.ndarray:
    """Float64 [n, 3]; where ImagePositionPatient is missing, from SliceLocation, then from InstanceNumber."""
    missing = [header for header in headers if header.position is None]
    if not missing:
        return np.array([header.position for header in headers], float)
    for what, key in (("SliceLocation", lambda header: header.location), ("InstanceNumber", _instance)):
        keys = [key(header) for header in headers]
        if None in keys or len(set(keys)) < len(keys):
            continue
        keys = np.array(keys, float)
        known = np.array([header.position is not None for header in headers])
        found = np.array([header.position or (0.0, 0.0, 0.0) for header in headers], float)
        if known.sum() >= 2:
            line = np.polynomial.polynomial.polyfit(keys[known], found[known], 1)  # [2, 3]
            on_line = line[0] + keys[:, None] * line[1]
            off = np.abs(on_line - found)[known].max()
            if off > max(UNEVEN * float(np.linalg.norm(line[1])), ROUNDING_MM):
                continue  # the others do not follow it: the missing ones need not either
            found[~known] = on_line[~known]
            notes.append(f"ImagePositionPatient is missing in {len(missing)} slice(s): placed by {what}")
            return found
        if known.any():
            continue
        if what == "SliceLocation":
            notes.append(
                "ImagePositionPatient is missing: slices ordered by SliceLocation, taken to rise towards the head"
            )
            return keys[:, None] * np.array([[0.0, 0.0, 1.0]]) if abs(normal[2]) > 0.7 else keys[:, None] * normal
        thickness = headers[0].thickness
        if not thickness or thickness <= 0:
            raise StudyError(
                f"{missing[0].name}: neither ImagePositionPatient nor SliceThickness: slice spacing is unknown; "
                "export the study again"
            )
        notes.append(
            "ImagePositionPatient is missing: slices ordered by InstanceNumber and spaced by SliceThickness, the first "
            "taken as the one nearest the head"
        )
        down = -normal if normal[int(np.abs(normal).argmax())] > 0 else normal
        return keys[:, None] * thickness * down
    raise StudyError(
        f"{missing[0].name}: ImagePositionPatient is missing, and neither SliceLocation nor InstanceNumber orders the "
        f"slices of {where}; export the study again"
    )


def _age(header: SliceHeader) -> tuple:
    """Which of repeated images is the first."""
    return header.number is None, header.entry.name, header.frame or 0


def _instance(header: SliceHeader) -> int | None:
    return header.number if header.instance is None else header.instance


def slice_numbers(headers: Sequence[SliceHeader]) -> np.ndarray:
    """int32 [n]: k of `k.dcm` where every file is named so, else InstanceNumber, else -1.

    A frame of a multi-frame image has its frame number, counted from 1 and on through the parts of a concatenation;
    -1 where several files count their frames each for itself.
    """
    if any(header.frame is not None for header in headers):
        numbers = [header.instance or -1 for header in headers]
        return np.array(numbers if len(set(numbers)) == len(numbers) else [-1] * len(numbers), np.int32)
    if all(header.number is not None for header in headers):
        return np.array([header.number for header in headers], np.int32)
    return np.array([-1 if header.instance is None else header.instance for header in headers], np.int32)


def _triple(values: Sequence[float] | np.ndarray) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
