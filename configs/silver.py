"""Silver, as document C names it: EfficientNetV2-L on each slice of a vertebra, a transformer over the slices.

    python launch.py --config=configs/silver.py --config.data.manual_dir=/data/rsna
    python launch.py --config=configs/silver.py:phantom
    python launch.py --config=configs/silver.py:phantom-staged
    python launch.py --config=configs/silver.py:smoke

The crops, the labels of slices (`full`: the vertebra's; `phantom`: by the boxes) and the vertebra's mean of its highest
slices (five; `phantom`: two) are gold's (`gold_type1.py`); the transformer stands in place of the LSTM.
`full` wants published weights of EfficientNetV2-L (`--config.model.pretrained=FILE`) and masks, see `gold_type1.py`.

Cost: `full` 2,019 x 7 vertebrae, 50 epochs of 1,060 steps of 8 vertebrae (about 118 million parameters); `phantom`
2,000 steps of 16 on two CPU cores; `phantom-staged` four minutes there; `smoke` seconds.
Expected: document C gives it a loss of .4140 on 86 masked studies. `full` was not run here: the data need a licence.
`phantom-staged`, 150 held-out studies of fold 0 of 10: vertebra AUC .952 [.925, .975], patient .933 [.873, .965],
metric A of p .377, of calibrated p .236 (phantom; `docs/comparison.md`).
"""

from ml_collections import ConfigDict
from recipe_parts import SHARED, layered
from recipe_parts.crops import CROPS, STAGED

VARIANTS = STAGED

RECIPE = {
    "full": {
        "name": "silver",
        "data": {"batch_size": 8, "eval_batch_size": 16},
        "study": {"model": "silver", "features": 512, "heads": 8, "depth": 2},
        "model": {"backbone": "efficientnet_v2_l", "dropout": 0.1},
        "optim": {"lr": 1e-4, "final_lr": 1e-5, "warmup": 0.02},
    },
    "phantom": {
        "data": {"batch_size": 16, "eval_batch_size": 32},
        "study": {"features": 64, "heads": 4, "depth": 2, "fractured_fraction": 0.4, "slice_labels": "box"},
        "train": {"total_steps": 2000, "eval_steps": 250},
    },
    "smoke": {
        "data": {"batch_size": 4, "eval_batch_size": 8},
        "study": {"features": 8, "heads": 2, "depth": 1},
    },
}


def get_config(variant: str = "full") -> ConfigDict:
    """What differs from the defaults in `cspine_jax/config`."""
    return layered(variant, SHARED, CROPS, RECIPE)
