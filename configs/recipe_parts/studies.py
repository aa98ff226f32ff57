"""Recipes on whole studies: mild augmentation, since a whole neck has one way up."""

STUDIES = {
    "full": {
        "task": "study",
        "augment": {"rotation": 10.0, "zoom": 0.1, "shift": 0.05},
        "optim": {"lr": 3e-4, "final_lr": 3e-6},
    },
    "phantom": {
        "data": {"cache_mb": 6000, "size": 96, "batch_size": 8, "eval_batch_size": 8},
        "study": {"fractured_fraction": 0.5},
        "optim": {"lr": 1e-3, "final_lr": 1e-5, "warmup": 0.1},
        "train": {"checkpoint_steps": 100},
    },
    "smoke": {"data": {"size": 32}},
}
