"""What was found in one study."""

import dataclasses

import numpy as np

VISIBLE, CUT_OFF, ABSENT = "visible", "cut off", "absent"

CERTAIN = 0.8
"""A level named with less confidence than this gets a warning."""

NAMED = 0.6
"""Below this confidence a vertebra gets no name at all, and a warning says so."""


@dataclasses.dataclass(frozen=True)
class Vertebra:
    """One level.

    Attributes:
        name: "C1".."C7", "T1".."T12".
        state: "visible", "cut off" (it reaches the edge of the volume: part of it lies outside) or "absent" (not in
            the image, or not found).
        confidence: probability of the name; where absent, that no vertebra in the image is this level.
        centroid: mean voxel index (z, y, x) of its mask, None where absent.
        centroid_mm: the same in LPS mm (x, y, z).
        box: first voxel (z, y, x) and the one after the last; None where absent.
        volume_ml: of its mask.
    """

    name: str
    state: str
    confidence: float
    centroid: tuple[float, float, float] | None = None
    centroid_mm: tuple[float, float, float] | None = None
    box: tuple[tuple[int, int, int], tuple[int, int, int]] | None = None
    volume_ml: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Vertebrae:
    """The vertebrae of one study.

    Attributes:
        labels: uint8 [D, H, W] on the volume's grid; 1..7 C1..C7, 8..19 T1..T12.
        visibility: float32 [D, 7]; v_ij, probability that C_j is visible on slice i: sum over instances k of
            P(k is C_j) s_ik, with the naming's marginals and `native.to_native`'s s.
        levels: C1..C7 always, T1..T12 where they were found; from head to feet.
        naming_probability: of the names given, among all namings.
        entropy: of the distribution over namings, nats.
        shifted: probability that every name is one level too low (first) or too high.
        warnings: one line each.
        seconds: by stage.
    """

    labels: np.ndarray
    visibility: np.ndarray
    levels: tuple[Vertebra, ...]
    naming_probability: float
    entropy: float
    shifted: tuple[float, float]
    warnings: tuple[str, ...]
    seconds: dict[str, float]
