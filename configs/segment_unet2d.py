"""The 2D UNet (Ronneberger et al. 2015) on the masked studies of RSNA 2022: C1..C7 and T1..T12 on every slice.

    python launch.py --config=configs/segment_unet2d.py --config.data.manual_dir=/data/rsna

Document A's plan, with what it lacked: Dice + cross-entropy instead of accuracy, three neighbouring slices as channels,
three of four slices of a batch showing a cervical vertebra, image and mask moved together.

`--mode=predict` writes a NIfTI mask of every study to `predictions/segmentations/`. Slices alone do not tell C4 from C5
reliably; what is shipped for that is the 3D segmenter (`cspine segment`).

Cost: about 11,000 steps of 16 slices of 256 x 256 (87 masked studies, 10 epochs), 7.8 million parameters.
Expected: published Dice on these masks is .92 to .96 (3D networks); document A's 2D UNet did not learn. Not yet run
here: the data need a licence.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """What differs from the defaults in `cspine_jax/config`."""
    return ConfigDict(
        {
            "name": "segment_unet2d",
            "task": "segment2d",
            "data": {
                "manual_dir": "data/rsna",
                "size": 256,
                "depth": 3,
                "positive_fraction": 0.75,
                "batch_size": 16,
                "eval_batch_size": 16,
            },
            "augment": {"rotation": 15.0, "zoom": 0.2, "shift": 0.1},
            "model": {"network": "unet2d", "width": 32, "levels": 4},
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
