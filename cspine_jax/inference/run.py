"""A trained slice model, loaded once and asked about many studies: a run's own folder, or a weights file."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cspine_jax import xla
from cspine_jax.anatomy import NUM_VERTEBRAE
from cspine_jax.data.resize import resize_hu
from cspine_jax.errors import ConfigError
from cspine_jax.inference.loaded import load
from cspine_jax.metrics.clinical import unweighted
from cspine_jax.training.sharding import place
from cspine_jax.training.slice_task import SliceTask
from cspine_jax.training.weights_file import digest_of

SHIPPED = "package:fracture"


class SliceRun:
    """A slice model of any Type.

    Args:
        source: as `loaded.load` takes it; None for the one that comes with the package.
        batch: slices predicted at once; 0 for the run's `data.eval_batch_size`.

    Raises:
        DataError: as `loaded.load`.
    """

    digest = ""
    """Tells its weights from others."""

    def __init__(self, source: str | Path | None = None, batch: int = 0):
        loaded = load(source or SHIPPED, "fracture")
        self.name = str(source) if source else "the package's own weights"
        self.config, self.card, self.step = loaded.config, loaded.card, loaded.step
        self._batch = batch or self.config.data.eval_batch_size
        self._placement = place()
        self._params, self._stats = jax.device_put((loaded.params, loaded.stats), self._placement.replicated)
        self.digest = digest_of(loaded.params, loaded.stats)
        task = SliceTask(self.config)

        def predict(params: Any, stats: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
            return task.predict(params, stats, _without_truth(batch))[3]  # it brings `vertebra_probs`

        self._predict = xla.jit(predict, out_shardings=self._placement.replicated)

    @property
    def needs_vertebrae(self) -> str:
        """Why it cannot do without the vertebrae from elsewhere; empty where it can, as Type 3."""
        number = self.config.model.type
        return "" if number == 3 else f"is of Type {number}, which does not find vertebrae itself"

    @property
    def facts(self) -> dict[str, Any]:
        """What findings say of the model."""
        return {"type": self.config.model.type, "backbone": self.config.model.backbone}

    def slices(
        self, hu: np.ndarray, vertebra_probs: np.ndarray | None = None, stride: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities of every slice of a study.

        Args:
            hu: int16 `[D, H, W]`, superior slice first, any in-plane size: resized as the run's records were.
            vertebra_probs: float `[D, 7]`, v_ij from elsewhere; read by Type 2, passed through by Types 1 and 2.
            stride: slices of this study between two slices of the run's records.

        Returns:
            Clinical probabilities (the loss weight of positives undone): fracture `[D, 7]` (Type 1: its one value in
            all seven), vertebra `[D, 7]`.

        Raises:
            ConfigError: a Type 1 or 2 model without `vertebra_probs`.
        """
        if self.needs_vertebrae and vertebra_probs is None:
            raise ConfigError(
                f"{self.name}: model.type={self.config.model.type} does not find vertebrae itself; let the study be "
                "segmented (leave out --no_segment), or give a Type 3 run"
            )
        data = self.config.data
        if data.size:
            hu = resize_hu(hu, data.size)
        steps = (np.arange(data.depth) - data.depth // 2) * data.stride * stride
        given = np.zeros((len(hu), NUM_VERTEBRAE)) if vertebra_probs is None else vertebra_probs
        fracture, vertebra = [], []
        for start in range(0, len(hu), self._batch):
            rows = np.minimum(np.arange(start, start + self._batch), len(hu) - 1)  # the last batch is padded
            near = np.clip(rows[:, None] + steps[None, :], 0, len(hu) - 1)
            batch = {
                "image": hu[near],
                "valid": np.arange(start, start + self._batch) < len(hu),
                "vertebra_probs": given[rows].astype(np.float32),
            }
            out = jax.device_get(self._predict(self._params, self._stats, self._placement.put(batch)))
            valid = int(batch["valid"].sum())
            fracture.append(out["fracture_prob"][:valid])
            vertebra.append(out["vertebra_prob"][:valid])
        weight = self.config.loss.positive_weight
        f = unweighted(np.concatenate(fracture), weight)
        own = given if self.needs_vertebrae else unweighted(np.concatenate(vertebra), weight)
        return np.broadcast_to(f, (len(f), NUM_VERTEBRAE)), own


def _without_truth(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The columns `SliceTask.predict` reads for its loss, which is thrown away here: all unknown."""
    one = jnp.zeros(len(batch["valid"]))
    seven = jnp.zeros((len(batch["valid"]), NUM_VERTEBRAE))
    wide = dict.fromkeys(("presence", "fracture", "fracture_known"), seven)
    return {**batch, **wide, **dict.fromkeys(("presence_known", "slice_fracture", "slice_known"), one)}
