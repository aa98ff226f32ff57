"""Recipes by name: `configs/gold_type1.py`, or with one of its variants `configs/gold_type1.py:smoke`.

A recipe is a Python file with a `get_config()` that returns an `ml_collections.ConfigDict`. One that has variants names
them in `VARIANTS`, and its `get_config(variant)` takes one; what follows the colon is passed to it, as
`ml_collections.config_flags` does. A recipe can import what lies beside it, such as `configs/recipe_parts`.
"""

import contextlib
import difflib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from cspine_jax.errors import ConfigError


def split_variant(recipe: str) -> tuple[str, str]:
    """`"configs/a.py:smoke"` -> `("configs/a.py", "smoke")`; the variant is "" where none is given."""
    path, colon, variant = recipe.rpartition(":")
    return (path, variant) if colon and path else (recipe, "")


def run_name(recipe: str) -> str:
    """What to call a run of a recipe: `"configs/a.py:smoke"` -> `"a_smoke"`."""
    path, variant = split_variant(recipe)
    return "_".join(part for part in (Path(path).stem, variant) if part)


def variants(recipe: str) -> tuple[str, ...]:
    """The variants of a recipe file, () where it has none.

    Raises:
        ConfigError: there is no such file, or it cannot be run.
    """
    return tuple(getattr(_module(split_variant(recipe)[0]), "VARIANTS", ()))


def load_recipe(recipe: str) -> dict[str, Any]:
    """What a recipe says, as a nested dict to lay over the defaults (`config.from_dict`).

    Args:
        recipe: path of the file, with `:variant` where it has variants.

    Raises:
        ConfigError: there is no such file or variant, or it cannot be run.
    """
    path, variant = split_variant(recipe)
    module = _module(path)
    known = tuple(getattr(module, "VARIANTS", ()))
    if variant and not known:
        raise ConfigError(f"--config={recipe}: {path} has no variants; leave out {':' + variant!r}")
    if variant and variant not in known:
        near = difflib.get_close_matches(variant, known, n=1)
        fix = f"did you mean {path}:{near[0]}?" if near else f"it has {', '.join(known)}"
        raise ConfigError(f"--config={recipe}: {path} has no variant {variant!r}; {fix}")
    try:
        return (module.get_config(variant) if variant else module.get_config()).to_dict()
    except Exception as error:
        raise ConfigError(f"--config={recipe}: {type(error).__name__}: {error}") from error


def _module(path: str) -> ModuleType:
    if not Path(path).is_file():
        near = difflib.get_close_matches(path, map(str, Path(path).parent.glob("*.py")), n=1)
        raise ConfigError(f"--config={path}: no such file" + (f"; did you mean {near[0]}?" if near else ""))
    spec = importlib.util.spec_from_file_location("recipe", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config={path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        with _neighbours(Path(path).parent):
            spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"--config={path}: {type(error).__name__}: {error}") from error
    return module


@contextlib.contextmanager
def _neighbours(folder: Path) -> Iterator[None]:
    """Lets a recipe import from its own folder, and forgets it after: another folder may hold the same names."""
    before, here = set(sys.modules), str(folder.resolve())
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(here):
                del sys.modules[name]
