"""A UNet on a ResNet-50 encoder, 2.5D: five neighbouring slices in, C1..C7 and T1..T12 of the middle one out.

    python launch.py --config=configs/segment_encoder.py --config.data.manual_dir=/data/rsna

Any name of `cspine_jax.models.names()` can be the encoder (`model.backbone`). Gold's form, the encoder inflated to 3D
and every slice of the stack labelled, is `--config.model.network=inflated --config.model.backbone=resnet18d
--config.data.depth=15`.

`--mode=predict` writes a NIfTI mask of every study to `predictions/segmentations/`. Slices alone do not tell C4 from C5
reliably; what is shipped for that is the 3D segmenter (`cspine segment`).

Cost: about 11,000 steps of 16 stacks of 256 x 256 (87 masked studies, 10 epochs), 33 million parameters.
Expected: published Dice on these masks is .92 to .96 (3D networks); document A's 2D UNet did not learn. Not yet run
here: the data need a licence.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """What differs from the defaults in `cspine_jax/config`."""
    return ConfigDict(
        {
            "name": "segment_encoder",
            "task": "segment2d",
            "data": {
                "manual_dir": "data/rsna",
                "size": 256,
                "depth": 5,
                "positive_fraction": 0.75,
                "batch_size": 16,
                "eval_batch_size": 16,
            },
            "augment": {"rotation": 15.0, "zoom": 0.2, "shift": 0.1},
            "model": {"network": "encoder", "backbone": "resnet50", "width": 16},
            "loss": {"segmentation": "dice_ce"},
            "optim": {"lr": 1e-3, "weight_decay": 1e-4},
            "train": {
                "total_epochs": 10.0,
                "eval_epochs": 1.0,
                "min_delta": 0.0,
                "patience": 3,
                "bf16": True,
            },
        }
    )
