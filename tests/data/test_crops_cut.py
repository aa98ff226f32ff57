"""Geometry of vertebra crops on volumes whose values are known everywhere."""

import numpy as np
import pytest

from cspine_jax.data.crops.cut import AIR_HU, Seen, look, plan, sample
from cspine_jax.data.crops.layout import CropLayout
from cspine_jax.errors import ConfigError

SPACING = np.array([1.0, 0.6, 0.5])


def cut(hu, mask, layout, spacing=(1.0, 1.0, 1.0), level=3, seen=None):
    where = plan(mask, np.array(spacing), level, layout, look(mask) if seen is None else seen)
    return where, *sample(hu, mask, where, layout)


def noise(shape=(12, 24, 26)):
    return np.random.default_rng(0).integers(-1000, 1500, shape).astype(np.int16)


def boxed(shape, level, *sides):
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(*side) for side in sides)] = level
    return mask


def positions_mm(where, layout, spacing):
    """float64 [S, H, W, K, 3]: where each pixel of a crop lies by its own account."""
    s = np.arange(layout.size)
    k = np.arange(-layout.radius, layout.radius + 1)
    at = (
        where.origin[:, None, None, None]
        + s[None, :, None, None, None] * where.axes[1]
        + s[None, None, :, None, None] * where.axes[2]
        + k[None, None, None, :, None] * where.axes[0]
    )
    return at * np.asarray(spacing)


def test_pixels_of_the_size_of_voxels_are_the_voxels():
    hu, mask = noise(), boxed((12, 24, 26), 3, (2, 9), (7, 17), (9, 19))
    layout = CropLayout(positions=4, radius=1, size=16, margin=0.3)  # 10 voxels and 3 on each side
    where, image, inside = cut(hu, mask, layout)
    assert where.slice_index.tolist() == [2, 4, 6, 8] and where.complete
    for position, z in enumerate((2, 4, 6, 8)):
        np.testing.assert_array_equal(image[position], np.moveaxis(hu[z - 1 : z + 2, 4:20, 6:22], 0, -1))
        np.testing.assert_array_equal(inside[position], mask[z, 4:20, 6:22] == 3)
    np.testing.assert_allclose(where.origin[:, 1:], [[4, 6]] * 4)
    np.testing.assert_allclose(where.axes, np.eye(3), atol=1e-12)


def test_beyond_the_image_is_air_and_beyond_the_scan_its_last_slice():
    hu, mask = noise(), boxed((12, 24, 26), 3, (0, 3), (0, 10), (16, 26))
    layout = CropLayout(positions=2, radius=2, size=16, margin=0.3)
    where, image, inside = cut(hu, mask, layout)
    assert not where.complete
    near = hu[[0, 0, 0, 1, 2]]
    assert (image[:, :3] == AIR_HU).all() and (image[:, :, 13:] == AIR_HU).all()
    np.testing.assert_array_equal(image[0, 3:, :13], np.moveaxis(near[:, :13, 13:], 0, -1))
    np.testing.assert_array_equal(inside.sum((1, 2)), [100, 100])


@pytest.mark.parametrize(
    ("sides", "complete"),
    [(((1, 11), (4, 9), (4, 9)), True), (((0, 5), (4, 9), (4, 9)), False), (((5, 12), (4, 9), (4, 9)), False),
     (((1, 11), (0, 9), (4, 9)), False), (((1, 11), (4, 9), (20, 26)), False)],
)  # fmt: skip
def test_a_vertebra_that_touches_the_edge_may_not_be_whole(sides, complete):
    mask = boxed((12, 24, 26), 3, *sides)
    for oriented in (False, True):
        layout = CropLayout(positions=2, size=16, oriented=oriented)
        assert plan(mask, np.ones(3), 3, layout, look(mask)).complete == complete


def test_neighbours_in_millimetres_are_between_slices():
    shape = (12, 20, 20)
    hu = np.broadcast_to(np.arange(12, dtype=np.int16)[:, None, None] * 100, shape)  # 50 HU a mm
    mask = boxed(shape, 3, (4, 9), (5, 15), (5, 15))
    _, image, _ = cut(hu, mask, CropLayout(positions=2, radius=2, size=16, stride=1.5), spacing=(2.0, 1.0, 1.0))
    np.testing.assert_array_equal(image[0, 8, 8], [250, 325, 400, 475, 550])
    np.testing.assert_array_equal(image[1, 8, 8], [650, 725, 800, 875, 950])
    _, image, _ = cut(hu, mask, CropLayout(positions=1, radius=1, size=16, stride=20), spacing=(2.0, 1.0, 1.0))
    np.testing.assert_array_equal(image[0, 8, 8], [0, 600, 1100])  # the middle; beyond the scan its last slice


def test_fewer_slices_than_positions_come_again():
    mask = boxed((12, 24, 26), 3, (4, 7), (7, 17), (9, 19))
    where, image, inside = cut(noise(), mask, CropLayout(positions=7, radius=0, size=16))
    assert where.slice_index.tolist() == [4, 4, 5, 5, 5, 6, 6]
    np.testing.assert_array_equal(image[0], image[1])
    assert image.shape == (7, 16, 16, 1) and inside.any((1, 2)).all()


def test_the_field_is_square_in_millimetres():
    mask = boxed((6, 60, 60), 3, (1, 5), (20, 40), (20, 35))  # 12 mm x 7.5 mm
    where, _, inside = cut(noise((6, 60, 60)), mask, CropLayout(positions=2, size=36, margin=0.25), spacing=SPACING)
    np.testing.assert_allclose(where.spacing_mm, [1, 0.5, 0.5])
    assert inside.any((0, 2)).sum() == 24 and inside.any((0, 1)).sum() == 15


def test_shrunk_crops_are_antialiased():
    shape = (6, 120, 120)
    hu = (np.indices(shape).sum(0) % 2 * 1000).astype(np.int16)  # sampling alone would keep 0 and 1000
    mask = boxed(shape, 3, (1, 5), (20, 100), (20, 100))
    for oriented in (False, True):
        _, image, _ = cut(hu, mask, CropLayout(positions=3, radius=1, size=24, margin=0.1, oriented=oriented))
        assert np.abs(image - 500).max() <= 60


DIRECTION = np.array([1.0, 0.45, -0.2]) / np.linalg.norm([1.0, 0.45, -0.2])
MIDDLE, RADIUS, HALF = np.array([30.0, 25.0, 24.0]), 11.0, 7.0


def tilted():
    """A tilted cylinder, level 4, and what `look` sees of it; its neighbours' centres lie exactly on its axis."""
    shape = (62, 84, 96)
    at = np.moveaxis(np.indices(shape), 0, -1) * SPACING - MIDDLE
    along = at @ DIRECTION
    across = np.linalg.norm(at - along[..., None] * DIRECTION, axis=-1)
    mask = np.where((np.abs(along) <= HALF) & (across <= RADIUS), 4, 0).astype(np.uint8)
    seen = look(mask)
    for level, distance in ((3, -17.0), (5, 15.0)):
        seen[level] = Seen(seen[4].box, (MIDDLE + distance * DIRECTION) / SPACING)
    return mask, seen


def test_oriented_planes_of_a_tilted_cylinder_are_alike():
    mask, seen = tilted()
    layout = CropLayout(positions=9, radius=1, size=64, oriented=True)
    where, _, inside = cut(np.zeros(mask.shape, np.int16), mask, layout, SPACING, 4, seen)
    turn = where.axes * SPACING / where.spacing_mm[:, None]
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(turn[0], DIRECTION, atol=1e-12)
    assert np.linalg.det(turn) > 0.99 and (np.diag(turn) > 0.85).all()
    at = positions_mm(where, layout, SPACING)[:, :, :, 1] - MIDDLE
    along = at @ DIRECTION
    across = np.linalg.norm(at - along[..., None] * DIRECTION, axis=-1)
    assert np.ptp(along, axis=(1, 2)).max() < 1e-9  # planes
    assert -HALF <= along.min() < -HALF + 1.2 and HALF - 1.2 < along.max() <= HALF
    unsure = np.linalg.norm(SPACING) / 2  # the nearest voxel is no further
    assert inside[across < RADIUS - unsure].all() and not inside[across > RADIUS + unsure].any()
    assert (across < RADIUS - unsure).sum((1, 2)).min() > 800
    straight = cut(np.zeros(mask.shape, np.int16), mask, CropLayout(positions=9, size=64), SPACING, 4, seen)[2]
    assert straight.sum((1, 2)).min() < 0.5 * inside.sum((1, 2)).min()  # slices cut it obliquely


@pytest.mark.parametrize(("size", "stride"), [(64, 0.0), (64, 2.5), (20, 1.0)])
def test_a_ramp_stays_a_ramp_in_oriented_crops(size, stride):
    mask, seen = tilted()
    slope = np.array([7.0, -4.0, 11.0])  # HU a mm
    hu = np.rint((np.moveaxis(np.indices(mask.shape), 0, -1) * SPACING) @ slope).astype(np.int16)
    layout = CropLayout(positions=5, radius=2, size=size, stride=stride, oriented=True, margin=0.05)
    where, image, _ = cut(hu, mask, layout, SPACING, 4, seen)
    np.testing.assert_allclose(np.diff(where.slice_index), np.diff(where.slice_index).mean())
    at = positions_mm(where, layout, SPACING)
    limit = (np.array(mask.shape) - 2) * SPACING
    inside = ((at > SPACING) & (at < limit)).all(-1)
    assert inside.mean() > 0.95
    np.testing.assert_allclose(image[inside], (at @ slope)[inside], atol=1.01)


@pytest.mark.parametrize("oriented", [False, True])
def test_order_of_all_axes(oriented):
    mask, seen = tilted()
    layout = CropLayout(positions=3, radius=1, size=32, oriented=oriented)
    for axis, name in enumerate("zyx"):
        hu = np.broadcast_to(
            (np.arange(mask.shape[axis]) * 10).reshape([-1 if a == axis else 1 for a in range(3)]), mask.shape
        ).astype(np.int16)
        _, image, _ = cut(hu, mask, layout, SPACING, 4, seen)
        image = image[:, 8:24, 8:24].astype(int)
        for along in {"z": (0, 3), "y": (1,), "x": (2,)}[name]:
            assert (np.diff(image, axis=along).mean() > 0) and np.diff(image, axis=along).min() >= 0


def test_oriented_planes_of_an_upright_spine():
    mask = sum(boxed((40, 30, 30), n, (2 + 12 * k, 12 + 12 * k), (8, 20), (9, 22)) for k, n in enumerate((3, 4, 5)))
    hu = noise(mask.shape)
    layout = CropLayout(positions=9, radius=1, size=16, oriented=True)
    where, image, inside = cut(hu, mask, layout, level=4)
    np.testing.assert_allclose(where.slice_index, np.arange(9) + 14.5)
    between = CropLayout(positions=10, radius=1, size=16)
    _, slices, masks = cut(hu, mask, between, level=4)
    means = (slices[:-1].astype(float) + slices[1:]) / 2  # 13 x 1.2 voxels in 16 pixels: none is larger than a voxel
    np.testing.assert_allclose(image, means, atol=1.51)
    np.testing.assert_array_equal(inside, masks[:9])


def test_the_spine_of_a_vertebra_on_its_own():
    mask, seen = tilted()
    alone = {4: seen[4]}
    layout = CropLayout(positions=3, size=16, oriented=True)
    flat = np.where(np.abs((np.moveaxis(np.indices(mask.shape), 0, -1) * SPACING - MIDDLE) @ DIRECTION) <= 3, mask, 0)
    where = plan(flat.astype(np.uint8), SPACING, 4, layout, alone)
    turn = where.axes * SPACING / where.spacing_mm[:, None]
    assert np.degrees(np.arccos(turn[0] @ DIRECTION)) < 2
    (where, *_) = cut(mask.view(np.int8).astype(np.int16), mask, layout, SPACING, 4, {4: seen[4], 5: seen[5]})
    turn = where.axes * SPACING / where.spacing_mm[:, None]
    assert np.degrees(np.arccos(turn[0] @ DIRECTION)) < 1  # one neighbour is enough
    one = boxed((9, 9, 9), 3, (4, 5), (4, 5), (4, 5))
    where = plan(one, SPACING, 3, layout, look(one))
    np.testing.assert_allclose(where.slice_index, 4)
    lying = {3: Seen(seen[4].box, np.array([30.0, 0, 0])), 4: seen[4], 5: Seen(seen[4].box, np.array([31.0, 80, 0]))}
    where = plan(mask, SPACING, 4, layout, lying)  # no spine lies like this: the slices' own direction
    np.testing.assert_allclose(where.axes[0], [1, 0, 0])


@pytest.mark.parametrize(
    "name",
    ["crops15r2_size224", "crops15r2_size224_oriented", "crops5r0_size64_stride1.5mm_margin0.25_oriented_segmented",
     "crops15r2_size224_margin0", "crops1r1_size16_segmented"],
)  # fmt: skip
def test_layout_names(name):
    assert CropLayout.from_name(name).name == name


@pytest.mark.parametrize(
    "name",
    ["", "crops", "native", "crops15r2", "crops15r2_size8", "crops0r2_size224", "crops15r2_size224_margin0.1",
     "crops15r2_size224_stride0mm", "crops15r2_size224_stride1.2.3mm", "crops15r2_size224_segmented_oriented"],
)  # fmt: skip
def test_other_names_are_refused(name):
    with pytest.raises(ConfigError, match="crops"):
        CropLayout.from_name(name)


@pytest.mark.parametrize("stray", [(36, 15, 15), (20, 2, 15), (20, 15, 38), (38, 38, 2)])
@pytest.mark.parametrize("oriented", [False, True])
def test_a_stray_voxel_moves_nothing(stray, oriented):
    """Readers leave some; the crop is where it is without them."""
    clean = boxed((40, 40, 40), 3, (10, 26), (8, 24), (8, 24))
    mask = clean.copy()
    mask[stray] = 3
    hu = np.random.default_rng(0).integers(-1000, 1500, mask.shape).astype(np.int16)
    layout = CropLayout(positions=5, size=16, oriented=oriented)
    want, found = (cut(hu, each, layout)[0] for each in (clean, mask))
    np.testing.assert_allclose(found.origin, want.origin, atol=1e-9)
    np.testing.assert_allclose(found.axes, want.axes, atol=1e-9)
    assert found.complete


def test_a_part_that_is_more_than_a_slip_stays():
    mask = boxed((40, 40, 40), 3, (10, 26), (8, 24), (8, 24))
    mask[30:34, 10:16, 10:16] = 3  # 3% of it: a dens apart from its body
    assert look(mask)[3].box == (slice(10, 34), slice(8, 24), slice(8, 24))
    dust = np.zeros((400, 3, 3), np.uint8)
    dust[::2, 1, 1] = 3  # each of 200 parts is less than a hundredth, all but a few of them are more
    z, y, x = look(dust)[3].box
    assert (y, x) == (slice(1, 2), slice(1, 2)) and z.stop == 399 and z.start in (4, 6)
