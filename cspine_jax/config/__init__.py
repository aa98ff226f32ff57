"""Every setting of an experiment: its default and its check, in one place.

A recipe (`configs/*.py`) is an `ml_collections.ConfigDict` that names only what it changes; `from_dict` lays it over
the defaults here and refuses unknown names, wrong types and impossible values with one line that says the fix.
Nothing here imports jax: reading a configuration costs milliseconds.
"""

from cspine_jax.config.augment import AugmentConfig
from cspine_jax.config.data import CropsConfig, DataConfig, PhantomConfig
from cspine_jax.config.experiment import TASKS, Config
from cspine_jax.config.models import ModelConfig, VolumeConfig
from cspine_jax.config.nested import flatten, from_dict, to_dict
from cspine_jax.config.study import StudyConfig
from cspine_jax.config.training import EvalConfig, LossConfig, OptimConfig, TrainConfig

__all__ = [
    "TASKS",
    "AugmentConfig",
    "Config",
    "CropsConfig",
    "DataConfig",
    "EvalConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "PhantomConfig",
    "StudyConfig",
    "TrainConfig",
    "VolumeConfig",
    "flatten",
    "from_dict",
    "to_dict",
]
