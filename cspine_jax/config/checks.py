"""Checks that groups of fields make of themselves: one line that says the value and the fix."""

from typing import Any

from cspine_jax.errors import ConfigError


def where(obj: Any, name: str) -> str:
    """`group.name=value`, as messages begin."""
    return f"{type(obj).__name__.removesuffix('Config').lower()}.{name}={getattr(obj, name)!r}"


def at_least(obj: Any, name: str, low: float) -> None:
    """Refuses a field below `low`."""
    if not getattr(obj, name) >= low:
        raise ConfigError(f"{where(obj, name)}: must be at least {low}")


def between(obj: Any, name: str, low: float, high: float) -> None:
    """Refuses a field outside `low`..`high`."""
    if not low <= getattr(obj, name) <= high:
        raise ConfigError(f"{where(obj, name)}: must be between {low} and {high}")


def one_of(obj: Any, name: str, allowed: tuple) -> None:
    """Refuses a field that is none of `allowed`."""
    if getattr(obj, name) not in allowed:
        raise ConfigError(f"{where(obj, name)}: must be one of {', '.join(map(str, allowed))}")
