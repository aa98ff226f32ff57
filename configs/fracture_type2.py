"""Document B's fracture detection on RSNA 2022, Type 2: vertebra probabilities as a second input.

    python launch.py --config=configs/fracture_type2.py --config.data.manual_dir=/data/rsna

As document B: 512 x 512 slices, Adam, one epoch, one-cycle to 1e-4 with 30% rising, early stopping (0.01, 5 x 500
batches), PReLU head, mixed precision, a slice positive where a fractured vertebra is on it. ResNet-50 stands in for its
InceptionV3, and three neighbouring slices for its three equal channels.

The vertebra probabilities (`data.vertebra_probs`: the second input, and document B's aggregation) are out of fold: each
study's come from the vertebra model that had it in its test part. Train and predict all folds of
configs/vertebra_type1.py first (its text has the commands). `--config.data.presence_from_probs=0.5` takes the levels on
the slices of training studies without a mask (1,932 of 2,019) from them too, as document B does; where a study has its
own mask, `--config.data.vertebra_probs=mask` reads the truth instead.

Cost: about 13,000 steps of 32 stacks, and 370 GB of records at full size (a quarter with `--config.data.size=256`).
Expected: document B reports slice AUC .946, vertebra AUC .748, patient AUC .747. Not yet run here: the
data need a licence.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """What differs from the defaults in `cspine_jax/config`."""
    return ConfigDict(
        {
            "name": "fracture_type2",
            "data": {
                "manual_dir": "data/rsna",
                "size": 512,
                "depth": 3,
                "fracture_target": "level",
                "vertebra_probs": "runs/vertebra_type1/fold*/predictions/slices.csv",
                "batch_size": 32,
                "eval_batch_size": 64,
            },
            "model": {"type": 2, "backbone": "resnet50"},
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
