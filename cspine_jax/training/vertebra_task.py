"""Document B's vertebra detection as a task: a stack of slices (and where it is) in, 7 probabilities out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cspine_jax.augment import mixup, prepare
from cspine_jax.config import Config
from cspine_jax.data.slice_metadata import METADATA
from cspine_jax.losses import vertebra_loss
from cspine_jax.metrics import roc_auc
from cspine_jax.models.published import load_pretrained
from cspine_jax.models.slices import VertebraModel
from cspine_jax.training.task import Batch, Parts


class VertebraTask:
    """Types 1 and 2 (`config.model.type`). Methods as in `task.Task`; batches as `data.batches.VertebraBatches`."""

    def __init__(self, config: Config):
        self._config = config
        self._dtype = jnp.bfloat16 if config.train.bf16 else None
        self._graph, _ = nnx.split(nnx.eval_shape(lambda: self._build(jax.random.key(0))))

    def _build(self, key: jax.Array) -> VertebraModel:
        config = self._config
        return VertebraModel(config.model, config.data.depth, len(METADATA), rngs=nnx.Rngs(key), dtype=self._dtype)

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """(params, batch statistics)."""
        params, stats = nnx.split_state(nnx.state(self._build(key)), nnx.Param, ...)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(stats)

    def pretrained(self) -> dict[tuple[Any, ...], np.ndarray]:
        """Arrays of the published weights of the backbone, see `task.OnBackbone`."""
        model = self._config.model
        arrays = load_pretrained(model.backbone, model.pretrained, in_channels=self._config.data.depth, unit_range=True)
        return {("backbone", *path): array for path, array in arrays.items()}

    def loss(self, params: Any, stats: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, Parts, Any]:
        """Cross-entropy of presence on an augmented batch."""
        pictures, blend, units = jax.random.split(key, 3)
        batch = {**batch, "image": prepare(batch["image"], pictures, self._config.augment, train=True)}
        batch = mixup(batch, blend, self._config.augment.mixup, self._config.augment.mixup_share)
        model = nnx.merge(self._graph, params, stats)
        logits = model(batch["image"], batch["metadata"], train=True, key=units)
        _, stats = nnx.split_state(nnx.state(model), nnx.Param, ...)
        total, weight = vertebra_loss(logits, batch, self._config.loss)
        return total, weight, {}, nnx.to_pure_dict(stats)

    def predict(
        self, params: Any, stats: Any, batch: Batch
    ) -> tuple[jax.Array, jax.Array, Parts, dict[str, jax.Array]]:
        """Probabilities `vertebra_prob` [B, 7], as the (weighted) loss makes them."""
        image = prepare(batch["image"], None, self._config.augment, train=False)
        logits = nnx.merge(self._graph, params, stats)(image, batch["metadata"])
        total, weight = vertebra_loss(logits, batch, self._config.loss.unsmoothed)
        return total, weight, {}, {"vertebra_prob": jax.nn.sigmoid(logits)}

    def metrics(self, table: dict[str, np.ndarray]) -> dict[str, float]:
        """Accuracy at 0.5 and AUC of presence on a slice, means over C1..C7; NaN where there is one class."""
        return presence_metrics(table)


def presence_metrics(table: dict[str, np.ndarray]) -> dict[str, float]:
    """`presence_auc` and `presence_accuracy` of `presence`, `presence_known` and `vertebra_prob`; NaN: undefined."""
    known = table["presence_known"] > 0
    truth, score = table["presence"][known] > 0, table["vertebra_prob"][known]
    if not known.any():
        return {"presence_auc": float("nan"), "presence_accuracy": float("nan")}
    each = [roc_auc(truth[:, j], score[:, j]) for j in range(truth.shape[1]) if 0 < truth[:, j].mean() < 1]
    auc = float(np.mean(np.asarray(each, float))) if each else float("nan")
    return {"presence_auc": auc, "presence_accuracy": float(((score >= 0.5) == truth).mean())}
