import numpy as np
import pytest

from cspine_jax.inference.vertebrae.sliding import gaussian, grid_starts, slide, starts_along, starts_over

WINDOW = (8, 6, 4)


def pointwise(x):
    """Translation-equivariant: the answer at a voxel depends on that voxel alone."""
    assert x.shape[1:4] == WINDOW
    return np.stack((x[..., 0] ** 2, x.sum(axis=-1)), axis=-1)


@pytest.mark.parametrize("shape", [(8, 6, 4), (20, 13, 9), (5, 3, 2), (3, 40, 4), (17, 6, 3)])
@pytest.mark.parametrize(("batch", "overlap"), [(1, 0.5), (3, 0.25), (2, 0.0)])
def test_a_pointwise_function_is_reproduced_at_every_voxel(shape, batch, overlap):
    grid = np.random.default_rng(0).normal(size=(*shape, 3)).astype(np.float32)
    out = slide(pointwise, grid, WINDOW, batch=batch, overlap=overlap)
    wanted = np.stack((grid[..., 0] ** 2, grid.sum(axis=-1)), axis=-1)
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-6)
    assert out.dtype == np.float32


def test_an_output_of_twice_the_resolution_lands_in_place():
    grid = np.random.default_rng(1).normal(size=(11, 9, 7, 2)).astype(np.float32)
    double = lambda x: x.repeat(2, 1).repeat(2, 2).repeat(2, 3)  # noqa: E731
    np.testing.assert_allclose(slide(double, grid, WINDOW), double(grid[None])[0], rtol=1e-5)


def test_overlapping_answers_are_averaged_with_gaussian_weights():
    """Two windows that answer 0 and 1: in the overlap the mean is w1 / (w0 + w1), by hand."""
    grid = np.zeros((12, 6, 4, 1), np.float32)
    answers = iter((np.zeros((1, *WINDOW, 1)), np.ones((1, *WINDOW, 1))))
    out = slide(lambda x: next(answers), grid, WINDOW, [(0, 0, 0), (4, 0, 0)])
    weights = gaussian(WINDOW)
    assert weights.max() == 1 and weights.min() == pytest.approx(1e-3)
    np.testing.assert_array_equal(weights, weights[::-1, ::-1, ::-1])
    np.testing.assert_array_equal(out[:4], 0)
    np.testing.assert_array_equal(out[8:], 1)
    np.testing.assert_allclose(out[4:8, ..., 0], weights[:4] / (weights[:4] + weights[4:]), rtol=1e-5)


def test_the_function_sees_its_fill_outside_a_small_grid():
    seen = []

    def look(x):
        seen.append(x)
        return x

    slide(look, np.ones((3, 6, 4, 1), np.float32), WINDOW, batch=2, fill=-0.4)
    assert len(seen) == 1 and seen[0].shape == (2, *WINDOW, 1)
    np.testing.assert_allclose(seen[0][0, 3:], -0.4)


def test_voxels_without_a_window_get_the_default():
    out = slide(lambda x: x, np.ones((20, 6, 4, 2), np.float32), WINDOW, [(0, 0, 0)], default=np.array([5.0, 7.0]))
    np.testing.assert_allclose(out[:8], 1, rtol=1e-6)
    np.testing.assert_array_equal(out[8:], np.broadcast_to([5.0, 7.0], (12, 6, 4, 2)))
    with pytest.raises(ValueError, match="no window"):
        slide(lambda x: x, np.ones((9, 9, 9, 1)), WINDOW, [])


@pytest.mark.parametrize(("length", "overlap"), [(8, 0.5), (9, 0.5), (24, 0.5), (100, 0.3), (30, 0.0)])
def test_starts_cover_the_axis_and_overlap_enough(length, overlap):
    starts = starts_along(length, 8, overlap)
    assert starts[0] == 0 and starts[-1] == length - 8
    assert max(np.diff(starts), default=0) <= np.ceil(8 * (1 - overlap))
    assert starts_along(5, 8, overlap) == [0]


@pytest.mark.parametrize("seed", range(4))
def test_windows_along_a_structure_cover_it_and_are_fewer_than_over_its_box(seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros((60, 30, 24), bool)
    at = np.array([15.0, 12.0])
    for z in range(5, 57):
        at = np.clip(at + rng.normal(0.4, 0.5, 2), 2, (27, 21))
        y, x = at.astype(int)
        mask[z, y - 1 : y + 2, x - 1 : x + 2] = True
    starts = starts_over(mask, WINDOW, 0.5)
    covered = np.zeros_like(mask)
    for z, y, x in starts:
        assert 0 <= z <= 52 and 0 <= y <= 24 and 0 <= x <= 20
        covered[z : z + 8, y : y + 6, x : x + 4] = True
    assert covered[mask].all()
    box = mask[5:57].any(axis=0)
    size = (52, *(np.ptp(np.flatnonzero(box.any(axis=k))) + 1 for k in (1, 0)))
    assert len(starts) < len(grid_starts(size, WINDOW, 0.5))
    assert starts_over(np.zeros((9, 9, 9), bool), WINDOW, 0.5) == []
    small = np.ones((3, 3, 3), bool)
    assert starts_over(small, WINDOW, 0.5) == [(0, 0, 0)]
