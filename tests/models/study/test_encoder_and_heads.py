"""What the study models share: slices through a backbone, padding in training, pooling, folding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cspine_jax.models.backbones import basic_cnn
from cspine_jax.models.layers import BatchNorm
from cspine_jax.models.layers3d import pack
from cspine_jax.models.study.encoder import MAP_FEATURES, SliceEncoder, enlarged, fill_padding
from cspine_jax.models.study.heads import MaskedBatchNorm, masked_pool
from cspine_jax.models.study.volumes import clear_padding, fold, fold_mask
from tests.models.drawn import drawn

MASK = np.array([[1, 0, 1, 0, 0, 1, 0], [1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]]) > 0


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(basic_cnn.VARIANTS, "study_tiny", basic_cnn.Config(widths=(4,), blocks=(0,)))


def numbers(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_padding_is_filled_with_the_studys_own_slices_in_turn():
    x = np.arange(21).reshape(3, 7)
    filled = fill_padding(jnp.asarray(x), jnp.asarray(MASK))
    np.testing.assert_array_equal(filled[0], [0, 0, 2, 2, 5, 5, 0])
    np.testing.assert_array_equal(filled[1], [7, 8, 7, 8, 7, 8, 7])
    np.testing.assert_array_equal(filled[2], x[2])


def test_what_is_in_padding_reaches_neither_embeddings_nor_statistics():
    graph, state = drawn(lambda rngs: SliceEncoder("study_tiny", in_channels=2, rngs=rngs))

    @jax.jit
    def run(image):
        encoder = nnx.merge(graph, state, copy=True)
        return encoder(image, MASK[:2], train=True), nnx.state(encoder, nnx.BatchStat)

    image = numbers(2, 7, 8, 8, 2)
    one, other = (run(np.where(MASK[:2, :, None, None, None], image, fill)) for fill in (5.0, np.nan))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    np.testing.assert_array_equal(one[0][~MASK[:2]], 0)
    recorded = jax.tree.leaves(one[1])
    before = jax.tree.leaves(nnx.split_state(state, nnx.BatchStat, ...)[0])
    assert all((a != b).any() for a, b in zip(recorded, before, strict=True))


def test_chunks_are_exact_in_evaluation_and_normalise_by_themselves_in_training():
    def made(chunk):
        return drawn(lambda rngs: SliceEncoder("study_tiny", in_channels=2, chunk=chunk, rngs=rngs))

    image = numbers(2, 5, 8, 8, 2)

    def run(chunk, train):
        graph, state = made(chunk)

        @jax.jit
        def value_and_grad(image):
            def total(image):
                encoder = nnx.merge(graph, state, copy=True)
                y = encoder(image, train=train)
                return (y**2).sum(), (y, nnx.state(encoder, nnx.BatchStat))

            return jax.value_and_grad(total, has_aux=True)(image)

        (_, (y, stats)), grad = value_and_grad(image)
        return y, jax.tree.leaves(stats), grad

    for ours, whole in zip(run(2, False), run(None, False), strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, whole)
    y, stats, grad = run(3, True)
    graph, state = made(None)
    encoder = nnx.merge(graph, state, copy=True)
    by_hand = [encoder(image[:, part], train=True) for part in ([0, 1, 2], [3, 4, 0])]
    np.testing.assert_allclose(y, jnp.concatenate(by_hand, axis=1)[:, :5], atol=1e-5)
    for ours, expected in zip(stats, jax.tree.leaves(nnx.state(encoder, nnx.BatchStat)), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)
    assert np.isfinite(grad).all()


def test_the_map_of_breaks_joins_the_embedding_of_a_slice(monkeypatch):
    """Pooled map, then the features under the map's softmax, then its maximum; statistics are recorded once."""
    tiny = basic_cnn.Config(fold=2, widths=(4, 4, 6, 8, 8), blocks=(0, 0, 0, 0, 0))
    monkeypatch.setitem(basic_cnn.VARIANTS, "study_tiny", tiny)
    graph, state = drawn(lambda rngs: SliceEncoder("study_tiny", in_channels=2, where=True, rngs=rngs))
    image = numbers(2, 3, 40, 56, 2)

    @jax.jit
    def run(image):
        encoder = nnx.merge(graph, state, copy=True)
        y, found = encoder.look(image, MASK[:2, :3], train=True)
        return y, found, nnx.state(encoder, nnx.BatchStat), encoder(image, MASK[:2, :3])

    y, found, stats, still = run(image)
    plain, plain_state = drawn(lambda rngs: SliceEncoder("study_tiny", in_channels=2, pooling="avg", rngs=rngs))
    encoder = nnx.merge(plain, plain_state, copy=True)
    levels = encoder.backbone.pyramid(fill_padding(jnp.asarray(image), MASK[:2, :3]).reshape(6, 40, 56, 2), True)
    levels = [np.asarray(level, np.float64) for level in levels]
    assert found.shape == (2, 3, 5, 7) and y.shape == still.shape == (2, 3, 8 + MAP_FEATURES + 1)
    where = nnx.merge(graph, state, copy=True).where
    joined = 0
    for side, level, times in zip(where.sides, levels[2:], (1, 2, 4), strict=True):  # of 8, 16 and 32 pixels
        mixed = level @ np.asarray(side.kernel[...], np.float64) + np.asarray(side.bias[...])
        joined = joined + mixed.repeat(times, 1)[:, :5].repeat(times, 2)[:, :, :7]
    features = np.maximum(joined, 0)
    logits = (features @ np.asarray(where.out.kernel[...]) + np.asarray(where.out.bias[...]))[..., 0]
    np.testing.assert_allclose(np.where(MASK[:2, :3, None, None], found, 0).reshape(6, 5, 7)[[0, 2, 3, 4]],
                               logits[[0, 2, 3, 4]], rtol=1e-4, atol=1e-5)  # fmt: skip
    share = np.asarray(jax.nn.softmax(logits.reshape(6, -1), axis=1)).reshape(6, 5, 7, 1)
    flat = np.where(MASK[:2, :3].reshape(6, 1), np.asarray(y).reshape(6, -1), np.nan)
    kept = ~np.isnan(flat[:, 0])
    by_hand = [levels[-1].mean((1, 2)), (share * features).sum((1, 2)), logits.reshape(6, -1).max(1)[:, None]]
    np.testing.assert_allclose(flat[kept], np.concatenate(by_hand, axis=1)[kept], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(y)[~MASK[:2, :3]], 0)
    once = jax.tree.leaves(nnx.state(encoder.backbone, nnx.BatchStat))
    for a, b in zip(jax.tree.leaves(stats), once, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(("sizes", "expected"), [
    ((7, 14), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]),
    ((4, 7), [0, 0, 1, 1, 2, 2, 3]),
    ((5, 13), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4, 4, 4]),  # Inception rounds down
    ((3, 3), [0, 1, 2]),
    ((1, 2), [0, 0]),
])  # fmt: skip
def test_coarse_cells_lie_over_the_fine_ones(sizes, expected):
    coarse, fine = sizes
    x = jnp.arange(coarse)[None, :, None, None] + 100 * jnp.arange(coarse)[None, None, :, None]
    expected = np.array(expected)
    np.testing.assert_array_equal(enlarged(x, fine, fine)[0, :, :, 0], expected[:, None] + 100 * expected)


def test_masked_batch_norm_is_batch_norm_of_what_is_there():
    x = numbers(3, 7, 2, 4) * 2 + 1
    masked, plain = MaskedBatchNorm(4), BatchNorm(4)
    y = masked(jnp.asarray(np.where(MASK[..., None, None], x, np.nan)), True, jnp.asarray(MASK))
    np.testing.assert_allclose(y[MASK], plain(jnp.asarray(x[MASK]), True), atol=1e-5)
    np.testing.assert_allclose(masked.mean[...], plain.mean[...], rtol=1e-5)
    np.testing.assert_allclose(masked.var[...], plain.var[...], rtol=1e-5)
    np.testing.assert_array_equal(masked(jnp.asarray(x)), masked(jnp.asarray(x), False, jnp.asarray(MASK)))


def test_masked_batch_norm_survives_a_batch_without_anything():
    norm = MaskedBatchNorm(4)
    y, pull = jax.vjp(lambda x: nnx.merge(*nnx.split(norm), copy=True)(x, True, jnp.zeros(5, bool)), jnp.ones((5, 4)))
    assert np.isfinite(y).all() and np.isfinite(pull(y)[0]).all()


def test_pooling_is_over_what_is_there():
    x = np.where(MASK[..., None], numbers(3, 7, 2), np.nan)
    y = masked_pool(jnp.asarray(x), jnp.asarray(MASK), "avgmax")
    for k in range(2):
        np.testing.assert_allclose(y[k], [*x[k, MASK[k]].mean(0), *x[k, MASK[k]].max(0)], rtol=1e-5)
    np.testing.assert_array_equal(y[2], 0)
    np.testing.assert_allclose(masked_pool(jnp.asarray(x[:1, :1]), None, "avg"), x[:1, 0], rtol=1e-6)
    with pytest.raises(ValueError, match="avgmax"):
        masked_pool(jnp.asarray(x), None, "median")


def test_folding_is_packing_of_any_box_and_rounds_up():
    x = jnp.asarray(numbers(1, 4, 6, 2, 3))
    np.testing.assert_array_equal(fold(x, (2, 2, 2)), pack(x))
    folded = fold(x, (3, 4, 1))
    assert folded.shape == (1, 2, 2, 2, 36)
    np.testing.assert_array_equal(folded[0, 1, 0, 1, : 4 * 3].reshape(4, 3), x[0, 3, :4, 1])
    np.testing.assert_array_equal(folded[0, 1, 0, 1, 4 * 3 :], 0)
    np.testing.assert_array_equal(
        fold_mask(jnp.asarray(MASK), 3), [[True, True, False], [True, False, False], [False] * 3]
    )
    cleared = clear_padding(jnp.full((1, 2, 1, 1, 1), jnp.nan), jnp.zeros((1, 2), bool))
    np.testing.assert_array_equal(cleared, 0)
