"""Models of vertebra crops as tasks: one vertebra at a time, or the seven of a patient.

How the slices of a vertebra become its probability, and vertebrae that of the patient:
    gold, silver, bronze    p_j: mean of the highest slices (`study.highest`); patient: 1 - prod_j (1 - p_j) (none has a
                            patient's output; document B's formula stands in for the winners', which needs one)
    gold_patient            p_j: the same; patient: the winners' formula, see `aggregation.gold_patient`
    levels                  the network's own eight outputs
A level without a crop has no probability.
"""

import jax
import jax.numpy as jnp
import numpy as np

from cspine_jax.aggregation import gold_targets, patient_probability, top_mean
from cspine_jax.anatomy import NUM_VERTEBRAE, TARGETS
from cspine_jax.augment_sequence import follow_slices, prepare_sequence
from cspine_jax.config import AugmentConfig, Config, LossConfig
from cspine_jax.config.study import ON_VERTEBRAE
from cspine_jax.losses import copies_loss, sequence_loss
from cspine_jax.metrics.clinical import unweighted
from cspine_jax.training.study_task import RSNA_POSITIVE_WEIGHT, Judged, StudyLevelTask, StudyTask, judge_targets
from cspine_jax.training.task import Batch


def study_level_task(config: Config) -> StudyLevelTask:
    """The task of `config.study.model`, on crops or on slices."""
    if config.task == "study":
        return StudyTask(config)
    return VertebraCropsTask(config) if config.study.model in ON_VERTEBRAE else PatientCropsTask(config)


class VertebraCropsTask(StudyLevelTask):
    """Gold's Type 1, silver and bronze: the slices of one vertebra, each with a label (see `study.slice_labels`)."""

    @property
    def positive_weight(self) -> float:
        """See `StudyLevelTask`."""
        return self._config.loss.positive_weight

    def _positive_prob(self, table: dict[str, np.ndarray]) -> np.ndarray:
        """The vertebra is broken where any of its slices is."""
        return table["slice_prob"].max(1)

    def _undrawn(self, table: dict[str, np.ndarray], odds: float) -> dict[str, np.ndarray]:
        """A slice of bronze knows of no other: what it says of itself is all that it says of the vertebra."""
        found = super()._undrawn(table, odds)
        if self._config.study.model == "bronze":
            found["slice_prob"] = unweighted(table["slice_prob"], odds)
        return found

    def _see(self, batch: Batch, key: jax.Array | None, augment: AugmentConfig) -> jax.Array:
        image = batch["image"]
        there = jnp.ones(image.shape[:2], bool)
        return prepare_sequence(
            image, batch["mask"], there, key, augment, key is not None, box=self._boxes(batch, key, image.shape[1])
        )

    def _follow(self, batch: Batch, key: jax.Array) -> Batch:
        targets = batch["slice_targets"]
        return {"slice_targets": follow_slices(targets, jnp.ones(targets.shape, bool), key, self._config.augment)}

    def _there(self, batch: Batch) -> None:
        return None

    def _where_known(self, batch: Batch) -> jax.Array:
        known = batch["where_known"] * batch["valid"].astype(jnp.float32)
        return jnp.broadcast_to(known[:, None], batch["slice_targets"].shape)

    def _judge(self, outputs: jax.Array, batch: Batch, loss: LossConfig) -> Judged:
        known = batch["targets_known"] * batch["valid"].astype(jnp.float32)
        mask = jnp.broadcast_to(known[:, None], outputs.shape)
        total, weight = copies_loss(outputs, batch["slice_targets"], mask, loss)
        return total, weight, {}, {"slice_prob": jax.nn.sigmoid(outputs)}

    def study_targets(self, table: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """See `StudyLevelTask`."""
        studies, levels = _by_level(table, top_mean(table["slice_prob"], count=self._config.study.highest))
        return studies, np.concatenate([patient_probability(levels)[:, None], levels], axis=1)

    def study_labels(self, table: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """See `StudyLevelTask`; a patient is fractured where one of the vertebrae shown is."""
        studies, labels = _by_level(table, np.where(table["targets_known"] > 0, table["targets"], np.nan))
        known = ~np.isnan(labels)
        patient = np.where(known.any(1), np.where(known, labels, 0.0).max(1), np.nan)
        return studies, np.concatenate([patient[:, None], labels], axis=1)


def _by_level(table: dict[str, np.ndarray], values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values [N] of vertebrae to (study numbers [S], [S, 7])."""
    studies, at = np.unique(table["study"], return_inverse=True)
    levels = np.full((len(studies), NUM_VERTEBRAE), np.nan)
    levels[at, table["level"] - 1] = values
    return studies, levels


class PatientCropsTask(StudyLevelTask):
    """Gold's Type 2 and the level transformer: all seven vertebrae of a patient."""

    @property
    def positive_weight(self) -> float:
        """See `StudyLevelTask`."""
        return self._config.loss.positive_weight if self._gold else RSNA_POSITIVE_WEIGHT

    @property
    def _gold(self) -> bool:
        return self._config.study.model == "gold_patient"

    def _positive_prob(self, table: dict[str, np.ndarray]) -> np.ndarray:
        return table["patient_prob"] if self._gold else super()._positive_prob(table)

    def _see(self, batch: Batch, key: jax.Array | None, augment: AugmentConfig) -> jax.Array:
        image, mask = batch["image"], batch["mask"]
        B, L, S = image.shape[:3]
        there = self._slices_there(batch)
        x = prepare_sequence(
            image.reshape(B * L, *image.shape[2:]),
            mask.reshape(B * L, *mask.shape[2:]),
            there,
            key,
            augment,
            key is not None,
            box=self._boxes(batch, key, S),
        )
        return x.reshape(B, L * S, *x.shape[2:]) if self._gold else x.reshape(B, L, S, *x.shape[2:])

    def _follow(self, batch: Batch, key: jax.Array) -> Batch:
        targets, there = batch["slice_targets"], self._slices_there(batch)
        followed = follow_slices(targets.reshape(there.shape), there, key, self._config.augment)
        return {"slice_targets": followed.reshape(targets.shape)}

    def _slices_there(self, batch: Batch) -> jax.Array:
        """Bool [B 7, S], vertebra by vertebra."""
        there = batch["there"].reshape(-1, 1)
        return jnp.broadcast_to(there, (len(there), self._config.crops.positions))

    def _there(self, batch: Batch) -> jax.Array:
        B, L = batch["there"].shape
        each = self._slices_there(batch)
        return each.reshape(B, -1) if self._gold else each.reshape(B, L, -1)

    def _where_known(self, batch: Batch) -> jax.Array:
        known = batch["where_known"] * batch["valid"].astype(jnp.float32)[:, None]
        B = len(known)
        return self._slices_there(batch).reshape(B, -1) * jnp.repeat(known, self._config.crops.positions, axis=1)

    def _judge(self, outputs, batch: Batch, loss: LossConfig) -> Judged:
        if not self._gold:
            return judge_targets(outputs, batch, loss.label_smoothing)
        known = batch["targets_known"] * batch["valid"].astype(jnp.float32)[:, None]
        total, weight, parts = sequence_loss(
            outputs, batch["targets"], known, self._there(batch), loss, batch["slice_targets"]
        )
        found = {"slice_prob": jax.nn.sigmoid(outputs["slice"]), "patient_prob": jax.nn.sigmoid(outputs["patient"])}
        return total, weight, parts, found

    def study_targets(self, table: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """See `StudyLevelTask`."""
        studies, first = np.unique(table["study"], return_index=True)
        there = table["there"][first] > 0
        if self._gold:
            f = table["slice_prob"][first].reshape(len(first), NUM_VERTEBRAE, -1)
            return studies, gold_targets(
                f,
                table["patient_prob"][first],
                np.broadcast_to(there[..., None], f.shape).astype(np.float64),
                self._config.study.highest,
            )
        p = np.asarray(table["target_prob"][first], np.float64)
        return studies, np.where(np.concatenate([there.any(1, keepdims=True), there], axis=1), p, np.nan)

    def study_labels(self, table: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """See `StudyLevelTask`."""
        studies, first = np.unique(table["study"], return_index=True)
        known = table["targets_known"][first] > 0
        assert known.shape[1] == len(TARGETS)
        return studies, np.where(known, table["targets"][first], np.nan)
