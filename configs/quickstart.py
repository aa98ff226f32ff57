"""The whole pipeline on synthetic studies, on two CPU cores.

    python launch.py --config=configs/quickstart.py

Writes phantom studies as DICOM, builds the records, trains document B's Type 3 model (image in; fracture and vertebra
probabilities out; L = 2 L_frac + L_vert) from scratch and reports on studies it never saw.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """What differs from the defaults in `cspine_jax/config.py`."""
    return ConfigDict(
        {
            "name": "quickstart",
            "data": {
                "phantom": {"studies": 160, "size": 160, "scale": 0.25},
                "size": 160,
                "depth": 5,
                "batch_size": 32,
                "eval_batch_size": 128,
            },
            "model": {"type": 3, "backbone": "basic_cnn"},
            "loss": {"alpha": 2.0},
            "optim": {"lr": 2e-3},
            "train": {"total_steps": 600, "total_epochs": 0.0, "eval_steps": 200, "patience": 0},
        }
    )
