"""Bronze, as document C names it: an EfficientNetV2-S on each crop by itself.

    python launch.py --config=configs/bronze.py --config.data.manual_dir=/data/rsna
    python launch.py --config=configs/bronze.py:phantom
    python launch.py --config=configs/bronze.py:smoke

The crops, the labels of slices (`full`: the vertebra's; `phantom`: by the boxes) and the vertebra's mean of five are
gold's (`gold_type1.py`); no slice knows of the others, so there is no slice shuffle.

Cost: `full` 2,019 x 7 vertebrae, 50 epochs of 530 steps of 16 vertebrae; `phantom` 1,000 steps of 16 on two CPU cores;
`smoke` seconds.
Expected: document C gives it a loss of .4982 on 86 masked studies. `full` was not run here: the data need a licence.
"""

from ml_collections import ConfigDict

VARIANTS = ("full", "phantom", "smoke")

FULL = {
    "name": "bronze",
    "task": "crops",
    "data": {"manual_dir": "data/rsna", "batch_size": 16, "eval_batch_size": 32},
    "crops": {"positions": 15, "radius": 2, "size": 224},
    "study": {"model": "bronze"},
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
        "slice_shuffle": 0.0,
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
        "batch_size": 16,
        "eval_batch_size": 32,
        "cache_mb": 4096,
    },
    "crops": {"size": 96},
    "study": {"fractured_fraction": 0.3, "slice_labels": "box"},
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
        "total_steps": 1000,
        "total_epochs": 0.0,
        "eval_steps": 166,
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
        "batch_size": 4,
        "eval_batch_size": 8,
    },
    "crops": {"positions": 4, "radius": 1, "size": 32},
    "study": {"fractured_fraction": 0.3},
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
