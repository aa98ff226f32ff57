"""Document A's classifiers: a whole study in, its eight targets out, over four backbones.

    python launch.py --config=configs/classifier.py:full-resnet50 --config.data.manual_dir=/data/rsna
    python launch.py --config=configs/classifier.py:phantom
    python launch.py --config=configs/classifier.py:smoke

The backbone follows the variant: `full-basic_cnn` (which `full` is short for), `full-inception_v3`, `full-resnet50`,
`full-efficientnet_b5`; likewise after `phantom` and `smoke`. As document A: 10 epochs, early stopping on the validation
loss; `--config.model.pretrained=FILE` starts from published weights (its transfer learning). Ours: 48 slices evenly
spaced from a study's first to its last, each with its two neighbours, pooled by mean and maximum; the competition's
weighted loss.

Cost: `full` 10 epochs of 300 steps of 4 studies (192 slices of 224 px); `phantom` 400 steps of 8 studies of 24 slices
on two CPU cores; `smoke` seconds.
Expected: document A reports basic CNN loss .0049 F1 .8381, InceptionV3 .0512 / .4783, EfficientNetB5 1.0992 / .0660,
ResNet50 .7423 / .3874. `full` was not run here: the data need a licence.
"""

from ml_collections import ConfigDict

BACKBONES = ("basic_cnn", "inception_v3", "resnet50", "efficientnet_b5")
VARIANTS = tuple(
    f"{scale}{end}" for scale in ("full", "phantom", "smoke") for end in ("", *(f"-{b}" for b in BACKBONES))
)

FULL = {
    "name": "classifier",
    "task": "study",
    "data": {"manual_dir": "data/rsna", "size": 224, "depth": 3, "batch_size": 4, "eval_batch_size": 4},
    "study": {"model": "classifier", "slices": 48},
    "model": {"dropout": 0.2},
    "augment": {"rotation": 10.0, "zoom": 0.1, "shift": 0.05},
    "optim": {"lr": 3e-4, "schedule": "cosine", "final_lr": 3e-6, "warmup": 0.1, "weight_decay": 1e-2},
    "train": {
        "total_epochs": 10.0,
        "eval_epochs": 1.0,
        "log_steps": 50,
        "checkpoint_steps": 300,
        "min_delta": 0.0,
        "patience": 3,
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
    "study": {"slices": 24, "fractured_fraction": 0.5},
    "optim": {"lr": 1e-3, "final_lr": 1e-5, "warmup": 0.1},
    "train": {
        "total_steps": 400,
        "total_epochs": 0.0,
        "eval_steps": 66,
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
    "study": {"slices": 5},
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
    scale, _, backbone = variant.partition("-")
    config = ConfigDict(FULL)
    config.update({"full": {}, "phantom": PHANTOM, "smoke": SMOKE}[scale])
    config.update({"model": {"backbone": backbone or BACKBONES[0]}})
    return config
