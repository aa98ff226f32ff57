"""Adam or AdamW under a one-cycle or a cosine learning rate."""

import jax
import jax.numpy as jnp
import optax

from cspine_jax.config import OptimConfig

START_DIVISOR = 25.0
END_DIVISOR = 1e4


def one_cycle(peak: float, total_steps: int, warmup: float = 0.3) -> optax.Schedule:
    """L. Smith's one-cycle learning rate with cosine annealing, the values of PyTorch's `OneCycleLR` defaults.

    Rises from peak/25 to peak over the first `warmup` of the steps, then falls to peak/250,000 at the last one:
    between a and b the rate is b + (a - b) (1 + cos(pi t)) / 2. Adam's first moment decay stays at 0.9 (PyTorch
    also cycles it; document B does not say).

    Args:
        peak: highest learning rate.
        total_steps: steps of the whole run.
        warmup: rising share of them.

    Returns:
        step (0-based) -> learning rate; steps past the end keep the last value.
    """
    start, end = peak / START_DIVISOR, peak / START_DIVISOR / END_DIVISOR
    top = max(warmup * total_steps - 1.0, 1e-6)
    last = max(total_steps - 1.0, top + 1e-6)

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        rise = jnp.clip(step / top, 0.0, 1.0)
        fall = jnp.clip((step - top) / (last - top), 0.0, 1.0)
        rising = peak + (start - peak) * (1 + jnp.cos(jnp.pi * rise)) / 2
        falling = end + (peak - end) * (1 + jnp.cos(jnp.pi * fall)) / 2
        return jnp.where(step <= top, rising, falling)

    return schedule


def cosine(peak: float, final: float, total_steps: int, warmup: float = 0.0) -> optax.Schedule:
    """Rises in a straight line over the first `warmup` of the steps, then falls by half a cosine to `final`.

    Source of the fall: I. Loshchilov and F. Hutter, SGDR, ICLR 2017, one cycle.

    Args:
        peak: highest learning rate.
        final: that of the last step.
        total_steps: steps of the whole run.
        warmup: rising share of them; 0 starts at `peak`.

    Returns:
        step (0-based) -> learning rate; steps past the end keep the last value.
    """
    rise = warmup * total_steps
    last = max(total_steps - 1.0, rise + 1e-6)

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        fall = jnp.clip((step - rise) / (last - rise), 0.0, 1.0)
        falling = final + (peak - final) * (1 + jnp.cos(jnp.pi * fall)) / 2
        return jnp.where(step < rise, peak * (step + 1.0) / (rise + 1.0), falling)

    return schedule


def make_schedule(config: OptimConfig, total_steps: int) -> optax.Schedule:
    """The learning rate that `config.schedule` names."""
    if config.schedule == "cosine":
        return cosine(config.lr, config.final_lr, total_steps, config.warmup)
    return one_cycle(config.lr, total_steps, config.warmup)


def make_optimizer(config: OptimConfig, total_steps: int) -> optax.GradientTransformation:
    """Global-norm clipping (`clip_norm` > 0), then Adam, or AdamW where `weight_decay` > 0.

    Weights and kernels decay; vectors (biases, batch-norm scales, PReLU slopes) do not.
    """
    schedule = make_schedule(config, total_steps)
    steps = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if config.weight_decay:
        steps.append(optax.adamw(schedule, weight_decay=config.weight_decay, mask=_matrices))
    else:
        steps.append(optax.adam(schedule))
    return optax.chain(*steps)


def _matrices(params: optax.Params) -> optax.Params:
    return jax.tree.map(lambda x: x.ndim > 1, params)
