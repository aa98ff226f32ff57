"""A volume -> its vertebrae: coarse network, instances, names, fine network, masks on the study's own grid."""

import dataclasses
import time
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from cspine_jax.anatomy import NUM_VERTEBRAE
from cspine_jax.ct import Volume
from cspine_jax.inference.vertebrae import LEVELS
from cspine_jax.inference.vertebrae.coarse import Spine, see_spine
from cspine_jax.inference.vertebrae.fine import Refine, see_bone
from cspine_jax.inference.vertebrae.grids import mirrored_refine, mirrored_spine
from cspine_jax.inference.vertebrae.instances import Instances, find_instances, settle
from cspine_jax.inference.vertebrae.native import to_native
from cspine_jax.inference.vertebrae.order import Naming, name_instances
from cspine_jax.inference.vertebrae.result import ABSENT, CERTAIN, CUT_OFF, NAMED, VISIBLE, Vertebra, Vertebrae


class Segmenter:
    """Two networks, asked about many studies.

    Args:
        spine: see `coarse.Spine`.
        refine: see `fine.Refine`.
        window: of `refine`, voxels of 2 mm; always called with this one shape.
        overlap: of neighbouring windows, share of a window.
        batch: windows at a time.
        flip: also ask about the left-right mirror image and average; takes twice as long.
        weights: what tells the networks from others, for whoever writes down what was found.
    """

    def __init__(
        self,
        spine: Spine,
        refine: Refine,
        *,
        window: Sequence[int] = (48, 48, 48),
        overlap: float = 0.25,
        batch: int = 1,
        flip: bool = False,
        weights: str = "",
    ):
        self.weights = weights
        self._spine = mirrored_spine(spine) if flip else spine
        self._refine = mirrored_refine(refine) if flip else refine
        self._window, self._overlap, self._batch = tuple(window), overlap, batch

    def __call__(self, volume: Volume) -> Vertebrae:
        """Segments a study."""
        clock = _Clock()
        probabilities, offsets, grid = see_spine(self._spine, volume)
        clock.lap("coarse")
        instances = find_instances(probabilities, offsets, grid.spacing_mm)
        bone = 1 - probabilities[..., 0]
        naming, withheld = _withhold(name_instances(instances))
        index = settle(instances, naming.levels, probabilities, offsets, grid.spacing_mm)
        del probabilities, offsets
        clock.lap("naming")
        labels = np.zeros(volume.shape, np.uint8)
        visible = np.zeros((volume.shape[0], len(instances)), np.float32)
        if (naming.levels >= 0).any():
            fine = see_bone(
                self._refine,
                volume,
                bone,
                index,
                naming.levels,
                grid,
                window=self._window,
                overlap=self._overlap,
                batch=self._batch,
            )
            clock.lap("fine")
            labels, visible = to_native(fine, volume, naming.levels)
        levels = _describe(labels, naming, volume)
        clock.lap("masks")
        return Vertebrae(
            labels=labels,
            visibility=np.clip(visible @ naming.marginals[:, :NUM_VERTEBRAE], 0, 1).astype(np.float32),
            levels=levels,
            naming_probability=naming.probability,
            entropy=naming.entropy,
            shifted=naming.shifted,
            warnings=(*withheld, *_warnings(levels, instances, naming)),
            seconds=clock.seconds,
        )


def _withhold(naming: Naming) -> tuple[Naming, list[str]]:
    """Takes back names that are little better than their neighbours', and says so: a wrong level is worse than none."""
    unsure = (naming.levels >= 0) & (naming.confidence < NAMED)
    if not unsure.any():
        return naming, []
    guesses = ", ".join(f"{LEVELS[naming.levels[k]]} {naming.confidence[k]:.2f}" for k in np.flatnonzero(unsure))
    line = f"{unsure.sum()} vertebrae seen whose level is unsure, so not named; best guesses: {guesses}"
    return dataclasses.replace(naming, levels=np.where(unsure, -1, naming.levels)), [line]


class _Clock:
    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage], self._last = round(now - self._last, 3), now


def _describe(labels: np.ndarray, naming: Naming, volume: Volume) -> tuple[Vertebra, ...]:
    found = []
    boxes = ndimage.find_objects(labels, len(LEVELS))
    confidence = dict(zip(naming.levels.tolist(), naming.confidence.tolist(), strict=True))
    absence = naming.absence()
    for level, (name, box) in enumerate(zip(LEVELS, boxes, strict=True)):
        if box is not None:
            low = [side.start for side in box]
            mask = labels[box] == level + 1
            centroid = [float(c + s) for c, s in zip(ndimage.center_of_mass(mask), low, strict=True)]
            high = [side.stop for side in box]
            cut = any(a == 0 for a in low) or any(b == n for b, n in zip(high, labels.shape, strict=True))
            mm = volume.affine @ [*centroid, 1.0]
            found.append(
                Vertebra(
                    name=name,
                    state=CUT_OFF if cut else VISIBLE,
                    confidence=confidence[level],
                    centroid=(centroid[0], centroid[1], centroid[2]),
                    centroid_mm=(float(mm[0]), float(mm[1]), float(mm[2])),
                    box=((low[0], low[1], low[2]), (high[0], high[1], high[2])),
                    volume_ml=float(mask.sum() * np.prod(volume.spacing_mm) / 1000),
                )
            )
        elif level < NUM_VERTEBRAE:
            found.append(Vertebra(name, ABSENT, float(absence[level])))
    return tuple(found)


def _warnings(levels: Sequence[Vertebra], instances: Instances, naming: Naming) -> list[str]:
    there = [v for v in levels if v.state != ABSENT]
    if not there:
        return ["no vertebra found: all levels are absent"]
    lines = []
    unsure = [v for v in there if v.confidence < CERTAIN]
    if unsure:
        names, least = ", ".join(v.name for v in unsure), min(v.confidence for v in unsure)
        lines.append(
            f"{names}: named with confidence {least:.2f}; probability that all levels are one too low "
            f"{naming.shifted[0]:.2f}, one too high {naming.shifted[1]:.2f}"
        )
    first, last = LEVELS.index(there[0].name), LEVELS.index(there[-1].name)
    missing = [name for name in LEVELS[first : last + 1] if name not in {v.name for v in there}]
    if missing:
        lines.append(f"{', '.join(missing)} not found between {there[0].name} and {there[-1].name}")
    named = {LEVELS[level] for level in naming.levels if level >= 0}
    unmasked = [name for name in LEVELS if name in named - {v.name for v in there}]
    if unmasked:
        lines.append(f"{', '.join(unmasked)} seen by the coarse network only: no mask")
    cut = [v.name for v in there if v.state == CUT_OFF]
    if cut:
        lines.append(f"{', '.join(cut)} cut off at the edge of the image")
    for k in np.flatnonzero((naming.levels < 0) & (naming.marginals[:, -1] >= 0.5)):
        lines.append(
            f"{instances.volume_ml[k]:.1f} ml of bone {instances.centroid_mm[k, 0]:.0f} mm below the first slice taken "
            "for no vertebra"
        )
    return lines
