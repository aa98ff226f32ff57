"""Networks (flax nnx). `create(name, ...)` builds a backbone; `slices.SliceModel` puts document B's heads on one."""

import difflib
from typing import Any

from flax import nnx

from cspine_jax.errors import ConfigError
from cspine_jax.models import basic_cnn, resnet
from cspine_jax.models.backbone import Backbone

_FAMILIES = (basic_cnn, resnet)


def names() -> list[str]:
    """Every name `create` knows."""
    return sorted(name for family in _FAMILIES for name in family.VARIANTS)


def create(
    name: str,
    *,
    in_channels: int = 3,
    num_outputs: int = 1000,
    features_only: bool = False,
    pooling: str | None = None,
    dropout: float | None = None,
    dtype: Any = None,
    rngs: nnx.Rngs,
) -> Backbone:
    """Builds a backbone.

    Args:
        name: one of `names()`.
        in_channels: channels of the image `[B, H, W, in_channels]`.
        num_outputs: logits; 0 for the bare embedding.
        features_only: return the pyramid of feature maps (as a UNet or FPN wants) instead of logits.
        pooling: "avg", "max" or "avgmax"; None for the family's own.
        dropout: rate before the head; None for the family's own.
        dtype: type computed in (parameters are float32); None for that of the input.
        rngs: randomness of the initial weights (`params` stream).

    Returns:
        A `Backbone`: call it as `module(x, train=False, key=None)`.

    Raises:
        ConfigError: the name is not known.
    """
    for family in _FAMILIES:
        if name in family.VARIANTS:
            config = family.VARIANTS[name]
            return family.build(
                config,
                in_channels=in_channels,
                num_outputs=num_outputs,
                features_only=features_only,
                pooling=config.pooling if pooling is None else pooling,
                dropout=config.dropout if dropout is None else dropout,
                dtype=dtype,
                rngs=rngs,
            )
    near = difflib.get_close_matches(name, names(), n=1)
    fix = f"did you mean {near[0]}?" if near else f"known: {', '.join(names())}"
    raise ConfigError(f"model.backbone={name!r}: no such backbone; {fix}")


__all__ = ["Backbone", "create", "names"]
