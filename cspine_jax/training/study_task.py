"""Models of whole studies as a task: slices or clips in, eight targets out; and what all study-level tasks share."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cspine_jax.anatomy import NUM_VERTEBRAE, TARGETS
from cspine_jax.augment import mixup
from cspine_jax.augment_sequence import prepare_sequence
from cspine_jax.config import AugmentConfig, Config, LossConfig
from cspine_jax.losses import rsna_loss, where_loss
from cspine_jax.metrics import roc_auc
from cspine_jax.metrics.clinical import undrawn, unweighted
from cspine_jax.models.published import load_pretrained
from cspine_jax.training.study_models import build_model, channels
from cspine_jax.training.task import Batch, Parts

RSNA_POSITIVE_WEIGHT = 2.0
"""Of both kinds of target in `losses.rsna_loss`."""

VIEW_STREAM = 2
"""Separates the keys of test-time augmentations from those of training, see `training.step.TRAIN_STREAM`."""

Judged = tuple[jax.Array, jax.Array, Parts, dict[str, jax.Array]]
"""Loss sum, weight, parts and probabilities of a batch."""


class StudyLevelTask:
    """A network on sequences. Sub-classes say what it sees (`_see`) and how it is judged (`_judge`).

    Methods as in `task.Task`; batches as a view of `data.views` makes them. The network runs in bfloat16 where
    `config.train.bf16` says so; parameters, statistics, heads, loss and probabilities stay float32.
    """

    def __init__(self, config: Config):
        self._config = config
        self._dtype = jnp.bfloat16 if config.train.bf16 else None
        frozen = config.train.freeze_encoder
        # what is frozen is kept with the statistics: it has no gradient, no moments and no weight decay
        self._trained = nnx.All(nnx.Param, lambda path, _: path[0] != "encoder") if frozen else nnx.Param
        self._where = 0.0 if frozen else config.study.where_weight
        # split once: the graph is static, training only sees the pytrees of arrays
        self._graph, _ = nnx.split(nnx.eval_shape(lambda: self._build(jax.random.key(0))))

    def _build(self, key: jax.Array) -> nnx.Module:
        model: Any = build_model(self._config, dtype=self._dtype, rngs=nnx.Rngs(key))
        if self._config.train.freeze_encoder:
            model.encoder.still = True
        return model

    @property
    def positive_weight(self) -> float:
        """What a positive weighs in the loss against a negative."""
        raise NotImplementedError

    def clinical(self, table: dict[str, np.ndarray], odds: float = 1.0) -> dict[str, np.ndarray]:
        """The table of a pass (see `training.evaluate.run_pass`) with clinical probabilities.

        Args:
            table: its `*_prob` as the loss weight of positives and `study.fractured_fraction` made them, and `breaks`
                (see `look`) by the latter alone.
            odds: see `metrics.clinical.drawn_odds`.
        """
        weight = self.positive_weight
        found = {name: unweighted(x, weight) if name.endswith("_prob") else x for name, x in table.items()}
        return found if odds == 1 else self._undrawn(found, odds)

    def _undrawn(self, table: dict[str, np.ndarray], odds: float) -> dict[str, np.ndarray]:
        """The table as if no example had been drawn more often than another."""
        positive = self._positive_prob(table)
        drawn = {name for name in table if name.endswith("_prob") or name == "breaks"}
        return {name: undrawn(x, positive, odds) if name in drawn else x for name, x in table.items()}

    def _positive_prob(self, table: dict[str, np.ndarray]) -> np.ndarray:
        """Of each example [N]: that it is one of those that `study.fractured_fraction` is about."""
        return table["target_prob"][:, 0]

    def _see(self, batch: Batch, key: jax.Array | None, augment: AugmentConfig) -> jax.Array:
        """What the network is shown, varied where there is a key.

        With a key, and a map of breaks to teach, a last channel follows that is not for the network: inside a box?
        """
        raise NotImplementedError

    def _boxes(self, batch: Batch, key: jax.Array | None, count: int) -> jax.Array | None:
        """[n, count, 4] for `prepare_sequence`, where the network's map of breaks is to learn from them; else None."""
        if key is None or not self._where or "box" not in batch:  # other views are never taught
            return None
        return batch["box"].reshape(-1, count, 4)

    def _see_view(self, batch: Batch) -> jax.Array:
        """Another view of each example: varied as in training, short of noise and of what hides or reorders something.

        The variation is drawn from `seed` and the view's number alone: the same for every example, however batched and
        padded (noise would be other noise for another length).
        """
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self._config.seed), VIEW_STREAM), batch["view"][0])
        augment = dataclasses.replace(self._config.augment, noise=0.0, cutout=0.0, slice_shuffle=0.0, bone_only=0.0)

        def see(example: Batch) -> jax.Array:
            return self._see(jax.tree.map(lambda x: x[None], example), key, augment)[0]

        return jax.vmap(see)({name: batch[name] for name in ("image", "mask", "there") if name in batch})

    def _follow(self, batch: Batch, key: jax.Array) -> Batch:
        """Entries of the batch that change with what `_see` shows in training."""
        return {}

    def _there(self, batch: Batch) -> jax.Array | None:
        """The network's mask."""
        raise NotImplementedError

    def _where_known(self, batch: Batch) -> jax.Array:
        """[B, T]: 1 for slices whose boxes are known, see `losses.where_loss`."""
        raise NotImplementedError

    def _judge(self, outputs: Any, batch: Batch, loss: LossConfig) -> Judged:
        """Loss and probabilities of the network's outputs."""
        raise NotImplementedError

    def study_targets(self, table: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The table of a pass (see `task.Task.metrics`), study by study.

        Returns:
            study numbers [S], ascending; probabilities of the eight targets float64 [S, 8], NaN where a level was not
            in the picture.
        """
        raise NotImplementedError

    def study_labels(self, table: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """As `study_targets`, the truth as far as the pass knows it; NaN where not."""
        raise NotImplementedError

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """(params, batch statistics)."""
        params, stats = nnx.split_state(nnx.state(self._build(key)), self._trained, ...)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(stats)

    def pretrained(self) -> dict[tuple[Any, ...], np.ndarray]:
        """Arrays of the published weights of the backbone, see `task.OnBackbone`."""
        model = self._config.model
        seen = channels(self._config)
        arrays = load_pretrained(model.backbone, model.pretrained, in_channels=seen, unit_range=True)
        return {("encoder", "backbone", *path): array for path, array in arrays.items()}

    def loss(self, params: Any, stats: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, Parts, Any]:
        """Training mode on an augmented batch."""
        pictures, blend, units = jax.random.split(key, 3)
        seen = self._see(batch, pictures, self._config.augment)
        shown = {"image": seen[..., :-1], "where": seen[..., -1]} if self._where else {"image": seen}
        augment = self._config.augment
        batch = {**batch, **self._follow(batch, pictures), **shown}
        batch = mixup(batch, blend, augment.mixup, augment.mixup_share)
        model: Any = nnx.merge(self._graph, params, stats)
        run = model.look if self._where else model
        outputs = run(batch["image"], self._there(batch), train=True, key=units)
        outputs, found = outputs if self._where else (outputs, None)
        _, stats = nnx.split_state(nnx.state(model), self._trained, ...)
        total, weight, parts, _ = self._judge(outputs, batch, self._config.loss)
        if found is not None:
            inside = batch["where"].reshape(*found.shape[:2], *batch["where"].shape[-2:])
            cells, cell_weight = where_loss(found, inside, self._where_known(batch))
            total = total + self._where * weight * cells / jnp.maximum(cell_weight, 1.0)
            parts = {**parts, "where": (cells, cell_weight)}
        return total, weight, parts, nnx.to_pure_dict(stats)

    def predict(
        self, params: Any, stats: Any, batch: Batch
    ) -> tuple[jax.Array, jax.Array, Parts, dict[str, jax.Array]]:
        """Probabilities, as the weighted loss makes them: see `metrics.clinical.unweighted`.

        With a column `view` in the batch (all of one number) they are of that test-time augmentation.
        """
        model: Any = nnx.merge(self._graph, params, stats)
        seen = self._see_view(batch) if "view" in batch else self._see(batch, None, self._config.augment)
        outputs = model(seen, self._there(batch))
        return self._judge(outputs, batch, self._config.loss.unsmoothed)

    def look(self, params: Any, stats: Any, batch: Batch) -> tuple[jax.Array, jax.Array, Parts, dict[str, jax.Array]]:
        """As `predict` without a view; `breaks` besides: the map of breaks as probabilities, `[B, T, h, w]`.

        Of a model that has one (`study.where_weight`).
        """
        model: Any = nnx.merge(self._graph, params, stats)
        outputs, found = model.look(self._see(batch, None, self._config.augment), self._there(batch))
        total, weight, parts, table = self._judge(outputs, batch, self._config.loss.unsmoothed)
        return total, weight, parts, {**table, "breaks": jax.nn.sigmoid(found)}

    def metrics(self, table: dict[str, np.ndarray]) -> dict[str, float]:
        """AUC over all vertebrae and over the patients; NaN where there is one class."""
        _, p = self.study_targets(table)
        _, y = self.study_labels(table)
        known = ~np.isnan(y) & ~np.isnan(p)
        figures = {}
        for name, part in (("vertebra_auc", slice(1, None)), ("patient_auc", slice(0, 1))):
            use = known[:, part]
            figures[name] = float(roc_auc(y[:, part][use], p[:, part][use])) if use.any() else float("nan")
        return figures


class StudyTask(StudyLevelTask):
    """The classifier, the 3D transformer and the 3D CNN, on studies or clips, under the competition's loss."""

    @property
    def positive_weight(self) -> float:
        """See `StudyLevelTask`."""
        return RSNA_POSITIVE_WEIGHT

    def _see(self, batch: Batch, key: jax.Array | None, augment: AugmentConfig) -> jax.Array:
        return prepare_sequence(
            batch["image"],
            batch.get("mask"),
            batch["there"],
            key,
            augment,
            key is not None,
            mask_scale=1.0 / NUM_VERTEBRAE,
        )

    def _undrawn(self, table: dict[str, np.ndarray], odds: float) -> dict[str, np.ndarray]:
        """A clip is drawn for the vertebra it is about; of others in it that says nothing.

        So their outputs stay, and what is left of the patient's beyond the own vertebra's does too.
        """
        if "level" not in table:
            return super()._undrawn(table, odds)
        p = np.asarray(table["target_prob"], np.float64)
        here, at = np.arange(len(p)), np.asarray(table["level"])
        own = p[here, at]
        found = p.copy()
        found[here, at] = undrawn(own, own, odds)
        found[:, 0] = undrawn(own + odds * np.maximum(p[:, 0] - own, 0), own, odds)
        return {**table, "target_prob": found}

    def _there(self, batch: Batch) -> jax.Array:
        return batch["there"]

    def _judge(self, outputs: jax.Array, batch: Batch, loss: LossConfig) -> Judged:
        return judge_targets(outputs, batch, loss.label_smoothing)

    def study_targets(self, table: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """See `StudyLevelTask`. Clips: a level is the mean over those that show enough of it, weighed by how much.

        Where none shows enough it is the one that shows most; the patient is the highest of its clips.
        """
        p = np.asarray(table["target_prob"], np.float64)
        if "inside" not in table:
            studies, first = np.unique(table["study"], return_index=True)
            return studies, p[first]
        studies, at = np.unique(table["study"], return_inverse=True)
        inside = np.asarray(table["inside"], np.float64)
        most = np.zeros((len(studies), NUM_VERTEBRAE))
        np.maximum.at(most, at, inside)
        weight = np.where(inside >= np.minimum(self._config.study.clip_visible, most[at]), inside, 0.0)
        total, count = np.zeros_like(most), np.zeros_like(most)
        np.add.at(total, at, weight * p[:, 1:])
        np.add.at(count, at, weight)
        patient = np.zeros(len(studies))
        np.maximum.at(patient, at, p[:, 0])
        levels = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
        return studies, np.concatenate([patient[:, None], levels], axis=1)

    def study_labels(self, table: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """See `StudyLevelTask`."""
        studies, at = np.unique(table["study"], return_inverse=True)
        known = table["targets_known"] > 0
        labels = np.full((len(studies), len(TARGETS)), -1.0)
        np.maximum.at(labels, at, np.where(known, table["targets"], -1.0))
        return studies, np.where(labels < 0, np.nan, labels)


def judge_targets(logits: jax.Array, batch: Batch, label_smoothing: float) -> Judged:
    """The competition's loss on eight logits [B, 8]; unknown targets and padded studies count nothing."""
    known = batch["targets_known"] * batch["valid"].astype(jnp.float32)[:, None]
    total, weight = rsna_loss(logits, batch["targets"], known, label_smoothing=label_smoothing)
    return total, weight, {}, {"target_prob": jax.nn.sigmoid(logits)}
