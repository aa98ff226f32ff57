"""What both 3D tasks share: building the network once, drawing its weights, running it on prepared crops."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cspine_jax.augment3d import prepare3d
from cspine_jax.config import Config
from cspine_jax.models.layers3d import redraw_kernels
from cspine_jax.training.task import Batch, Parts


class VolumeTask:
    """A network on crops. Sub-classes say which (`_build`) and how it is judged (`_judge`); methods as `task.Task`."""

    def __init__(self, config: Config):
        self._config = config
        self._dtype = jnp.bfloat16 if config.train.bf16 else None
        self._graph, _ = nnx.split(nnx.eval_shape(lambda: self._build(jax.random.key(0))))

    def _build(self, key: jax.Array) -> Any:
        raise NotImplementedError

    def metrics(self, table: dict[str, np.ndarray]) -> dict[str, float]:
        """Figures of a whole pass, on the host."""
        raise NotImplementedError

    def _judge(
        self, model: Any, x: jax.Array, labels: jax.Array, valid: jax.Array, train: bool, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, Parts, dict[str, jax.Array]]:
        """(loss sum, weight, parts, outputs) of crops float32 `[B, D, H, W]` with labels int32 `[B, D, H, W]`."""
        raise NotImplementedError

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """(params, batch statistics)."""
        params, stats = nnx.split_state(nnx.state(self._build(key)), nnx.Param, ...)
        return redraw_kernels(nnx.to_pure_dict(params), key), nnx.to_pure_dict(stats)

    def loss(self, params: Any, stats: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, Parts, Any]:
        """Training mode on varied crops."""
        vary, judge = jax.random.split(key)
        x, labels = prepare3d(batch["image"], vary, self._config.volume, train=True)
        model = nnx.merge(self._graph, params, stats)
        total, weight, parts, _ = self._judge(model, x, labels, batch["valid"], True, judge)
        _, stats = nnx.split_state(nnx.state(model), nnx.Param, ...)
        return total, weight, parts, nnx.to_pure_dict(stats)

    def predict(
        self, params: Any, stats: Any, batch: Batch
    ) -> tuple[jax.Array, jax.Array, Parts, dict[str, jax.Array]]:
        """Evaluation mode on the crops as they are."""
        x, labels = prepare3d(batch["image"], None, self._config.volume, train=False)
        return self._judge(nnx.merge(self._graph, params, stats), x, labels, batch["valid"], False, None)

    def packed(self, params: Any, stats: Any, image: jax.Array) -> dict[str, jax.Array]:
        """The bare network on a packed image `[B, d, h, w, 8]` (and what else it reads as further channels)."""
        return nnx.merge(self._graph, params, stats).packed(image)


def class_weights(classes: int, background: float) -> jax.Array:
    """Float32 `[classes]`: `background`, then ones. Bone is a twentieth of a neck; unweighted it is learnt late."""
    return jnp.ones(classes).at[0].set(background)


def overlap(guess: jax.Array, truth: jax.Array, classes: int) -> tuple[jax.Array, jax.Array]:
    """Voxels in common and in all, a class: float32 `[B, classes]` each, for int labels `[B, D, H, W]`.

    Dice is 2 common / all; NaN where a class is in neither.
    """
    B = guess.shape[0]
    one, two = (jax.nn.one_hot(labels.reshape(B, -1), classes, dtype=jnp.float32) for labels in (guess, truth))
    return jnp.einsum("bnc,bnc->bc", one, two), one.sum(1) + two.sum(1)
