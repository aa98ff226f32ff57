"""Nested mappings to a checked `Config` and back."""

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from typing import Any

from cspine_jax.config.experiment import Config
from cspine_jax.config.training import TrainConfig
from cspine_jax.errors import ConfigError


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
