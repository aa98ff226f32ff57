"""The 2.5D task on tiny stacks: devices agree, it learns, bf16 keeps float32 parameters, padding counts nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cspine_jax import config as cfg
from cspine_jax.models.backbones import basic_cnn
from cspine_jax.training.evaluate import run_pass
from cspine_jax.training.optim import make_optimizer
from cspine_jax.training.sharding import place
from cspine_jax.training.slice_task import SliceTask
from cspine_jax.training.state import init_state
from cspine_jax.training.step import evaluator, trainer

# the real backbone, narrow and without residual blocks: compiles in a second
basic_cnn.VARIANTS["tiny"] = basic_cnn.Config(widths=(8, 16), blocks=(0, 0))


def config(**model):
    return cfg.Config(
        seed=1,
        data=cfg.DataConfig(depth=3, size=32, batch_size=16),
        augment=cfg.AugmentConfig(mixup=0.2),
        model=cfg.ModelConfig(backbone="tiny", hidden=8, **model),
        optim=cfg.OptimConfig(lr=1e-2),
    )


def batch(B=16, seed=0):
    """A square whose brightness tells the vertebra; fractured where a dark line crosses it."""
    rng = np.random.default_rng(seed)
    level, broken = rng.integers(0, 7, B), rng.integers(0, 2, B)
    image = rng.normal(-800, 50, (B, 3, 32, 32))
    for i in range(B):
        image[i, :, 8:24, 8:24] = -300 + 200 * level[i]
        if broken[i]:
            image[i, :, 8:24, 15:17] = -800
    presence = np.eye(7, dtype=np.float32)[level]
    return {
        "image": image.astype(np.int16),
        "presence": presence,
        "presence_known": np.ones(B, np.float32),
        "fracture": presence * broken[:, None].astype(np.float32),
        "fracture_known": np.ones((B, 7), np.float32),
        "slice_fracture": broken.astype(np.float32),
        "slice_known": np.ones(B, np.float32),
        "vertebra_probs": presence,
        "labels": np.zeros((B, 8), np.float32),
        "study": np.zeros(B, np.int32),
        "index": np.arange(B, dtype=np.int32),
        "valid": np.ones(B, bool),
    }


def steps(devices, count, settings):
    """Losses of `count` training steps, and the state after them."""
    placement, task = place(jax.devices()[:devices]), SliceTask(settings)
    optimizer = make_optimizer(settings.optim, 100)
    make = functools.partial(init_state, task, optimizer, settings.seed)
    state = jax.jit(make, out_shardings=placement.replicated)()
    step = trainer(task, optimizer, settings.seed, placement)
    losses = []
    for number in range(count):
        state, parts = step(state, placement.put(batch(seed=number)))
        total, weight = jax.device_get(parts["loss"])
        losses.append(float(total / weight))
    return losses, state, task, placement


@pytest.fixture(scope="module")
def on_eight():
    return steps(8, 60, config())


def test_one_and_eight_devices_agree(on_eight):
    one, *_ = steps(1, 3, config())
    np.testing.assert_allclose(one, on_eight[0][:3], rtol=1e-5)


def test_it_learns_what_is_in_the_picture(on_eight):
    losses, state, task, placement = on_eight
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    means, table = run_pass(
        evaluator(task, placement), state.params, state.stats, [batch(seed=s) for s in range(90, 94)], placement
    )
    assert task.metrics(table)["presence_auc"] > 0.7
    assert means["loss"] == pytest.approx(2 * means["fracture"] + means["vertebra"], rel=0.2)


def test_padding_changes_neither_figures_nor_table(on_eight):
    _, state, task, placement = on_eight
    whole = batch(seed=50)
    padded = {name: np.concatenate([x[:11], np.repeat(x[10:11], 5, axis=0)]) for name, x in whole.items()}
    padded["valid"] = np.arange(16) < 11
    cut = {name: x[:11] for name, x in whole.items()}  # 11 rows on 8 devices: padded to 16 on the way
    step = evaluator(task, placement)
    first = run_pass(step, state.params, state.stats, [padded], placement)
    second = run_pass(step, state.params, state.stats, [cut], placement)
    assert first[1]["fracture_prob"].shape == (11, 7)
    np.testing.assert_array_equal(first[1]["index"], np.arange(11))
    for name in first[0]:
        assert first[0][name] == pytest.approx(second[0][name], rel=1e-6)
    for name in first[1]:
        np.testing.assert_array_equal(first[1][name], second[1][name])


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_outputs_of_each_type(kind):
    task = SliceTask(config(type=kind))
    params, stats = jax.eval_shape(lambda: task.init(jax.random.key(0)))
    shapes = jax.eval_shape(task.predict, params, stats, {n: jnp.asarray(x) for n, x in batch(4).items()})[3]
    assert shapes["fracture_prob"].shape == (4, 1 if kind == 1 else 7)
    assert shapes["vertebra_prob"].shape == (4, 7)


def test_bf16_computes_in_half_and_keeps_parameters_in_single_precision():
    settings = dataclasses.replace(config(), train=cfg.TrainConfig(bf16=True))
    losses, state, *_ = steps(8, 2, settings)
    assert {x.dtype for x in jax.tree.leaves((state.params, state.stats))} == {jnp.dtype(jnp.float32)}
    full, *_ = steps(8, 1, config())
    assert losses[0] == pytest.approx(full[0], rel=0.05) and losses[0] != full[0]


def test_metrics_of_one_class_are_nan_not_an_error():
    task, rows = SliceTask(config()), batch(4)
    table = {**rows, "vertebra_prob": rows["presence"], "fracture_prob": rows["fracture"]}
    table["slice_fracture"] = np.zeros(4, np.float32)
    table["presence"] = np.zeros((4, 7), np.float32)
    figures = task.metrics(table)
    assert np.isnan(figures["presence_auc"]) and np.isnan(figures["slice_auc"])
