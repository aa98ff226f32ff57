"""One seed and one index become a `StudyPlan`: who the person is, what is broken, how the scanner saw it.

Every group of choices has its own random stream, keyed by (seed, index, group). So anatomy, acquisition, noise and
mimics are drawn without looking at the labels, study i does not depend on how many studies are made, and the same
(seed, index) is the same person with the same fractures at every `size`, `scale` and `difficulty`.
"""

import dataclasses
import hashlib

import numpy as np
from scipy.special import ndtr

from cspine_jax.errors import ConfigError
from cspine_jax.phantom.plan import (
    DISTRACTOR_KINDS,
    FRACTURE_KINDS,
    Acquisition,
    Anatomy,
    Distractor,
    Fracture,
    StudyPlan,
)
from cspine_jax.phantom.prevalence import quantile, sample_levels, statistics
from cspine_jax.phantom.variety import VARIETIES, widen

# Streams: never renumber, the bytes of every data set hang on them.
_LEVELS, _FRACTURE, _ANATOMY, _ACQUISITION, _DISTRACTORS, _WRITER, _VARIETY = range(7)
WRITER_STREAM = _WRITER

MIN_SLICES = 8

# Share of each kind among the fractures of a level, roughly as trauma series report them: dens and hangman at C2,
# posterior elements and facets below, spinous and transverse processes most often at C7.
_KIND_WEIGHTS: dict[str, tuple[float, ...]] = {
    "jefferson": (70, 0, 0, 0, 0, 0, 0),
    "dens_i": (0, 3, 0, 0, 0, 0, 0),
    "dens_ii": (0, 38, 0, 0, 0, 0, 0),
    "dens_iii": (0, 22, 0, 0, 0, 0, 0),
    "hangman": (0, 16, 0, 0, 0, 0, 0),
    "body_compression": (0, 0, 12, 14, 14, 13, 10),
    "body_burst": (0, 0, 6, 8, 11, 9, 6),
    "body_teardrop": (0, 9, 16, 14, 14, 11, 6),
    "facet": (0, 0, 20, 20, 20, 20, 17),
    "lamina": (0, 3, 16, 14, 13, 14, 12),
    "pedicle": (0, 0, 8, 8, 8, 8, 8),
    "spinous_process": (0, 4, 12, 12, 10, 13, 19),
    "transverse_process": (30, 5, 10, 10, 10, 12, 22),
}
_MIDLINE = (
    "jefferson",
    "dens_i",
    "dens_ii",
    "dens_iii",
    "hangman",
    "body_compression",
    "body_burst",
    "spinous_process",
)


@dataclasses.dataclass(frozen=True)
class _Difficulty:
    """Medians and spreads (log scale) of the lengths, range of conspicuity, shares displaced and swollen."""

    gap_mm: float
    gap_spread: float
    step_mm: float
    displaced: float
    displacement_mm: float
    conspicuity: tuple[float, float]
    swollen: float
    swelling_mm: float


DIFFICULTIES: dict[str, _Difficulty] = {
    "easy": _Difficulty(2.0, 0.25, 1.5, 0.8, 2.5, (0.9, 1.0), 1.0, 11.0),
    "standard": _Difficulty(1.3, 0.45, 0.8, 0.5, 1.6, (0.5, 1.0), 0.7, 4.0),
    "hard": _Difficulty(0.7, 0.3, 0.3, 0.15, 0.8, (0.35, 0.8), 0.4, 2.0),
}

# 512-pixel field of view in mm; the median pixel of the real studies is about 0.41 mm.
_FOV_MM = {"0": 130.0, "5": 155.0, "25": 185.0, "50": 210.0, "75": 225.0, "95": 245.0, "100": 250.0}
# Spacings that scanners offer; the table's quantiles are moved to the nearest.
_SPACINGS_MM = np.array([0.312, 0.4, 0.45, 0.5, 0.6, 0.625, 0.7, 0.75, 0.8, 0.9, 1.0])
# z of the top of C1 and the bottom of C7 in a neutral person of scale 1, with the room their processes need.
_C1_TOP_MM, _C7_BOTTOM_MM = 68.0, -78.0


def stream(seed: int, index: int, group: int, *more: int) -> np.random.Generator:
    """The random stream of one group of choices of one study."""
    return np.random.default_rng((seed, index, group, *more))


def study_uid(seed: int, index: int, *more: object) -> str:
    """A DICOM UID `2.25.<128-bit integer>` that depends on nothing but its arguments."""
    text = "/".join(map(str, ("cspine_jax phantom", seed, index, *more)))
    return f"2.25.{int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], 'big')}"


def sample_study(
    seed: int,
    index: int,
    *,
    size: int = 256,
    scale: float = 1.0,
    difficulty: str = "standard",
    fov: float = 1.0,
    variety: str = "rsna",
) -> StudyPlan:
    """Draws one study.

    Args:
        seed: the data set's seed, >= 0.
        index: which study, >= 0; independent of all others.
        size: in-plane matrix; the field of view stays, so a smaller matrix has larger pixels.
        scale: factor on the number of slices; the extent stays, so spacing grows by 1 / scale. Slices stay as thin as
            they are (like every n-th slice of a real study): no RSNA study is thicker than 1 mm.
        difficulty: "easy", "standard" or "hard": how wide, displaced and dark the clefts are.
        fov: factor on the field of view drawn for the study (about 130 to 250 mm): below 1 a narrower reconstruction
            of the spine, with smaller pixels at the same matrix.
        variety: "rsna" draws people and scans as the challenge has them; "wide" far beyond (`variety.widen`).

    Returns:
        The plan. Its `labels` hold if every fracture shows on the grid (`dataset.make_study` sees to that).

    Raises:
        ConfigError: an argument is out of range.
    """
    if seed < 0 or index < 0:
        raise ConfigError(f"phantom seed={seed}, index={index}: must both be at least 0")
    if size < 32:
        raise ConfigError(f"phantom size={size}: must be at least 32 pixels")
    if not 0.01 <= scale <= 4:
        raise ConfigError(f"phantom scale={scale}: must be between 0.01 and 4")
    if not 0.4 <= fov <= 2:
        raise ConfigError(f"phantom fov={fov}: must be between 0.4 and 2")
    if difficulty not in DIFFICULTIES:
        raise ConfigError(f"phantom difficulty={difficulty!r}: must be one of {', '.join(DIFFICULTIES)}")
    if variety not in VARIETIES:
        raise ConfigError(f"phantom variety={variety!r}: must be one of {', '.join(VARIETIES)}")
    anatomy = sample_anatomy(stream(seed, index, _ANATOMY))
    acquisition = sample_acquisition(stream(seed, index, _ACQUISITION), anatomy.scale, size, scale, fov)
    if variety == "wide":
        anatomy, acquisition = widen(stream(seed, index, _VARIETY), anatomy, acquisition, scale, fov)
    levels = sample_levels(stream(seed, index, _LEVELS).random())
    return StudyPlan(
        index=index,
        uid=study_uid(seed, index, size, float(scale), difficulty, float(fov), *([variety] * (variety != "rsna"))),
        anatomy=anatomy,
        acquisition=acquisition,
        fractures=tuple(f for level in levels for f in sample_fractures(seed, index, level, difficulty)),
        distractors=sample_distractors(stream(seed, index, _DISTRACTORS)),
    )


def sample_anatomy(rng: np.random.Generator) -> Anatomy:
    """A person and their posture; age drives density, osteophytes and disc narrowing."""
    male = rng.random() < 0.55
    age = float(np.clip(rng.normal(58, 21), 18, 97))
    worn = np.clip((age - 35) / 50, 0, 1)
    return Anatomy(
        sex="M" if male else "F",
        age=round(age, 1),
        scale=float(np.clip(rng.normal(1.03 if male else 0.94, 0.045), 0.82, 1.16)),
        lordosis_deg=float(np.clip(rng.normal(16, 12), -18, 45)),
        rotation_deg=float(np.clip(rng.normal(0, 5), -15, 15)),
        tilt_deg=float(np.clip(rng.normal(0, 3.5), -11, 11)),
        trabecular_hu=float(np.clip(rng.normal(370 - 2.2 * (age - 18), 45), 150, 400)),
        cortical_hu=float(np.clip(rng.normal(1200 - 3 * (age - 18), 120), 700, 1500)),
        osteophytes=float(np.clip(worn * rng.uniform(0.3, 1.3), 0, 1)),
        disc_narrowing=tuple(
            # C5/6 and C6/7 wear first
            float(np.clip(worn * weight * rng.uniform(0, 1.4), 0, 0.85))
            for weight in (0.4, 0.5, 0.65, 0.95, 0.9, 0.5)
        ),
        habitus=float(np.clip(rng.beta(2, 2.5), 0, 1)),
        dental_metal=bool(rng.random() < 0.3),
        seed=int(rng.integers(2**31)),
    )


def sample_acquisition(
    rng: np.random.Generator, body_scale: float, size: int, scale: float, factor: float
) -> Acquisition:
    """The scan: slices, spacing and extent from the table, the rest as trauma protocols have it.

    `body_scale` places the scan over the neck: a technician plans it on the scout view. `factor` multiplies the field
    of view.
    """
    table = statistics()
    # A long scan tends to be reconstructed a little coarser: with this correlation the slice counts come out right.
    first, second = rng.normal(size=2)
    extent = quantile(table["extent_mm"], ndtr(first))
    spacing = quantile(table["slice_spacing_mm"], ndtr(0.35 * first + np.sqrt(1 - 0.35**2) * second))
    if spacing <= _SPACINGS_MM[-1]:
        spacing = float(_SPACINGS_MM[np.abs(_SPACINGS_MM - spacing).argmin()])
    # More than half of the real studies are as thick as they are spaced; in the others, and in all finer than the
    # thinnest collimation, slices overlap.
    thickness = max(spacing, quantile(table["slice_thickness_mm"], rng.random()))
    if spacing > table["slice_thickness_mm"]["0"] and rng.random() < 0.6:
        thickness = spacing
    slices = max(MIN_SLICES, round((extent / spacing + 1) * scale))
    stretched = extent / (slices - 1)
    fov = factor * quantile(_FOV_MM, rng.random())
    spare = extent - (_C1_TOP_MM - _C7_BOTTOM_MM) * body_scale
    # With room to spare about half of it lies above C1; a scan too short loses one end or the other.
    above = spare * (rng.beta(4, 4) if spare > 0 else rng.random())
    # A narrow field must be centred on the vertebrae, whose middle lies behind the bodies.
    behind = 20 * np.clip((215 - fov) / 70, 0, 1)
    sharpness = float(rng.beta(4, 2))
    return Acquisition(
        size=size,
        pixel_mm=fov / size,
        slices=slices,
        spacing_mm=stretched,
        thickness_mm=thickness,
        top_mm=_C1_TOP_MM * body_scale + above,
        centre_mm=(float(rng.normal(0, 4)), float(behind + rng.normal(0, 5))),
        origin_mm=(float(rng.normal(0, 8)), float(rng.normal(-150, 25)), float(rng.uniform(-900, 400))),
        ascending=bool(rng.random() < table["z_ascending_with_slice_number"] / table["studies"]),
        first_number=int(rng.integers(2, 60)) if rng.random() < 10 / table["studies"] else 1,
        sharpness=sharpness,
        noise_hu=float(15 * 4 ** (0.35 * sharpness + 0.65 * rng.random())),  # 15..60, sharp kernels noisier
        motion_mm=float(rng.uniform(0.5, 2.5)) if rng.random() < 0.12 else 0.0,
        seed=int(rng.integers(2**31)),
    )


def sample_fractures(seed: int, index: int, level: int, difficulty: str, attempt: int = 0) -> tuple[Fracture, ...]:
    """The fractures of one level known to be broken: one, sometimes two of different kinds.

    `attempt` > 0 draws another set where the one before left no voxel on the grid.
    """
    rng, how = stream(seed, index, _FRACTURE, level, attempt), DIFFICULTIES[difficulty]
    kinds = [kind for kind, levels in FRACTURE_KINDS.items() if level in levels]
    weights = np.array([_KIND_WEIGHTS[kind][level] for kind in kinds], float)
    count = 2 if rng.random() < 0.2 else 1
    fractures: list[Fracture] = []
    for kind in rng.choice(kinds, size=min(count, len(kinds)), replace=False, p=weights / weights.sum()):
        if any(f.kind.split("_")[0] == kind.split("_")[0] for f in fractures):
            continue  # one dens, one body: their types exclude each other
        low, high = how.conspicuity
        displaced = rng.random() < how.displaced
        fractures.append(
            Fracture(
                level=level,
                kind=str(kind),
                side=0 if kind in _MIDLINE else int(rng.choice((-1, 1))),
                gap_mm=float(np.clip(how.gap_mm * np.exp(how.gap_spread * rng.normal()), 0.4, 3.0)),
                step_mm=float(np.clip(how.step_mm * np.exp(0.5 * rng.normal()), 0.0, 3.0)),
                displacement_mm=float(displaced * min(how.displacement_mm * np.exp(0.5 * rng.normal()), 6.0)),
                conspicuity=float(low + (high - low) * rng.beta(2.5, 1.2)),
                seed=int(rng.integers(2**31)),
                swelling_mm=float(
                    (rng.random() < how.swollen) * min(how.swelling_mm * np.exp(0.35 * rng.normal()), 15.0)
                ),
            )
        )
    return tuple(fractures)


def sample_distractors(rng: np.random.Generator) -> tuple[Distractor, ...]:
    """Fracture mimics at any level, drawn alike for broken and whole necks."""
    return tuple(
        Distractor(
            kind=str(rng.choice(DISTRACTOR_KINDS)),
            level=int(rng.integers(7)),
            side=int(rng.integers(-1, 2)),
            seed=int(rng.integers(2**31)),
        )
        for _ in range(min(int(rng.poisson(2.5)), 8))
    )
