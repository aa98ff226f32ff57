"""All seven vertebrae of a patient at once: gold's network for each, then a transformer over the levels.

    python launch.py --config=configs/levels.py --config.data.manual_dir=/data/rsna
    python launch.py --config=configs/levels.py:phantom
    python launch.py --config=configs/levels.py:phantom-staged
    python launch.py --config=configs/levels.py:smoke

What the sixth team added: fractures come in neighbours, so each vertebra is judged knowing the others. The loss is the
competition's on the eight outputs; levels without a crop take no part. The crops are gold's.
`full` wants published weights of EfficientNetV2-S (`--config.model.pretrained=FILE`) and masks, see `gold_type1.py`.

Cost: `full` 2,019 patients, 50 epochs of 600 steps of 2 patients (210 slices of 224 px); `phantom` 1,200 steps of 4
patients on two CPU cores; `phantom-staged` six minutes there, evaluation included; `smoke` seconds.
Expected: no published figure of this part alone. `full` was not run here: the data need a licence. `phantom-staged`,
150 held-out studies of fold 0 of 10: vertebra AUC .937 [.901, .966], patient .930 [.869, .964], metric A of p .278, of
calibrated p .248 (phantom; `docs/comparison.md`).
"""

from ml_collections import ConfigDict
from recipe_parts import SHARED, layered
from recipe_parts.crops import CROPS, STAGED

VARIANTS = STAGED

RECIPE = {
    "full": {
        "name": "levels",
        "data": {"batch_size": 2, "eval_batch_size": 4},
        "study": {"model": "levels", "hidden": 256, "layers": 1, "features": 256, "heads": 4, "depth": 2},
        "model": {"dropout": 0.2},
    },
    "phantom": {
        "data": {"batch_size": 4, "eval_batch_size": 8},
        "study": {"hidden": 64, "features": 64, "depth": 2, "fractured_fraction": 0.5},
        "train": {"total_steps": 1200, "eval_steps": 200},
    },
    "smoke": {"study": {"hidden": 8, "features": 8, "heads": 2, "depth": 1}},
}


def get_config(variant: str = "full") -> ConfigDict:
    """What differs from the defaults in `cspine_jax/config`."""
    return layered(variant, SHARED, CROPS, RECIPE)
