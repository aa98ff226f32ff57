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
through 12 blocks in bfloat16, computed again in the backward pass. `phantom` 200 steps of 8 small studies on two CPU
cores; `smoke` seconds.
Expected: document C reports validation losses of .4158 (`full`), .4879 (`full-batch1`), .8186 (`full-lr5e-4`). None was
run here: the data need a licence. `phantom`, 150 held-out studies: chance (vertebra AUC .654, .663 by knowing how often
each level breaks; patient .455; phantom; `docs/comparison.md`).
"""

from ml_collections import ConfigDict
from recipe_parts import SHARED, layered
from recipe_parts.studies import STUDIES

VARIANTS = ("full", "full-batch1", "full-lr5e-4", "phantom", "smoke")

RECIPE = {
    "full": {
        "name": "vit3d",
        "data": {"size": 256, "depth": 5, "batch_size": 2, "eval_batch_size": 2},
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
        "loss": {"label_smoothing": 0.1},
        "optim": {"warmup": 0.05},
        "train": {"total_epochs": 75.0, "eval_epochs": 3.0, "log_steps": 10, "checkpoint_steps": 100},
    },
    "phantom": {
        "data": {"depth": 3},
        "study": {
            "every": 8,
            "max_slices": 40,
            "features": 96,
            "heads": 4,
            "depth": 4,
            "tubelet_depth": 2,
            "remat": False,
        },
        "optim": {"lr": 5e-4, "final_lr": 5e-6},
        "train": {"total_steps": 200, "eval_steps": 50},
    },
    "smoke": {
        "data": {"depth": 3},
        "study": {
            "max_slices": 8,
            "features": 16,
            "heads": 2,
            "depth": 1,
            "tubelet_depth": 2,
            "tubelet": 8,
            "remat": False,
        },
    },
    "full-batch1": {"data": {"batch_size": 1}, "loss": {"label_smoothing": 0.0}},
    "full-lr5e-4": {"data": {"batch_size": 1}, "optim": {"lr": 5e-4, "final_lr": 5e-6}},
}


def get_config(variant: str = "full") -> ConfigDict:
    """What differs from the defaults in `cspine_jax/config`."""
    return layered(variant, SHARED, STUDIES, RECIPE)
