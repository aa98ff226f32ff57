"""ConvNeXt, Swin and ViT against torchvision and timm; `parity` does the work.

Variants of a few channels are quick; the published ones, of 30 to 90 million parameters, are slow.
"""

import pytest

pytest.importorskip("torch", reason="needs the extra [parity]; torch is never a dependency of the package")

from cspine_jax.models.backbones import convnext, swin, vit
from tests.models.parity import Case, check_inference, check_training, torchvision

CNBlockConfig = torchvision.models.convnext.CNBlockConfig

STAGES = ("features.1", "features.3", "features.5", "features.7")
TIMM_STAGES = ("stages.0", "stages.1", "stages.2", "stages.3")
SWIN = (*STAGES[:-1], "norm")

NANO = {
    "convnext_nano": (convnext, convnext.Config(blocks=(1, 1), widths=(8, 16))),
    "swin_nano": (swin, swin.Config(pairs=(1, 1, 2), heads=(2, 2, 4), width=8)),
    "vit_nano": (vit, vit.Config(blocks=3, width=32, heads=4, hidden=64, patch=8, grid=4)),
}


def tokens(*grid):
    """Tokens `[B, 1 + h w, C]`, class token first -> `[B, C, h, w]`."""
    return lambda x: x[:, 1:].transpose(1, 2).unflatten(2, grid)


def convnext_nano(**case):
    options = {"block_setting": [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)]}
    return Case("convnext_nano", ("features.1", "features.3"), called="ConvNeXt", options=options, **case)


def swin_nano(**case):
    options = dict(patch_size=[4, 4], embed_dim=8, depths=[2, 2, 4], num_heads=[2, 2, 4], window_size=[7, 7])
    levels = ("features.1", "features.3", "norm")
    return Case("swin_nano", levels, called="SwinTransformer", options=options, channels_last=True, **case)


def vit_nano(**case):
    options = dict(image_size=32, patch_size=8, num_layers=3, num_heads=4, hidden_dim=32, mlp_dim=64)
    level = tokens(4, 4)
    return Case("vit_nano", ("encoder.ln",), (32, 32), called="VisionTransformer", options=options, level=level, **case)


def timm_vit_nano(size, grid):
    options = dict(patch_size=8, img_size=32, depth=3, embed_dim=32, num_heads=4, mlp_ratio=2.0)
    options |= {"dynamic_img_size": True, "dynamic_img_pad": True}
    called = "vit_base_patch16_224"
    return Case("vit_nano", ("norm",), size, source="timm", called=called, options=options, level=tokens(*grid))


def timm_vit(size, grid):
    options = {"dynamic_img_size": True, "dynamic_img_pad": True}
    called = "vit_base_patch16_224"
    return Case("vit_b_16", ("norm",), size, source="timm", called=called, options=options, level=tokens(*grid))


INFERENCE = [
    convnext_nano(),
    convnext_nano(size=(75, 97)),
    swin_nano(),
    swin_nano(size=(25, 123)),  # one axis is covered by a window and not shifted
    swin_nano(size=(98, 57)),
    vit_nano(),
    timm_vit_nano((64, 40), (8, 5)),
    timm_vit_nano((27, 83), (4, 11)),
]
SLOW_INFERENCE = [
    Case("convnext_tiny", STAGES),
    Case("convnext_tiny", STAGES, (75, 97)),
    Case("convnext_tiny", TIMM_STAGES, source="timm"),
    Case("convnext_small", STAGES),
    Case("swin_s", SWIN, channels_last=True),
    Case("swin_s", SWIN, (97, 203), channels_last=True),
    Case("vit_b_16", ("encoder.ln",), (224, 224), level=tokens(14, 14)),
    timm_vit((224, 224), (14, 14)),
    timm_vit((75, 33), (5, 3)),
]
TRAINING = [convnext_nano(size=(128, 128)), swin_nano(size=(57, 64)), vit_nano(), timm_vit_nano((40, 27), (5, 4))]
SLOW_TRAINING = [
    Case("convnext_tiny", STAGES),
    Case("convnext_small", STAGES),
    Case("swin_s", SWIN, channels_last=True),
    Case("vit_b_16", ("encoder.ln",), (224, 224)),
    timm_vit((48, 32), (3, 2)),
]


def slow(cases):
    return [pytest.param(case, marks=pytest.mark.slow) for case in cases]


@pytest.fixture(autouse=True)
def nano(monkeypatch):
    for name, (family, config) in NANO.items():
        monkeypatch.setitem(family.VARIANTS, name, config)


@pytest.mark.parametrize("case", [*INFERENCE, *slow(SLOW_INFERENCE)], ids=str)
def test_answers_and_pyramid(case):
    check_inference(case)


@pytest.mark.parametrize("case", [*TRAINING, *slow(SLOW_TRAINING)], ids=str)
def test_a_training_step(case):
    check_training(case)
