"""Gold's Type 2: the crops of a patient's seven vertebrae, 105 slices; one answer a slice and one for the patient.

    python launch.py --config=configs/gold_type2.py --config.data.manual_dir=/data/rsna
    python launch.py --config=configs/gold_type2.py:phantom
    python launch.py --config=configs/gold_type2.py:phantom-staged
    python launch.py --config=configs/gold_type2.py:smoke

A CNN on each slice, one bidirectional LSTM for the slices' answers and a second one for the patient's; the loss is (15
slice + 1 patient) / 16. A vertebra is the mean of its five highest slices (`phantom`: two), the patient 0.4 (1 -
prod(1 - max)) + 0.01 max + 0.6 of its own output. Levels without a crop are padding. The rest is `gold_type1.py`'s, the
labels of slices (`full`: the vertebra's; `phantom`: by the boxes) among it.
`full` wants published weights of EfficientNetV2-S (`--config.model.pretrained=FILE`) and masks, see `gold_type1.py`.

A step sees eight patients, since the patient's head normalises over them (of two, each unit would be +1 or -1).

Cost: `full` 2,019 patients, 50 epochs of 150 steps of 8 patients (840 slices of 224 px, 15 of each patient in memory at
a time); `phantom` 1,200 steps of 8 patients on two CPU cores; `phantom-staged` eight minutes there; `smoke` seconds.
Expected: the winners' whole ensemble has patient AUC .95 to .97; document C gives gold a loss of .2047. `full` was not
run here: the data need a licence. `phantom-staged`, 150 held-out studies of fold 0 of 10: vertebra AUC .937 [.903,
.966], patient .945 [.891, .973], metric A of p .278, of calibrated p .241 (phantom; `docs/comparison.md`).
"""

from ml_collections import ConfigDict
from recipe_parts import SHARED, layered
from recipe_parts.crops import CROPS, STAGED

VARIANTS = STAGED

RECIPE = {
    "full": {
        "name": "gold_type2",
        "data": {"batch_size": 8, "eval_batch_size": 4},
        "study": {"model": "gold_patient", "hidden": 256, "layers": 2, "chunk": 15},
        "model": {"dropout": 0.3},
    },
    "phantom": {
        "data": {"batch_size": 8, "eval_batch_size": 8},
        "study": {"hidden": 64, "layers": 1, "chunk": 0, "fractured_fraction": 0.5, "slice_labels": "box"},
        "train": {"total_steps": 1200, "eval_steps": 200},
    },
    "smoke": {"study": {"hidden": 8, "layers": 1, "chunk": 0}},
}


def get_config(variant: str = "full") -> ConfigDict:
    """What differs from the defaults in `cspine_jax/config`."""
    return layered(variant, SHARED, CROPS, RECIPE)
