"""Losses of the slice, study and segmentation models: stable on logits, mask-aware, additive over shards and batches.

Each loss is a pair `(sum, weight)`; the value is sum / weight. Pairs of shards or batches add up, their ratios do not.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from cspine_jax.anatomy import NUM_VERTEBRAE, PATIENT_WEIGHTS, VERTEBRA_WEIGHTS
from cspine_jax.config import LossConfig
from cspine_jax.errors import ConfigError

Pair = tuple[jax.Array, jax.Array]
"""(sum of weighted losses, sum of weights), float32 scalars."""


def weighted_bce(
    logits: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    positive_weight: jax.Array | float = 1.0,
    negative_weight: jax.Array | float = 1.0,
    label_smoothing: float = 0.0,
) -> Pair:
    """Binary cross-entropy whose positives and negatives weigh differently.

    l = -w1 y log p - w0 (1 - y) log(1 - p), weight w1 y + w0 (1 - y), p = sigmoid(logit). For y in {0, 1} that is the
    RSNA 2022 loss; for y in between (mixup, smoothing) it is linear in y. log p = -softplus(-z) never overflows.

    Args:
        logits: `[...]`.
        targets: `[...]`, 0..1.
        mask: `[...]`, weight of each element; 0 leaves it out, whatever its logit and target (even NaN) are.
        positive_weight: w1; a scalar, or an array of the full shape.
        negative_weight: w0, likewise.
        label_smoothing: s moves y to y (1 - s) + s / 2.

    Returns:
        (sum of mask * l, sum of mask * weight).
    """
    used = mask > 0
    z = jnp.where(used, logits.astype(jnp.float32), 0.0)
    y = jnp.where(used, targets.astype(jnp.float32), 0.0)
    y = y * (1.0 - label_smoothing) + 0.5 * label_smoothing
    positive, negative = positive_weight * y, negative_weight * (1.0 - y)
    loss = positive * jax.nn.softplus(-z) + negative * jax.nn.softplus(z)
    mask = mask.astype(jnp.float32)
    return (mask * loss).sum(), (mask * (positive + negative)).sum()


def rsna_loss(logits: jax.Array, labels: jax.Array, mask: jax.Array, *, label_smoothing: float = 0.0) -> Pair:
    """The competition's loss on whole studies: weights 1 / 2 for a vertebra, 7 / 14 for patient_overall.

    Args:
        logits: `[B, 8]`, in the order of `anatomy.TARGETS`.
        labels: `[B, 8]`.
        mask: `[B, 8]`, 0 where a label is unknown.
        label_smoothing: as in `weighted_bce`.

    Returns:
        (sum, weight); sum / weight is normalisation B of `metrics.rsna_log_loss`.
    """
    negative, positive = (
        jnp.broadcast_to(jnp.asarray([p, *[v] * NUM_VERTEBRAE], jnp.float32)[None], logits.shape)
        for p, v in zip(PATIENT_WEIGHTS, VERTEBRA_WEIGHTS, strict=True)
    )
    return weighted_bce(
        logits, labels, mask, positive_weight=positive, negative_weight=negative, label_smoothing=label_smoothing
    )


def fracture_mask(batch: Mapping[str, jax.Array]) -> jax.Array:
    """Where the fracture of a vertebra on a slice is supervised: `[B, 7]`.

    Known truth, weighted by visibility v_ij, as document B's aggregation weighs f_ij: what the network says of a
    vertebra that the slice does not show is never used, so it is not trained either. Slices without a mask (visibility
    unknown) count in full. Padding counts nothing.
    """
    known = batch["presence_known"].astype(jnp.float32)[:, None]
    visible = known * batch["presence"] + (1.0 - known)
    return batch["fracture_known"] * visible * _valid(batch)[:, None]


def slice_loss(
    outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array], config: LossConfig
) -> tuple[jax.Array, jax.Array, dict[str, Pair]]:
    """L = alpha L_frac + L_vert of document B (L_vert for Type 3 only), positives weighted in both.

    Args:
        outputs: logits of `models.slices.SliceModel`: `fracture` `[B, 7]`, or `[B, 1]` of Type 1, and maybe `vertebra`.
        batch: `presence`, `fracture`, `fracture_known` `[B, 7]`; `presence_known`, `slice_fracture`, `slice_known`,
            `valid` `[B]`.
        config: alpha, positive_weight, label_smoothing.

    Returns:
        `(loss_sum, weight, parts)`: the loss of this batch is loss_sum / weight with weight = valid slices (a mean over
        batches of that is a fair running value); `parts` holds the pairs of "fracture" and "vertebra", which add up
        exactly over batches: see `total`.
    """
    options = {"positive_weight": config.positive_weight, "label_smoothing": config.label_smoothing}
    valid = _valid(batch)
    fracture = outputs["fracture"]
    if fracture.shape[-1] == 1:
        known = batch["slice_known"] * valid
        parts = {"fracture": weighted_bce(fracture[:, 0], batch["slice_fracture"], known, **options)}
    else:
        parts = {"fracture": weighted_bce(fracture, batch["fracture"], fracture_mask(batch), **options)}
    if "vertebra" in outputs:
        parts["vertebra"] = vertebra_loss(outputs["vertebra"], batch, config)
    weight = valid.sum()
    return total(parts, config) * weight, weight, parts


def vertebra_loss(logits: jax.Array, batch: Mapping[str, jax.Array], config: LossConfig) -> Pair:
    """Document B's loss of vertebra detection: cross-entropy of each level's presence on slices whose truth is known.

    Args:
        logits: `[B, 7]`.
        batch: `presence` `[B, 7]`; `presence_known`, `valid` `[B]`.
        config: positive_weight, label_smoothing.
    """
    known = jnp.broadcast_to((batch["presence_known"] * _valid(batch))[:, None], logits.shape)
    options = {"positive_weight": config.positive_weight, "label_smoothing": config.label_smoothing}
    return weighted_bce(logits, batch["presence"], known, **options)


SLICE_SHARE = 15.0 / 16.0
"""What the slices' loss weighs in `sequence_loss`; the patient's has the rest."""


def copies_loss(logits: jax.Array, label: jax.Array, mask: jax.Array, config: LossConfig) -> Pair:
    """The winners' loss of a vertebra's slices (Type 1): each has the vertebra's label, or one of its own.

    Args:
        logits: `[..., S]`, S slices of each vertebra.
        label: 0..1; `[...]` of the vertebrae, copied to all of their slices (the winners'), or `[..., S]` of slices.
        mask: `[..., S]`, 0 for padding and for all slices of a vertebra that is absent or whose label is unknown.
        config: positive_weight, label_smoothing.
    """
    options = {"positive_weight": config.positive_weight, "label_smoothing": config.label_smoothing}
    each = label if label.ndim == logits.ndim else label[..., None]
    return weighted_bce(logits, jnp.broadcast_to(each, logits.shape), mask, **options)


def where_loss(logits: jax.Array, inside: jax.Array, known: jax.Array) -> Pair:
    """Whether the cells of a map show a break, taught by boxes: cross-entropy, averaged over the cells of each slice.

    A cell is positive that shares a pixel with a box.

    Args:
        logits: `[B, T, h, w]`.
        inside: `[B, T, H, W]`, 0..1, how much a pixel is inside a box. A cell of the map has 2^n pixels a side, the
            last ones perhaps fewer.
        known: `[B, T]`, 0 for slices that are padding or whose boxes are not known.

    Raises:
        ConfigError: the map's cells do not lie over the picture so.
    """
    B, T, h, w = logits.shape
    a, b = (2 ** round(math.log2(n / m)) for n, m in zip(inside.shape[2:], (h, w), strict=True))
    if (h, w) != (-(-inside.shape[2] // a), -(-inside.shape[3] // b)):
        raise ConfigError(
            f"study.where_weight: this backbone has {h} x {w} cells for {inside.shape[2]} x {inside.shape[3]} pixels, "
            "as it rounds its sizes down; boxes cannot be laid on them, set it to 0 or take another backbone"
        )
    inside = jnp.pad(inside, ((0, 0), (0, 0), (0, h * a), (0, w * b)))[:, :, : h * a, : w * b]
    target = inside.reshape(B, T, h, a, w, b).max((3, 5))
    return weighted_bce(logits, target, jnp.broadcast_to(known[..., None, None], logits.shape))


def sequence_loss(
    outputs: Mapping[str, jax.Array],
    labels: jax.Array,
    known: jax.Array,
    mask: jax.Array,
    config: LossConfig,
    slice_labels: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, dict[str, Pair]]:
    """The winners' loss of a patient's slices (Type 2): (15 L_slice + L_patient) / 16, positives weighted in both.

    Args:
        outputs: logits of `models.study.gold.PatientSequence`: `slice` `[B, 7 S]`, C1's S slices first, and `patient`
            `[B]`.
        labels: `[B, 8]`, in the order of `anatomy.TARGETS`.
        known: `[B, 8]`, 0 where a label is unknown or its vertebra absent, and for all eight of a padded study.
        mask: `[B, 7 S]`, 0 for slices that are padding.
        config: positive_weight, label_smoothing.
        slice_labels: `[B, 7, S]`; None for those of the vertebrae.

    Returns:
        `(loss_sum, weight, parts)`: weight is the number of studies with any known label; `parts` holds the pairs of
        "slice" and "patient". A part without any weight contributes 0.
    """
    B = labels.shape[0]
    slices = outputs["slice"].reshape(B, NUM_VERTEBRAE, -1)
    used = mask.astype(jnp.float32).reshape(slices.shape) * known[:, 1:, None]
    options = {"positive_weight": config.positive_weight, "label_smoothing": config.label_smoothing}
    parts = {
        "slice": copies_loss(slices, labels[:, 1:] if slice_labels is None else slice_labels, used, config),
        "patient": weighted_bce(outputs["patient"], labels[:, 0], known[:, 0], **options),
    }
    weight = (known > 0).any(1).sum().astype(jnp.float32)
    loss = SLICE_SHARE * value(parts["slice"]) + (1.0 - SLICE_SHARE) * value(parts["patient"])
    return loss * weight, weight, parts


def total(parts: Mapping[str, Pair], config: LossConfig) -> jax.Array:
    """Alpha L_frac + L_vert from (summed) parts; a part without any weight contributes 0."""
    return config.alpha * value(parts["fracture"]) + (value(parts["vertebra"]) if "vertebra" in parts else 0.0)


def value(pair: Pair) -> jax.Array:
    """Sum / weight; 0 where nothing was supervised."""
    loss, weight = pair
    return jnp.where(weight > 0, loss / jnp.where(weight > 0, weight, 1.0), 0.0)


def _valid(batch: Mapping[str, jax.Array]) -> jax.Array:
    return batch["valid"].astype(jnp.float32)


SEGMENTATION_LOSSES = ("dice", "ce", "focal", "dice_ce", "dice_focal")
"""What `segmentation_loss` knows; "a_b" is the sum of both."""


def segmentation_loss(
    logits: jax.Array, labels: jax.Array, known: jax.Array, kind: str, class_weights: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, dict[str, Pair]]:
    """A loss of one label a pixel (or voxel), by name.

    Every sample counts the same, whatever its size and however much of it is background; a sample without truth
    counts nothing.

    Args:
        logits: `[B, *S, C]`, any number of spatial axes, class 0 the background.
        labels: int `[B, *S]`, 0..C-1; what lies outside of that (-1, 255) is unknown and left out.
        known: `[B]`, weight of each sample: 1, or 0 where it has no truth or is padding, whatever (even NaN) is in it.
        kind: one of `SEGMENTATION_LOSSES`.
        class_weights: `[C]`, for cross-entropy and focal loss; Dice treats all classes alike by itself.

    Returns:
        `(loss_sum, weight, parts)`: weight is the sum of `known`; `parts` holds the pairs of "dice",
        "cross_entropy" and "focal", as far as they are in the sum.

    Raises:
        ConfigError: there is no such kind.
    """
    if kind not in SEGMENTATION_LOSSES:
        raise ConfigError(f"loss.segmentation={kind!r}: must be one of {', '.join(SEGMENTATION_LOSSES)}")
    parts = {}
    for name in kind.split("_"):
        if name == "dice":
            parts["dice"] = dice_loss(logits, labels, known)
        elif name == "ce":
            parts["cross_entropy"] = cross_entropy(logits, labels, known, class_weights)
        else:
            parts["focal"] = focal_loss(logits, labels, known, class_weights)
    return sum((loss for loss, _ in parts.values()), jnp.zeros(())), known.astype(jnp.float32).sum(), parts


def dice_loss(logits: jax.Array, labels: jax.Array, known: jax.Array) -> Pair:
    """Soft Dice (Milletari et al. 2016) of softmax probabilities, sample by sample, over the foreground classes.

    With I, P, T the sums over a sample of p t, p and t: the mean of 1 - 2 I / (P + T) over the classes that the sample
    shows, plus the mean probability given to foreground classes that it does not show. A slice shows two or three of
    nineteen vertebrae: the ratio of an absent class would be 1 for a single stray pixel, and seventeen of those would
    drown the rest; its mean probability still pulls it down, gently. (Cross-entropy does the rest in "dice_ce".)

    Args:
        logits: `[B, *S, C]`.
        labels: int `[B, *S]`; outside of 0..C-1 is left out.
        known: `[B]`.

    Returns:
        (sum of known * loss, sum of known).
    """
    z, truth, used, known = _segmentation(logits, labels, known)
    space = tuple(range(1, labels.ndim))
    p = jnp.where(used[..., None], jax.nn.softmax(z), 0.0)
    inside = jnp.where(truth, p, 0.0).sum(space)[:, 1:]
    predicted, true = p.sum(space)[:, 1:], truth.sum(space).astype(jnp.float32)[:, 1:]
    shown = true > 0
    missed = jnp.where(shown, 1.0 - 2.0 * inside / jnp.where(shown, predicted + true, 1.0), 0.0)
    stray = jnp.where(shown, 0.0, predicted).sum(-1) / jnp.maximum(used.sum(space), 1)
    loss = missed.sum(-1) / jnp.maximum(shown.sum(-1), 1) + stray
    return (known * loss).sum(), known.sum()


def cross_entropy(
    logits: jax.Array, labels: jax.Array, known: jax.Array, class_weights: jax.Array | None = None
) -> Pair:
    """Softmax cross-entropy, the (class-weighted) mean over each sample's pixels.

    Args:
        logits: `[B, *S, C]`.
        labels: int `[B, *S]`; outside of 0..C-1 is left out.
        known: `[B]`.
        class_weights: `[C]`; None for 1 everywhere.

    Returns:
        (sum of known * loss, sum of known).
    """
    return focal_loss(logits, labels, known, class_weights, gamma=0.0)


def focal_loss(
    logits: jax.Array,
    labels: jax.Array,
    known: jax.Array,
    class_weights: jax.Array | None = None,
    gamma: float = 2.0,
) -> Pair:
    """(1 - p)^gamma times the cross-entropy -log p of the true class (Lin et al. 2017), averaged like `cross_entropy`.

    Args:
        logits: `[B, *S, C]`.
        labels: int `[B, *S]`; outside of 0..C-1 is left out.
        known: `[B]`.
        class_weights: `[C]`, the paper's alpha; None for 1 everywhere.
        gamma: how strongly easy pixels are discounted; 0 is cross-entropy.

    Returns:
        (sum of known * loss, sum of known).
    """
    z, truth, used, known = _segmentation(logits, labels, known)
    space = tuple(range(1, labels.ndim))
    negative_log = jax.nn.logsumexp(z, axis=-1) - jnp.where(truth, z, 0.0).sum(-1)
    loss = negative_log * (-jnp.expm1(-negative_log)) ** gamma if gamma else negative_log
    weight = used.astype(jnp.float32)
    if class_weights is not None:
        weights = jnp.expand_dims(class_weights.astype(jnp.float32), tuple(range(labels.ndim)))
        weight = jnp.where(truth, weights, 0.0).sum(-1)
    whole = weight.sum(space)
    mean = jnp.where(used, weight * loss, 0.0).sum(space) / jnp.where(whole > 0, whole, 1.0)
    return (known * mean).sum(), known.sum()


def _segmentation(
    logits: jax.Array, labels: jax.Array, known: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Float32 logits (0 where unused), one-hot truth bool `[B, *S, C]`, used bool `[B, *S]`, known float32 `[B]`."""
    classes = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    labels, known = labels.astype(jnp.int32), known.astype(jnp.float32)
    used = (labels >= 0) & (labels < logits.shape[-1]) & jnp.expand_dims(known > 0, tuple(range(1, labels.ndim)))
    truth = (labels[..., None] == jnp.expand_dims(classes, tuple(range(labels.ndim)))) & used[..., None]
    return jnp.where(used[..., None], logits.astype(jnp.float32), 0.0), truth, used, known
