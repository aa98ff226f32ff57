"""Sequences of slices on the device: one move for all slices, masks that stay masks, cutout and shuffling by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cspine_jax import augment
from cspine_jax.augment_sequence import (
    SOFT_TISSUE_HU,
    bone_only,
    cut_out,
    follow_slices,
    inside_boxes,
    prepare_sequence,
    shuffle_slices,
)
from cspine_jax.config import AugmentConfig
from cspine_jax.denoise import cluster_means, denoise
from cspine_jax.errors import ConfigError

OFF = AugmentConfig(flip=False, rotation=0.0, zoom=0.0, shift=0.0, brightness=0.0, contrast=0.0, noise=0.0)
KEY = jax.random.key(4)
MOVING = dataclasses.replace(
    OFF, flip=True, rotation=20.0, zoom=0.2, shift=0.1, vertical_flip=True, transpose=True, distortion=0.2
)


def squares(B=6, T=3, size=24, K=2):
    """A bright box, off the middle, on air, and its mask."""
    mask = np.zeros((B, T, size, size), np.uint8)
    mask[:, :, 6:14, 9:19] = 3
    image = np.where(mask > 0, 1300, -1000)[..., None].repeat(K, -1).astype(np.int16)
    return jnp.asarray(image), jnp.asarray(mask)


def test_evaluation_windows_and_appends_the_mask():
    image, mask = squares()
    there = jnp.ones((6, 3), bool).at[0, 2].set(False)
    x = np.asarray(prepare_sequence(image, mask, there, None, OFF, False, mask_scale=0.5))
    assert x.shape == (6, 3, 24, 24, 3)
    np.testing.assert_allclose(x[1, ..., :2], np.asarray(augment.window(image[1], OFF)))
    np.testing.assert_allclose(x[1, ..., 2], 0.5 * np.asarray(mask[1]))
    assert not x[0, 2].any() and x[0, 1].any()
    assert prepare_sequence(image, None, there, None, OFF, False).shape == (6, 3, 24, 24, 2)


def test_mask_and_image_make_the_same_moves_in_all_slices():
    image, mask = squares()
    there = jnp.ones((6, 3), bool)
    x = np.asarray(jax.jit(lambda k: prepare_sequence(image, mask, there, k, MOVING, True))(KEY))
    assert set(np.unique(x[..., -1])) <= {0.0, 3.0}
    bright, inside = x[..., 0] > 0.5, x[..., -1] > 0
    assert (bright == inside).mean() > 0.98 and inside.any((1, 2, 3, 4) if inside.ndim == 5 else (1, 2, 3)).all()
    np.testing.assert_allclose(x[:, 0], x[:, 1], atol=1e-6)
    assert len({x[k, 0, ..., -1].tobytes() for k in range(6)}) == 6
    again = np.asarray(prepare_sequence(image, mask, there, KEY, MOVING, True))
    np.testing.assert_allclose(x, again, atol=1e-5)


def test_boxes_move_with_the_picture():
    image, mask = squares()
    there = jnp.ones((6, 3), bool).at[0, 2].set(False)
    box = jnp.zeros((6, 3, 4)).at[:, 1:].set(jnp.array([6.0, 9.0, 14.0, 19.0]))  # about the bright box, on two slices
    still = np.asarray(prepare_sequence(image, mask, there, None, OFF, False, box=box))
    np.testing.assert_array_equal(still[1:, 1:, ..., -1], np.asarray(mask)[1:, 1:] > 0)
    for config in (MOVING, dataclasses.replace(MOVING, cutout=0.5, slice_shuffle=0.9)):
        x = np.asarray(jax.jit(lambda k, c=config: prepare_sequence(image, mask, there, k, c, True, box=box))(KEY))
        without = np.asarray(jax.jit(lambda k, c=config: prepare_sequence(image, mask, there, k, c, True))(KEY))
        np.testing.assert_allclose(x[..., :-1], without, atol=1e-6)
        inside, shown = x[..., -1] > 0, x[..., -2] > 0
        boxed = inside.any((2, 3))
        assert boxed.sum() in (11, 10, 9) and not boxed[0, 2]
        np.testing.assert_array_equal(inside[boxed], shown[boxed])
        assert boxed[:, 0].any() == bool(config.slice_shuffle)


def test_pixels_inside_boxes_are_those_whose_centre_is():
    box = np.array([[1.0, 2.0, 3.0, 4.0], [0.4, 0.6, 1.4, 1.6], [0, 0, 0, 0], [-5, -5, 90, 90]], np.float32)
    inside = np.asarray(inside_boxes(jnp.asarray(box), 4, 5))
    by_hand = np.zeros((4, 4, 5), bool)
    by_hand[0, 1:3, 2:4] = by_hand[1, :1, 1:2] = by_hand[3] = True
    np.testing.assert_array_equal(inside, by_hand)


@pytest.mark.parametrize(("name", "move"), [
    ("vertical_flip", lambda x: x[::-1]),
    ("transpose", lambda x: x.T),
])  # fmt: skip
def test_flips_do_what_they_say_to_half_of_the_images(name, move):
    image, mask = squares(B=40, T=1, K=1)
    x = prepare_sequence(image, mask, jnp.ones((40, 1), bool), KEY, dataclasses.replace(OFF, **{name: True}), True)
    plain = np.asarray(mask[0, 0], float)
    same = [np.allclose(one, plain) for one in np.asarray(x[:, 0, :, :, 1])]
    turned = [np.allclose(one, move(plain)) for one in np.asarray(x[:, 0, :, :, 1])]
    assert all(a != b for a, b in zip(same, turned, strict=True)) and 8 < sum(same) < 32


def test_oblong_images_cannot_be_transposed():
    with pytest.raises(ConfigError, match=r"augment\.transpose=True: the images are 8 x 12"):
        augment.sampling_positions(KEY, (1, 8, 12), dataclasses.replace(OFF, transpose=True))


def test_grid_distortion_bends_by_no_more_than_its_strength_and_folds_nothing():
    shifts = np.asarray(augment.smooth_shifts(KEY, (3, 50, 40), 0.3))
    assert np.abs(shifts[..., 0]).max() <= 0.3 * 50 / augment.GRID + 1e-5 and np.abs(shifts[..., 0]).max() > 0.5
    assert (np.diff(np.arange(50)[None, :, None] + shifts[..., 0], axis=1) > 0).all()
    flat = augment.sampling_positions(KEY, (2, 10, 10), OFF)
    np.testing.assert_allclose(flat[0][0], np.arange(10)[:, None] + np.zeros((1, 10)), atol=1e-5)


def test_blur_keeps_the_mean_and_softens_edges():
    x = jnp.zeros((3, 20, 20, 2)).at[:, :, 10:].set(1.0)
    assert augment.blur(x, KEY, 0.0) is x
    y = np.asarray(augment.blur(x, KEY, 1.5))
    assert (np.diff(y[:, 5, :, 0], axis=1) >= -1e-6).all()
    assert np.allclose(y[:, :, :5], 0, atol=1e-5) and ((y[:, 5, 9, 0] > 0) & (y[:, 5, 9, 0] < 0.5)).all()
    np.testing.assert_allclose(np.asarray(augment.blur(jnp.ones((2, 9, 9, 1)), KEY, 2.0)), 1.0, atol=1e-6)


def test_cutout_blanks_one_box_of_half_of_the_sequences():
    x = jnp.ones((60, 2, 20, 20, 3))
    y = np.asarray(cut_out(x, KEY, 0.5))
    assert cut_out(x, KEY, 0.0) is x
    hit = (y == 0).any((1, 2, 3, 4))
    assert 15 < hit.sum() < 45
    for one in y[hit]:
        gone = one == 0
        assert (gone == gone[:1, :, :, :1]).all()
        rows, columns = gone[0, :, :, 0].any(1), gone[0, :, :, 0].any(0)
        assert (gone[0, :, :, 0] == rows[:, None] & columns[None]).all()
        assert rows.sum() <= 10 and columns.sum() <= 10


def test_bone_alone_in_some_sequences():
    image, mask = squares(B=60)
    config = dataclasses.replace(OFF, bone_only=0.4)
    there = jnp.ones((60, 3), bool)
    noisy = image + 50 * (jnp.arange(24) % 2)[None, None, :, None, None].astype(jnp.int16)
    x, plain = (np.asarray(prepare_sequence(noisy, mask, there, KEY, c, True)) for c in (config, OFF))
    np.testing.assert_array_equal(x[..., 2], plain[..., 2])  # the mask is never hidden
    hidden = (x != plain).any((1, 2, 3, 4))
    assert 12 < hidden.sum() < 36
    near = np.zeros((24, 24), bool)
    near[5:15, 8:20] = True  # one pixel round the bone: 3% of the side
    tissue = np.asarray(augment.window(jnp.array([SOFT_TISSUE_HU]), OFF))
    for one, same in zip(x[hidden], plain[hidden], strict=True):
        np.testing.assert_array_equal(one[:, near], same[:, near])
        np.testing.assert_allclose(one[:, ~near, :2], tissue[0], rtol=1e-6)
    assert bone_only(image, mask, KEY, 0.0, jnp.float32(0.3)) is image
    still = np.asarray(prepare_sequence(noisy, mask, there, None, config, False))
    np.testing.assert_allclose(still, plain, atol=1e-6)


def test_slice_shuffle_permutes_what_is_there():
    there = jnp.asarray(np.tile([True, True, False, True, True], (200, 1)))
    x = jnp.tile(jnp.arange(5.0)[None, :, None], (200, 1, 2))
    y = np.asarray(shuffle_slices(x, there, KEY, 0.3))
    assert shuffle_slices(x, there, KEY, 0.0) is x
    assert (y[:, 2] == 2).all() and (np.sort(y[..., 0], 1) == np.arange(5)).all()
    moved = (y[..., 0] != np.arange(5)).any(1)
    assert 0.15 < moved.mean() < 0.42  # three in ten, less the few that come out as they were
    assert len({tuple(row) for row in y[moved][..., 0].tolist()}) > 10


def test_targets_follow_the_slices_that_are_shuffled():
    config = dataclasses.replace(OFF, slice_shuffle=0.5)
    there = jnp.asarray(np.random.default_rng(0).random((40, 5)) < 0.8)
    order = jnp.arange(1, 6)[None] * there
    image = jnp.broadcast_to((100 * order - 300)[:, :, None, None, None], (40, 5, 4, 4, 1)).astype(jnp.int16)
    seen = prepare_sequence(image, None, there, KEY, config, True)[:, :, 0, 0, 0]
    followed = follow_slices(order.astype(jnp.float32), there, KEY, config)
    expected = augment.window(100.0 * followed - 300.0, config)
    np.testing.assert_allclose(seen, jnp.where(there, expected, 0.0), atol=1e-6)
    assert 8 < (np.asarray(followed) != np.asarray(order)).any(1).sum() < 32


def test_mixup_knows_sequences():
    batch = {
        "image": jnp.arange(4.0).reshape(4, 1),
        "targets": jnp.array([0.0, 1.0, 0.0, 1.0]),
        "slice_targets": jnp.array([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 0.0]]),
        "targets_known": jnp.array([1.0, 1.0, 1.0, 0.0]),
        "there": jnp.array([[True], [False], [False], [False]]),
        "valid": jnp.ones(4, bool),
    }
    mixed = augment.mixup(batch, KEY, 0.5)
    share = np.asarray(mixed["targets"])[0]
    assert float(mixed["image"][0, 0]) == pytest.approx(share)
    np.testing.assert_allclose(mixed["slice_targets"][:2, 1], mixed["targets"][:2])
    np.testing.assert_allclose(mixed["slice_targets"][2:, 0], mixed["targets"][2:])
    assert not mixed["slice_targets"][:2, 0].any()
    assert mixed["there"].tolist() == [[True], [True], [False], [False]]
    assert mixed["targets_known"].tolist() == [1, 1, 0, 0]


def noisy(size=32):
    """Noisy air, soft tissue and bone, windowed."""
    rng = np.random.default_rng(0)
    x = np.full((2, size, size, 3), 0.1)
    x[:, 8:24, 8:24], x[:, 12:20, 12:20] = 0.35, 0.8
    return jnp.asarray(np.clip(x + rng.normal(0, 0.02, x.shape), 0, 1).astype(np.float32))


@pytest.mark.parametrize("kind", ["threshold", "kmeans"])
def test_noise_reduction_clears_the_background_and_nothing_else(kind):
    config = dataclasses.replace(OFF, denoise=kind, denoise_clusters=3)
    x = noisy()
    y = np.asarray(jax.jit(lambda x: denoise(x, config))(x))
    inside = np.zeros(x.shape, bool)
    inside[:, 8:24, 8:24] = True
    np.testing.assert_array_equal(y[inside], np.asarray(x)[inside])
    assert (y[~inside] == 0).mean() > (0.99 if kind == "kmeans" else 0.6)  # -300 HU is 0.11 in this window
    np.testing.assert_array_equal(y, np.asarray(denoise(x, config)))
    assert denoise(x, OFF) is x


def test_k_means_finds_the_means():
    means = np.asarray(cluster_means(noisy(), 3))
    np.testing.assert_allclose(means, np.tile([0.1, 0.35, 0.8], (2, 1)), atol=0.01)
    np.testing.assert_allclose(cluster_means(jnp.full((1, 9), 0.5), 4), 0.5, atol=1e-6)  # nothing to divide


def test_noise_reduction_reaches_slice_models_too():
    image = np.full((1, 3, 16, 16), -320, np.int16)
    image[:, :, 4:12, 4:12] = 900
    config = dataclasses.replace(OFF, denoise="threshold")
    plain, clean = (np.asarray(augment.prepare(jnp.asarray(image), None, c, False)) for c in (OFF, config))
    assert plain.min() > 0 and clean.min() == 0
    np.testing.assert_array_equal(plain[:, 4:12, 4:12], clean[:, 4:12, 4:12])


@pytest.mark.parametrize("kind", ["threshold", "kmeans"])
def test_a_padded_sequence_is_denoised_like_a_short_one(kind):
    """A sequence whose slices differ in brightness, alone and followed by repeats of its last slice."""
    config = dataclasses.replace(OFF, denoise=kind, background_hu=-300)
    image = np.random.default_rng(0).integers(-1000, 1500, (2, 3, 12, 12, 2)).astype(np.int16)
    image[:, 2] //= 8
    padded = np.concatenate([image, *[image[:, 2:]] * 4], axis=1)
    there = np.broadcast_to(np.arange(7) < 3, (2, 7))
    short = np.asarray(prepare_sequence(jnp.asarray(image), None, jnp.asarray(there[:, :3]), None, config, False))
    long = np.asarray(prepare_sequence(jnp.asarray(padded), None, jnp.asarray(there), None, config, False))
    np.testing.assert_array_equal(long[:, :3], short)
    assert not long[:, 3:].any() and (short == 0).any() and short.any()
