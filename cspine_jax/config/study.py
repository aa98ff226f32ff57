"""The study-level models: what they see of a study, and how large they are."""

import dataclasses

from cspine_jax.config.checks import at_least, between, one_of
from cspine_jax.errors import ConfigError

ON_VERTEBRAE = ("gold", "silver", "bronze")
"""Models of one vertebra: an example is one crop of `CropsConfig`."""

ON_LEVELS = ("gold_patient", "levels")
"""Models of a patient's seven vertebrae: an example is all crops of a study."""

ON_LABELLED_SLICES = (*ON_VERTEBRAE, "gold_patient")
"""Models whose loss is of each slice of a crop."""

ON_SLICES = ("classifier", "vit3d", "cnn3d")
"""Models of a whole study, or of clips of it: an example is a sequence of slices."""

STUDY_LEVEL = ("crops", "study")
"""Tasks of these models."""

FINDS_FRACTURES = ("fracture", *STUDY_LEVEL)
"""Tasks whose models answer for a study's vertebrae and the patient."""

ON_CROPS = (*ON_VERTEBRAE, *ON_LEVELS)
ON_BACKBONE = (*ON_CROPS, "classifier")


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """Models of whole vertebrae and whole studies (tasks "crops" and "study").

    `model`: of vertebra crops "gold" (CNN + LSTM, the winners' Type 1), "silver" (CNN + transformer), "bronze" (CNN
    alone), "gold_patient" (the winners' Type 2) and "levels" (transformer over the levels); of slices "classifier"
    (document A), "vit3d" (document C) and "cnn3d".

    What models of slices see of a study: `slices` of them, evenly spaced from its first to its last; or with `every`
    = n > 0 each n-th from the first on (2 are document C's odd slices), at most `max_slices` of them (thinned evenly; 0
    for no limit), shorter studies padded. Each has `data.depth` neighbouring slices as channels and, `with_mask`, the
    vertebra mask of its own (C1..C7 as 1/7..1; studies without a mask are then left out).

    `clip_depth` > 0 shows clips instead (the fourth team's): so many slices, `every`-th ones, of `clip_size` pixels
    (0: the whole slice), about one vertebra. The label of a level with less than `clip_visible` of its vertebra inside
    is "unknown" or "negative" (`clip_labels`).

    `slice_labels` of gold, silver and bronze: "copy" gives each slice its vertebra's label, as the winners did; "box"
    makes those slices of a fractured vertebra positive on which a fracture box shows it (all of them where none does).

    `where_weight` > 0 (models of crops) adds a map of logits on each slice, of whether a break is there, taught by the
    fracture boxes where they are known (an intact vertebra has none), its loss weighed so much: a break fills a few
    pixels, and one label a slice says little of which. What the map finds joins the slice's embedding.

    `train_positions` > 0 (gold, bronze) shows a training example with so many of its `crops.positions`, evenly spaced
    from a random one on: neighbours show nearly the same, so that a step learns more from as many slices of more
    vertebrae. Evaluation reads them all. Other models give positions codes, or the vertebra a label that a break needs
    to be in sight for.

    `highest` slices' mean is the vertebra's probability in these models. Copied labels have the winners' 5; where only
    the slices with the break are positive, a break on fewer of them needs a smaller number.

    `fractured_fraction` > 0 draws that share of every training batch from fractured vertebrae (models of vertebrae,
    clips) or patients; what is written is rid of it again (`metrics.clinical.undrawn`), what training logs is not.
    `chunk` slices pass through the backbone at a time (0: all), `remat` computes blocks again in the backward pass;
    both save memory.

    `hidden` and `layers` are of the LSTM; `features`, `heads` and `depth` of the transformer; `tubelet_depth` x
    `tubelet` x `tubelet` voxels make a token of "vit3d"; `width` features at the finest of `stages` stages of "cnn3d",
    doubling from one to the next, each of `blocks` residual blocks, `factorised` into (2+1)D or not, on voxels folded
    `stem` x `stem` in the plane.
    """

    model: str = "gold"
    slices: int = 64
    every: int = 0
    max_slices: int = 0
    with_mask: bool = False
    clip_depth: int = 0
    clip_size: int = 0
    clip_visible: float = 0.3
    clip_labels: str = "unknown"
    slice_labels: str = "copy"
    where_weight: float = 0.0
    train_positions: int = 0
    highest: int = 5
    fractured_fraction: float = 0.0
    chunk: int = 0
    remat: bool = False
    hidden: int = 256
    layers: int = 2
    features: int = 256
    heads: int = 4
    depth: int = 2
    tubelet_depth: int = 3
    tubelet: int = 16
    width: int = 32
    stages: int = 4
    blocks: int = 1
    factorised: bool = False
    stem: int = 4

    def __post_init__(self):
        one_of(self, "model", (*ON_CROPS, *ON_SLICES))
        for name in ("slices", "hidden", "layers", "features", "heads", "depth", "tubelet_depth", "tubelet", "highest"):
            at_least(self, name, 1)
        for name in ("width", "stages", "stem"):
            at_least(self, name, 1)
        for name in ("every", "max_slices", "clip_depth", "clip_size", "chunk", "blocks", "train_positions"):
            at_least(self, name, 0)
        between(self, "clip_visible", 0.0, 1.0)
        one_of(self, "clip_labels", ("unknown", "negative"))
        one_of(self, "slice_labels", ("copy", "box"))
        between(self, "fractured_fraction", 0.0, 0.99)
        at_least(self, "where_weight", 0)
        if self.features % self.heads:
            raise ConfigError(f"study.features={self.features}: must be a multiple of study.heads={self.heads}")
        if self.slice_labels != "copy" and self.model not in ON_LABELLED_SLICES:
            raise ConfigError(
                f"study.slice_labels={self.slice_labels!r}: slices of {self.model!r} have no labels; this is for "
                f"{', '.join(ON_LABELLED_SLICES)}"
            )
        if self.where_weight and self.model not in ON_CROPS:
            raise ConfigError(
                f"study.where_weight={self.where_weight}: {self.model!r} has no map of breaks; this is for "
                f"{', '.join(ON_CROPS)}"
            )
        if self.train_positions and self.model not in ("gold", "bronze"):
            raise ConfigError(
                f"study.train_positions={self.train_positions}: not for {self.model!r}, only for gold and bronze; set "
                "it to 0"
            )
        if self.clip_depth and self.model not in ON_SLICES:
            raise ConfigError(
                f"study.clip_depth={self.clip_depth}: clips are for {', '.join(ON_SLICES)}, not {self.model!r}"
            )
