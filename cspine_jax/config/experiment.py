"""An experiment: all groups together, and what one says of another."""

import dataclasses

from cspine_jax.config.augment import AugmentConfig
from cspine_jax.config.data import CropsConfig, DataConfig
from cspine_jax.config.models import ModelConfig, VolumeConfig
from cspine_jax.config.study import ON_BACKBONE, ON_CROPS, ON_SLICES, STUDY_LEVEL, StudyConfig
from cspine_jax.config.training import EvalConfig, LossConfig, OptimConfig, TrainConfig
from cspine_jax.errors import ConfigError

TASKS = ("fracture", "vertebra", "segment2d", "spine", "refine", "crops", "study")


@dataclasses.dataclass(frozen=True)
class Config:
    """An experiment.

    `task`: "fracture" and "vertebra" are document B's slice models, "segment2d" segments slices, "spine" and "refine"
    are the coarse and the fine 3D segmentation; "crops" are models of vertebra crops, "study" of whole studies.
    """

    name: str = "experiment"
    task: str = "fracture"
    seed: int = 0
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    volume: VolumeConfig = dataclasses.field(default_factory=VolumeConfig)
    crops: CropsConfig = dataclasses.field(default_factory=CropsConfig)
    study: StudyConfig = dataclasses.field(default_factory=StudyConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)

    def __post_init__(self):
        if self.task not in TASKS:
            raise ConfigError(f"task={self.task!r}: must be one of {', '.join(TASKS)}")
        if self.task == "vertebra" and self.model.type == 3:
            raise ConfigError("model.type=3: vertebra detection has Types 1 (image) and 2 (image + metadata)")
        for task, models in zip(STUDY_LEVEL, (ON_CROPS, ON_SLICES), strict=True):
            if self.task == task and self.study.model not in models:
                raise ConfigError(f"study.model={self.study.model!r}: task {task!r} has {', '.join(models)}")
        if self.eval.tta and self.task not in STUDY_LEVEL:
            raise ConfigError(f"eval.tta={self.eval.tta}: task {self.task!r} has no such views; set it to 0")
        if self.train.choose_by != "loss" and self.task not in STUDY_LEVEL:
            raise ConfigError(
                f"train.choose_by={self.train.choose_by!r}: task {self.task!r} has no such figure; set it to 'loss'"
            )
        if self.augment.bone_only and self.task != "crops" and not (self.task == "study" and self.study.with_mask):
            raise ConfigError(
                f"augment.bone_only={self.augment.bone_only}: the model has no mask; set it to 0 (task 'study': or "
                "study.with_mask=True)"
            )
        if self.study.train_positions > self.crops.positions:
            raise ConfigError(
                f"study.train_positions={self.study.train_positions}: crops have crops.positions="
                f"{self.crops.positions}; set it to at most that, or to 0 for all"
            )
        if self.model.pretrained:
            self._check_pretrained()
        if self.train.freeze_encoder:
            self._check_frozen()

    def _check_frozen(self) -> None:
        """What stays as it is has to be there, and to have come from somewhere."""
        if self.task not in STUDY_LEVEL or self.study.model not in ON_BACKBONE:
            what = f"study.model {self.study.model!r}" if self.task in STUDY_LEVEL else f"task {self.task!r}"
            raise ConfigError(f"train.freeze_encoder=True: {what} has no encoder of slices; set it to False")
        if not (self.train.init_from or self.model.pretrained):
            raise ConfigError(
                "train.freeze_encoder=True: the encoder would stay random; give train.init_from or model.pretrained"
            )

    def _check_pretrained(self) -> None:
        """Published weights need a backbone to be of."""
        given = f"model.pretrained={self.model.pretrained!r}"
        if self.train.init_from:
            raise ConfigError(f"{given}: and train.init_from={self.train.init_from!r}; a run starts from one of them")
        network = ""
        if self.task == "segment2d" and self.model.network == "unet2d":
            network = "network 'unet2d'"
        elif self.task in STUDY_LEVEL and self.study.model not in ON_BACKBONE:
            network = f"study.model {self.study.model!r}"
        elif self.task in ("spine", "refine"):
            network = f"task {self.task!r}"
        if network:
            raise ConfigError(f"{given}: {network} has no backbone; leave model.pretrained empty")
