"""Every setting of an experiment: its default and its check, in one place.

A recipe (`configs/*.py`) is an `ml_collections.ConfigDict` that names only what it changes; `from_dict` lays it over
the defaults here and refuses unknown names, wrong types and impossible values with one line that says the fix.
Nothing here imports jax: reading a configuration costs milliseconds.
"""

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from typing import Any

from cspine_jax.errors import ConfigError


def _where(obj: Any, name: str) -> str:
    return f"{type(obj).__name__.removesuffix('Config').lower()}.{name}={getattr(obj, name)!r}"


def _at_least(obj: Any, name: str, low: float) -> None:
    if not getattr(obj, name) >= low:
        raise ConfigError(f"{_where(obj, name)}: must be at least {low}")


def _between(obj: Any, name: str, low: float, high: float) -> None:
    if not low <= getattr(obj, name) <= high:
        raise ConfigError(f"{_where(obj, name)}: must be between {low} and {high}")


def _one_of(obj: Any, name: str, allowed: tuple) -> None:
    if getattr(obj, name) not in allowed:
        raise ConfigError(f"{_where(obj, name)}: must be one of {', '.join(map(str, allowed))}")


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
        _at_least(self, "studies", 5)
        _at_least(self, "size", 32)
        _between(self, "scale", 0.01, 4.0)
        _between(self, "fov", 0.4, 2.0)
        _one_of(self, "difficulty", ("easy", "standard", "hard"))
        _one_of(self, "variety", ("rsna", "wide"))


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
        _at_least(self, "size", 0)
        _at_least(self, "depth", 1)
        if self.depth % 2 == 0:
            raise ConfigError(f"data.depth={self.depth}: a stack needs a centre slice; use {self.depth + 1}")
        _at_least(self, "stride", 1)
        _at_least(self, "num_folds", 3)
        if not 0 <= self.fold < self.num_folds:
            raise ConfigError(f"data.fold={self.fold}: must be in 0..{self.num_folds - 1} (data.num_folds)")
        _one_of(self, "fracture_target", ("level", "box"))
        _at_least(self, "batch_size", 1)
        _at_least(self, "eval_batch_size", 1)
        _between(self, "presence_from_probs", 0.0, 1.0)
        if self.presence_from_probs and self.vertebra_probs in ("mask", "none"):
            raise ConfigError(
                f"data.presence_from_probs={self.presence_from_probs}: needs a predicted table, but "
                f"data.vertebra_probs={self.vertebra_probs!r}"
            )
        _between(self, "positive_fraction", 0.0, 0.99)
        _at_least(self, "workers", 0)
        _at_least(self, "cache_mb", 0)
        _at_least(self, "prefetch", 1)


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """CT window and augmentation, all on the device.

    `crop` is the share of each side that the model sees, about the centre (a neck scan is mostly air and shoulders).
    Window in HU; rotation in degrees; `zoom` and `shift` as fractions; brightness, contrast and noise on the windowed
    0..1 scale; `mixup` is the Beta(a, a) parameter, 0 for off. Document B's saturation and hue act on nothing in a
    one-channel CT image and are left out on purpose.
    """

    window_level: float = 400.0
    window_width: float = 1800.0
    crop: float = 1.0
    flip: bool = True
    rotation: float = 10.0
    zoom: float = 0.1
    shift: float = 0.04
    brightness: float = 0.08
    contrast: float = 0.15
    noise: float = 0.02
    mixup: float = 0.0

    def __post_init__(self):
        if self.window_width <= 0:
            raise ConfigError(f"augment.window_width={self.window_width}: must be above 0 HU, e.g. 1800 for bone")
        for name in ("rotation", "zoom", "shift", "brightness", "contrast", "noise", "mixup"):
            _at_least(self, name, 0)
        _between(self, "zoom", 0.0, 0.9)
        _between(self, "crop", 0.1, 1.0)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network of the task.

    Slice models of document B: `type` of fracture detection is 1 (image), 2 (image + vertebra probabilities) or 3 (both
    as outputs); of vertebra detection 1 (image) or 2 (image + metadata). Segmentation in 2D: `network` is "unet2d"
    (`width` channels at full resolution, doubled `levels` times), "encoder" (a UNet on `backbone`) or "inflated"
    (`backbone`'s 2D kernels inflated to 3D).

    `pretrained` is a file of published weights for `backbone` (torchvision's or timm's state dict as .safetensors or
    .pth, or a file of `cspine weights convert`), or "imagenet" for those that a package brings: a fresh run starts from
    them.
    """

    type: int = 3
    network: str = "unet2d"
    width: int = 32
    levels: int = 4
    backbone: str = "basic_cnn"
    pretrained: str = ""
    dropout: float = 0.1
    hidden: int = 128

    def __post_init__(self):
        _one_of(self, "type", (1, 2, 3))
        _one_of(self, "network", ("unet2d", "encoder", "inflated"))
        _at_least(self, "width", 1)
        _between(self, "levels", 1, 8)
        _between(self, "dropout", 0.0, 0.95)
        _at_least(self, "hidden", 1)


@dataclasses.dataclass(frozen=True)
class VolumeConfig:
    """The 3D networks (tasks "spine" and "refine"): what they see, how wide they are, how training varies it.

    Volumes at `spacing_mm`; training crops of `depth` x `height` x `width` voxels, read with `margin` more on each
    side so that turning them brings no air in. `width` features at the finest of `levels` levels, doubling up to
    `max_width`; `light` spends little on the finest level. `offset_weight` is the weight of the votes for the
    vertebra's centre (task "spine"), `background_weight` that of the background in the cross-entropy.

    Strengths of the variation, 0 for off: `rotation` degrees, `zoom` and `stretch` (one axis against another) as
    fractions, `elastic_mm`; `blur_mm` in-plane, `slice_mm` thickest slices; `contrast` of soft tissue and bone as a
    fraction, `bias_hu`, `noise_hu`, `streaks` (probability of shoulder or dental streaks).
    """

    spacing_mm: float = 2.0
    depth: int = 96
    height: int = 80
    width_px: int = 80
    margin: int = 12
    width: int = 16
    levels: int = 4
    max_width: int = 128
    light: bool = False
    offset_weight: float = 1.0
    background_weight: float = 0.1
    rotation: float = 15.0
    zoom: float = 0.2
    stretch: float = 0.12
    elastic_mm: float = 5.0
    blur_mm: float = 1.0
    slice_mm: float = 4.0
    contrast: float = 0.4
    bias_hu: float = 60.0
    noise_hu: float = 90.0
    streaks: float = 0.4

    def __post_init__(self):
        if self.spacing_mm <= 0:
            raise ConfigError(f"volume.spacing_mm={self.spacing_mm}: must be above 0 mm, e.g. 2.0")
        for name in ("width", "levels", "max_width"):
            _at_least(self, name, 1)
        step = 2**self.levels
        for name in ("depth", "height", "width_px"):
            _at_least(self, name, step)
            if getattr(self, name) % step:
                raise ConfigError(
                    f"volume.{name}={getattr(self, name)}: must be a multiple of {step} (2 ** volume.levels)"
                )
        for name in ("margin", "offset_weight", "rotation", "elastic_mm", "blur_mm", "slice_mm", "bias_hu", "noise_hu"):
            _at_least(self, name, 0)
        _between(self, "background_weight", 0.001, 1.0)
        for name in ("zoom", "stretch", "contrast"):
            _between(self, name, 0.0, 0.9)
        _between(self, "streaks", 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class CropsConfig:
    """Vertebra crops, as the winners': S positions of one vertebra, top to bottom, each with its neighbours and its mask.

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
        _at_least(self, "positions", 1)
        _at_least(self, "radius", 0)
        _between(self, "stride", 0.0, 20.0)
        _at_least(self, "size", 16)
        _between(self, "margin", 0.0, 2.0)
        if not self.masks:
            raise ConfigError("crops.masks='': give 'true' or the folder that `cspine segment` wrote")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """L = alpha L_frac + L_vert (document B), positives weighted as in the RSNA metric.

    `segmentation`: "dice", "ce" (cross-entropy), "focal", "dice_ce" or "dice_focal"; `background` is the weight of a
    background pixel in cross-entropy and focal loss (bone is a thirtieth of a slice; unweighted it is learnt late).
    """

    alpha: float = 2.0
    positive_weight: float = 2.0
    label_smoothing: float = 0.0
    segmentation: str = "dice_ce"
    background: float = 0.1

    def __post_init__(self):
        _at_least(self, "alpha", 0)
        _at_least(self, "positive_weight", 0)
        _between(self, "label_smoothing", 0.0, 0.5)
        if self.background <= 0:
            raise ConfigError(f"loss.background={self.background}: must be above 0; 1 weighs every pixel alike")
        _one_of(self, "segmentation", ("dice", "ce", "focal", "dice_ce", "dice_focal"))


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Adam (AdamW when `weight_decay` > 0) under a one-cycle schedule: `warmup` is the rising share of all steps."""

    lr: float = 1e-3
    warmup: float = 0.3
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self):
        if self.lr <= 0:
            raise ConfigError(f"optim.lr={self.lr}: must be above 0, e.g. 1e-3")
        _between(self, "warmup", 0.0, 1.0)
        _at_least(self, "weight_decay", 0)
        _at_least(self, "clip_norm", 0)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long and how. Exactly one of `total_steps`, `total_epochs`, `total_examples` is above 0; same for `eval_*`.

    Early stopping as document B's: stop when the validation loss has not fallen by `min_delta` in `patience`
    evaluations; `patience` 0 never stops. `bf16` computes in bfloat16 with float32 parameters. `init_from` is the
    work folder of another run of the same network: a fresh run starts from its best weights (fine-tuning).
    """

    total_steps: int = 0
    total_epochs: float = 1.0
    total_examples: int = 0
    eval_steps: int = 500
    eval_epochs: float = 0.0
    eval_examples: int = 0
    log_steps: int = 20
    checkpoint_steps: int = 200
    keep_last: int = 2
    keep_best: int = 1
    min_delta: float = 0.01
    patience: int = 5
    bf16: bool = False
    init_from: str = ""

    def __post_init__(self):
        for what in ("total", "eval"):
            given = {f"{what}_{unit}": getattr(self, f"{what}_{unit}") for unit in ("steps", "epochs", "examples")}
            if sum(value > 0 for value in given.values()) != 1 or min(given.values()) < 0:
                values = ", ".join(f"train.{name}={value}" for name, value in given.items())
                raise ConfigError(f"{values}: give exactly one above 0 and set the others to 0")
        _at_least(self, "log_steps", 1)
        _at_least(self, "checkpoint_steps", 1)
        _at_least(self, "keep_last", 1)
        _at_least(self, "keep_best", 1)
        _at_least(self, "patience", 0)


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation: bootstrap resamples of studies for the 95% intervals, bins of ECE, probability clipping."""

    bootstrap: int = 500
    ece_bins: int = 10
    examples_shown: int = 6

    def __post_init__(self):
        _at_least(self, "bootstrap", 0)
        _at_least(self, "ece_bins", 2)
        _at_least(self, "examples_shown", 0)


TASKS = ("fracture", "vertebra", "segment2d", "spine", "refine")


@dataclasses.dataclass(frozen=True)
class Config:
    """An experiment.

    `task`: "fracture" and "vertebra" are document B's slice models, "segment2d" segments slices, "spine" and "refine"
    are the coarse and the fine 3D segmentation.
    """

    name: str = "experiment"
    task: str = "fracture"
    seed: int = 0
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    volume: VolumeConfig = VolumeConfig()
    crops: CropsConfig = CropsConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()

    def __post_init__(self):
        if self.task not in TASKS:
            raise ConfigError(f"task={self.task!r}: must be one of {', '.join(TASKS)}")
        if self.task == "vertebra" and self.model.type == 3:
            raise ConfigError("model.type=3: vertebra detection has Types 1 (image) and 2 (image + metadata)")
        if self.model.pretrained:
            given = f"model.pretrained={self.model.pretrained!r}"
            if self.train.init_from:
                raise ConfigError(
                    f"{given}: and train.init_from={self.train.init_from!r}; a run starts from one of them"
                )
            bare = self.task == "segment2d" and self.model.network == "unet2d"
            if bare or self.task not in ("fracture", "vertebra", "segment2d"):
                network = "network 'unet2d'" if bare else f"task {self.task!r}"
                raise ConfigError(f"{given}: {network} has no backbone; leave model.pretrained empty")


def from_dict(values: Mapping[str, Any]) -> Config:
    """Lays `values` over the defaults.

    Args:
        values: nested mapping (an `ml_collections.ConfigDict`, its `to_dict()`, or parsed `config.json`).

    Returns:
        The checked, frozen `Config`.

    Raises:
        ConfigError: a name is unknown, a type does not fit, or a value is out of range.
    """
    return _build(Config, values, "")


def to_dict(config: Config) -> dict[str, Any]:
    """Nested plain dict of every field, JSON-ready; `from_dict(to_dict(c)) == c`."""
    return dataclasses.asdict(config)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"data": {"fold": 1}}` -> `{"data.fold": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _build(cls: type, values: Mapping[str, Any], path: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path.rstrip('.') or 'config'}={values!r}: must be a group of fields")
    hints = typing.get_type_hints(cls)
    known = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    kwargs = {}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            fix = f"did you mean {path}{near[0]}?" if near else f"known fields: {', '.join(known)}"
            raise ConfigError(f"{path}{name}: no such field; {fix}")
        kind = known[name]
        if dataclasses.is_dataclass(kind):
            kwargs[name] = _build(typing.cast(type, kind), value, f"{path}{name}.")
        else:
            kwargs[name] = _typed(value, kind, f"{path}{name}")
    if cls is TrainConfig:
        kwargs = _one_duration(kwargs)
    try:
        return cls(**kwargs)
    except ConfigError as error:
        # A group checks itself under its own name ("phantom.size"); say where it stands ("data.phantom.size").
        parent = path.rstrip(".").rpartition(".")[0]
        raise ConfigError(f"{parent}.{error}" if parent else str(error)) from None


def _one_duration(kwargs: dict[str, Any]) -> dict[str, Any]:
    """A recipe that gives `total_steps` need not zero the default `total_epochs` (same for `eval_*`)."""
    for what in ("total", "eval"):
        names = [f"{what}_{unit}" for unit in ("steps", "epochs", "examples")]
        if any(kwargs.get(name) for name in names):
            kwargs = {name: 0 for name in names} | kwargs
    return kwargs


def _typed(value: Any, kind: Any, path: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{path}={value!r}: must be {kind.__name__}, not {type(value).__name__}")
    return value
