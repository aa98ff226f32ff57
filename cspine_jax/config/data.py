"""Where studies come from, and how they become records and batches."""

import dataclasses

from cspine_jax.config.checks import at_least, between, one_of
from cspine_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class PhantomConfig:
    """The synthetic data set that stands in when `data.manual_dir` is empty. Fields as in `cspine phantom --help`."""

    studies: int = 160
    seed: int = 0
    size: int = 160
    scale: float = 0.25
    difficulty: str = "standard"
    fov: float = 1.0
    variety: str = "rsna"

    def __post_init__(self):
        at_least(self, "studies", 5)
        at_least(self, "size", 32)
        between(self, "scale", 0.01, 4.0)
        between(self, "fov", 0.4, 2.0)
        one_of(self, "difficulty", ("easy", "standard", "hard"))
        one_of(self, "variety", ("rsna", "wide"))


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where studies come from and how they become batches.

    `manual_dir` empty means: use (or make) the phantom under `root`. `data_dir` empty means: records under `root`.
    `size` is the in-plane matrix of the records (0 keeps the native one; then all studies must share it).
    `fracture_target`: "level" labels every slice on which a fractured vertebra is visible (document B);
    "box" labels only the slices whose bounding boxes show the fracture.
    `fold` is tested on, the next one validates (early stopping, threshold), the others train.
    `vertebra_probs`: "mask" (truth), "none", or the path of a predicted table, or a pattern such as
    "runs/v/fold*/predictions/slices.csv" for the tables of all folds; read by Type 1 and 2 models. Rows that a model
    predicted of studies it learnt from ("train") or was chosen on ("validation") are refused unless `in_sample_probs`.
    `presence_from_probs` > 0: in training studies without a mask, the slices with v_ij at or above it show vertebra j.
    `positive_fraction` > 0 draws that share of every training batch from slices that show a fracture (in the tasks that
    learn from masks: a cervical vertebra).
    `workers` reader threads (0 chooses), `prefetch` batches ahead, `cache_mb` megabytes of decoded slices in memory.
    `limit_studies` > 0 keeps only the first so many studies of each part (smoke tests).
    """

    manual_dir: str = ""
    data_dir: str = ""
    root: str = "data"
    phantom: PhantomConfig = PhantomConfig()
    size: int = 160
    depth: int = 5
    stride: int = 1
    num_folds: int = 5
    fold: int = 0
    fracture_target: str = "box"
    vertebra_probs: str = "mask"
    in_sample_probs: bool = False
    presence_from_probs: float = 0.0
    batch_size: int = 32
    eval_batch_size: int = 64
    positive_fraction: float = 0.0
    workers: int = 0
    prefetch: int = 4
    cache_mb: int = 1024
    limit_studies: int = 0

    def __post_init__(self):
        at_least(self, "size", 0)
        at_least(self, "depth", 1)
        if self.depth % 2 == 0:
            raise ConfigError(f"data.depth={self.depth}: a stack needs a centre slice; use {self.depth + 1}")
        at_least(self, "stride", 1)
        at_least(self, "num_folds", 3)
        if not 0 <= self.fold < self.num_folds:
            raise ConfigError(f"data.fold={self.fold}: must be in 0..{self.num_folds - 1} (data.num_folds)")
        one_of(self, "fracture_target", ("level", "box"))
        at_least(self, "batch_size", 1)
        at_least(self, "eval_batch_size", 1)
        between(self, "presence_from_probs", 0.0, 1.0)
        if self.presence_from_probs and self.vertebra_probs in ("mask", "none"):
            raise ConfigError(
                f"data.presence_from_probs={self.presence_from_probs}: needs a predicted table, but "
                f"data.vertebra_probs={self.vertebra_probs!r}"
            )
        between(self, "positive_fraction", 0.0, 0.99)
        at_least(self, "workers", 0)
        at_least(self, "cache_mb", 0)
        at_least(self, "prefetch", 1)


@dataclasses.dataclass(frozen=True)
class CropsConfig:
    """Vertebra crops as the winners': S positions of one vertebra, top to bottom, each with neighbours and mask.

    `positions` S evenly spaced slices from the vertebra's first to its last; each has `2 * radius + 1` neighbouring
    slices, `stride` mm apart (0: the study's own next slices), and the vertebra's mask as last channel. `size` is the
    in-plane matrix, `margin` the room around the mask's box as a share of its longer side; the field is square.
    `oriented` turns the planes with the spine, perpendicular to the line through the centroids of the levels around.
    `masks` is "true" (segmentations/ of the RSNA-layout folder) or a folder (or a pattern, such as
    "segmented/fold*", of one folder a fold) that `cspine segment` wrote.
    """

    positions: int = 15
    radius: int = 2
    stride: float = 0.0
    size: int = 224
    margin: float = 0.1
    oriented: bool = False
    masks: str = "true"

    def __post_init__(self):
        at_least(self, "positions", 1)
        at_least(self, "radius", 0)
        between(self, "stride", 0.0, 20.0)
        at_least(self, "size", 16)
        between(self, "margin", 0.0, 2.0)
        if not self.masks:
            raise ConfigError("crops.masks='': give 'true' or the folder that `cspine segment` wrote")
