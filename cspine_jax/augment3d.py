"""Variation of 3D crops on the device, far beyond any scanner's: what makes phantoms carry over to real CT.

Space: flip, rotation, zoom, stretch and an elastic field, as one resampling of image and labels. Scanner: slice
thickness and spacing, blur or edge enhancement, each a small matrix along one axis. Contrast: soft tissue and bone
vary apart, a slow bias, noise before and after the blur, streaks of shoulders and of dental metal. Every choice is
drawn from the key. Domain randomisation: Tobin et al. 2017, Billot et al. 2023 (SynthSeg).
"""

import math

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from cspine_jax.augment import hashed_noise
from cspine_jax.config import VolumeConfig

AIR_HU = -1000.0
LOW_HU, WIDTH_HU = -200.0, 1200.0
CLIP = (-0.4, 1.6)

_KNOTS = 5  # control points a side of the elastic field and of the bias


def normalise(hu: jax.Array) -> jax.Array:
    """HU -> network input: -200 becomes 0, 1000 becomes 1, clipped to -0.4..1.6 (air is -0.4)."""
    return jnp.clip((hu - LOW_HU) / WIDTH_HU, *CLIP)


def prepare3d(
    image: jax.Array, key: jax.Array | None, config: VolumeConfig, train: bool
) -> tuple[jax.Array, jax.Array]:
    """Crops as the loader gives them -> what a network sees, and its truth.

    Args:
        image: int16 `[B, 2, D + 2m, H + 2m, W + 2m]`, HU and labels, with `config.margin` m; without margins (m = 0)
            where not `train`.
        key: random key; read only when `train`.
        config: strengths.
        train: vary; else only normalise.

    Returns:
        float32 `[B, D, H, W]`, normalised, and labels int32 `[B, D, H, W]`.

    Raises:
        ValueError: training without a key.
    """
    hu, labels = image[:, 0].astype(jnp.float32), image[:, 1].astype(jnp.int32)
    if not train:
        return normalise(hu), labels
    if key is None:
        raise ValueError("prepare3d(train=True) needs a key")
    shape = (config.depth, config.height, config.width_px)
    place, tone, grain, scanner, streaks, after = jax.random.split(key, 6)
    at = positions(place, image.shape[0], image.shape[2:], shape, config)
    hu = jax.vmap(lambda v, p: map_coordinates(v, list(p), order=1, mode="constant", cval=AIR_HU))(hu, at)
    labels = jax.vmap(lambda v, p: map_coordinates(v, list(p), order=0, mode="constant", cval=0))(labels, at)
    hu = contrast(hu, tone, config)
    hu = hu + noise(grain, hu.shape, config.noise_hu)
    hu = scan(hu, scanner, config)
    hu = hu + 0.5 * noise(after, hu.shape, config.noise_hu)
    if config.streaks:
        hu = hu + _streaks(hu.shape, streaks, config)
    return normalise(hu), labels


def _uniform(key: jax.Array, B: int, low: float = -1.0, high: float = 1.0, rank: int = 4) -> jax.Array:
    return jax.random.uniform(key, (B, *([1] * (rank - 1))), minval=low, maxval=high)


def smooth_field(key: jax.Array, B: int, shape: tuple[int, ...], channels: int, knots: int = _KNOTS) -> jax.Array:
    """Slowly varying noise `[B, channels, *shape]`, standard deviation 1 at the knots."""
    coarse = jax.random.normal(key, (B, channels, knots, knots, knots))
    return jax.image.resize(coarse, (B, channels, *shape), "linear")


def positions(
    key: jax.Array, B: int, outer: tuple[int, ...], inner: tuple[int, ...], config: VolumeConfig
) -> jax.Array:
    """Where each output voxel is read: float32 `[B, 3, *inner]` in voxels of a crop of shape `outer`."""
    turn, size, shape_key, side, field = jax.random.split(key, 5)
    angles = jax.random.uniform(turn, (B, 3), minval=-1.0, maxval=1.0) * math.radians(config.rotation)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    zero, one = jnp.zeros(B), jnp.ones(B)

    def matrix(rows: list[list[jax.Array]]) -> jax.Array:
        return jnp.stack([jnp.stack(row, -1) for row in rows], -2)

    about_z = matrix([[one, zero, zero], [zero, cos[:, 0], -sin[:, 0]], [zero, sin[:, 0], cos[:, 0]]])
    about_y = matrix([[cos[:, 1], zero, -sin[:, 1]], [zero, one, zero], [sin[:, 1], zero, cos[:, 1]]])
    about_x = matrix([[cos[:, 2], -sin[:, 2], zero], [sin[:, 2], cos[:, 2], zero], [zero, zero, one]])
    zoom = jnp.exp(_uniform(size, B, rank=2) * math.log1p(config.zoom))
    stretch = jnp.exp(jax.random.uniform(shape_key, (B, 3), minval=-1.0, maxval=1.0) * math.log1p(config.stretch))
    sides = jnp.where(jax.random.bernoulli(side, 0.5, (B,)), -1.0, 1.0)
    flip = jnp.stack([one, one, sides], -1)
    affine = about_z @ about_y @ about_x * (zoom * stretch * flip)[:, None, :]
    axes = [jnp.arange(n, dtype=jnp.float32) - (n - 1) / 2 for n in inner]
    grid = jnp.stack(jnp.meshgrid(*axes, indexing="ij"))  # [3, D, H, W]
    at = jnp.einsum("bij,jdhw->bidhw", affine, grid)
    if config.elastic_mm:
        amplitude = config.elastic_mm / config.spacing_mm
        at = at + amplitude * 0.5 * smooth_field(field, B, inner, 3)
    centre = jnp.array([(n - 1) / 2 for n in outer], jnp.float32)
    return at + centre[None, :, None, None, None]


def contrast(hu: jax.Array, key: jax.Array, config: VolumeConfig) -> jax.Array:
    """Soft tissue (-150..150 HU) and bone (above) change apart; a slow bias; some contrast agent in everything soft."""
    soft, bone, shift, field = jax.random.split(key, 4)
    B, c = hu.shape[0], config.contrast
    low = jnp.clip(hu, -150.0, 150.0)
    changed = (low - 40.0) * jnp.exp(_uniform(soft, B) * c) + 40.0 + 60.0 * c * _uniform(shift, B)
    above = jnp.maximum(hu - 150.0, 0.0) * jnp.exp(_uniform(bone, B) * 1.5 * c)
    below = jnp.minimum(hu + 150.0, 0.0)
    out = changed + above + below
    if config.bias_hu:
        out = out + config.bias_hu * 0.5 * smooth_field(field, B, hu.shape[1:], 1)[:, 0]
    return out


def noise(key: jax.Array, shape: tuple[int, ...], strongest: float) -> jax.Array:
    """White noise whose standard deviation is drawn for each sample: 0 to `strongest` HU, mostly low."""
    level, grain = jax.random.split(key)
    return strongest * _uniform(level, shape[0], 0.0, 1.0) ** 2 * hashed_noise(grain, shape)


def scan(hu: jax.Array, key: jax.Array, config: VolumeConfig) -> jax.Array:
    """Thick or sparse slices along z, blur or edge enhancement in plane."""
    B, D, H, W = hu.shape
    slices, plane = jax.random.split(key)
    if config.slice_mm > config.spacing_mm:
        hu = jnp.einsum("bij,bjhw->bihw", slice_matrix(slices, B, D, config.slice_mm / config.spacing_mm), hu)
    if config.blur_mm:
        wide, edge = jax.random.split(plane)
        sigma = _uniform(wide, B, 0.0, 1.0, 3) * config.blur_mm / config.spacing_mm
        overshoot = jnp.maximum(_uniform(edge, B, -0.7, 0.7, 3), 0.0)
        rows, columns = (blur_matrix(n, sigma, overshoot, 0.9 / config.spacing_mm) for n in (H, W))
        hu = jnp.einsum("bij,bdjk,blk->bdil", rows, hu, columns)
    return hu


def slice_matrix(key: jax.Array, B: int, n: int, thickest: float) -> jax.Array:
    """`[B, n, n]`: thin planes averaged into slices `r` planes apart, and interpolated back to thin planes.

    r is 1 for half of the samples, else up to `thickest`; slices are 0.7 to 1.2 times as thick as they are apart.
    """
    on, apart, thick, phase = jax.random.split(key, 4)
    r = jnp.exp(_uniform(apart, B, 0.0, 1.0, 3) * math.log(thickest))
    r = jnp.where(jax.random.bernoulli(on, 0.5, (B, 1, 1)), r, 1.0)
    thickness = r * _uniform(thick, B, 0.7, 1.2, 3)
    plane = jnp.arange(n, dtype=jnp.float32)
    centres = _uniform(phase, B, 0.0, 1.0, 3) * (r - 1.0) + r * plane[None, None, :]  # [B, 1, n]
    average = jnp.clip(thickness / 2 + 0.5 - jnp.abs(plane[None, :, None] - centres), 0.0, 1.0)  # [B, planes, slices]
    average = average / jnp.maximum(average.sum(axis=1, keepdims=True), 1e-6)
    back = jnp.maximum(0.0, 1.0 - jnp.abs(plane[None, :, None] - centres) / r)
    back = jnp.where(centres > n - 0.5, 0.0, back)
    nearest = jnp.abs(plane[None, :, None] - jnp.minimum(centres, centres.max()))
    lonely = back.sum(axis=2, keepdims=True) < 1e-3
    back = jnp.where(lonely, jnp.exp(-nearest), back)
    back = back / jnp.maximum(back.sum(axis=2, keepdims=True), 1e-6)
    return jnp.einsum("bik,bjk->bij", back, average)


def blur_matrix(n: int, sigma: jax.Array, overshoot: jax.Array, wide: float) -> jax.Array:
    """`[B, n, n]`: Gaussian of `sigma` voxels `[B, 1, 1]` after edge enhancement by `overshoot` `[B, 1, 1]`."""
    line = jnp.arange(n, dtype=jnp.float32)
    distance = jnp.abs(line[:, None] - line[None, :])[None]

    def gaussian(s: jax.Array) -> jax.Array:
        weights = jnp.exp(-0.5 * (distance / jnp.maximum(s, 0.15)) ** 2)
        return weights / weights.sum(axis=2, keepdims=True)

    sharp = (1 + overshoot) * jnp.eye(n)[None] - overshoot * gaussian(jnp.full_like(sigma, wide))
    return gaussian(sigma) @ sharp


def _streaks(shape: tuple[int, ...], key: jax.Array, config: VolumeConfig) -> jax.Array:
    """Streaks along x that grow towards the shoulders, and rays from a filling: HU to add, `[B, D, H, W]`."""
    B, D, H, W = shape
    lines, rays, line_noise, ray_noise, where, strength = jax.random.split(key, 6)
    z = jnp.arange(D, dtype=jnp.float32)[None, :, None, None]
    start, depth_of, x0, y0 = (_uniform(k, B, 0.0, 1.0) for k in jax.random.split(where, 4))
    low, high = (_uniform(k, B, 0.0, 1.0) for k in jax.random.split(strength))
    # photon starvation: rows of noise below a height, the same all along x
    ramp = jax.nn.sigmoid((z - start * 1.3 * D) / (0.06 * D))
    rows = hashed_noise(line_noise, (B, D, H, 1))
    present = jax.random.bernoulli(lines, config.streaks, (B, 1, 1, 1))
    total = jnp.where(present, 140.0 * low * ramp * rows, 0.0)
    # metal: rays of alternating sign from a point in front of the spine, in a few slices
    y = jnp.arange(H, dtype=jnp.float32)[None, None, :, None] - (y0 - 0.3) * H
    x = jnp.arange(W, dtype=jnp.float32)[None, None, None, :] - x0 * W
    angle = jnp.arctan2(jnp.broadcast_to(y, (B, 1, H, W)), jnp.broadcast_to(x, (B, 1, H, W)))
    bins = 64
    table = jax.random.normal(ray_noise, (B, bins))
    number = jnp.clip(((angle / math.pi + 1) * (bins / 2)).astype(jnp.int32), 0, bins - 1)
    ray = jnp.take_along_axis(table, number.reshape(B, -1), axis=1).reshape(B, 1, H, W)
    near = 1.0 / (1.0 + jnp.hypot(x, y) / (0.3 * W))
    height = jnp.exp(-0.5 * ((z - depth_of * D) / (8.0 / config.spacing_mm)) ** 2)
    present = jax.random.bernoulli(rays, 0.6 * config.streaks, (B, 1, 1, 1))
    return total + jnp.where(present, 350.0 * high * ray * near * height, 0.0)
