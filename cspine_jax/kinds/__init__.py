"""The tasks an experiment can be about. `kind_of(config)` gives the one that `config.task` names."""

import importlib

from cspine_jax.config import Config
from cspine_jax.errors import ConfigError
from cspine_jax.kinds.kind import Kind, Trained

_KINDS = {
    "fracture": "fracture.Fracture",
    "vertebra": "vertebra.Vertebra",
    "segment2d": "segment2d.Segment2D",
    "spine": "volume.Spine",
    "refine": "volume.Refine",
    "crops": "crops.Crops",
    "study": "study.Study",
}
"""`config.task` -> module and class; a module is imported when its task is asked for."""


def kind_of(config: Config) -> Kind:
    """The kind that `config.task` names.

    Raises:
        ConfigError: there is none.
    """
    if config.task not in _KINDS:
        raise ConfigError(f"task={config.task!r}: must be one of {', '.join(_KINDS)}")
    module, name = _KINDS[config.task].split(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)(config)


__all__ = ["Kind", "Trained", "kind_of"]
