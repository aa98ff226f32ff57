"""On-device windowing and augmentation: exact where it can be, statistical where it must be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats

from cspine_jax import augment
from cspine_jax.config import AugmentConfig

OFF = AugmentConfig(flip=False, rotation=0.0, zoom=0.0, shift=0.0, brightness=0.0, contrast=0.0, noise=0.0, mixup=0.0)
KEY = jax.random.key(3)


def stacks(B=4, D=3, H=20, W=24, seed=0):
    return np.random.default_rng(seed).integers(-1000, 1600, (B, D, H, W)).astype(np.int16)


def smooth(B=1, D=1, H=41, W=41):
    """A soft blob, off centre to the upper right, in bone HU on air."""
    y, x = np.mgrid[:H, :W]
    blob = 2000 * np.exp(-((y - 12) ** 2 + (x - 28) ** 2) / 18) - 1000
    return np.broadcast_to(blob, (B, D, H, W)).astype(np.int16)


def centroid(image):
    image = np.asarray(image, np.float64)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(y * image).sum(), (x * image).sum()]) / image.sum()


@pytest.mark.parametrize(("side", "share", "kept"), [(160, 1.0, 160), (160, 0.7, 112), (50, 1.0, 50), (20, 0.1, 16)])
def test_a_crop_keeps_a_multiple_of_16(side, share, kept):
    assert augment.cropped(side, share) == kept


def test_crop_keeps_the_middle_and_moves_about_the_same_centre():
    image = jnp.asarray(stacks(B=8, H=48, W=64))
    crop = dataclasses.replace(OFF, crop=0.5)
    whole = np.asarray(augment.prepare(image, None, OFF, train=False))
    for train in (False, True):  # 24 x 32 rounds to 32 x 32
        np.testing.assert_allclose(augment.prepare(image, KEY, crop, train), whole[:, 8:40, 16:48], atol=1e-6)
    moving = dataclasses.replace(AugmentConfig(), noise=0.0)
    full = np.asarray(augment.prepare(image, KEY, moving, train=True))
    part = augment.prepare(image, KEY, dataclasses.replace(moving, crop=0.5), train=True)
    np.testing.assert_allclose(part, full[:, 8:40, 16:48], atol=1e-6)


def test_window_golden_values():
    config = AugmentConfig(window_level=400.0, window_width=1800.0)
    hu = jnp.array([-1000, -500, 400, 1300, 3000], jnp.int16)
    np.testing.assert_allclose(augment.window(hu, config), [0, 0, 0.5, 1, 1], atol=1e-6)


def test_evaluation_windows_and_puts_slices_last():
    image = stacks()
    out = augment.prepare(jnp.asarray(image), None, AugmentConfig(), train=False)
    expected = np.clip((image.transpose(0, 2, 3, 1) + 500.0) / 1800.0, 0, 1)
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_zero_strength_is_the_identity():
    image = jnp.asarray(stacks())
    plain = augment.prepare(image, None, OFF, train=False)
    np.testing.assert_array_equal(augment.prepare(image, KEY, OFF, train=True), plain)
    # and the resampling itself, with positions that move nothing
    row, column = augment.sampling_positions(KEY, plain.shape[:3], OFF)
    np.testing.assert_allclose(augment.resample(plain, row, column), plain, atol=1e-5)


def test_flip_mirrors_left_and_right_and_nothing_else():
    image = jnp.asarray(stacks(B=16))
    plain = augment.prepare(image, None, OFF, train=False)
    out = augment.prepare(image, KEY, dataclasses.replace(OFF, flip=True), train=True)
    mirrored = np.array([bool(np.allclose(o, p[:, ::-1], atol=1e-5)) for o, p in zip(out, plain, strict=True)])
    same = np.array([bool(np.allclose(o, p, atol=1e-5)) for o, p in zip(out, plain, strict=True)])
    assert (mirrored ^ same).all()
    assert 2 <= mirrored.sum() <= 14


@pytest.mark.parametrize("degrees", [20.0, -35.0])
def test_rotation_turns_about_the_centre_as_scipy_does(degrees, monkeypatch):
    image = smooth()
    plain = np.asarray(augment.prepare(jnp.asarray(image), None, OFF, train=False))[0, :, :, 0]
    # the draw is +-1 times the strength: force +1 for the angle only
    draws = jnp.zeros((5, 1, 1, 1)).at[1].set(1.0)
    monkeypatch.setattr(jax.random, "uniform", lambda *a, **k: draws)
    config = dataclasses.replace(OFF, rotation=abs(degrees))
    if degrees < 0:
        draws = -draws
    row, column = augment.sampling_positions(KEY, (1, 41, 41), config)
    out = np.asarray(augment.resample(jnp.asarray(plain)[None, :, :, None], row, column))[0, :, :, 0]
    np.testing.assert_allclose(out, scipy.ndimage.rotate(plain, degrees, reshape=False, order=1), atol=1e-4)
    angle = np.deg2rad(degrees)  # counter-clockwise as displayed, rows down
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    np.testing.assert_allclose(centroid(out) - 20, turn @ (centroid(plain) - 20), atol=0.05)


def test_zoom_enlarges_and_shift_moves_down_and_right(monkeypatch):
    plain = augment.prepare(jnp.asarray(smooth()), None, OFF, train=False)

    def moved(which, **strength):
        draws = jnp.zeros((5, 1, 1, 1)).at[which].set(1.0)
        monkeypatch.setattr(jax.random, "uniform", lambda *a, **k: draws)
        config = dataclasses.replace(OFF, **strength)
        return np.asarray(augment.resample(plain, *augment.sampling_positions(KEY, (1, 41, 41), config)))[0, :, :, 0]

    start = centroid(plain[0, :, :, 0])
    larger = moved(2, zoom=0.2)
    np.testing.assert_allclose(centroid(larger) - 20, 1.2 * (start - 20), atol=0.05)
    assert larger.sum() == pytest.approx(1.44 * float(plain.sum()), rel=0.02)
    np.testing.assert_allclose(centroid(moved(3, shift=0.1)) - start, [4.1, 0], atol=0.05)
    np.testing.assert_allclose(centroid(moved(4, shift=0.1)) - start, [0, 4.1], atol=0.05)


def test_outside_the_image_is_air():
    config = dataclasses.replace(OFF, shift=0.5, window_level=0.0, window_width=4000.0)  # air is 0.25 here
    image = jnp.full((8, 1, 16, 16), 2000, jnp.int16)  # windowed to 1
    out = np.asarray(augment.prepare(image, KEY, config, train=True))
    assert out.min() == pytest.approx(0.25, abs=1e-5)
    corners = out[:, [0, 0, -1, -1], [0, -1, 0, -1], 0]
    np.testing.assert_allclose(corners.min(axis=1), 0.25, atol=1e-5)


def test_slices_of_a_stack_move_together():
    image = np.repeat(stacks(D=1), 3, axis=1)
    config = dataclasses.replace(AugmentConfig(), noise=0.0)
    out = np.asarray(augment.prepare(jnp.asarray(image), KEY, config, train=True))
    np.testing.assert_array_equal(out[..., 0], out[..., 1])
    np.testing.assert_array_equal(out[..., 0], out[..., 2])
    assert np.abs(out[0] - out[1]).max() > 0.1  # but stacks differ


def test_brightness_and_contrast_stay_within_their_strength():
    image = jnp.asarray(stacks(B=64, D=1, H=4, W=4))
    plain = np.asarray(augment.prepare(image, None, OFF, train=False)).reshape(64, -1)
    bright = np.asarray(augment.prepare(image, KEY, dataclasses.replace(OFF, brightness=0.2), train=True))
    shift = bright.reshape(64, -1) - plain
    np.testing.assert_allclose(shift.std(axis=1), 0, atol=1e-6)
    assert np.abs(shift).max() <= 0.2 and shift.mean(axis=1).std() > 0.08
    contrast = np.asarray(augment.prepare(image, KEY, dataclasses.replace(OFF, contrast=0.3), train=True))
    gain = [np.polyfit(p - 0.5, c - 0.5, 1) for p, c in zip(plain, contrast.reshape(64, -1), strict=True)]
    np.testing.assert_allclose(np.array(gain)[:, 1], 0, atol=1e-5)
    assert 0.7 <= np.min(gain, axis=0)[0] < 0.8 and 1.2 < np.max(gain, axis=0)[0] <= 1.3


def test_noise_is_white_and_nearly_gaussian():
    noise = np.asarray(augment.hashed_noise(KEY, (4, 96, 96, 5)), np.float64)
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert noise.std() == pytest.approx(1, abs=0.01)
    assert (noise**4).mean() == pytest.approx(2.7, abs=0.1)  # Irwin-Hall of four: 3 - 0.3
    for shifted in (noise[1:], noise[:, 1:], noise[:, :, 1:], noise[..., 1:]):
        part = noise[tuple(slice(0, n) for n in shifted.shape)]
        assert abs(np.corrcoef(part.ravel(), shifted.ravel())[0, 1]) < 0.01
    assert np.unique(noise).size > 800


def test_same_key_same_picture_other_key_other_picture():
    image = jnp.asarray(stacks())
    first = augment.prepare(image, KEY, AugmentConfig(), train=True)
    np.testing.assert_array_equal(first, augment.prepare(image, KEY, AugmentConfig(), train=True))
    assert np.abs(first - augment.prepare(image, jax.random.key(4), AugmentConfig(), train=True)).max() > 0.1


def test_finite_at_any_strength():
    wild = AugmentConfig(rotation=180.0, zoom=0.9, shift=1.0, brightness=1.0, contrast=1.0, noise=1.0)
    image = np.full((8, 3, 16, 16), -32768, np.int16)
    image[::2] = 32767
    out = np.asarray(augment.prepare(jnp.asarray(image), KEY, wild, train=True))
    assert np.isfinite(out).all()


def test_mixup_blends_image_and_every_target_alike():
    B = 6
    rng = np.random.default_rng(0)
    presence = rng.integers(0, 2, (B, 7)).astype(np.float32)
    batch = {
        "image": jnp.asarray(rng.random((B, 4, 4, 2), np.float32)),
        "presence": jnp.asarray(presence),
        "presence_known": jnp.array([1, 1, 0, 1, 1, 1], jnp.float32),
        "fracture": jnp.asarray(presence * 0.5),
        "slice_fracture": jnp.asarray(presence[:, 0]),
        "labels": jnp.zeros((B, 8)),
        "study": jnp.arange(B),
        "valid": jnp.array([True] * 5 + [False]),
    }
    out = augment.mixup(batch, KEY, 0.4)
    swap = [1, 0, 3, 2, 5, 4]
    image, mirror = np.asarray(batch["image"]), np.asarray(batch["image"])[swap]
    share = ((np.asarray(out["image"]) - mirror) / (image - mirror)).reshape(B, -1).mean(axis=1)
    assert ((share >= 0) & (share <= 1)).all() and share.std() > 0.05
    s = share[:, None]
    np.testing.assert_allclose(out["presence"], s * presence + (1 - s) * presence[swap], atol=1e-5)
    np.testing.assert_allclose(out["fracture"], 0.5 * np.asarray(out["presence"]), atol=1e-6)
    np.testing.assert_array_equal(out["presence_known"], [1, 1, 0, 0, 1, 1])
    np.testing.assert_array_equal(out["valid"], [True, True, True, True, False, False])
    np.testing.assert_array_equal(out["study"], batch["study"])


def test_the_last_of_an_odd_batch_is_its_own_neighbour():
    np.testing.assert_array_equal(augment.neighbour(jnp.arange(5)), [1, 0, 3, 2, 4])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixing_shares_follow_their_distribution(alpha):
    draws = np.asarray(augment.symmetric_beta(KEY, alpha, (20_000,)))
    at = np.array([0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98])
    below = (draws[:, None] <= at[None, :]).mean(axis=0)
    np.testing.assert_allclose(below, scipy.stats.beta.cdf(at, alpha, alpha), atol=0.015)


def test_mixup_off_returns_the_batch():
    batch = {"image": jnp.ones((2, 2, 2, 1))}
    assert augment.mixup(batch, KEY, 0.0) is batch


def test_the_mask_makes_every_move_of_the_image():
    """HU that tell the label: after flip, rotation, zoom, shift and crop they still do, but for blended borders."""
    labels = np.zeros((4, 1, 40, 48), np.uint8)
    labels[:, :, 10:28, 12:30] = 3
    labels[:, :, 14:20, 32:40] = 7
    hu = (labels.astype(np.int16) * 100).repeat(3, axis=1)
    config = AugmentConfig(
        window_level=500.0, window_width=1000.0, rotation=20.0, zoom=0.2, shift=0.1, brightness=0.0, contrast=0.0,
        noise=0.0, crop=0.8,
    )  # fmt: skip
    x, moved = jax.jit(lambda key: augment.prepare_with_mask(hu, labels, key, config, train=True))(jax.random.key(1))
    assert x.shape == (4, 32, 32, 3) and moved.shape == (4, 1, 32, 32) and moved.dtype == jnp.int32
    assert set(np.unique(moved)) == {0, 3, 7}
    told = np.rint(np.asarray(x[..., 1]) * 10)
    assert (told == np.asarray(moved[:, 0])).mean() > 0.85
    assert (np.asarray(moved[0, 0]) != np.asarray(moved[1, 0])).any()  # each sample has moves of its own
    still, kept = augment.prepare_with_mask(hu, labels, None, config, train=False)
    np.testing.assert_array_equal(kept[:, 0], labels[:, 0, 4:36, 8:40])
    np.testing.assert_array_equal(np.rint(np.asarray(still[..., 0]) * 10), kept[:, 0])
    np.testing.assert_array_equal(augment.prepare(hu, None, config, train=False), still)


def test_nearest_labels_by_hand():
    labels = jnp.arange(1, 7).reshape(1, 2, 3, 1)
    row, column = jnp.array([[[0.4, 0.6, -0.6]]]), jnp.array([[[0.4, 1.6, 0.0]]])
    assert augment.resample_nearest(labels, row, column)[0, 0, :, 0].tolist() == [1, 6, 0]


def test_a_share_of_the_stacks_is_blended_and_the_others_stay():
    B = 512
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.random((B, 2, 2, 1), np.float32)),
        "fracture": jnp.asarray(rng.random((B, 7), np.float32)),
        "presence_known": jnp.tile(jnp.array([1.0, 0.0]), B // 2),
        "there": jnp.asarray(rng.random((B, 3)) < 0.5),
        "valid": jnp.tile(jnp.array([True, False]), B // 2),
    }
    out = augment.mixup(batch, KEY, 1.0, 0.5)
    same = (np.asarray(out["image"]) == batch["image"]).all((1, 2, 3))
    assert 0.4 < same.mean() < 0.6
    for name in batch:
        np.testing.assert_array_equal(np.asarray(out[name])[same], np.asarray(batch[name])[same], err_msg=name)
    assert not np.asarray(out["valid"])[~same].any() and not np.asarray(out["presence_known"])[~same].any()
    there, swapped = np.asarray(batch["there"]), np.asarray(augment.neighbour(batch["there"]))
    np.testing.assert_array_equal(np.asarray(out["there"])[~same], (there | swapped)[~same])
    share = (np.asarray(out["image"]) - np.asarray(augment.neighbour(batch["image"])))[~same]
    assert np.isfinite(share).all() and (np.asarray(out["fracture"])[~same] != batch["fracture"][~same]).any(1).all()
