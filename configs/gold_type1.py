"""Gold's Type 1: 15 slices of one vertebra, a CNN on each, a bidirectional LSTM over them, a logit for each.

    python launch.py --config=configs/gold_type1.py --config.data.manual_dir=/data/rsna
    python launch.py --config=configs/gold_type1.py:phantom
    python launch.py --config=configs/gold_type1.py:smoke

Every slice has the label of its vertebra (`study.slice_labels="copy"`; few real studies have fracture boxes), positives
weigh twice; a vertebra is the mean of its five highest slices and the patient 1 - prod(1 - p_j). All phantom fractures
have boxes, so `phantom` makes only the slices positive on which one shows the break (`"box"`). `full` (the default) is
the winners' recipe: 224 px (they ended at 512, `--config.crops.size=512`), EfficientNetV2-S, AdamW 2e-4 to 2e-5 by a
cosine, 50 epochs, flips, transposition, grid distortion, blur, cutout, mixup .5, slice shuffle .2. Crops are cut by the
true masks; for the studies without one, `cspine segment` each fold's and give `--config.crops.masks='segmented/fold*'`.

Cost: `full` 2,019 x 7 vertebrae, 50 epochs of 530 steps of 16 vertebrae (with masks of `cspine segment`); `phantom` 460
studies, 1,500 steps on two CPU cores; `smoke` seconds.
Expected: the winners' whole ensemble has patient AUC .95 to .97. `full` was not run here: the data need a licence.
"""

from ml_collections import ConfigDict

VARIANTS = ("full", "phantom", "smoke")

FULL = {
    "name": "gold_type1",
    "task": "crops",
    "data": {"manual_dir": "data/rsna", "batch_size": 16, "eval_batch_size": 32, "prefetch": 4},
    "crops": {"positions": 15, "radius": 2, "size": 224},
    "study": {"model": "gold", "hidden": 256, "layers": 2, "fractured_fraction": 0.0},
    "model": {"backbone": "efficientnet_v2_s", "dropout": 0.3},
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
        "cache_mb": 4096,
    },
    "crops": {"size": 96},
    "study": {"hidden": 64, "layers": 1, "fractured_fraction": 0.3, "slice_labels": "box"},
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
        "total_steps": 1500,
        "total_epochs": 0.0,
        "eval_steps": 250,
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
    "study": {"hidden": 8, "layers": 1, "fractured_fraction": 0.3},
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
