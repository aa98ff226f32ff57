"""The 3D tasks: their truth, how the rough map is spoilt, and that both learn."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import ndimage

from cspine_jax.config import from_dict
from cspine_jax.data.volumes import AIR_HU
from cspine_jax.models.spine import colour_of
from cspine_jax.training.refine_task import RefineTask, rough_colours
from cspine_jax.training.spine_task import SpineTask, centre_offsets, majority


def tower(shape=(32, 16, 16), first=3) -> np.ndarray:
    """int16 [2, D, H, W]: bright blocks, one below the other, labels from `first`."""
    labels = np.zeros(shape, np.int16)
    for k, z in enumerate(range(2, shape[0] - 6, 8)):
        labels[z : z + 6, 5:12, 4:12] = first + k
    return np.stack([np.where(labels > 0, 700, 40), labels]).astype(np.int16)


def test_majority_takes_the_commonest_of_eight():
    labels = np.zeros((1, 2, 2, 4), np.int32)
    labels[0, :, :, 0] = 5
    labels[0, 0, 0, 1] = 5  # five of eight in the first group
    labels[0, 0, 0, 2] = 7  # one of eight in the second
    np.testing.assert_array_equal(majority(jnp.asarray(labels))[0, 0, 0], [5, 0])


def test_offsets_point_to_the_centroid_of_each_vertebra():
    labels = tower()[1]
    offsets, bone = jax.jit(centre_offsets, static_argnums=1)(jnp.asarray(labels[None], jnp.int32), 4.0)
    np.testing.assert_array_equal(bone[0], labels > 0)
    at = np.stack(np.meshgrid(*(np.arange(n) for n in labels.shape), indexing="ij"), -1)
    for level in (3, 4, 5):
        inside = labels == level
        centre = np.array(ndimage.center_of_mass(inside))
        found = at[inside] + np.asarray(offsets[0])[inside] / 4.0
        np.testing.assert_allclose(found, np.broadcast_to(centre, found.shape), atol=1e-3)


def test_the_rough_map_is_the_truth_where_nothing_spoils_it_and_spoilt_otherwise():
    labels = jnp.asarray(np.repeat(np.repeat(np.repeat(tower()[1], 4, 0), 4, 1), 4, 2)[None], jnp.int32)
    rough = jax.jit(rough_colours)
    clean = rough(labels, None)
    assert clean.shape == (1, 64, 32, 32, 3)
    truth = jax.nn.one_hot(colour_of(labels[:, ::2, ::2, ::2]) - 1, 3)
    assert float(jnp.abs(clean - truth).mean()) < 0.05
    spoilt = [rough(labels, jax.random.key(k)) for k in range(6)]
    harm = [float(jnp.abs(s - clean).mean()) for s in spoilt]
    assert min(harm) > 3e-4 and max(harm) > 2 * min(harm)
    assert all(float(s.sum(-1).max()) <= 1 + 1e-5 and float(s.min()) >= 0 for s in spoilt)


@pytest.mark.parametrize("kind", ["spine", "refine"])
def test_it_learns_a_tower_of_blocks(kind):
    config = from_dict(
        {
            "task": kind,
            "volume": {
                "depth": 32,
                "height": 16,
                "width_px": 16,
                "margin": 0,
                "levels": 2,
                "width": 12,
                "rotation": 0,
                "zoom": 0,
                "stretch": 0,
                "elastic_mm": 0,
                "blur_mm": 0,
                "slice_mm": 0,
                "noise_hu": 20,
                "streaks": 0,
            },
        }
    )
    task = {"spine": SpineTask, "refine": RefineTask}[kind](config)
    params, stats = jax.jit(task.init)(jax.random.key(0))
    batch = {"image": jnp.asarray(np.stack([tower(), tower()])), "valid": jnp.array([True, True])}
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, stats, state, key):
        def mean(params):
            total, weight, _, stats_ = task.loss(params, stats, batch, key)
            return total / weight, stats_

        (loss, stats_), grads = jax.value_and_grad(mean, has_aux=True)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), stats_, state, loss

    state, losses = optimizer.init(params), []
    for k in range(30):
        params, stats, state, loss = step(params, stats, state, jax.random.key(k))
        losses.append(float(loss))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    padded = {"image": batch["image"].at[1].set(AIR_HU), "valid": jnp.array([True, False])}
    predict = jax.jit(task.predict)
    total, weight, _, out = predict(params, stats, padded)
    alone, one, _, _ = predict(params, stats, {name: x[:1].repeat(2, 0) for name, x in batch.items()})
    assert float(weight) == 1 and float(total) == pytest.approx(float(alone) / float(one), rel=1e-4)
    figures = task.metrics({name: np.asarray(x)[:1] for name, x in out.items()})
    assert next(iter(figures.values())) > 0.1
