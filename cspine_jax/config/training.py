"""What is minimised, how, for how long, and how it is judged."""

import dataclasses

from cspine_jax.config.checks import at_least, between, one_of
from cspine_jax.errors import ConfigError


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
        at_least(self, "alpha", 0)
        at_least(self, "positive_weight", 0)
        between(self, "label_smoothing", 0.0, 0.5)
        if self.background <= 0:
            raise ConfigError(f"loss.background={self.background}: must be above 0; 1 weighs every pixel alike")
        one_of(self, "segmentation", ("dice", "ce", "focal", "dice_ce", "dice_focal"))

    @property
    def unsmoothed(self) -> "LossConfig":
        """What validation is judged by: smoothed labels would make recipes incomparable that smooth differently."""
        return dataclasses.replace(self, label_smoothing=0.0)


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Adam (AdamW when `weight_decay` > 0) at a learning rate that rises to `lr` and falls again.

    `warmup` is the rising share of all steps. `schedule` "one_cycle" falls to next to nothing, "cosine" to `final_lr`.
    """

    lr: float = 1e-3
    schedule: str = "one_cycle"
    final_lr: float = 0.0
    warmup: float = 0.3
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self):
        if self.lr <= 0:
            raise ConfigError(f"optim.lr={self.lr}: must be above 0, e.g. 1e-3")
        one_of(self, "schedule", ("one_cycle", "cosine"))
        if not 0 <= self.final_lr <= self.lr:
            raise ConfigError(f"optim.final_lr={self.final_lr}: must be between 0 and optim.lr={self.lr}")
        if self.final_lr and self.schedule != "cosine":
            raise ConfigError(f"optim.final_lr={self.final_lr}: only optim.schedule='cosine' ends there")
        between(self, "warmup", 0.0, 1.0)
        at_least(self, "weight_decay", 0)
        at_least(self, "clip_norm", 0)


AUCS = ("vertebra_auc", "patient_auc")
"""Of the validation studies, in study-level tasks."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long and how. Exactly one of `total_steps`, `total_epochs`, `total_examples` is above 0; same for `eval_*`.

    Early stopping as document B's: stop when the validation loss has not fallen by `min_delta` in `patience`
    evaluations; `patience` 0 never stops. The best checkpoint, which is evaluated, has the lowest validation loss, or
    with `choose_by` "vertebra_auc" or "patient_auc" (study-level tasks) the highest of these: a network that grows too
    sure of itself ranks better and better long after its loss has begun to rise. `bf16` computes in bfloat16 with
    float32 parameters. `init_from` is the work folder of another run of the same network, or a weights file of one
    ("package:gold", or of `cspine weights export --fracture`): a fresh run starts from its best weights (fine-tuning).
    Study-level models may start from another one's, too: the parts that both have (the encoder of slices) are taken.
    "{fold}" in it stands for `data.fold`; a run of another fold of the same data is refused. `freeze_encoder` (models
    of slices) keeps the encoder as it came from there, weights and batch statistics: only what stands on it learns, at
    a third of the cost a step.
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
    choose_by: str = "loss"
    bf16: bool = False
    init_from: str = ""
    freeze_encoder: bool = False

    def __post_init__(self):
        for what in ("total", "eval"):
            given = {f"{what}_{unit}": getattr(self, f"{what}_{unit}") for unit in ("steps", "epochs", "examples")}
            if sum(value > 0 for value in given.values()) != 1 or min(given.values()) < 0:
                values = ", ".join(f"train.{name}={value}" for name, value in given.items())
                raise ConfigError(f"{values}: give exactly one above 0 and set the others to 0")
        one_of(self, "choose_by", ("loss", *AUCS))
        at_least(self, "log_steps", 1)
        at_least(self, "checkpoint_steps", 1)
        at_least(self, "keep_last", 1)
        at_least(self, "keep_best", 1)
        at_least(self, "patience", 0)


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation: bootstrap resamples of studies for the 95% intervals, bins of ECE.

    `tta` > 0 (study-level tasks): so many views of each study beside the plain one, varied as `augment` does in
    training but without noise, cutout and shuffling. Answers are then the mean of all; their spread is written beside
    them.
    """

    bootstrap: int = 500
    ece_bins: int = 10
    examples_shown: int = 6
    tta: int = 0

    def __post_init__(self):
        at_least(self, "bootstrap", 0)
        at_least(self, "ece_bins", 2)
        at_least(self, "examples_shown", 0)
        at_least(self, "tta", 0)
