"""ConvNeXt, Swin and ViT against torchvision and timm; `parity` does the work."""

import pytest

pytest.importorskip("torch", reason="needs the extra [parity]; torch is never a dependency of the package")

from tests.models.parity import Case, check_inference, check_training

STAGES = ("features.1", "features.3", "features.5", "features.7")
TIMM_STAGES = ("stages.0", "stages.1", "stages.2", "stages.3")
SWIN = (*STAGES[:-1], "norm")


def patches(size):
    """Tokens `[B, 1 + h w, C]`, class token first -> `[B, C, h, w]`."""
    grid = [-(-side // 16) for side in size]
    return lambda tokens: tokens[:, 1:].transpose(1, 2).unflatten(2, grid)


def vit(size, **case):
    return Case("vit_b_16", size=size, level=patches(size), **case)


def timm_vit(size):
    options = {"dynamic_img_size": True, "dynamic_img_pad": True}
    return vit(size, levels=("norm",), source="timm", called="vit_base_patch16_224", options=options)


INFERENCE = [
    Case("convnext_tiny", STAGES),
    Case("convnext_tiny", STAGES, size=(75, 97)),
    Case("convnext_tiny", TIMM_STAGES, source="timm"),
    Case("convnext_small", STAGES),
    Case("swin_s", SWIN, channels_last=True),
    Case("swin_s", SWIN, channels_last=True, size=(97, 203)),
    timm_vit((64, 64)),
    timm_vit((75, 33)),
    vit((224, 224), levels=("encoder.ln",)),
]
TRAINING = [
    Case("convnext_tiny", STAGES),
    Case("convnext_small", STAGES),
    Case("swin_s", SWIN, size=(48, 64)),
    timm_vit((48, 32)),
    vit((224, 224), levels=()),
]


@pytest.mark.parametrize("case", INFERENCE, ids=str)
def test_answers_and_pyramid(case):
    check_inference(case)


@pytest.mark.parametrize("case", TRAINING, ids=str)
def test_a_training_step(case):
    check_training(case)
