"""The workdir of a run, without the training."""

import dataclasses
import json

import jax
import numpy as np

from cspine_jax.anatomy import TARGETS
from cspine_jax.config import to_dict
from cspine_jax.kinds import kind_of
from cspine_jax.training.checkpoint import Checkpoints
from cspine_jax.training.counters import Counters
from cspine_jax.training.optim import make_optimizer
from cspine_jax.training.state import init_state


def write_run(path, config, presence=None):
    """`config.json`, one checkpoint of random weights and, where `presence` is given, `evaluation/metrics.json`."""
    (path / "config.json").write_text(json.dumps(to_dict(config)))
    task, optimizer = kind_of(config).task, make_optimizer(config.optim, 10)
    state = jax.jit(lambda: init_state(task, optimizer, 0))()
    with Checkpoints(path / "checkpoints") as checkpoints:
        checkpoints.save(state, dataclasses.asdict(Counters(step=7)), cost=0.5)
        checkpoints.wait()
    if presence is not None:
        (path / "evaluation").mkdir()
        values = {"presence": presence, "slice": 0.4, "vertebra": 0.35, "patient": 0.6}
        card = {
            "phantom": True,
            "thresholds": {level: {"value": value} for level, value in values.items()},
            "prevalence": dict(zip(TARGETS, np.linspace(0.1, 0.45, 8).tolist(), strict=True)),
        }
        (path / "evaluation" / "metrics.json").write_text(json.dumps(card))
    return path
