"""A person's measures: sizes of each vertebra with their natural variation, and the landmarks that follow from them."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Dims:
    """Measures of one vertebra from C3 down, mm. `facet` is the tilt of the facet joints from horizontal, degrees."""

    width: float  # half width of the body
    depth: float  # half depth
    height: float
    canal_width: float  # half
    canal_depth: float
    pillar_x: float
    pillar_half: float  # half thickness of the pillar across its facets
    facet: float
    foramen: float  # radius of the transverse foramen, 0 = none
    tip_y: float  # end of the spinous process
    tip_drop: float
    bifid: float
    uncus: float
    transverse: float  # x of the transverse process' tip


_TABLE = {
    2: Dims(11.0, 7.6, 12.6, 12.2, 14.8, 19.0, 4.9, 44, 2.9, 39, 6.5, 0.9, 3.6, 25.0),
    3: Dims(11.4, 7.8, 12.4, 12.4, 14.6, 19.3, 4.9, 45, 2.9, 38, 9.5, 1.0, 3.8, 25.5),
    4: Dims(12.0, 8.0, 12.3, 12.6, 14.6, 19.8, 4.9, 46, 3.0, 40, 12.5, 1.0, 4.0, 26.5),
    5: Dims(12.8, 8.2, 12.5, 12.6, 14.6, 20.2, 4.9, 48, 2.9, 46, 18.0, 0.5, 3.8, 28.0),
    6: Dims(13.6, 8.6, 14.0, 12.4, 14.8, 20.4, 5.0, 54, 1.7, 58, 26.0, 0.0, 2.6, 33.0),
    7: Dims(14.2, 8.8, 15.2, 11.2, 15.0, 19.0, 4.8, 62, 0.0, 58, 27.0, 0.0, 1.4, 36.0),
    8: Dims(13.4, 9.4, 16.0, 9.6, 15.0, 17.0, 4.6, 66, 0.0, 56, 32.0, 0.0, 0.0, 34.0),
    9: Dims(13.0, 10.0, 16.4, 9.0, 15.0, 16.0, 4.5, 68, 0.0, 54, 35.0, 0.0, 0.0, 32.0),
}


class Person:
    """A person's own proportions: smooth random factors for each measure, the same stream for every level.

    Args:
        seed: of the anatomy.
    """

    def __init__(self, seed: int, sex: str):
        """Draws the factors that all vertebrae of one person share."""
        rng = np.random.default_rng([seed, 12])
        slim = 0.97 if sex == "F" else 1.02
        self.common = {
            "width": slim * rng.normal(1, 0.04),
            "depth": slim * rng.normal(1, 0.05),
            "canal_width": rng.normal(1, 0.05),
            "canal_depth": rng.normal(1, 0.07),
            "foramen": rng.normal(1, 0.1),
            "tip_y": slim * rng.normal(1, 0.05),
            "tip_drop": rng.normal(1, 0.15),
            "uncus": rng.normal(1, 0.15),
            "transverse": rng.normal(1, 0.03),
        }
        self._seed = seed

    def stream(self, level: int) -> np.random.Generator:
        """The random stream of one level's own shape."""
        return np.random.default_rng([self._seed, 13, level])

    def dims(self, level: int) -> Dims:
        """This person's measures of a level (2 = C3 .. )."""
        base = _TABLE[min(max(level, 2), 9)]
        rng = np.random.default_rng([self._seed, 14, level])
        values = {}
        for field in dataclasses.fields(Dims):
            value = getattr(base, field.name) * self.common.get(field.name, 1.0)
            if field.name == "facet":
                value += rng.normal(0, 2.5)
            elif field.name == "bifid":
                value = float(np.clip(value * rng.uniform(0.4, 1.2), 0, 1))
            elif field.name != "height":
                value *= rng.normal(1, 0.02)
            values[field.name] = float(value)
        return Dims(**values)


def landmarks(level: int, person: Person) -> dict[str, tuple[float, float, float]]:
    """Points of a vertebra (left side) that fractures and mimics are placed by, local mm."""
    if level == 0:
        back = 31.5 * person.common["canal_depth"] ** 0.6
        return {
            "arch_front": (0.0, -10.4, 0.0),
            "arch_side": (18.6, 15.5, 0.0),
            "arch_back": (6.0, back - 2.5, 0.0),
            "lamina_side": (18.6, 15.5, 0.0),
            "lamina_back": (4.0, back - 2.0, 0.0),
            "spine_root": (0.0, back - 4.0, 0.0),
            "spine_tip": (0.0, back + 2.0, 0.0),
            "transverse_root": (23.0, 3.5, -1.0),
            "transverse_tip": (36.0, 4.5, -2.5),
            "bottom": (17.0, 0.0, -8.0),
            "front": (0.0, -14.0, 0.0),
        }
    d = person.dims(max(level, 2))
    b, back = d.depth, d.depth + d.canal_depth
    if level == 1:
        b = 7.6 * person.common["depth"]
        back = b + 1.16 * d.canal_depth
        return {
            "lamina_side": (15.6, b + 9.0, -3.0),
            "lamina_back": (0.8, back + 1.8, -4.0),
            "spine_root": (0.0, back + 1.5, -4.4),
            "spine_tip": (0.0, back + 15.0, -11.0),
            "transverse_root": (17.0, 3.5, -2.0),
            "transverse_tip": (25.0, 6.0, -5.0),
            "bottom": (0.0, 0.0, -10.0),
            "front": (0.0, -b, -2.0),
        }
    return {
        "lamina_side": (d.pillar_x - 3, b + 8.6, -1.0),
        "lamina_back": (0.6, back + 1.2, -3.0),
        "spine_root": (0.0, back + 0.8, -3.2),
        "spine_tip": (0.0, d.tip_y, -3.2 - d.tip_drop),
        "transverse_root": (d.width + 3.0, 2.0, -2.0),
        "transverse_tip": (d.transverse + 2.0, b - 2.0, -4.0),
        "bottom": (0.0, 0.0, -d.height / 2),
        "front": (0.0, -b, 0.0),
    }
