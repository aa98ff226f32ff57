"""Losses by hand, stability, masks, and that shards add up to the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cspine_jax import losses, metrics
from cspine_jax.config import LossConfig
from cspine_jax.errors import ConfigError

LOG2 = np.log(2.0)


def make_batch(size=6, seed=0):
    rng = np.random.default_rng(seed)

    def binary(*shape):
        return rng.integers(0, 2, shape).astype(np.float32)

    return {
        "presence": binary(size, 7),
        "presence_known": binary(size),
        "fracture": binary(size, 7),
        "fracture_known": binary(size, 7),
        "slice_fracture": binary(size),
        "slice_known": binary(size),
        "valid": np.arange(size) < size - 1,
    }


def make_outputs(size=6, seed=1, type_=3):
    rng = np.random.default_rng(seed)
    outputs = {"fracture": rng.normal(size=(size, 1 if type_ == 1 else 7)).astype(np.float32)}
    if type_ == 3:
        outputs["vertebra"] = rng.normal(size=(size, 7)).astype(np.float32)
    return outputs


def test_weighted_bce_by_hand():
    logits = jnp.log(jnp.array([3.0, 1.0, 1.0 / 3.0]))  # p = 3/4, 1/2, 1/4
    loss, weight = losses.weighted_bce(
        logits, jnp.array([0.0, 1.0, 1.0]), jnp.array([1.0, 1.0, 0.0]), positive_weight=2.0
    )
    assert float(loss) == pytest.approx(2 * LOG2 + 2 * LOG2)  # negative at 3/4: 2 log 2; positive at 1/2: 2 x log 2
    assert float(weight) == 3.0


def test_weighted_bce_smooths_labels():
    loss, weight = losses.weighted_bce(
        jnp.log(jnp.array([3.0])), jnp.array([1.0]), jnp.ones(1), positive_weight=2.0, label_smoothing=0.2
    )
    assert float(loss) == pytest.approx(2 * 0.9 * -np.log(0.75) + 0.1 * -np.log(0.25))
    assert float(weight) == pytest.approx(2 * 0.9 + 0.1)


def test_weighted_bce_is_stable_and_ignores_what_is_masked():
    logits = jnp.array([1e4, -1e4, jnp.nan, 3.0])
    targets = jnp.array([1.0, 1.0, jnp.nan, jnp.nan])
    mask = jnp.array([1.0, 1.0, 0.0, 0.0])
    loss, weight = losses.weighted_bce(logits, targets, mask)
    grad = jax.grad(lambda z: losses.weighted_bce(z, targets, mask)[0])(logits)
    assert (float(loss), float(weight)) == (1e4, 2.0)
    np.testing.assert_array_equal(grad, [0, -1, 0, 0])


def test_rsna_loss_is_normalisation_b():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(5, 8)), rng.integers(0, 2, (5, 8)).astype(float)
    loss, weight = losses.rsna_loss(jnp.asarray(logits), jnp.asarray(labels), jnp.ones((5, 8)))
    expected = metrics.rsna_log_loss(labels, 1 / (1 + np.exp(-logits)), "B")
    assert float(loss / weight) == pytest.approx(expected, rel=1e-5)


def by_hand(logits, targets, mask, positive_weight):
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    w = mask * np.where(targets == 1, positive_weight, 1.0)
    return (w * -np.where(targets == 1, np.log(p), np.log(1 - p))).sum() / w.sum()


def test_slice_loss_of_type_3_is_alpha_frac_plus_vert():
    batch, outputs = make_batch(), make_outputs()
    config = LossConfig(alpha=2.0, positive_weight=3.0)
    loss, weight, parts = losses.slice_loss(outputs, batch, config)
    valid = batch["valid"][:, None]
    known = batch["presence_known"][:, None]
    visible = np.where(known == 1, batch["presence"], 1.0)
    fracture = by_hand(outputs["fracture"], batch["fracture"], batch["fracture_known"] * visible * valid, 3.0)
    vertebra = by_hand(outputs["vertebra"], batch["presence"], known * valid, 3.0)
    assert float(weight) == 5.0
    assert float(loss / weight) == pytest.approx(2 * fracture + vertebra, rel=1e-5)
    assert float(losses.value(parts["fracture"])) == pytest.approx(fracture, rel=1e-5)
    assert float(losses.value(parts["vertebra"])) == pytest.approx(vertebra, rel=1e-5)


def test_slice_loss_of_type_1_is_of_the_slice():
    batch, outputs = make_batch(), make_outputs(type_=1)
    loss, weight, parts = losses.slice_loss(outputs, batch, LossConfig(alpha=1.0, positive_weight=2.0))
    expected = by_hand(outputs["fracture"][:, 0], batch["slice_fracture"], batch["slice_known"] * batch["valid"], 2.0)
    assert float(loss / weight) == pytest.approx(expected, rel=1e-5)
    assert set(parts) == {"fracture"}


def test_slice_loss_of_type_2_has_no_vertebra_part():
    _, _, parts = losses.slice_loss(make_outputs(type_=2), make_batch(), LossConfig())
    assert set(parts) == {"fracture"}


def test_parts_of_shards_add_up_to_the_whole():
    batch, outputs, config = make_batch(8), make_outputs(8), LossConfig()
    whole = losses.slice_loss(outputs, batch, config)
    shards = [
        losses.slice_loss(*({k: v[half] for k, v in tree.items()} for tree in (outputs, batch)), config)[2]
        for half in (slice(0, 3), slice(3, 8))
    ]
    added = jax.tree.map(lambda a, b: a + b, *shards)
    assert float(losses.total(added, config)) == pytest.approx(float(whole[0] / whole[1]), rel=1e-6)


def test_what_a_slice_does_not_show_is_not_trained():
    batch = make_batch()
    batch |= {"presence_known": np.ones(6, np.float32), "fracture_known": np.ones((6, 7), np.float32)}
    grad = jax.grad(
        lambda f: losses.slice_loss({"fracture": f}, batch, LossConfig())[0]  # Type 2
    )(jnp.asarray(make_outputs()["fracture"]))
    trained = np.asarray(grad) != 0
    np.testing.assert_array_equal(trained, (batch["presence"] == 1) & batch["valid"][:, None])


def test_a_batch_without_supervision_has_loss_zero_and_no_gradient():
    batch = make_batch() | {"fracture_known": np.zeros((6, 7), np.float32), "presence_known": np.zeros(6, np.float32)}
    outputs = jax.tree.map(jnp.asarray, make_outputs())
    value, grad = jax.value_and_grad(lambda o: losses.slice_loss(o, batch, LossConfig())[0])(outputs)
    assert float(value) == 0.0
    assert all(float(jnp.abs(g).max()) == 0.0 for g in jax.tree.leaves(grad))


def test_copies_loss_gives_each_slice_its_vertebras_label():
    rng = np.random.default_rng(0)
    logits, label, mask = rng.normal(size=(2, 7, 5)), rng.integers(0, 2, (2, 7)), rng.integers(0, 2, (2, 7, 5))
    mask[0, 3] = 0
    targets = np.repeat(label[..., None], 5, -1)
    expected = by_hand(logits, targets, mask, 2.0)
    hidden = np.where(mask > 0, logits, np.nan)
    unknown = np.where(mask.any(-1), label, np.nan)
    pair = losses.copies_loss(jnp.asarray(hidden), jnp.asarray(unknown), jnp.asarray(mask), LossConfig())
    assert float(losses.value(pair)) == pytest.approx(expected, rel=1e-5)


def test_slices_may_have_labels_of_their_own():
    rng = np.random.default_rng(1)
    logits, label, mask = rng.normal(size=(2, 7, 5)), *rng.integers(0, 2, (2, 2, 7, 5))
    unknown = np.where(mask > 0, label, np.nan)
    pair = losses.copies_loss(*map(jnp.asarray, (logits, unknown, mask)), LossConfig())
    assert float(losses.value(pair)) == pytest.approx(by_hand(logits, label, mask, 2.0), rel=1e-5)
    outputs = {"slice": jnp.asarray(logits.reshape(2, 35)), "patient": jnp.zeros(2)}
    args = jax.tree.map(jnp.asarray, (np.zeros((2, 8)), np.ones((2, 8)), mask.reshape(2, 35)))
    _, _, parts = losses.sequence_loss(outputs, *args, LossConfig(), jnp.asarray(label))
    np.testing.assert_allclose(parts["slice"], pair, rtol=1e-5)


def test_where_loss_refuses_a_map_that_does_not_lie_over_the_picture():
    """Inception at 224 pixels: unpadded convolutions leave 25 cells, where 28 of 8 pixels would cover it."""
    with pytest.raises(ConfigError, match=r"study.where_weight: this backbone has 25 x 25 cells for 224 x 224 pixels"):
        losses.where_loss(jnp.zeros((1, 1, 25, 25)), jnp.zeros((1, 1, 224, 224)), jnp.ones((1, 1)))


def test_where_loss_is_of_the_cells_that_share_a_pixel_with_a_box():
    """2 x 3 cells of 4 pixels, the last ones of three; a slice whose boxes are not known may hold anything."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 2, 2, 3)).astype(np.float32)
    inside = np.zeros((2, 2, 7, 11), np.float32)
    inside[0, 0, 3:6, 8:10] = 1  # both cells of the last column
    inside[1, 0, 0, 0] = 0.3  # a blend of two pictures
    inside[1, 1] = np.nan
    known = np.array([[1, 1], [1, 0]], np.float32)
    target = np.zeros(logits.shape)
    target[0, 0, :, 2], target[1, 0, 0, 0] = 1, 0.3
    each = np.logaddexp(0, logits) - target * logits
    total, weight = losses.where_loss(jnp.asarray(logits), jnp.asarray(inside), jnp.asarray(known))
    assert float(total) == pytest.approx(each[0].sum() + each[1, 0].sum(), rel=1e-5) and float(weight) == 3 * 6
    grad = jax.grad(lambda z: losses.where_loss(z, jnp.asarray(inside), jnp.asarray(known))[0])(jnp.asarray(logits))
    assert np.isfinite(grad).all() and not grad[1, 1].any()


def test_sequence_loss_is_fifteen_parts_slices_and_one_part_patient():
    rng = np.random.default_rng(0)
    outputs = {"slice": rng.normal(size=(3, 7 * 4)), "patient": rng.normal(size=3)}
    labels, known, mask = rng.integers(0, 2, (3, 8)), np.ones((3, 8)), np.ones((3, 7 * 4))
    known[0, 2] = 0  # C2 of the first
    mask[1, 24:] = 0  # C7 of the second
    known[2] = 0  # padding
    used = mask.reshape(3, 7, 4) * known[:, 1:, None]
    slices = by_hand(outputs["slice"].reshape(3, 7, 4), np.repeat(labels[:, 1:, None], 4, -1), used, 2.0)
    patient = by_hand(outputs["patient"], labels[:, 0], known[:, 0], 2.0)
    args = jax.tree.map(jnp.asarray, (outputs, labels, known, mask))
    loss, weight, parts = losses.sequence_loss(*args, LossConfig())
    assert float(weight) == 2.0
    assert float(loss / weight) == pytest.approx((15 * slices + patient) / 16, rel=1e-5)
    assert float(losses.value(parts["patient"])) == pytest.approx(patient, rel=1e-5)
