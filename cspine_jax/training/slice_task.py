"""Document B's slice models as a task: a stack of slices in, fracture and vertebra probabilities out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cspine_jax.aggregation import slice_probability
from cspine_jax.augment import mixup, prepare
from cspine_jax.config import Config
from cspine_jax.losses import slice_loss
from cspine_jax.metrics import roc_auc
from cspine_jax.models.published import load_pretrained
from cspine_jax.models.slices import SliceModel
from cspine_jax.training.task import Batch, Parts
from cspine_jax.training.vertebra_task import presence_metrics


class SliceTask:
    """Types 1, 2 and 3 (`config.model.type`). Methods as in `task.Task`; batches as `data.loader` makes them.

    The network runs in bfloat16 where `config.train.bf16` says so; parameters, batch-norm statistics, heads, loss
    and probabilities stay float32.
    """

    def __init__(self, config: Config):
        self._config = config
        self._dtype = jnp.bfloat16 if config.train.bf16 else None
        # split once: the graph is static, training only sees the pytrees of arrays
        self._graph, _ = nnx.split(nnx.eval_shape(lambda: self._build(jax.random.key(0))))

    def _build(self, key: jax.Array) -> SliceModel:
        return SliceModel(self._config.model, self._config.data.depth, rngs=nnx.Rngs(key), dtype=self._dtype)

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
        """L = alpha L_frac + L_vert on an augmented batch."""
        pictures, blend, units = jax.random.split(key, 3)
        batch = {**batch, "image": prepare(batch["image"], pictures, self._config.augment, train=True)}
        batch = mixup(batch, blend, self._config.augment.mixup, self._config.augment.mixup_share)
        model = nnx.merge(self._graph, params, stats)
        outputs = model(batch["image"], batch["vertebra_probs"], train=True, key=units)
        _, stats = nnx.split_state(nnx.state(model), nnx.Param, ...)
        total, weight, parts = slice_loss(outputs, batch, self._config.loss)
        return total, weight, parts, nnx.to_pure_dict(stats)

    def predict(
        self, params: Any, stats: Any, batch: Batch
    ) -> tuple[jax.Array, jax.Array, Parts, dict[str, jax.Array]]:
        """Probabilities `fracture` [B, 7] (Type 1: [B, 1]) and `vertebra` [B, 7].

        `vertebra` is the model's own (Type 3) or what the batch gives it. Both are what the weighted loss makes of
        them: see `metrics.clinical_probability`.
        """
        image = prepare(batch["image"], None, self._config.augment, train=False)
        outputs = nnx.merge(self._graph, params, stats)(image, batch["vertebra_probs"])
        total, weight, parts = slice_loss(outputs, batch, self._config.loss.unsmoothed)
        vertebra = jax.nn.sigmoid(outputs["vertebra"]) if "vertebra" in outputs else batch["vertebra_probs"]
        return total, weight, parts, {"fracture_prob": jax.nn.sigmoid(outputs["fracture"]), "vertebra_prob": vertebra}

    def metrics(self, table: dict[str, np.ndarray]) -> dict[str, float]:
        """AUC of vertebra presence (mean over C1..C7) and of a fracture on the slice; NaN where there is one class."""
        figures: dict[str, float] = {}
        if self._config.model.type == 3:
            figures["presence_auc"] = presence_metrics(table)["presence_auc"]
        known = table["slice_known"] > 0
        score = np.nan_to_num(slice_probability(table["fracture_prob"], table["vertebra_prob"]))
        figures["slice_auc"] = float(roc_auc(table["slice_fracture"][known], score[known])) if known.any() else np.nan
        return figures
