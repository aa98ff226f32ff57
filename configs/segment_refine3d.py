r"""The fine 3D network: the exact shape, at 1 mm, of vertebrae whose rough place the coarse one has found.

    python launch.py --config=configs/segment_refine3d.py

Neighbouring vertebrae are told apart by one of three colours, so it needs no names and no context. In training the
rough map is the truth, spoilt as a coarse network spoils it; so it does not wait for one. Data as in
`segment_unet3d.py`, made once for both.

The background weighs 0.1 at first, so that bone is learnt quickly; that draws outlines too wide. A short second run
with even weights, from the first one's, puts them right:

    python launch.py --config=configs/segment_refine3d.py --workdir=runs/refine_tuned \
        --config.train.init_from=runs/segment_refine3d --config.volume.background_weight=1.0 \
        --config.optim.lr=7e-4 --config.train.total_steps=300 --config.train.eval_steps=100

and twice more from there (lr 8e-4, 380 steps, seed 1; lr 1e-3, 1000 steps, seed 11) for the weights in the package.

Cost: an hour of training on two cores, and as much again for the three short runs.
Expected (phantom): see `cspine weights inspect`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """What differs from the defaults in `cspine_jax/config`."""
    return ConfigDict(
        {
            "name": "segment_refine3d",
            "task": "refine",
            "data": {
                "size": 192,
                "num_folds": 10,
                "batch_size": 2,
                "phantom": {"studies": 320, "seed": 1001, "size": 192, "scale": 1.0, "variety": "wide"},
            },
            "volume": {"spacing_mm": 1.0, "depth": 80, "height": 80, "width_px": 80, "levels": 3},
            "optim": {"lr": 2e-3, "warmup": 0.1, "weight_decay": 1e-4},
            "train": {"total_steps": 1300, "eval_steps": 200, "log_steps": 25, "checkpoint_steps": 100, "patience": 0},
        }
    )
