"""Which of a study's images are the series to read."""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from cspine_jax.ct.headers import SliceHeader
from cspine_jax.errors import StudyError


@dataclasses.dataclass(frozen=True)
class Series:
    """Images that belong together.

    Attributes:
        headers: one an image, in the order found.
        uid: SeriesInstanceUID.
        axial: whether the slices are closer to axial than to sagittal or coronal.
        spacing_mm: median distance between neighbouring slices; thickness where positions are missing; None unknown.
        sharpness: see `kernel_sharpness`.
    """

    headers: Sequence[SliceHeader]
    uid: str
    axial: bool
    spacing_mm: float | None
    sharpness: float

    def describe(self) -> str:
        """One phrase for messages: what this series is."""
        plane = "axial" if self.axial else "not axial"
        spacing = "spacing unknown" if self.spacing_mm is None else f"{self.spacing_mm:.3g} mm"
        kernel = self.headers[0].kernel
        number = self.headers[0].series_number
        label = self.uid if number is None else f"{number} ({self.uid})"
        return f"series {label}: {len(self.headers)} slices, {spacing}, {plane}" + (
            f", kernel {kernel}" if kernel else ""
        )


def choose(
    headers: Sequence[SliceHeader], where: str, series: str | None, left_out: Sequence[str]
) -> tuple[Series, list[str]]:
    """Picks the series to read: axial before others, then thinnest, then sharpest kernel, then longest.

    Args:
        headers: every CT image found.
        where: the study's folder, for messages.
        series: SeriesInstanceUID or series number to read; None to choose.
        left_out: files that are no CT image, for the message when nothing else is there.

    Returns:
        The series, and warnings that name what was left out and why.

    Raises:
        StudyError: no CT series with at least two slices, or images of several studies.
    """
    notes: list[str] = []
    scouts = [header for header in headers if {"LOCALIZER", "SCOUT"} & set(header.image_type)]
    images = [header for header in headers if not {"LOCALIZER", "SCOUT"} & set(header.image_type)]
    if scouts:
        notes.append(f"left out {len(scouts)} localizer image(s): {_names([header.name for header in scouts])}")
    if left_out:
        notes.append(f"left out {len(left_out)} file(s) that are no CT image: {_names(left_out)}")
    if not images:
        found = left_out[0] if left_out else f"{scouts[0].name}: localizer" if scouts else f"{where}: empty"
        raise StudyError(f"{where}: no CT slices in it ({found}); give the folder of a CT study")
    groups: dict[str, list[SliceHeader]] = {}
    for header in images:
        groups.setdefault(header.series_uid, []).append(header)
    candidates = [_series(group) for group in groups.values()]
    if series is not None:
        chosen = [each for each in candidates if series in (each.uid, str(each.headers[0].series_number))]
        if not chosen:
            raise StudyError(
                f"{where}: no series {series}; there is {'; '.join(each.describe() for each in candidates)}"
            )
        candidates = chosen
    studies = Counter(header.study_uid for each in candidates for header in each.headers)
    if len(studies) > 1:
        raise StudyError(
            f"{where}: images of {len(studies)} studies ({', '.join(studies)}); "
            "give a folder with one study, or choose with series="
        )
    ranked = sorted(candidates, key=_rank)
    best = ranked[0]
    if len(best.headers) < 2:
        raise StudyError(f"{where}: only 1 CT slice ({best.headers[0].name}); a study needs at least 2")
    if len(ranked) > 1:
        others = "; ".join(each.describe() for each in ranked[1:])
        notes.append(
            f"{len(ranked)} series: read {best.describe()} (axial first, then thinnest, then sharpest kernel, then "
            f"most slices); left out {others}"
        )
    return best, notes


def kernel_sharpness(kernel: str) -> float:
    """Sharpness of a convolution kernel on a rough common scale: 30 soft tissue, 60 bone, 80 edge; 40 unknown.

    Siemens (B70f, Br60, H60s, Hr64) and Toshiba/Canon (FC30..39, FC80..89 bone) carry numbers, GE and Philips names.
    """
    name = kernel.upper().strip()
    toshiba = re.match(r"FC(\d+)", name)
    if toshiba:
        number = int(toshiba[1])
        return 65.0 if 30 <= number < 40 or 80 <= number < 90 else 60.0 if 50 <= number < 60 else 35.0
    siemens = re.match(r"[A-Z][A-Z]?(\d\d)", name)
    if siemens:
        return float(siemens[1])
    words = {"EDGE": 80, "ULTRA": 75, "BONE": 65, "SHARP": 65, "LUNG": 60, "DETAIL": 50, "CHST": 40, "STANDARD": 35}
    words |= {"STND": 35, "SOFT": 30, "SMOOTH": 25}
    for word, value in words.items():
        if word in name:
            return value + (3.0 if "PLUS" in name else 0.0)
    philips = {"E": 70, "D": 60, "YD": 65, "YC": 60, "YB": 50, "YA": 45, "C": 45, "B": 35, "A": 25}
    return float(philips.get(name, 40))


def _series(group: Sequence[SliceHeader]) -> Series:
    first = group[0]
    axial, spacing = True, first.thickness
    if first.orientation is not None:
        normal = np.cross(first.orientation[:3], first.orientation[3:])
        axial = bool(abs(normal[2]) >= np.abs(normal).max())
        positions = [header.position for header in group if header.position is not None]
        if len(positions) > 1:
            depths = np.unique(np.round(np.array(positions) @ normal, 3))
            if len(depths) > 1:
                spacing = float(np.median(np.diff(depths)))
    return Series(tuple(group), first.series_uid, axial, spacing, kernel_sharpness(first.kernel))


def _rank(series: Series) -> tuple:
    spacing = 1e3 if series.spacing_mm is None else round(series.spacing_mm, 1)
    short = len(series.headers) < 2
    return (short, not series.axial, spacing, -series.sharpness, -len(series.headers), series.uid)


def _names(names: Sequence[str], shown: int = 4) -> str:
    listed = "; ".join(names[:shown])
    return listed + (f" and {len(names) - shown} more" if len(names) > shown else "")
