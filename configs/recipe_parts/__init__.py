"""What the study-level recipes share, so that a recipe names only what is its own."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

VARIANTS = ("full", "phantom", "smoke")

Settings = Mapping[str, Any]

SHARED: dict[str, Settings] = {
    "full": {
        "data": {"manual_dir": "data/rsna"},
        "optim": {"schedule": "cosine", "weight_decay": 1e-2},
        "train": {"eval_epochs": 1.0, "log_steps": 50, "checkpoint_steps": 500, "patience": 0, "bf16": True},
    },
    "phantom": {
        "data": {
            "manual_dir": "",
            "phantom": {"studies": 1500, "seed": 77, "size": 192, "scale": 1.0, "fov": 0.55, "difficulty": "standard"},
            "num_folds": 10,
        },
        "model": {"backbone": "basic_cnn"},
        "train": {"total_epochs": 0.0, "eval_epochs": 0.0, "log_steps": 25, "patience": 0, "bf16": False},
    },
    "smoke": {
        "data": {
            "manual_dir": "",
            "phantom": {"studies": 8, "seed": 3, "size": 64, "scale": 0.12, "fov": 0.7},
            "num_folds": 4,
            "batch_size": 2,
            "eval_batch_size": 2,
        },
        "model": {"backbone": "basic_cnn"},
        "train": {
            "total_steps": 2,
            "total_epochs": 0.0,
            "eval_steps": 2,
            "eval_epochs": 0.0,
            "log_steps": 1,
            "patience": 0,
            "bf16": False,
        },
        "eval": {"bootstrap": 20},
    },
}
"""Of all study-level recipes, by variant; "phantom" and "smoke" are laid over "full"."""


def layered(variant: str, *parts: Mapping[str, Settings]) -> ConfigDict:
    """One variant of a recipe.

    Args:
        variant: one of `VARIANTS`, or one of the recipe's own, laid over "full"; one named "a-b" over "a", too.
        parts: settings by variant, each laid over those before it: `SHARED`, those of a family, the recipe's own.
    """
    config = ConfigDict()
    for name in dict.fromkeys(("full", variant.partition("-")[0], variant)):
        for part in parts:
            config.update(part.get(name, {}))
    return config
