"""Image networks by name: one module a family, a frozen `Config` a variant, built by `create`.

A family module has `VARIANTS` (name -> config with at least `pooling`, `dropout` and `drop_path`), `build(config,
options)`, and, where weights are published, `NAMES`: the rules by which its parameters are called in their files (see
`pretrained`).
"""

import difflib
from pathlib import Path
from types import ModuleType
from typing import Any

from flax import nnx

from cspine_jax.errors import ConfigError
from cspine_jax.models.backbones import (
    alexnet,
    basic_cnn,
    convnext,
    densenet,
    efficientnet,
    googlenet,
    inception,
    mnasnet,
    mobilenet,
    regnet,
    resnet,
    shufflenet,
    swin,
    vgg,
    vit,
)
from cspine_jax.models.backbones.base import Backbone, Draws, Options

FAMILIES: tuple[ModuleType, ...] = (
    alexnet,
    basic_cnn,
    convnext,
    densenet,
    efficientnet,
    googlenet,
    inception,
    mnasnet,
    mobilenet,
    regnet,
    resnet,
    shufflenet,
    swin,
    vgg,
    vit,
)


def names() -> list[str]:
    """Every name `create` knows."""
    return sorted(name for family in FAMILIES for name in family.VARIANTS)


def family_of(name: str) -> ModuleType:
    """The module that builds a variant.

    Raises:
        ConfigError: the name is not known.
    """
    for family in FAMILIES:
        if name in family.VARIANTS:
            return family
    near = difflib.get_close_matches(name, names(), n=1)
    fix = f"did you mean {near[0]}?" if near else f"known: {', '.join(names())}"
    raise ConfigError(f"model.backbone={name!r}: no such backbone; {fix}")


def create(
    name: str,
    *,
    in_channels: int = 3,
    num_outputs: int = 1000,
    features_only: bool = False,
    pooling: str | None = None,
    dropout: float | None = None,
    drop_path: float | None = None,
    aux_heads: bool = False,
    dtype: Any = None,
    pretrained: str | Path | None = None,
    rngs: nnx.Rngs,
) -> Backbone:
    """Builds a backbone.

    Args:
        name: one of `names()`.
        in_channels: channels of the image `[B, H, W, in_channels]`.
        num_outputs: logits; 0 for the bare embedding.
        features_only: return the pyramid of feature maps (as a UNet or FPN wants) instead of logits.
        pooling: "avg", "max" or "avgmax" of the coarsest map; None for the family's own embedding.
        dropout: rate before the head; None for the variant's own.
        drop_path: stochastic depth at the last block, rising linearly from the first; None for the variant's own.
        aux_heads: auxiliary classifiers, in the families that have them.
        dtype: type computed in (parameters are float32); None for that of the input.
        pretrained: a file of published weights, or "imagenet", see `published.load_pretrained`; images are then to be
            normalised as they were in its training (`published.input_of`). A head of another width stays random.
        rngs: randomness of the initial weights (`params` stream).

    Returns:
        A `Backbone`: call it as `module(x, train=False, key=None)`.

    Raises:
        ConfigError: the name is not known.
        DataError: the file of weights cannot be read or is another network's.
    """
    family = family_of(name)
    config = family.VARIANTS[name]

    def build(rngs: nnx.Rngs) -> Backbone:
        draws = Draws(rngs)
        options = Options(
            in_channels=in_channels,
            num_outputs=num_outputs,
            features_only=features_only,
            pooling=config.pooling if pooling is None else pooling,
            dropout=config.dropout if dropout is None else dropout,
            drop_path=config.drop_path if drop_path is None else drop_path,
            aux_heads=aux_heads,
            dtype=dtype,
            rngs=draws,
        )
        module = family.build(config, options)
        draws.close()
        return module

    if pretrained is None:
        return build(rngs)
    from cspine_jax.models.published import filled, load_pretrained  # which holds files against these networks

    return filled(build, load_pretrained(name, pretrained, in_channels=in_channels), rngs.params())


__all__ = ["FAMILIES", "Backbone", "create", "family_of", "names"]
