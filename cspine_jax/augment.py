"""CT window and augmentation on the device: jitted with the training step, every random choice drawn from its key.

The D slices of a stack move together (they are neighbours in one neck), so one set of sampling positions serves all
D channels: flip, rotation, zoom and shift are ONE bilinear resampling with channels-last gathers. Levels have no
side, so a left-right flip of the picture keeps every label.

Document B's saturation and hue act on nothing in a one-channel CT image and are left out on purpose.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from cspine_jax.config import AugmentConfig
from cspine_jax.denoise import denoise
from cspine_jax.errors import ConfigError

AIR_HU = -1000.0

MIXED = ("presence", "fracture", "slice_fracture", "vertebra_probs", "metadata", "targets", "slice_targets", "where")
"""Targets (and inputs) that mixup blends like the image."""

KNOWN = ("presence_known", "fracture_known", "slice_known", "targets_known", "where_known")
"""0/1 flags: a blend is known where both of its parts are."""


def window(hu: jax.Array, config: AugmentConfig) -> jax.Array:
    """CT window: level - width/2 becomes 0, level + width/2 becomes 1, the rest is clipped.

    Args:
        hu: any shape, Hounsfield units, any real dtype.
        config: `window_level` and `window_width` in HU.

    Returns:
        float32 in 0..1, same shape.
    """
    low = config.window_level - config.window_width / 2
    return jnp.clip((hu.astype(jnp.float32) - low) / config.window_width, 0.0, 1.0)


def prepare(image: jax.Array, key: jax.Array | None, config: AugmentConfig, train: bool) -> jax.Array:
    """Raw stacks to model input.

    Args:
        image: [B, D, H, W] int16 HU.
        key: random key; read only when `train`.
        config: window and strengths. A strength of 0 switches its augmentation off and costs nothing.
        train: False windows and transposes only.

    Returns:
        [B, H', W', D] float32; windowed 0..1 (noise, brightness and contrast may step a little outside). H' and W' are
        `cropped` H and W.
    """
    return prepare_pair(image, None, key, config, train)[0]


def prepare_with_mask(
    image: jax.Array, mask: jax.Array, key: jax.Array | None, config: AugmentConfig, train: bool
) -> tuple[jax.Array, jax.Array]:
    """`prepare` for segmentation: the mask makes every move that the image makes, read at the nearest pixel.

    Args:
        image: [B, D, H, W] int16 HU.
        mask: [B, n, H, W] uint8 labels of n of the slices.
        key: random key; read only when `train`.
        config: window and strengths.
        train: False windows, transposes and crops only.

    Returns:
        [B, H', W', D] float32 and [B, n, H', W'] int32. Beyond the rim of the image is background.
    """
    x, moved = prepare_pair(image, mask, key, config, train)
    assert moved is not None
    return x, moved


def prepare_pair(
    image: jax.Array,
    mask: jax.Array | None,
    key: jax.Array | None,
    config: AugmentConfig,
    train: bool,
    stacks: int = 1,
) -> tuple[jax.Array, jax.Array | None]:
    """`prepare_with_mask`, and `prepare` where `mask` is None: its second answer is then None, too.

    The D slices are `stacks` stacks that move together, and that are denoised each by itself.
    """
    x = denoise(window(jnp.transpose(image, (0, 2, 3, 1)), config), config, stacks)  # [B, H, W, D]
    labels = None if mask is None else jnp.transpose(mask, (0, 2, 3, 1)).astype(jnp.int32)
    H, W = (cropped(n, config.crop) for n in x.shape[1:3])
    if train:
        if key is None:
            raise ValueError("prepare(train=True) needs a key")
        place, tone, grain = jax.random.split(key, 3)
        if moves(config):
            air = window(jnp.full((), AIR_HU), config)
            row, column = (centre(p, H, W) for p in sampling_positions(place, x.shape[:3], config))
            x = resample(x, row, column, fill=air)
            labels = None if labels is None else resample_nearest(labels, row, column)
        x = change_tone(blur(centre(x, H, W), tone, config.blur), tone, config)
        if config.noise:
            x = x + config.noise * hashed_noise(grain, x.shape)
    if labels is not None:
        labels = jnp.transpose(centre(labels, H, W), (0, 3, 1, 2))
    return centre(x, H, W), labels


def cropped(side: int, share: float) -> int:
    """Pixels that a crop keeps of a side: a multiple of 16, so that any backbone can halve it; all of it at share 1."""
    return side if share == 1 else min(side, max(16, 16 * round(share * side / 16)))


def centre(x: jax.Array, H: int, W: int) -> jax.Array:
    """The middle [B, H, W, ...] of an image."""
    top, left = (x.shape[1] - H) // 2, (x.shape[2] - W) // 2
    return x[:, top : top + H, left : left + W]


def moves(config: AugmentConfig) -> bool:
    """Whether anything is resampled."""
    turned = config.flip or config.rotation or config.zoom or config.shift
    return bool(turned or config.vertical_flip or config.transpose or config.distortion)


def sampling_positions(key: jax.Array, shape: tuple[int, ...], config: AugmentConfig) -> tuple[jax.Array, jax.Array]:
    """Where each output pixel is read in the input: flips, then zoom, rotation about the image centre, and shift.

    Args:
        key: random key.
        shape: (B, H, W).
        config: `flip`, `rotation` (degrees), `zoom` and `shift` (fractions); each drawn uniformly in +-strength;
            `vertical_flip`, `transpose` and `distortion` besides.

    Returns:
        (row, column) positions, each [B, H, W] float32 in input pixels. A positive angle turns the picture
        counter-clockwise as displayed (row 0 on top).

    Raises:
        ConfigError: an oblong image cannot be transposed.
    """
    B, H, W = shape
    if config.transpose and H != W:
        raise ConfigError(f"augment.transpose=True: the images are {H} x {W} pixels, which only squares allow")
    draw = jax.random.uniform(key, (5, B, 1, 1), minval=-1.0, maxval=1.0)
    side = jnp.where(draw[0] < 0, -1.0, 1.0) if config.flip else jnp.ones((B, 1, 1))
    angle = draw[1] * math.radians(config.rotation)
    scale = 1.0 / (1.0 + draw[2] * config.zoom)
    rows = jnp.arange(H, dtype=jnp.float32)[None, :, None] - (H - 1) / 2
    columns = jnp.arange(W, dtype=jnp.float32)[None, None, :] - (W - 1) / 2
    cos, sin = jnp.cos(angle) * scale, jnp.sin(angle) * scale
    row = cos * rows + sin * columns + (H - 1) / 2 - draw[3] * config.shift * H
    column = side * (cos * columns - sin * rows) + (W - 1) / 2 - draw[4] * config.shift * W
    more = jax.random.fold_in(key, 1)  # the draws above stay what they were before there was more
    if config.distortion:
        bend = smooth_shifts(jax.random.fold_in(more, 0), (B, H, W), config.distortion)
        row, column = row + bend[..., 0], column + bend[..., 1]
    yes = jax.random.bernoulli(jax.random.fold_in(more, 1), 0.5, (2, B, 1, 1))
    if config.vertical_flip:
        row = jnp.where(yes[0], H - 1 - row, row)
    if config.transpose:
        row, column = jnp.where(yes[1], column, row), jnp.where(yes[1], row, column)
    return row, column


GRID = 5
"""Cells of the coarse grid of `smooth_shifts` along a side, as in the winners' grid distortion."""


def smooth_shifts(key: jax.Array, shape: tuple[int, ...], strength: float) -> jax.Array:
    """Grid distortion: every node of a coarse grid is moved, what lies between them goes along.

    Args:
        key: random key.
        shape: (B, H, W).
        strength: largest shift along each axis, as a share of a cell; below 0.5 nothing folds over.

    Returns:
        [B, H, W, 2] float32, (row, column) pixels.
    """
    B, H, W = shape
    cell = jnp.array([H / GRID, W / GRID], jnp.float32)
    nodes = jax.random.uniform(key, (B, GRID + 1, GRID + 1, 2), minval=-strength, maxval=strength)
    return jax.image.resize(nodes * cell[None, None, None], (B, H, W, 2), "linear")


BLUR_REACH = 3
"""Pixels on each side that a blurred one is made of."""


def blur(x: jax.Array, key: jax.Array, largest: float) -> jax.Array:
    """Gaussian blur in the plane; sigma is drawn uniformly up to `largest`, one a stack.

    Args:
        x: [B, H, W, C].
        key: random key.
        largest: pixels; 0 returns `x`.

    Returns:
        Same shape; the rim is repeated beyond itself.
    """
    if not largest:
        return x
    sigma = jax.random.uniform(jax.random.fold_in(key, 2), (x.shape[0], 1, 1, 1), minval=0.05, maxval=largest)
    offsets = range(-BLUR_REACH, BLUR_REACH + 1)
    weights = [jnp.exp(-0.5 * (k / sigma) ** 2) for k in offsets]
    total = sum(weights)
    for axis in (1, 2):
        pad = [(BLUR_REACH, BLUR_REACH) if a == axis else (0, 0) for a in range(4)]
        padded, size = jnp.pad(x, pad, mode="edge"), x.shape[axis]
        shifted = [jax.lax.slice_in_dim(padded, k + BLUR_REACH, k + BLUR_REACH + size, axis=axis) for k in offsets]
        x = sum((w / total * part for w, part in zip(weights, shifted, strict=True)), jnp.zeros_like(x))
    return x


def resample(x: jax.Array, row: jax.Array, column: jax.Array, fill: jax.Array | float = 0.0) -> jax.Array:
    """Bilinear resampling with one set of positions for all channels.

    Args:
        x: [B, H, W, C].
        row: [B, H', W'] positions in input pixels.
        column: the same for columns.
        fill: value outside the image; the rim blends into it over one pixel.

    Returns:
        [B, H', W', C].
    """

    def one(x: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
        H, W, _ = x.shape
        x = jnp.pad(x, ((2, 2), (2, 2), (0, 0)), constant_values=fill)
        row, column = jnp.clip(row + 2, 0, H + 2), jnp.clip(column + 2, 0, W + 2)
        top, left = jnp.floor(row).astype(jnp.int32), jnp.floor(column).astype(jnp.int32)
        down, right = (row - top)[:, :, None], (column - left)[:, :, None]

        def pixel(i: jax.Array, j: jax.Array) -> jax.Array:
            return x.at[i, j].get(mode="promise_in_bounds")

        above = pixel(top, left) * (1 - right) + pixel(top, left + 1) * right
        below = pixel(top + 1, left) * (1 - right) + pixel(top + 1, left + 1) * right
        return above * (1 - down) + below * down

    return jax.vmap(one)(x, row, column)


def resample_nearest(labels: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    """Labels at the pixel nearest to each position, 0 outside the image.

    Args:
        labels: int [B, H, W, n].
        row: [B, H', W'] positions in input pixels.
        column: the same for columns.

    Returns:
        int [B, H', W', n].
    """

    def one(labels: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
        H, W, _ = labels.shape
        i, j = jnp.round(row).astype(jnp.int32), jnp.round(column).astype(jnp.int32)
        inside = (i >= 0) & (i < H) & (j >= 0) & (j < W)
        taken = labels.at[jnp.clip(i, 0, H - 1), jnp.clip(j, 0, W - 1)].get(mode="promise_in_bounds")
        return jnp.where(inside[:, :, None], taken, 0)

    return jax.vmap(one)(labels, row, column)


def change_tone(x: jax.Array, key: jax.Array, config: AugmentConfig) -> jax.Array:
    """Brightness and contrast, one draw a stack: contrast scales about 0.5, brightness adds.

    Args:
        x: [B, H, W, D] windowed.
        key: random key.
        config: `brightness` and `contrast` strengths.

    Returns:
        Same shape.
    """
    if not (config.brightness or config.contrast):
        return x
    draw = jax.random.uniform(key, (2, x.shape[0], 1, 1, 1), minval=-1.0, maxval=1.0)
    return (x - 0.5) * (1 + config.contrast * draw[0]) + 0.5 + config.brightness * draw[1]


def hashed_noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Nearly Gaussian white noise, mean 0 and standard deviation 1, about 40 times faster on a CPU than threefry.

    Each value is a hash of its counter and of a 32-bit key drawn for its stack: C. Wellons' public-domain
    `lowbias32` mixer, whose four bytes are summed (Irwin-Hall; kurtosis -0.3, bounded at 3.45 sigma). Not for
    cryptography or statistics; for picture grain.

    Args:
        key: random key.
        shape: [B, ...]; the leading axis gets independent keys, so sharding over it changes nothing.

    Returns:
        float32 of `shape`.
    """
    B, *rest = shape
    seeds = jax.random.bits(key, (B, *(1 for _ in rest)), jnp.uint32)
    x = jax.lax.iota(jnp.uint32, math.prod(rest)).reshape(1, *rest) * jnp.uint32(0x9E3779B9) ^ seeds
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    x = x ^ (x >> 16)
    total = (x & 255) + ((x >> 8) & 255) + ((x >> 16) & 255) + (x >> 24)
    return (total.astype(jnp.float32) - 510.0) * (1.0 / math.sqrt(4 * (256**2 - 1) / 12))


def mixup(batch: dict[str, jax.Array], key: jax.Array, alpha: float, share: float = 1.0) -> dict[str, jax.Array]:
    """Blends stacks, and all their targets, with their neighbours in the batch.

    Batches are shuffled; but with `data.positive_fraction` slices that show a fracture come in a fixed turn.

    Source: H. Zhang et al., mixup, ICLR 2018; weights from Beta(alpha, alpha), one a stack.

    Args:
        batch: arrays with a leading axis B; `image` float, already augmented.
        key: random key.
        alpha: 0 returns the batch untouched.
        share: of the stacks that are blended; the others stay as they are.

    Returns:
        A new batch: `image` and the targets in `MIXED` blended, the flags in `KNOWN` 1 only where both parts were.
    """
    if not alpha:
        return batch
    B = batch["image"].shape[0]
    kept = symmetric_beta(key, alpha, (B,))
    blended = jnp.ones((B,), bool)
    if share < 1:
        blended = jax.random.bernoulli(jax.random.fold_in(key, 1), share, (B,))
        kept = jnp.where(blended, kept, 1.0)
    mixed = dict(batch)
    for name in ("image", *MIXED):
        if name in batch:
            x = batch[name]
            weight = along(kept, x).astype(x.dtype)
            mixed[name] = weight * x + (1 - weight) * neighbour(x)
    for name in KNOWN:
        if name in batch:
            other = neighbour(batch[name])
            mixed[name] = batch[name] * jnp.where(along(blended, other), other, 1)
    if "there" in batch:  # slices of a sequence: a blend has those of both
        mixed["there"] = batch["there"] | neighbour(batch["there"]) & along(blended, batch["there"])
    if "valid" in batch:  # a padded row must not bleed into a real one
        mixed["valid"] = batch["valid"] & (neighbour(batch["valid"]) | ~blended)
    return mixed


def along(x: jax.Array, other: jax.Array) -> jax.Array:
    """`x` [B] with as many axes as `other` [B, ...]."""
    return x.reshape(len(x), *(1 for _ in other.shape[1:]))


def symmetric_beta(key: jax.Array, alpha: float, shape: tuple[int, ...]) -> jax.Array:
    """Draws from Beta(alpha, alpha) by its quantiles at 4097 points.

    `jax.random.beta` rejects in a loop whose end all devices must agree on, turn by turn.
    """
    levels = np.linspace(0.0, 1.0, 4097)
    quantiles = scipy.stats.beta.ppf(levels, alpha, alpha)
    return jnp.interp(jax.random.uniform(key, shape), jnp.asarray(levels), jnp.asarray(quantiles))


def neighbour(x: jax.Array) -> jax.Array:
    """Rows 0 and 1 swapped, 2 and 3, ...; the last of an odd number stays. Pairs lie on one device: nothing is sent."""
    pairs = x.shape[0] // 2
    swapped = x[: 2 * pairs].reshape(pairs, 2, *x.shape[1:])[:, ::-1].reshape(2 * pairs, *x.shape[1:])
    return jnp.concatenate([swapped, x[2 * pairs :]]) if x.shape[0] % 2 else swapped
