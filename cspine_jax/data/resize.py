"""In-plane resizing of HU and masks, pixel centres kept in place."""

import functools

import numpy as np
import scipy.sparse

HU_MIN, HU_MAX = np.iinfo(np.int16).min, np.iinfo(np.int16).max


@functools.lru_cache(maxsize=16)
def _weights(source: int, target: int) -> scipy.sparse.csr_array:
    """[target, source] float32: linear interpolation, widened to a triangle filter where the image shrinks.

    Plain linear sampling at 512 -> 160 would skip two pixels of three and turn a hairline fracture or noise into
    aliasing. The weights are those of `jax.image.resize(..., "linear", antialias=True)`, so a study resized on the
    device at prediction time looks like one resized here.
    """
    scale = source / target
    centre = (np.arange(target) + 0.5) * scale - 0.5
    distance = np.abs(centre[:, None] - np.arange(source)[None, :]) / max(scale, 1.0)
    weights = np.maximum(0.0, 1.0 - distance)
    return scipy.sparse.csr_array((weights / weights.sum(1, keepdims=True)).astype(np.float32))


def resize_hu(hu: np.ndarray, size: int) -> np.ndarray:
    """int16 [D, H, W] HU to int16 [D, size, size], linear with antialiasing, rounded to the nearest HU."""
    depth, height, width = hu.shape
    if (height, width) == (size, size):
        return hu
    rows, columns = _weights(height, size), _weights(width, size)
    out = np.empty((depth, size, size), np.int16)
    for target, image in zip(out, hu, strict=True):
        smooth = columns @ (rows @ image.astype(np.float32)).T
        target[:] = np.clip(np.rint(smooth.T), HU_MIN, HU_MAX)
    return out


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """uint8 [D, H, W] labels to uint8 [D, size, size]: the label at the nearest pixel centre."""
    _, height, width = mask.shape
    if (height, width) == (size, size):
        return mask
    rows = ((np.arange(size) + 0.5) * height / size).astype(int)
    columns = ((np.arange(size) + 0.5) * width / size).astype(int)
    return mask[:, rows[:, None], columns[None, :]]
