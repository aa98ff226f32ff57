"""Document C's 3D vision transformer: the odd slices of a study as one volume, cut into tubelets.

    python launch.py --config=configs/vit3d.py --config.data.manual_dir=/data/rsna
    python launch.py --config=configs/vit3d.py:full-lr5e-4 --config.data.manual_dir=/data/rsna
    python launch.py --config=configs/vit3d.py:phantom
    python launch.py --config=configs/vit3d.py:smoke

As document C: of the masked studies every second slice, at most 105, each as six channels (two neighbours on each side
and its mask), 256 px. Its three settings: `full` is the best of them (batch 2, lr 3e-4, smoothing .1), `full-batch1`
batch 1, lr 3e-4, no smoothing, `full-lr5e-4` batch 1, lr 5e-4, smoothing .1. Ours: the competition's weighted loss, a
cosine, five folds instead of 70 / 14 / 2 studies.

Cost: `full` 87 masked studies, 75 epochs of 26 steps; a study is 105 x 256 x 256 x 6, 8,960 tokens of 384 features
through 12 blocks in bfloat16, computed again in the backward pass. `phantom` 600 steps of 8 small studies on two CPU
cores; `smoke` seconds.
Expected: document C reports validation losses of .4158 (`full`), .4879 (`full-batch1`), .8186 (`full-lr5e-4`). None was
run here: the data need a licence.
"""

from ml_collections import ConfigDict

VARIANTS = ("full", "full-batch1", "full-lr5e-4", "phantom", "smoke")

FULL = {
    "name": "vit3d",
    "task": "study",
    "data": {"manual_dir": "data/rsna", "size": 256, "depth": 5, "batch_size": 2, "eval_batch_size": 2},
    "study": {
        "model": "vit3d",
        "every": 2,
        "max_slices": 105,
        "with_mask": True,
        "features": 384,
        "heads": 6,
        "depth": 12,
        "tubelet_depth": 3,
        "tubelet": 16,
        "remat": True,
    },
    "model": {"dropout": 0.1},
    "augment": {"rotation": 10.0, "zoom": 0.1, "shift": 0.05},
    "loss": {"label_smoothing": 0.1},
    "optim": {
        "lr": 3e-4,
        "schedule": "cosine",
        "final_lr": 3e-6,
        "warmup": 0.05,
        "weight_decay": 1e-2,
    },
    "train": {
        "total_epochs": 75.0,
        "eval_epochs": 3.0,
        "log_steps": 10,
        "checkpoint_steps": 100,
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
        "depth": 3,
        "batch_size": 8,
        "eval_batch_size": 8,
    },
    "study": {
        "every": 4,
        "max_slices": 40,
        "features": 96,
        "heads": 4,
        "depth": 4,
        "tubelet_depth": 2,
        "remat": False,
        "fractured_fraction": 0.5,
    },
    "optim": {"lr": 5e-4, "final_lr": 5e-6, "warmup": 0.1},
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
        "depth": 3,
    },
    "study": {
        "max_slices": 8,
        "features": 16,
        "heads": 2,
        "depth": 1,
        "tubelet_depth": 2,
        "tubelet": 8,
        "remat": False,
    },
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

ABLATION = {
    "full": {},
    "full-batch1": {"data": {"batch_size": 1}, "loss": {"label_smoothing": 0.0}},
    "full-lr5e-4": {"data": {"batch_size": 1}, "optim": {"lr": 5e-4, "final_lr": 5e-6}},
}


def get_config(variant: str = "full") -> ConfigDict:
    """What differs from the defaults in `cspine_jax/config`."""
    config = ConfigDict(FULL)
    config.update({**ABLATION, "phantom": PHANTOM, "smoke": SMOKE}[variant])
    return config
