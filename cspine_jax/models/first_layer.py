"""The first convolution of a network trained on colour photographs, made to see stacks of windowed CT slices.

Published networks saw red, green and blue, each as (x - mean) / std of x in 0..1; ours see any number of slices, each
in 0..1. The affine map goes into the first convolution and what follows it, so that a network is the same whether or
not its weights were published, and nothing has to be kept beside them. That is exact but for the zeros that a
convolution pads with: they were a frame of mean grey around a photograph, and are black, which is air, around a slice.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

COLOURS = 3

Path = tuple[Any, ...]
Arrays = dict[Path, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Input:
    """What a network was trained to see: (x - mean) / std of red, green and blue in 0..1."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


HALF = Input((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
LITE = Input((127 / 255, 127 / 255, 127 / 255), (128 / 255, 128 / 255, 128 / 255))

EXCEPTIONS = {
    ("efficientnet_lite0", "lite"): LITE,
    ("efficientnet_lite0", "timm"): HALF,
    ("efficientnet_v2_l", "torchvision"): HALF,
    ("googlenet", "torchvision"): HALF,  # its `transform_input` maps the usual input to this one
    ("inception_v3", "timm"): HALF,
    ("inception_v3", "torchvision"): HALF,  # the same
    ("tf_efficientnetv2_l", "timm"): HALF,
    ("tf_efficientnetv2_s", "timm"): HALF,
    ("vit_b_16", "timm"): HALF,
}
"""Inputs of (backbone, source) other than ImageNet's mean and deviation, which all others have. A state dict does not
say; timm's repository has a few more for particular trainings of a network."""


def first_kernel(shapes: Mapping[Path, tuple[int, ...]]) -> Path:
    """The kernel that sees the image, of a network built for three colours: the only one with three input channels.

    Args:
        shapes: of all arrays; convolutions are `[kh, kw, in, out]`.

    Raises:
        ValueError: there is none, or more than one.
    """
    (path,) = (path for path, shape in shapes.items() if len(shape) == 4 and shape[2] == COLOURS)
    return path


def fold(arrays: Arrays, kernel: Path, seen: Input) -> Arrays:
    """Arrays of the network that takes x in 0..1 where this one takes (x - mean) / std; exact but for padding.

    The constant part goes into the convolution's bias, or into the running mean of the batch normalisation beside it.
    (Without either it is dropped: batch statistics of training take it out.)

    Args:
        arrays: of the network.
        kernel: path of its first kernel, `[kh, kw, 3, out]`.
        seen: the input that it was trained on.
    """
    scaled = arrays[kernel] / np.asarray(seen.std, np.float32)[None, None, :, None]
    constant = (scaled * np.asarray(seen.mean, np.float32)[None, None, :, None]).sum((0, 1, 2))
    folded = {**arrays, kernel: scaled}
    bias = (*kernel[:-1], "bias")
    means = [p for p in arrays if p[-1] == "mean" and p[:-2] == kernel[:-2] and arrays[p].shape == constant.shape]
    if bias in arrays:
        folded[bias] = arrays[bias] - constant
    elif len(means) == 1:
        folded[means[0]] = arrays[means[0]] + constant
    return folded


def widen(kernel: np.ndarray, in_channels: int) -> np.ndarray:
    """A kernel `[kh, kw, 3, out]` for `in_channels` channels: the colours' in turn, 3 / in_channels as strong.

    Where that does not come out even, all channels are shifted alike to keep the sum over channels: a grey picture in
    every channel gets the very response that it got in colour, whatever their number.
    """
    repeated = kernel[:, :, np.arange(in_channels) % COLOURS] * (COLOURS / in_channels)
    missing = kernel.sum(2, keepdims=True) - repeated.sum(2, keepdims=True)
    return (repeated + missing / in_channels).astype(kernel.dtype)
