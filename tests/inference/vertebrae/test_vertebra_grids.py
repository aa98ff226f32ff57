import numpy as np
import pytest

from cspine_jax.ct.regrid import regrid
from cspine_jax.inference.vertebrae import grids
from cspine_jax.inference.vertebrae.grids import PADDING, normalise, pack, regridded, unpack


def test_packing_puts_each_voxel_into_its_channel_and_unpacks_again():
    image = np.random.default_rng(0).random((6, 4, 8))
    packed = pack(image)
    assert packed.shape == (3, 2, 4, 8)
    for dz, dy, dx in np.ndindex(2, 2, 2):
        assert packed[1, 1, 2, 4 * dz + 2 * dy + dx] == image[2 + dz, 2 + dy, 4 + dx]
    np.testing.assert_array_equal(unpack(packed), image)


def test_odd_sides_are_padded_with_air_at_their_end():
    packed = pack(np.ones((3, 2, 2)))
    assert packed.shape == (2, 1, 1, 8)
    np.testing.assert_allclose(packed[1, 0, 0], [1] * 4 + [PADDING] * 4)
    assert PADDING == pytest.approx(-0.4)


def test_normalised_values():
    np.testing.assert_allclose(normalise(np.array([-1000, -200, 1000, 3000], np.int16)), [-0.4, 0, 1, 1.6], rtol=1e-6)


def test_a_grid_says_where_regrid_put_its_voxels():
    """A linear ramp resampled must hold, at each voxel, the position the grid gives for it."""
    shape, spacing = (41, 23, 30), (0.7, 1.3, 0.9)
    for axis in range(3):
        ramp = np.moveaxis(
            np.broadcast_to(np.arange(shape[axis], dtype=float), [*np.delete(shape, axis).tolist(), shape[axis]]),
            -1,
            axis,
        )
        fine = regrid(ramp, spacing, 1.5)
        grid = regridded(shape, spacing, 1.5)
        assert fine.shape == grid.shape
        there = np.arange(grid.shape[axis])
        values = np.moveaxis(fine, axis, 0)[:, 3, 3]
        wanted = grid.origin[axis] + there * grid.step[axis]
        np.testing.assert_allclose(values[3:-3], wanted[3:-3], atol=0.1)  # a sampled triangle is not quite a ramp
        packed = grid.packed()
        assert packed.origin[axis] == pytest.approx((wanted[0] + wanted[1]) / 2)
        assert packed.shape[axis] == -(-grid.shape[axis] // 2) and packed.spacing_mm == (3, 3, 3)
    index = np.array([[3.0, 4, 5]])
    np.testing.assert_allclose(grid.from_volume(grid.to_volume(index)), index)


def test_a_crop_has_its_place_in_the_volume():
    whole, part = regridded((40, 40, 40), (1, 1, 1), 2.0), regridded((20, 20, 20), (1, 1, 1), 2.0, start=(10, 4, 0))
    np.testing.assert_allclose(part.to_volume([0, 0, 0]), [10.5, 4.5, 0.5])
    np.testing.assert_allclose(whole.to_volume([0, 0, 0]), [0.5, 0.5, 0.5])


def test_the_mirror_image_of_a_packed_image_is_the_packed_mirror_image():
    image = np.random.default_rng(1).random((4, 6, 8))
    extra = np.random.default_rng(2).random((2, 3, 4, 3))
    x = np.concatenate((pack(image), extra), axis=-1)[None]
    mirrored = grids.mirror_packed(x)[0]
    np.testing.assert_array_equal(mirrored[..., :8], pack(image[:, :, ::-1]))
    np.testing.assert_array_equal(mirrored[..., 8:], extra[:, :, ::-1])


def test_flipping_leaves_a_mirror_symmetric_network_as_it_is_and_halves_a_one_sided_error():
    def spine(image, error=0.0):
        """Bone where it is bright; offsets towards the middle column: both mirror with the image."""
        bright = image.mean(axis=-1, keepdims=True)
        offsets = np.zeros((*image.shape[:-1], 3), np.float32)
        width = image.shape[-2]
        offsets[..., 2] = (width - 1) / 2 - np.arange(width) + error
        return {"logits": np.concatenate((bright, -bright), -1), "offsets": offsets}

    image = np.random.default_rng(3).random((1, 2, 3, 4, 8)).astype(np.float32)
    plain, both = spine(image), grids.mirrored_spine(spine)(image)
    np.testing.assert_allclose(both["logits"], plain["logits"], rtol=1e-5)
    np.testing.assert_allclose(both["offsets"], plain["offsets"], rtol=1e-5)
    wrong = grids.mirrored_spine(lambda image: spine(image, 1.0))(image)
    np.testing.assert_allclose(wrong["offsets"], plain["offsets"], rtol=1e-5)  # +1 and its mirror image -1 cancel

    x = np.random.default_rng(4).random((1, 2, 2, 2, 11)).astype(np.float32)
    refine = lambda x: {"logits": unpack_batch(x[..., :8])}  # noqa: E731
    unpack_batch = lambda p: np.stack([unpack(one) for one in p])[..., None]  # noqa: E731
    np.testing.assert_allclose(grids.mirrored_refine(refine)(x)["logits"], refine(x)["logits"], rtol=1e-6)
