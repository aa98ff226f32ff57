"""The study-level networks as a configuration describes them."""

from typing import Any

from flax import nnx

from cspine_jax.config import Config
from cspine_jax.models.study.bronze import CropClassifier
from cspine_jax.models.study.classifier import StudyClassifier
from cspine_jax.models.study.cnn3d import CNN3D
from cspine_jax.models.study.gold import PatientSequence, VertebraSequence
from cspine_jax.models.study.levels import LevelsModel
from cspine_jax.models.study.silver import TransformerSequence
from cspine_jax.models.study.vit3d import ViT3D


def channels(config: Config) -> int:
    """Of each slice that the network sees: neighbours, and the mask."""
    if config.task == "crops":
        return 2 * config.crops.radius + 2
    return config.data.depth + config.study.with_mask


def build_model(config: Config, *, dtype: Any, rngs: nnx.Rngs) -> nnx.Module:
    """The network that `config.study.model` names; `dtype` is the type it computes in, None for float32."""
    study, backbone = config.study, config.model.backbone
    common = {"in_channels": channels(config), "dropout": config.model.dropout, "dtype": dtype, "rngs": rngs}
    on_backbone = {**common, "chunk": study.chunk or None}
    transformer = {"features": study.features, "heads": study.heads, "depth": study.depth}
    on_crops = {**on_backbone, "where": study.where_weight > 0}
    lstm = {"hidden": study.hidden, "layers": study.layers}
    if study.model == "gold":
        return VertebraSequence(backbone, **lstm, **on_crops)
    if study.model == "gold_patient":
        return PatientSequence(backbone, **lstm, **on_crops)
    if study.model == "silver":
        return TransformerSequence(backbone, **transformer, remat=study.remat, **on_crops)
    if study.model == "bronze":
        return CropClassifier(backbone, **on_crops)
    if study.model == "levels":
        return LevelsModel(backbone, **lstm, **transformer, **on_crops)
    if study.model == "classifier":
        return StudyClassifier(backbone, **on_backbone)
    if study.model == "vit3d":
        tubelet = (study.tubelet_depth, study.tubelet, study.tubelet)
        return ViT3D(tubelet=tubelet, **transformer, remat=study.remat, **common)
    return CNN3D(
        stem=(1, study.stem, study.stem),
        widths=[study.width * 2**k for k in range(study.stages)],
        blocks=[study.blocks] * study.stages,
        factorised=study.factorised,
        **common,
    )
