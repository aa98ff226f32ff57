"""3D variation: image and labels stay together, off means off, matrices keep means."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cspine_jax.augment3d import blur_matrix, normalise, positions, slice_matrix
from cspine_jax.augment3d import prepare3d as eager
from cspine_jax.config import VolumeConfig

prepare3d = jax.jit(eager, static_argnames=("config", "train"))
OFF = VolumeConfig(
    depth=16,
    height=16,
    width_px=16,
    margin=4,
    levels=2,
    rotation=0.0,
    zoom=0.0,
    stretch=0.0,
    elastic_mm=0.0,
    blur_mm=0.0,
    slice_mm=0.0,
    contrast=0.0,
    bias_hu=0.0,
    noise_hu=0.0,
    streaks=0.0,
)


def ball(shape=(24, 24, 24), radius=6.0) -> np.ndarray:
    grid = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij"))
    inside = (grid**2).sum(0) < radius**2
    return np.stack([np.where(inside, 800, 40), inside * 3]).astype(np.int16)


def test_with_everything_off_the_middle_or_its_mirror_image_comes_back():
    image = ball()
    image[0] += np.arange(24, dtype=np.int16)[None, None, :]
    x, labels = prepare3d(jnp.asarray(image[None]), jax.random.key(0), config=OFF, train=True)
    middle = image[:, 4:-4, 4:-4, 4:-4]
    wanted = np.asarray(normalise(jnp.asarray(middle[0], jnp.float32)))
    mirrored = bool(np.abs(np.asarray(x[0]) - wanted).max() > 1e-3)
    flip = slice(None, None, -1) if mirrored else slice(None)
    np.testing.assert_allclose(x[0], wanted[..., flip], atol=1e-3)
    np.testing.assert_array_equal(labels[0], middle[1][..., flip])


def test_image_and_labels_move_together():
    config = dataclasses.replace(OFF, rotation=25.0, zoom=0.2, stretch=0.2, elastic_mm=4.0)
    batch = jnp.asarray(np.stack([ball()] * 4))
    x, labels = prepare3d(batch, jax.random.key(3), config=config, train=True)
    bone = np.asarray(x) > float(normalise(jnp.asarray(420.0)))
    mask = np.asarray(labels) == 3
    dice = 2 * (bone & mask).sum() / (bone.sum() + mask.sum())
    assert dice > 0.95
    sizes = mask.sum((1, 2, 3))
    assert len(np.unique(sizes)) > 1  # samples differ


def test_the_key_decides_and_training_needs_one():
    config = VolumeConfig(depth=16, height=16, width_px=16, margin=4, levels=2)
    batch = jnp.asarray(ball()[None])
    one, again, other = (prepare3d(batch, jax.random.key(k), config=config, train=True)[0] for k in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.05
    assert np.isfinite(one).all() and one.min() >= -0.4 - 1e-6 and one.max() <= 1.6 + 1e-6
    with pytest.raises(ValueError, match="needs a key"):
        eager(batch, None, config, train=True)


def test_evaluation_only_normalises():
    batch = ball((16, 16, 16))[None]
    x, labels = prepare3d(jnp.asarray(batch), None, config=OFF, train=False)
    np.testing.assert_allclose(x[0, 8, 8, 8], (800 + 200) / 1200, rtol=1e-6)
    np.testing.assert_array_equal(labels, batch[:, 1])


def test_thick_slices_and_blur_keep_constants():
    slices = slice_matrix(jax.random.key(0), 64, 20, 4.0)
    np.testing.assert_allclose(slices.sum(2), 1.0, atol=1e-4)
    edges = np.asarray(slices)[:, 10]
    assert (edges > 0.02).sum(1).max() >= 4  # some samples really are thick
    identity = np.abs(np.asarray(slices) - np.eye(20)[None]).max((1, 2)) < 0.35
    assert 10 < identity.sum() < 54  # about half are thin
    blur = blur_matrix(20, jnp.full((2, 1, 1), 1.5), jnp.full((2, 1, 1), 0.5), 0.9)
    np.testing.assert_allclose(blur.sum(2), 1.0, atol=1e-4)


def test_positions_cover_the_crop_and_stay_centred():
    at = positions(jax.random.key(0), 8, (24, 24, 24), (16, 16, 16), dataclasses.replace(OFF, rotation=20.0, zoom=0.2))
    np.testing.assert_allclose(at.mean((2, 3, 4)), 11.5, atol=1e-3)
