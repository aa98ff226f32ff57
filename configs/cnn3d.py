"""A 3D residual CNN on a whole study: what document B wanted next.

    python launch.py --config=configs/cnn3d.py --config.data.manual_dir=/data/rsna
    python launch.py --config=configs/cnn3d.py:phantom
    python launch.py --config=configs/cnn3d.py:smoke

Every second slice, at most 160, each by itself (no neighbours: the network sees them anyway).
`--config.study.factorised` splits its convolutions into (2+1)D; `--config.study.clip_depth=40
--config.study.clip_size=256 --config.study.every=1 --config.study.fractured_fraction=0.7 --config.study.with_mask`
shows it the fourth team's clips of the masked studies instead.

Cost: `full` 2,019 studies, 50 epochs of 600 steps of 2 studies of 160 x 256 x 256; `phantom` 600 steps of 8 small
studies on two CPU cores; `smoke` seconds.
Expected: no published figure. `full` was not run here: the data need a licence.
"""

from ml_collections import ConfigDict

VARIANTS = ("full", "phantom", "smoke")

FULL = {
    "name": "cnn3d",
    "task": "study",
    "data": {"manual_dir": "data/rsna", "size": 256, "depth": 1, "batch_size": 2, "eval_batch_size": 2},
    "study": {"model": "cnn3d", "every": 2, "max_slices": 160, "width": 32, "stages": 4, "blocks": 2},
    "model": {"dropout": 0.2},
    "augment": {"rotation": 10.0, "zoom": 0.1, "shift": 0.05},
    "optim": {
        "lr": 3e-4,
        "schedule": "cosine",
        "final_lr": 3e-6,
        "warmup": 0.05,
        "weight_decay": 1e-2,
    },
    "train": {
        "total_epochs": 50.0,
        "eval_epochs": 1.0,
        "log_steps": 50,
        "checkpoint_steps": 500,
        "patience": 0,
        "bf16": True,
    },
}

PHANTOM = {
    "data": {
        "manual_dir": "",
        "phantom": {"studies": 460, "seed": 77, "size": 256, "scale": 0.5, "fov": 0.7, "difficulty": "standard"},
        "cache_mb": 6000,
        "size": 128,
        "batch_size": 8,
        "eval_batch_size": 8,
    },
    "study": {"every": 4, "max_slices": 40, "width": 16, "stages": 3, "blocks": 1, "fractured_fraction": 0.5},
    "optim": {"lr": 1e-3, "final_lr": 1e-5, "warmup": 0.1},
    "train": {
        "total_steps": 600,
        "total_epochs": 0.0,
        "eval_steps": 100,
        "eval_epochs": 0.0,
        "log_steps": 25,
        "checkpoint_steps": 100,
        "patience": 0,
        "bf16": False,
    },
}

SMOKE = {
    "data": {
        "manual_dir": "",
        "phantom": {"studies": 8, "seed": 3, "size": 64, "scale": 0.12, "fov": 0.7},
        "size": 32,
        "num_folds": 4,
        "batch_size": 2,
        "eval_batch_size": 2,
    },
    "study": {"max_slices": 8, "width": 4, "stages": 2, "blocks": 1},
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
}


def get_config(variant: str = "full") -> ConfigDict:
    """What differs from the defaults in `cspine_jax/config`."""
    config = ConfigDict(FULL)
    config.update({"full": {}, "phantom": PHANTOM, "smoke": SMOKE}[variant])
    return config
