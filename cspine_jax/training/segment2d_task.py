"""Segmentation of slices as a task: a stack of slices in, a vertebra label for every pixel out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cspine_jax.anatomy import LABEL_NAMES, NUM_VERTEBRAE
from cspine_jax.augment import prepare, prepare_with_mask
from cspine_jax.config import Config
from cspine_jax.losses import segmentation_loss
from cspine_jax.models.inflated import InflatedUNet, thicken
from cspine_jax.models.layers3d import redraw_kernels
from cspine_jax.models.published import load_pretrained
from cspine_jax.models.unet2d import UNet2D
from cspine_jax.models.unet_encoder import EncoderUNet
from cspine_jax.training.task import Batch, Parts

CLASSES = len(LABEL_NAMES) + 1
"""Background, C1..C7, T1..T12: the values of a mask."""

BACKGROUND_LOGIT = 4.0
"""Of a fresh network: background three times in four, as the weighted truth is. From an even guess among twenty
classes, hundreds of steps go by before anything else is learnt (the prior of Lin et al. 2017)."""


class Segment2DTask:
    """Networks "unet2d", "encoder" and "inflated" (`config.model.network`). Methods as in `task.Task`.

    The first two label the centre slice of a stack (batches of `data.batches.MaskBatches`); the inflated one labels
    every slice of it and learns from all (`StackMaskBatches`); in evaluation the centre slice counts.
    """

    def __init__(self, config: Config):
        self._config = config
        self._dtype = jnp.bfloat16 if config.train.bf16 else None
        self._whole = config.model.network == "inflated"
        self._graph, _ = nnx.split(nnx.eval_shape(lambda: self._build(jax.random.key(0))))

    @property
    def batches(self) -> str:
        """Name of the batches it learns from, see `data.batches`."""
        return "segment_stack" if self._whole else "segment2d"

    def _build(self, key: jax.Array) -> Any:
        model, rngs = self._config.model, nnx.Rngs(key)
        sizes = {"num_classes": CLASSES, "width": model.width, "dtype": self._dtype, "rngs": rngs}
        if self._whole:
            return InflatedUNet(model.backbone, in_channels=1, **sizes)
        depth = self._config.data.depth
        if model.network == "encoder":
            return EncoderUNet(model.backbone, in_channels=depth, **sizes)
        return UNet2D(in_channels=depth, levels=model.levels, **sizes)

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """(params, batch statistics). What is no backbone is drawn from one stream: quick to compile."""
        params, stats = nnx.split_state(nnx.state(self._build(key)), nnx.Param, ...)
        params = nnx.to_pure_dict(params)
        ours = redraw_kernels({name: value for name, value in params.items() if name != "encoder"}, key)
        ours["head"] = {**ours["head"], "bias": jnp.zeros(CLASSES).at[0].set(BACKGROUND_LOGIT)}
        return {**params, **ours}, nnx.to_pure_dict(stats)

    def pretrained(self) -> dict[tuple[Any, ...], np.ndarray]:
        """Arrays of the published weights of the encoder, see `task.OnBackbone`."""
        model, depth = self._config.model, 1 if self._whole else self._config.data.depth
        arrays = load_pretrained(model.backbone, model.pretrained, in_channels=depth, unit_range=True)
        if self._whole:
            arrays = {path: thicken(x) if x.ndim == 4 else x for path, x in arrays.items()}
        return {("encoder", *path): array for path, array in arrays.items()}

    def loss(self, params: Any, stats: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, Parts, Any]:
        """`config.loss.segmentation` on augmented slices and masks; stacks without a mask count nothing."""
        pictures, units = jax.random.split(key)
        image, mask = prepare_with_mask(batch["image"], batch["mask"], pictures, self._config.augment, train=True)
        model = nnx.merge(self._graph, params, stats)
        logits = self._logits(model, image, train=True, key=units)
        _, stats = nnx.split_state(nnx.state(model), nnx.Param, ...)
        total, weight, parts = self._judge(logits, mask, batch)
        return total, weight, parts, nnx.to_pure_dict(stats)

    def predict(
        self, params: Any, stats: Any, batch: Batch
    ) -> tuple[jax.Array, jax.Array, Parts, dict[str, jax.Array]]:
        """Pixels a class of the centre slice, [B, 20] each: `overlap` (truth and answer agree), `truth`, `answer`."""
        image, mask = prepare_with_mask(batch["image"], batch["mask"], None, self._config.augment, train=False)
        logits = self._centre(self._logits(nnx.merge(self._graph, params, stats), image))
        truth = mask[:, mask.shape[1] // 2]
        loss, weight, parts = self._judge(logits, truth, batch)
        classes = jnp.arange(CLASSES)[None, None, None, :]
        one, other = truth[..., None] == classes, logits.argmax(-1)[..., None] == classes
        counts = {"overlap": one & other, "truth": one, "answer": other}
        return loss, weight, parts, {name: x.sum((1, 2)).astype(jnp.float32) for name, x in counts.items()}

    def segment(self, params: Any, stats: Any, image: jax.Array) -> jax.Array:
        """uint8 [B, H, W] labels of the centre slices of int16 stacks [B, D, H, W]; 0 outside of `augment.crop`."""
        x = prepare(image, None, self._config.augment, train=False)
        labels = self._centre(self._logits(nnx.merge(self._graph, params, stats), x)).argmax(-1).astype(jnp.uint8)
        H, W = image.shape[2:]
        top, left = (H - labels.shape[1]) // 2, (W - labels.shape[2]) // 2
        bottom, right = H - labels.shape[1] - top, W - labels.shape[2] - left
        return jnp.pad(labels, ((0, 0), (top, bottom), (left, right)))

    def metrics(self, table: dict[str, np.ndarray]) -> dict[str, float]:
        """`mean_dice` (of C1..C7) and `dice_C1` ...: means over studies of the Dice of all their slices."""
        _, dice = study_dice(table)
        each = {LABEL_NAMES[j + 1]: _mean(dice[:, j]) for j in range(dice.shape[1])}
        cervical = np.array(list(each.values())[:NUM_VERTEBRAE])
        return {"mean_dice": _mean(cervical), **{f"dice_{name}": x for name, x in each.items() if np.isfinite(x)}}

    def _judge(self, logits: jax.Array, labels: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array, Parts]:
        config = self._config.loss
        known = batch["mask_known"] * batch["valid"].astype(jnp.float32)
        weights = jnp.ones(CLASSES).at[0].set(config.background)
        return segmentation_loss(logits, labels, known, config.segmentation, weights)

    def _logits(self, model: Any, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> jax.Array:
        """[B, n, H, W, 20] of an image [B, H, W, D]; n is D for the inflated network, else 1."""
        if self._whole:
            return model(jnp.transpose(x, (0, 3, 1, 2))[..., None], train=train, key=key)
        return model(x, train=train, key=key)[:, None]

    @staticmethod
    def _centre(logits: jax.Array) -> jax.Array:
        return logits[:, logits.shape[1] // 2]


def study_dice(table: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Dice of each vertebra in each study, over all of its slices with known truth.

    Args:
        table: `study` [N], `mask_known` [N], and the counts [N, 20] of `Segment2DTask.predict`.

    Returns:
        `(studies, dice)`: study numbers [S], and [S, 19] in the order C1..C7, T1..T12; NaN where a vertebra is neither
        in the truth nor in the answer, so 0 where it is in one of them only.
    """
    known = table["mask_known"] > 0
    studies, row = np.unique(table["study"][known], return_inverse=True)
    sums = {}
    for name in ("overlap", "truth", "answer"):
        sums[name] = np.zeros((len(studies), CLASSES))
        np.add.at(sums[name], row, table[name][known].astype(np.float64))
    both = sums["truth"] + sums["answer"]
    dice = np.divide(2 * sums["overlap"], both, out=np.full(both.shape, np.nan), where=both > 0)
    return studies, dice[:, 1:]


def _mean(values: np.ndarray) -> float:
    """Mean of what is not NaN; NaN of nothing."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")
