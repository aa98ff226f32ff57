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
ResNet50 .7423 / .3874. `full` was not run here: the data need a licence. `phantom`, 150 held-out studies: chance
(vertebra AUC .670, .663 by knowing how often each level breaks; patient .486; phantom; `docs/comparison.md`).
"""

import recipe_parts
from ml_collections import ConfigDict
from recipe_parts.studies import STUDIES

BACKBONES = ("basic_cnn", "inception_v3", "resnet50", "efficientnet_b5")
VARIANTS = tuple(f"{scale}{end}" for scale in recipe_parts.VARIANTS for end in ("", *(f"-{b}" for b in BACKBONES)))

RECIPE = {
    "full": {
        "name": "classifier",
        "data": {"size": 224, "depth": 3, "batch_size": 4, "eval_batch_size": 4},
        "study": {"model": "classifier", "slices": 48},
        "model": {"dropout": 0.2},
        "optim": {"warmup": 0.1},
        "train": {"total_epochs": 10.0, "checkpoint_steps": 300, "min_delta": 0.0, "patience": 3},
    },
    "phantom": {
        "study": {"slices": 24},
        "train": {"total_steps": 400, "eval_steps": 66},
    },
    "smoke": {"study": {"slices": 5}},
}


def get_config(variant: str = "full") -> ConfigDict:
    """What differs from the defaults in `cspine_jax/config`."""
    scale, _, backbone = variant.partition("-")
    config = recipe_parts.layered(scale, recipe_parts.SHARED, STUDIES, RECIPE)
    config.update({"model": {"backbone": backbone or BACKBONES[0]}})
    if variant == "smoke-inception_v3":
        config.update({"data": {"size": 75}})  # its least
    return config
