r"""Document B's vertebra detection on RSNA 2022, Type 2: image and metadata in, 7 probabilities a slice out.

    python launch.py --config=configs/vertebra_type2.py --config.data.manual_dir=/data/rsna

As document B: 512 x 512 slices, Adam, one epoch, one-cycle to 1e-3 with 30% rising, early stopping (0.01, 5 x 500
batches), PReLU head, mixed precision, 5 folds by study. ResNet-50 stands in for its InceptionV3 (any name of
`cspine_jax.models.names()` can be given as `model.backbone`), and three neighbouring slices for its three equal
channels. Only studies with a mask are learnt from and measured on.

The metadata are the slice ratio, ImagePositionPatient (x, y, z), and the distances between slices and between rows
(`cspine_jax/data/slice_metadata.py` says how they are scaled). ImagePositionPatient is wherever the scanner has its
origin: on another hospital's studies Type 1 is the safer one.

Probabilities for the fracture models, each study's by a model that did not learn from it: train every fold, predict,
and give the tables of all folds to `data.vertebra_probs`.

    R="--config=configs/vertebra_type2.py --config.data.manual_dir=/data/rsna"; W=runs/vertebra_type2
    for k in 0 1 2 3 4; do
        python launch.py $R --workdir=$W/fold$k --config.data.fold=$k
        python launch.py $R --workdir=$W/fold$k --config.data.fold=$k --mode=predict
    done
    python launch.py --config=configs/fracture_type2.py --config.data.manual_dir=/data/rsna \
        --config.data.vertebra_probs="$W/fold*/predictions/slices.csv"

Cost: about 600 steps of 32 stacks a fold (87 masked studies), and a pass over all slices to predict them.
Expected: document B reports accuracy .945 and AUC .959 (mean of C1..C7). Not yet run here: the data need a licence.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """What differs from the defaults in `cspine_jax/config`."""
    return ConfigDict(
        {
            "name": "vertebra_type2",
            "task": "vertebra",
            "data": {
                "manual_dir": "data/rsna",
                "size": 512,
                "depth": 3,
                "batch_size": 32,
                "eval_batch_size": 64,
            },
            "model": {"type": 2, "backbone": "resnet50"},
            "loss": {"positive_weight": 1.0},
            "optim": {"lr": 1e-3, "warmup": 0.3},
            "train": {
                "total_epochs": 1.0,
                "eval_steps": 500,
                "min_delta": 0.01,
                "patience": 5,
                "bf16": True,
            },
        }
    )
