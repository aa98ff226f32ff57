"""A 3D residual CNN on a whole study: what document B wanted next.

    python launch.py --config=configs/cnn3d.py --config.data.manual_dir=/data/rsna
    python launch.py --config=configs/cnn3d.py:phantom
    python launch.py --config=configs/cnn3d.py:smoke

Every second slice, at most 160, each by itself (no neighbours: the network sees them anyway).
`--config.study.factorised` splits its convolutions into (2+1)D; `--config.study.clip_depth=40
--config.study.clip_size=256 --config.study.every=1 --config.study.fractured_fraction=0.7 --config.study.with_mask`
shows it the fourth team's clips of the masked studies instead.

Cost: `full` 2,019 studies, 50 epochs of 600 steps of 2 studies of 160 x 256 x 256; `phantom` 200 steps of 8 small
studies on two CPU cores; `smoke` seconds.
Expected: no published figure. `full` was not run here: the data need a licence. `phantom`, 150 held-out studies: chance
(vertebra AUC .649, .663 by knowing how often each level breaks; patient .516; phantom; `docs/comparison.md`).
"""

from ml_collections import ConfigDict
from recipe_parts import SHARED, VARIANTS, layered
from recipe_parts.studies import STUDIES

__all__ = ["VARIANTS", "get_config"]

RECIPE = {
    "full": {
        "name": "cnn3d",
        "data": {"size": 256, "depth": 1, "batch_size": 2, "eval_batch_size": 2},
        "study": {"model": "cnn3d", "every": 2, "max_slices": 160, "width": 32, "stages": 4, "blocks": 2},
        "model": {"dropout": 0.2},
        "optim": {"warmup": 0.05},
        "train": {"total_epochs": 50.0},
    },
    "phantom": {
        "study": {"every": 8, "max_slices": 40, "width": 16, "stages": 3, "blocks": 1},
        "train": {"total_steps": 200, "eval_steps": 50},
    },
    "smoke": {"study": {"max_slices": 8, "width": 4, "stages": 2, "blocks": 1}},
}


def get_config(variant: str = "full") -> ConfigDict:
    """What differs from the defaults in `cspine_jax/config`."""
    return layered(variant, SHARED, STUDIES, RECIPE)
