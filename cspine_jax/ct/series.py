"""Which of a study's images are the series to read."""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from cspine_jax.ct import parts
from cspine_jax.ct.headers import SliceHeader
from cspine_jax.errors import StudyError

ALL = "all"
"""What is asked for to read every series as one (an anonymiser gave each image a series of its own)."""

FEW_SLICES, SHORT_MM = 16, 30.0
"""The quality gate refuses less (`quality.Limits`): whatever else a series promises, a larger one comes first."""

_SCOUTS = frozenset(("LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW", "SCANOGRAM", "SCANO"))
_MAPS = frozenset("PERFUSION CBF CBV RCBF RCBV MTT TTP TMAX PERMEABILITY EFF_ATOMIC_NUM MAT_SPECIFIC".split())
_PROJECTIONS = frozenset("MIP MINIP MAX_IP MIN_IP VRT SSD VOLUME_RENDER SURFACE_RENDER".split())
_REPORTS = ("SCREEN", "DOSE", "PROT", "REPORT")


@dataclasses.dataclass(frozen=True)
class Series:
    """Images that belong together.

    Attributes:
        headers: one an image, in the order found.
        uid: SeriesInstanceUID.
        axial: whether the slices are closer to axial than to sagittal or coronal.
        spacing_mm: median distance between neighbouring slices; thickness where positions are missing; None unknown.
        sharpness: see `kernel_sharpness`.
        extent_mm: from the first slice to the last; None unknown.
        part: number of this stack where the series holds several (see `parts`), else 0.
        what: what tells this stack from the others of the series.
    """

    headers: Sequence[SliceHeader]
    uid: str
    axial: bool
    spacing_mm: float | None
    sharpness: float
    extent_mm: float | None = None
    part: int = 0
    what: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """What the series is asked for by: its UID, its number, and either with the number of the stack in it."""
        whole = (self.uid, str(self.headers[0].series_number))
        return (*whole, *(f"{name}#{self.part}" for name in whole if self.part))

    @property
    def too_small(self) -> bool:
        """Whether the quality gate would refuse it for its size."""
        return len(self.headers) < FEW_SLICES or (self.extent_mm is not None and self.extent_mm < SHORT_MM)

    def describe(self) -> str:
        """One phrase for messages: what this series is."""
        plane = "axial" if self.axial else "not axial"
        spacing = "spacing unknown" if self.spacing_mm is None else f"{self.spacing_mm:.3g} mm"
        kernel = self.headers[0].kernel
        number = self.headers[0].series_number
        part = f"#{self.part}" if self.part else ""
        label = self.uid + part if number is None else f"{number}{part} ({self.uid})"
        return f"series {label}: {len(self.headers)} slices, {spacing}, {plane}" + "".join(
            f", {text}" for text in (f"kernel {kernel}" if kernel else "", self.what) if text
        )


def choose(
    headers: Sequence[SliceHeader], where: str, series: str | None, left_out: Sequence[str]
) -> tuple[Series, list[str]]:
    """Picks the series to read: axial before others, then thinnest, then sharpest kernel, then longest.

    A series that holds several stacks stands for each of them. Ones too small to be used come last.

    Args:
        headers: every CT image found.
        where: the study's folder, for messages.
        series: SeriesInstanceUID or series number to read, with "#k" behind it for its k-th stack; "all" for all
            of them as one; None to choose.
        left_out: files that are no CT image, for the message when nothing else is there.

    Returns:
        The series, and warnings that name what was left out and why.

    Raises:
        StudyError: no CT series with at least two slices, or images of several studies.
    """
    notes: list[str] = []
    kinds: dict[str, list[SliceHeader]] = {}
    for header in headers:
        kinds.setdefault(_kind(header), []).append(header)
    images = kinds.pop("", [])
    for kind, others in kinds.items():
        notes.append(f"left out {len(others)} {kind}: {_names([header.name for header in others])}")
    if left_out:
        notes.append(f"left out {len(left_out)} file(s) that are no CT image: {_names(left_out)}")
    if not images:
        found = [*left_out, *(f"{each.name}: {kind}" for kind, others in kinds.items() for each in others)]
        raise StudyError(f"{where}: no CT slices in it ({(found or ['empty'])[0]}); give the folder of a CT study")
    groups: dict[str, list[SliceHeader]] = {}
    for header in images:
        groups.setdefault("" if series == ALL else header.series_uid, []).append(header)
    candidates = [each for group in groups.values() for each in _stacks(group)]
    if series is not None and series != ALL:
        chosen = [each for each in candidates if series in each.names]
        if not chosen:
            raise StudyError(
                f"{where}: no series {series}; there is {'; '.join(each.describe() for each in candidates)}"
            )
        candidates = chosen
    studies = Counter(header.study_uid for each in candidates for header in each.headers)
    if len(studies) > 1:
        raise StudyError(
            f"{where}: images of {len(studies)} studies ({_names(list(studies))}); "
            "give a folder with one study, or choose with series="
        )
    ranked = sorted(candidates, key=_rank)
    best = ranked[0]
    if len(best.headers) < 2:
        if len(groups) > 2:
            raise StudyError(
                f"{where}: {len(groups)} series of 1 slice each; choose with series=, or series={ALL} reads them as one"
            )
        raise StudyError(f"{where}: only 1 CT slice ({best.headers[0].name}); a study needs at least 2")
    if len(ranked) > 1:
        others = "; ".join(each.describe() for each in ranked[1:])
        count = f"{len(ranked)} series"
        if any(each.part for each in ranked):
            count = f"{len(ranked)} stacks in {len({each.uid for each in ranked})} series"
        notes.append(
            f"{count}: read {best.describe()} (axial first, then thinnest, then sharpest kernel, then "
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


def _kind(header: SliceHeader) -> str:
    """What a CT image is when it is no slice, by its ImageType; "" for a slice."""
    values, derived = set(header.image_type), header.image_type[:1] == ("DERIVED",)
    if values & _SCOUTS:
        return "localizer image(s)"
    if values & _MAPS:
        return "map(s) of other quantities than HU"
    if derived and values & _PROJECTIONS:
        return "projection(s) or rendering(s)"
    if derived and any(word in value for word in _REPORTS for value in header.image_type[2:]):
        return "screen or dose report(s)"
    return ""


def _stacks(group: Sequence[SliceHeader]) -> list[Series]:
    """The stacks of one series."""
    found = parts.split(group)
    return [_series(part.headers, number if len(found) > 1 else 0, part.what) for number, part in enumerate(found, 1)]


def _series(group: Sequence[SliceHeader], part: int = 0, what: str = "") -> Series:
    first = group[0]
    axial, spacing, extent = True, first.thickness, None
    if first.orientation is not None:
        normal = np.cross(first.orientation[:3], first.orientation[3:])
        axial = bool(abs(normal[2]) >= np.abs(normal).max())
        positions = [header.position for header in group if header.position is not None]
        if len(positions) > 1:
            depths = np.unique(np.round(np.clip(positions, -1e6, 1e6) @ normal, 3))
            if len(depths) > 1:
                spacing = float(np.median(np.diff(depths)))
            extent = float(depths[-1] - depths[0])
    sharpness = kernel_sharpness(first.kernel)
    return Series(tuple(group), first.series_uid, axial, spacing, sharpness, extent, part, what)


def _rank(series: Series) -> tuple:
    spacing = 1e3 if series.spacing_mm is None else round(series.spacing_mm, 1)
    single = len(series.headers) < 2
    size = (-len(series.headers), series.uid, series.part)
    return (single, series.too_small, not series.axial, spacing, -series.sharpness, *size)


def _names(names: Sequence[str], shown: int = 4) -> str:
    listed = "; ".join(names[:shown])
    return listed + (f" and {len(names) - shown} more" if len(names) > shown else "")
