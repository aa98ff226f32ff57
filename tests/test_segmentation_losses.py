"""Segmentation losses by hand, in two and three dimensions, without truth, and added up over shards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cspine_jax import losses
from cspine_jax.errors import ConfigError


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sample(shape=(4, 5, 6), classes=4, seed=0):
    """Random logits and labels of B = shape[0] samples; class 3 is on none of them."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(*shape, classes)).astype(np.float32), rng.integers(0, classes - 1, shape)


def dice_by_hand(z, t):
    """Of one sample [*S, C]."""
    p, found, stray = softmax(z.astype(np.float64)), [], 0.0
    for c in range(1, z.shape[-1]):
        mask = t == c
        if mask.any():
            found.append(1 - 2 * p[..., c][mask].sum() / (p[..., c].sum() + mask.sum()))
        else:
            stray += p[..., c].mean()
    return (np.mean(found) if found else 0.0) + stray


def test_dice_of_two_pixels():
    """p(1) = 3/4 on the one pixel of class 1, 1/4 beside it; class 2 is absent and impossible."""
    z = np.log(np.array([[[1 / 4, 3 / 4, 1e-30], [3 / 4, 1 / 4, 1e-30]]]))
    loss, weight = losses.dice_loss(jnp.asarray(z), jnp.array([[1, 0]]), jnp.ones(1))
    assert float(loss) == pytest.approx(1 - 2 * 0.75 / (1 + 1))
    assert float(weight) == 1


@pytest.mark.parametrize("shape", [(3, 7), (3, 5, 6), (3, 4, 3, 5)])
def test_losses_by_hand_with_any_number_of_axes(shape):
    z, t = sample(shape)
    known = np.array([1.0, 0.0, 1.0])
    p = softmax(z.astype(np.float64))
    true = np.take_along_axis(p, t[..., None], -1)[..., 0].reshape(3, -1)
    weights = np.array([0.5, 1.0, 2.0, 4.0])
    w = weights[t].reshape(3, -1)
    expected = {
        "dice": dice_by_hand(z[0], t[0]) + dice_by_hand(z[2], t[2]),
        "ce": (-np.log(true)).mean(1)[[0, 2]].sum(),
        "focal": (-((1 - true) ** 2) * np.log(true)).mean(1)[[0, 2]].sum(),
    }
    for kind, value in expected.items():
        loss, weight, parts = losses.segmentation_loss(jnp.asarray(z), jnp.asarray(t), jnp.asarray(known), kind)
        assert float(loss) == pytest.approx(value, rel=1e-5) and float(weight) == 2 and len(parts) == 1
    both, _, parts = losses.segmentation_loss(jnp.asarray(z), jnp.asarray(t), jnp.asarray(known), "dice_ce")
    assert float(both) == pytest.approx(expected["dice"] + expected["ce"], rel=1e-5)
    assert set(parts) == {"dice", "cross_entropy"}
    assert float(losses.value(parts["dice"])) == pytest.approx(expected["dice"] / 2, rel=1e-5)
    weighted, _ = losses.cross_entropy(jnp.asarray(z), jnp.asarray(t), jnp.asarray(known), jnp.asarray(weights))
    assert float(weighted) == pytest.approx(((w * -np.log(true)).sum(1) / w.sum(1))[[0, 2]].sum(), rel=1e-5)


def test_an_absent_class_costs_only_its_mean_probability():
    z, t = sample(classes=4)
    far, near = z.copy(), z.copy()
    far[..., 3], near[..., 3] = -30, 2
    known = jnp.ones(len(t))
    one, other = (float(losses.dice_loss(jnp.asarray(x), jnp.asarray(t), known)[0]) for x in (far, near))
    assert one < other < one + len(t)
    background = jnp.zeros(t.shape, jnp.int32)
    empty = float(losses.dice_loss(jnp.asarray(far), background, known)[0])
    assert empty == pytest.approx(softmax(far)[..., 1:].sum(-1).mean((1, 2)).sum(), rel=1e-5)


@pytest.mark.parametrize("kind", losses.SEGMENTATION_LOSSES)
def test_shards_add_up_and_padding_counts_nothing(kind):
    z, t = sample()
    known = np.array([1.0, 1.0, 0.0, 1.0])
    z[2], t[2] = np.nan, 99

    def run(rows):
        return losses.segmentation_loss(jnp.asarray(z[rows]), jnp.asarray(t[rows]), jnp.asarray(known[rows]), kind)

    whole, shards, bare = run([0, 1, 2, 3]), [run([0, 1]), run([2, 3])], run([0, 1, 3])
    added = jax.tree.map(lambda a, b: a + b, *shards)
    for one, two, three in zip(*map(jax.tree.leaves, (whole, added, bare)), strict=True):
        assert float(one) == pytest.approx(float(two), rel=1e-6)
        assert float(one) == pytest.approx(float(three), rel=1e-6)
    gradient = jax.grad(lambda x: losses.segmentation_loss(x, jnp.asarray(t), jnp.asarray(known), kind)[0])(
        jnp.asarray(z)
    )
    assert np.isfinite(gradient).all() and (gradient[2] == 0).all() and (gradient[0] != 0).all()


@pytest.mark.parametrize("kind", losses.SEGMENTATION_LOSSES)
def test_pixels_of_unknown_label_are_as_if_cut_off(kind):
    z, t = sample((2, 6, 4))
    t[:, 4:] = 255
    z[:, 4:] = 1e9
    known = jnp.ones(2)
    cut = losses.segmentation_loss(jnp.asarray(z[:, :4]), jnp.asarray(t[:, :4]), known, kind)[0]
    assert float(losses.segmentation_loss(jnp.asarray(z), jnp.asarray(t), known, kind)[0]) == pytest.approx(float(cut))


@pytest.mark.parametrize("kind", losses.SEGMENTATION_LOSSES)
def test_extreme_and_half_precision_logits_stay_finite(kind):
    z = jnp.asarray([[[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]]], jnp.bfloat16)
    t = jnp.array([[0, 2]])
    (loss, grad) = jax.value_and_grad(lambda x: losses.segmentation_loss(x, t, jnp.ones(1), kind)[0])(z)
    assert loss.dtype == jnp.float32 and np.isfinite(loss) and np.isfinite(grad.astype(jnp.float32)).all()


def test_nothing_known_is_zero():
    z, t = sample()
    loss, weight, _ = losses.segmentation_loss(jnp.asarray(z), jnp.asarray(t), jnp.zeros(4), "dice_ce")
    assert float(loss) == float(weight) == 0


def test_an_unknown_kind_is_named():
    with pytest.raises(ConfigError, match="must be one of dice, ce"):
        losses.segmentation_loss(jnp.zeros((1, 2, 3)), jnp.zeros((1, 2), int), jnp.ones(1), "iou")
