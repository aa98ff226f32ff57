"""A small regression-like task for the loop's tests: batch norm, dropout noise and a resumable data iterator."""

import jax
import jax.numpy as jnp
import numpy as np

from cspine_jax import config as cfg
from cspine_jax.training.task import Loaders

EXAMPLES = 64


class ToyTask:
    """Logistic regression on a batch-normalised 4-vector, with keyed input noise."""

    def init(self, key):
        params = {"w": {0: 0.1 * jax.random.normal(key, (4,))}, "b": jnp.zeros(())}
        return params, {"mean": jnp.zeros(4)}

    def _loss(self, params, x, batch):
        logit = x @ params["w"][0] + params["b"]
        valid = batch["valid"].astype(jnp.float32)
        loss = jnp.where(batch["y"] > 0, jax.nn.softplus(-logit), jax.nn.softplus(logit))
        return (loss * valid).sum(), valid.sum(), logit

    def loss(self, params, stats, batch, key):
        x = batch["image"] + 0.1 * jax.random.normal(key, batch["image"].shape)
        valid = batch["valid"].astype(jnp.float32)[:, None]
        mean = (x * valid).sum(0) / valid.sum()
        stats = {"mean": 0.9 * stats["mean"] + 0.1 * mean}
        total, weight, _ = self._loss(params, x - mean[None, :], batch)
        return total, weight, {"half": (total / 2, weight)}, stats

    def predict(self, params, stats, batch):
        total, weight, logit = self._loss(params, batch["image"] - stats["mean"][None, :], batch)
        return total, weight, {}, {"p": jax.nn.sigmoid(logit)}

    def metrics(self, table):
        return {"accuracy": float(((table["p"] > 0.5) == (table["y"] > 0)).mean())}


class Batches:
    """Endless batches drawn by position; its state is that position."""

    def __init__(self, batch_size):
        self.batch_size, self.position = batch_size, 0

    def __iter__(self):
        return self

    def __next__(self):
        rows = np.random.default_rng(self.position).permutation(EXAMPLES)[: self.batch_size]
        self.position += 1
        return examples(rows)

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def examples(rows, valid=None):
    """Host batch of the given rows of a fixed data set."""
    rng = np.random.default_rng(99)
    x = rng.normal(size=(EXAMPLES, 4)).astype(np.float32) + 3
    y = (x @ np.array([1.0, -2.0, 0.5, 0.0]) > 0).astype(np.float32)
    y = (x @ np.array([1.0, -2.0, 0.5, 0.0]) + 1.5 > 0).astype(np.float32) if y.std() == 0 else y
    return {
        "image": x[rows],
        "y": y[rows],
        "row": np.asarray(rows, np.int32),
        "valid": np.ones(len(rows), bool) if valid is None else valid,
    }


def validation(batch_size=24):
    """One pass over all 64 rows: the last batch is padded."""
    for start in range(0, EXAMPLES, batch_size):
        rows = np.arange(start, min(start + batch_size, EXAMPLES))
        padded = np.concatenate([rows, np.repeat(rows[-1:], batch_size - len(rows))])
        yield examples(padded, np.arange(batch_size) < len(rows))


def loaders(batch_size=16):
    return Loaders(lambda: Batches(batch_size), EXAMPLES, validation)


def config(**train):
    """12 steps, evaluated every 4, a checkpoint every 3, a line every 2."""
    options = {
        "total_steps": 12,
        "total_epochs": 0.0,
        "eval_steps": 4,
        "log_steps": 2,
        "checkpoint_steps": 3,
        "patience": 0,
        "keep_last": 2,
    }
    return cfg.Config(
        seed=5,
        data=cfg.DataConfig(batch_size=16),
        optim=cfg.OptimConfig(lr=0.05),
        train=cfg.TrainConfig(**{**options, **train}),
    )
