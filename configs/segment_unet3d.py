"""The coarse 3D network: which vertebra each voxel of 4 mm belongs to, and where that vertebra's centre lies.

    python launch.py --config=configs/segment_unet3d.py

Learns from synthetic studies of the `wide` variety only, varied further on the device, so that it carries over to
real CT; the half of `cspine_jax/weights/vertebrae.npz` that names vertebrae was made by this recipe, the other by
`segment_refine3d.py`, and `cspine weights export` joined them (all commands are in the README; a second run of 700
steps, from the first one's, is among them). To learn from the RSNA masks instead:

    python launch.py --config=configs/segment_unet3d.py --config.data.manual_dir=/data/rsna --config.data.size=256

Cost: 9 minutes for the phantom on one core, an hour of training on two cores.
Expected (phantom): see the card of the shipped weights, `cspine weights inspect`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """What differs from the defaults in `cspine_jax/config`."""
    return ConfigDict(
        {
            "name": "segment_unet3d",
            "task": "spine",
            "data": {
                "size": 192,
                "num_folds": 10,
                "batch_size": 2,
                "phantom": {"studies": 320, "seed": 1001, "size": 192, "scale": 1.0, "variety": "wide"},
            },
            "volume": {"spacing_mm": 2.0, "depth": 96, "height": 80, "width_px": 80, "levels": 4, "light": True},
            "optim": {"lr": 2e-3, "warmup": 0.1, "weight_decay": 1e-4},
            "train": {"total_steps": 2600, "eval_steps": 325, "log_steps": 25, "checkpoint_steps": 100, "patience": 0},
        }
    )
