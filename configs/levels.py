"""All seven vertebrae of a patient at once: gold's network for each, then a transformer over the levels.

    python launch.py --config=configs/levels.py --config.data.manual_dir=/data/rsna
    python launch.py --config=configs/levels.py:phantom
    python launch.py --config=configs/levels.py:smoke

What the sixth team added: fractures come in neighbours, so each vertebra is judged knowing the others. The loss is the
competition's on the eight outputs; levels without a crop take no part. The crops are gold's.

Cost: `full` 2,019 patients, 50 epochs of 600 steps of 2 patients (210 slices of 224 px); `phantom` 600 steps of 4
patients on two CPU cores; `smoke` seconds.
Expected: no published figure of this part alone. `full` was not run here: the data need a licence.
"""

from ml_collections import ConfigDict

VARIANTS = ("full", "phantom", "smoke")

FULL = {
    "name": "levels",
    "task": "crops",
    "data": {"manual_dir": "data/rsna", "batch_size": 2, "eval_batch_size": 4},
    "crops": {"positions": 15, "radius": 2, "size": 224},
    "study": {"model": "levels", "hidden": 256, "layers": 1, "features": 256, "heads": 4, "depth": 2},
    "model": {"backbone": "efficientnet_v2_s", "dropout": 0.2},
    "augment": {
        "vertical_flip": True,
        "transpose": True,
        "rotation": 45.0,
        "zoom": 0.3,
        "shift": 0.3,
        "brightness": 0.1,
        "distortion": 0.2,
        "blur": 1.0,
        "cutout": 0.5,
        "mixup": 0.5,
        "slice_shuffle": 0.2,
    },
    "loss": {"positive_weight": 2.0},
    "optim": {"lr": 2e-4, "schedule": "cosine", "final_lr": 2e-5, "warmup": 0.0, "weight_decay": 1e-2},
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
        "batch_size": 4,
        "eval_batch_size": 8,
        "cache_mb": 4096,
    },
    "crops": {"size": 96},
    "study": {"hidden": 64, "features": 64, "depth": 2, "fractured_fraction": 0.5},
    "model": {"backbone": "basic_cnn"},
    "augment": {
        "transpose": False,
        "vertical_flip": False,
        "rotation": 15.0,
        "zoom": 0.1,
        "shift": 0.05,
        "distortion": 0.1,
        "blur": 0.0,
        "cutout": 0.3,
        "mixup": 0.0,
        "slice_shuffle": 0.0,
    },
    "optim": {"lr": 1e-3, "final_lr": 1e-5, "warmup": 0.05},
    "train": {
        "total_steps": 600,
        "total_epochs": 0.0,
        "eval_steps": 100,
        "eval_epochs": 0.0,
        "log_steps": 25,
        "checkpoint_steps": 125,
        "bf16": False,
    },
}

SMOKE = {
    "data": {
        "manual_dir": "",
        "phantom": {"studies": 8, "seed": 3, "size": 64, "scale": 0.12, "fov": 0.7},
        "num_folds": 4,
        "batch_size": 2,
        "eval_batch_size": 2,
    },
    "crops": {"positions": 4, "radius": 1, "size": 32},
    "study": {"hidden": 8, "features": 8, "heads": 2, "depth": 1},
    "model": {"backbone": "basic_cnn"},
    "train": {
        "total_steps": 2,
        "total_epochs": 0.0,
        "eval_steps": 2,
        "eval_epochs": 0.0,
        "log_steps": 1,
        "bf16": False,
    },
    "eval": {"bootstrap": 20},
}


def get_config(variant: str = "full") -> ConfigDict:
    """What differs from the defaults in `cspine_jax/config`."""
    config = ConfigDict(FULL)
    config.update({"full": {}, "phantom": PHANTOM, "smoke": SMOKE}[variant])
    return config
