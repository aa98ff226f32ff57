"""Document B's fracture detection on RSNA 2022, Type 3: vertebra probabilities as a second output.

    python launch.py --config=configs/fracture_type3.py --config.data.manual_dir=/data/rsna

As document B: 512 x 512 slices, Adam, one epoch, one-cycle to 1e-4 with 30% rising, early stopping (0.01, 5 x 500
batches), PReLU head, mixed precision, a slice positive where a fractured vertebra is on it. ResNet-50 stands in for its
InceptionV3, and three neighbouring slices for its three equal channels.

Cost: about 13,000 steps of 32 stacks, and 370 GB of records at full size (a quarter with `--config.data.size=256`).
Expected: document B reports slice AUC .946, vertebra AUC .748, patient AUC .747. Not yet run here: the
data need a licence.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """What differs from the defaults in `cspine_jax/config`."""
    return ConfigDict(
        {
            "name": "fracture_type3",
            "data": {
                "manual_dir": "data/rsna",
                "size": 512,
                "depth": 3,
                "fracture_target": "level",
                "batch_size": 32,
                "eval_batch_size": 64,
            },
            "model": {"type": 3, "backbone": "resnet50"},
            "loss": {"alpha": 2.0},
            "optim": {"lr": 1e-4, "warmup": 0.3},
            "train": {
                "total_epochs": 1.0,
                "eval_steps": 500,
                "min_delta": 0.01,
                "patience": 5,
                "bf16": True,
            },
        }
    )
