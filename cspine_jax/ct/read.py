"""A study on disk -> `Volume`."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cspine_jax.ct import geometry, headers, limits, nifti, pixels, resample, series, sources
from cspine_jax.ct.hu import undo_inversion
from cspine_jax.ct.identity import OWN, Identity
from cspine_jax.ct.volume import Resampling, Volume
from cspine_jax.errors import StudyError


def read_study(
    path: str | os.PathLike,
    *,
    series: str | None = None,
    regular: bool = True,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    identity: Identity | None = None,
) -> Volume:
    """Reads a CT study.

    Slices are ordered by ImagePositionPatient along their normal, whatever their names and numbers; the result is
    axial with the superior slice first and the patient's left at higher columns, however it was acquired.

    Args:
        path: the folder with the study's DICOM files (searched through its sub-folders), a zip of it, its DICOMDIR,
            or a NIfTI file in HU.
        series: SeriesInstanceUID or series number, with "#k" behind it for the k-th stack of a series that holds
            several; "all" reads all series as one; None takes the axial series with the thinnest slices.
        regular: bring missing slices, uneven gaps and gantry tilt onto a regular, orthogonal grid. False keeps
            every voxel as stored: a tilt is then in the affine, and gaps are only named in the warnings.
        workers: slices decoded at the same time; None for one a core.
        progress: called with (slices done, slices in all).
        identity: hashes the UIDs of the volume and of all warnings and errors; None leaves them as they are.

    Returns:
        The volume.

    Raises:
        StudyError: the study cannot be read, or not read right; one line names the file, the value and the fix.
    """
    where = os.fspath(path)
    if identity is not None:
        return _read_hashed(where, series, regular, workers, progress, identity)
    try:
        if nifti.is_nifti(where):
            return nifti.read_nifti(where)
        return _read(where, series, regular, workers, progress, [])
    except (ArithmeticError, AttributeError, LookupError, RuntimeWarning, TypeError, ValueError) as error:
        # Damaged headers hold anything. What no check has a name for yet must not end a batch after six hours.
        raise StudyError(
            f"{where}: damaged headers ({type(error).__name__} while reading); export the study again"
        ) from error


def _read_hashed(
    where: str,
    series: str | None,
    regular: bool,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
    identity: Identity,
) -> Volume:
    """`read_study` with every UID replaced."""
    known = [Path(where).name.removesuffix(".gz").removesuffix(".nii").removesuffix(".zip")]
    known = [name for name in known if name.count(".") > 1]  # a folder of another name is no UID
    try:
        if nifti.is_nifti(where):
            volume = nifti.read_nifti(where)
            known.append(volume.study_uid)
        else:
            volume = _read(where, series, regular, workers, progress, known)
    except StudyError as error:
        raise StudyError(identity.text(str(error), known)) from None
    except (ArithmeticError, AttributeError, LookupError, RuntimeWarning, TypeError, ValueError) as error:
        raise StudyError(
            f"{identity.text(where, known)}: damaged headers ({type(error).__name__} while reading); "
            "export the study again"
        ) from None
    return dataclasses.replace(
        volume,
        study_uid=identity.uid(volume.study_uid),
        series_uid=identity.uid(volume.series_uid),
        warnings=tuple(identity.text(note, known) for note in volume.warnings),
    )


def _read(
    where: str,
    series: str | None,
    regular: bool,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
    uids: list[str],
) -> Volume:
    """`read_study` of anything but NIfTI; `uids` gathers the UIDs that its messages may hold."""
    found = sources.entries(where)
    images, left_out, warnings = headers.read_headers(found)
    uids += {uid for image in images for uid in (image.study_uid, image.series_uid)}
    chosen, notes = _choose(images, where, series, left_out)
    warnings += notes
    stack = geometry.arrange(chosen.headers, where)
    warnings += stack.warnings
    n, first = len(stack.headers), stack.headers[0]
    if 2 * n * first.rows * first.columns > limits.MAX_VOLUME_BYTES:
        raise StudyError(
            f"{where}: {n} x {first.rows} x {first.columns} voxels exceed {limits.MAX_VOLUME_BYTES >> 30} GiB; "
            "give one series of one study"
        )
    hu, notes = pixels.read_pixels(stack.headers, workers, _counter(progress, n))
    warnings += notes
    warnings += _compare_duplicates(stack, hu)
    for image in images:
        if isinstance(image.entry, sources.MemoryEntry):
            image.entry.release()
    warnings += undo_inversion(hu, first)
    warnings += _doubts(stack, hu)
    numbers = geometry.slice_numbers(stack.headers)
    plan, affine, notes = resample.plan(stack, where)
    if not regular:
        plan, affine, notes = (
            None,
            stack.affine,
            [f"kept as stored: {note}" for note in notes if "resampled" not in note],
        )
    warnings += notes
    if plan is not None:
        hu = resample.apply(plan, hu)
        numbers = _spread(numbers, plan)
    return _volume(stack, hu, affine, numbers, plan, warnings)


def _volume(
    stack: geometry.Stack,
    hu: np.ndarray,
    affine: np.ndarray,
    numbers: np.ndarray,
    plan: Resampling | None,
    warnings: Sequence[str],
) -> Volume:
    """Turns the stack (slice, row, column) to (z, y, x) and fills in the rest."""
    first = stack.headers[0]
    axes, flips = geometry.to_axial(affine)
    positions = None if plan is not None else stack.positions
    turned = geometry.turned_affine(affine, hu.shape, axes, flips)
    stack_shape = (len(stack.headers), first.rows, first.columns)
    stored_shape = (stack_shape[axes[0]], stack_shape[axes[1]], stack_shape[axes[2]])
    stored_affine = geometry.turned_affine(stack.affine, stack_shape, axes, flips)
    hu = geometry.turn(hu, axes, flips)
    depth = hu.shape[0]
    warnings = list(warnings)
    if axes[0] != 0:
        warnings.append("not acquired axially: turned to axial, slices have no single file")
        numbers, positions = np.full(depth, -1, np.int32), None
    elif flips[0]:
        numbers = numbers[::-1]
        positions = None if positions is None else positions[::-1]
    if positions is None:
        positions = turned[:3, 3] + np.arange(depth)[:, None] * turned[:3, 0]
    else:  # the corner moves where rows or columns were reversed
        positions = positions + (turned[:3, 3] - positions[0])
    angle = _obliquity(turned)
    if angle > 5:
        warnings.append(f"axes are {angle:.0f} degrees oblique to the patient's; the affine says so")
    spacing = np.linalg.norm(turned[:3, :3], axis=0)
    if plan is None:
        spacing[axes.index(0)] = stack.spacing_mm  # along the normal, also where a kept tilt makes the step longer
    volume = Volume(
        hu=hu,
        spacing_mm=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        affine=turned,
        study_uid=first.study_uid,
        series_uid=first.series_uid,
        slice_numbers=np.ascontiguousarray(numbers),
        positions_mm=np.ascontiguousarray(positions),
        thickness_mm=first.thickness,
        kernel=first.kernel,
        contrast_agent=first.contrast,
        transfer_syntax=first.transfer_syntax,
        turned=(axes, flips),
        resampling=plan,
        stored_shape=stored_shape,
        stored_affine=stored_affine,
        warnings=tuple(dict.fromkeys(warnings)),
    )
    if volume.study_uid:
        return volume
    note = "StudyInstanceUID is missing: the study is named by its content"
    return dataclasses.replace(volume, study_uid=f"{OWN}{int(volume.content, 16)}", warnings=(*volume.warnings, note))


_choose = series.choose


def _counter(progress: Callable[[int, int], None] | None, total: int) -> Callable[[], None] | None:
    if progress is None:
        return None
    done = iter(range(1, total + 1))
    return lambda: progress(next(done), total)


def _compare_duplicates(stack: geometry.Stack, hu: np.ndarray) -> list[str]:
    """Drops images that repeat another at the same place; raises where they differ."""
    if not stack.duplicates:
        return []
    for index, header in stack.duplicates:
        other, _ = pixels.read_pixels([header], workers=1)
        if not np.array_equal(other[0], hu[index]):
            raise StudyError(
                f"{header.name}: same position as {stack.headers[index].name} but other pixels; remove one of the two, "
                "or split the acquisitions"
            )
    names = ", ".join(header.name for _, header in stack.duplicates[:4])
    return [f"dropped {len(stack.duplicates)} repeated image(s): {names}"]


def _doubts(stack: geometry.Stack, hu: np.ndarray) -> list[str]:
    """What the headers leave open, as warnings."""
    notes = []
    unscaled = [index for index, header in enumerate(stack.headers) if not header.rescaled]
    if unscaled:
        lowest = int(hu[unscaled].min())
        wrong = f"; the lowest is {lowest}, so they are not" if lowest > limits.MOST_AIR_HU else ""
        notes.append(f"RescaleIntercept is missing in {len(unscaled)} image(s): stored values taken as HU{wrong}")
    tilt = max((abs(header.gantry_tilt or 0.0) for header in stack.headers), default=0.0)
    upright = np.abs(stack.directions[0]).max() > np.cos(np.radians(1))
    if tilt > 2 and upright and not stack.tilted:
        notes.append(
            f"GantryDetectorTilt {tilt:.1f} degrees but orientation and positions show none: taken as corrected already"
        )
    return notes


def _spread(numbers: np.ndarray, plan: Resampling) -> np.ndarray:
    """int32 [D]: each stored slice's number at the nearest grid slice, -1 at the others."""
    spread = np.full(len(plan.source), -1, np.int32)
    distance = np.abs(plan.source[:, None] - np.arange(len(numbers))[None, :])  # [D, n]
    nearest = distance.argmin(axis=0)
    for index in np.argsort(
        -distance[nearest, np.arange(len(numbers))], kind="stable"
    ):  # the closest has the last word
        spread[nearest[index]] = numbers[index]
    return spread


def _obliquity(affine: np.ndarray) -> float:
    unit = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosine = min(-unit[2, 0], unit[1, 1], unit[0, 2])
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
