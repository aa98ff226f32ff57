"""Document B's noise reduction: what is background in a windowed image becomes exactly that, the rest stays as it is.

Two ways to say what is background: darker than a fixed HU, or in the darkest of the clusters that K-means finds among
the image's own intensities. What is not background keeps its values: flattening it to cluster means would wipe out the
thin dark line that a fracture is.
"""

import jax
import jax.numpy as jnp

from cspine_jax.config import AugmentConfig

ROUNDS = 8
"""Of K-means; intensities have one dimension, where it settles in a few."""

THINNING = 2
"""K-means looks at every second pixel of every second row."""


def denoise(x: jax.Array, config: AugmentConfig, stacks: int = 1) -> jax.Array:
    """Background to 0, as `config.denoise` finds it.

    Args:
        x: [B, H, W, C] windowed to 0..1.
        config: `denoise`, `background_hu`, `denoise_clusters` and the window.
        stacks: the channels are so many stacks one after the other, each an image by itself.

    Returns:
        Same shape.
    """
    if config.denoise == "none":
        return x
    if config.denoise == "threshold":
        low = config.window_level - config.window_width / 2
        return jnp.where(x < (config.background_hu - low) / config.window_width, 0.0, x)
    each = x.reshape(*x.shape[:3], stacks, -1)
    thin = jnp.moveaxis(each[:, ::THINNING, ::THINNING], 3, 1)
    means = cluster_means(thin.reshape(-1, *thin.shape[2:]), config.denoise_clusters)
    cut = ((means[:, 0] + means[:, 1]) / 2).reshape(-1, 1, 1, stacks, 1)
    return jnp.where(each < cut, 0.0, each).reshape(x.shape)


def cluster_means(x: jax.Array, clusters: int) -> jax.Array:
    """Means of K-means clusters (S. Lloyd, Least squares quantization in PCM, 1982) of each image's intensities.

    They start evenly between the darkest and the brightest pixel, so nothing is random. A cluster that runs empty keeps
    its mean.

    Args:
        x: [B, ...] intensities.
        clusters: K, 2 or more.

    Returns:
        [B, K] float32, ascending.
    """
    x = x.reshape(x.shape[0], -1).astype(jnp.float32)
    low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
    share = ((jnp.arange(clusters, dtype=jnp.float32) + 0.5) / clusters)[None]
    means = low + (high - low) * share

    def step(means: jax.Array, _: None) -> tuple[jax.Array, None]:
        cuts = (means[:, 1:] + means[:, :-1]) / 2
        # sums over "at or above each cut" give those between cuts by differences: no [B, n, K] array is made
        counts, sums = [jnp.full(x.shape[:1], x.shape[1], jnp.float32)], [x.sum(1)]
        for k in range(clusters - 1):
            above = x >= cuts[:, k, None]
            counts.append(above.sum(1).astype(jnp.float32))
            sums.append(jnp.where(above, x, 0.0).sum(1))
        zero = jnp.zeros_like(counts[0])
        count = jnp.stack([a - b for a, b in zip(counts, [*counts[1:], zero], strict=True)], axis=1)
        total = jnp.stack([a - b for a, b in zip(sums, [*sums[1:], zero], strict=True)], axis=1)
        return jnp.where(count > 0, total / jnp.maximum(count, 1.0), means), None

    return jax.lax.scan(step, means, None, length=ROUNDS)[0]
