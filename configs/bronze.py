"""Bronze, as document C names it: an EfficientNetV2-S on each crop by itself.

    python launch.py --config=configs/bronze.py --config.data.manual_dir=/data/rsna
    python launch.py --config=configs/bronze.py:phantom
    python launch.py --config=configs/bronze.py:phantom-staged
    python launch.py --config=configs/bronze.py:smoke

The crops, the labels of slices (`full`: the vertebra's; `phantom`: by the boxes) and the vertebra's mean of its highest
slices (five; `phantom`: two) are gold's (`gold_type1.py`); no slice knows of the others, so there is no slice shuffle.
`full` wants published weights of EfficientNetV2-S (`--config.model.pretrained=FILE`) and masks, see `gold_type1.py`.

Cost: `full` 2,019 x 7 vertebrae, 50 epochs of 530 steps of 16 vertebrae; `phantom` 2,000 steps of 24 on two CPU cores;
`phantom-staged` four minutes there; `smoke` seconds.
Expected: document C gives it a loss of .4982 on 86 masked studies. `full` was not run here: the data need a licence.
`phantom-staged`, 150 held-out studies of fold 0 of 10: vertebra AUC .955 [.932, .974], patient .928 [.869, .961],
metric A of p .277, of calibrated p .249 (phantom; `docs/comparison.md`).
"""

from ml_collections import ConfigDict
from recipe_parts import SHARED, layered
from recipe_parts.crops import CROPS, STAGED

VARIANTS = STAGED

RECIPE = {
    "full": {
        "name": "bronze",
        "study": {"model": "bronze"},
        "model": {"dropout": 0.2},
        "augment": {"slice_shuffle": 0.0},
    },
    "phantom": {
        "data": {"batch_size": 24},
        "study": {"fractured_fraction": 0.4, "slice_labels": "box", "train_positions": 5},
        "train": {"total_steps": 2000, "eval_steps": 250},
    },
    "smoke": {
        "data": {"batch_size": 4, "eval_batch_size": 8},
        "study": {"fractured_fraction": 0.3},
    },
}


def get_config(variant: str = "full") -> ConfigDict:
    """What differs from the defaults in `cspine_jax/config`."""
    return layered(variant, SHARED, CROPS, RECIPE)
