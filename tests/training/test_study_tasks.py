"""Study-level tasks on tiny arrays: the same answer in any batch, absent levels count nothing, tables by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cspine_jax.config import from_dict
from cspine_jax.errors import ConfigError
from cspine_jax.models.backbones import basic_cnn
from cspine_jax.training.crops_task import study_level_task
from cspine_jax.training.evaluate import run_pass
from cspine_jax.training.optim import make_optimizer
from cspine_jax.training.sharding import place
from cspine_jax.training.state import init_state
from cspine_jax.training.step import evaluator, trainer
from cspine_jax.training.study_task import StudyTask

basic_cnn.VARIANTS["tiny"] = basic_cnn.Config(widths=(8, 16), blocks=(0, 0))
P, SIZE = 3, 16
SMALL = {"hidden": 4, "layers": 1, "features": 8, "heads": 2, "depth": 1, "tubelet_depth": 2, "tubelet": 8, "width": 4,
         "stages": 2, "stem": 2}  # fmt: skip


def config(model, **changes):
    task = "study" if model in ("classifier", "vit3d", "cnn3d") else "crops"
    values = {
        "task": task,
        "data": {"depth": 1},
        "crops": {"positions": P, "radius": 0, "size": SIZE},
        "study": {"model": model, "with_mask": task == "study", **SMALL},
        "model": {"backbone": "tiny", "dropout": 0.0},
        "optim": {"lr": 3e-3},
    }
    for name, value in changes.items():
        values[name] = {**values.get(name, {}), **value}
    return from_dict(values)


def task_of(settings):
    return study_level_task(settings)


def batch_for(model, B=4, seed=0):
    """A batch as the model's view makes it; a fractured vertebra is bright."""
    rng = np.random.default_rng(seed)
    common = {"study": np.arange(B, dtype=np.int32), "valid": np.ones(B, bool)}
    if model in ("gold", "silver", "bronze"):
        broken = rng.integers(0, 2, B).astype(np.float32)
        image = rng.normal(100, 60, (B, P, SIZE, SIZE, 1)) + 800 * broken[:, None, None, None, None]
        mask = rng.integers(0, 2, (B, P, SIZE, SIZE))
        extra = {"targets": broken, "targets_known": np.ones(B, np.float32), "level": 1 + np.arange(B) % 7,
                 "slice_targets": np.repeat(broken[:, None], P, 1)}  # fmt: skip
    else:
        levels = model in ("gold_patient", "levels")
        lead = (B, 7, P) if levels else (B, 4)
        labels = rng.integers(0, 2, (B, 8)).astype(np.float32)
        image = rng.normal(100, 60, (*lead, SIZE, SIZE, 1))
        if levels:
            image += 800 * labels[:, 1:, None, None, None, None]
        mask = rng.integers(0, 2 if levels else 8, (*lead, SIZE, SIZE))
        there = rng.random((B, 7 if levels else 4)) < 0.8
        there[:, 0] = True
        known = np.ones((B, 8), np.float32)
        known[:, 1:] = there if levels else 1
        extra = {"targets": labels, "targets_known": known, "there": there}
        if levels:
            extra["slice_targets"] = np.repeat(labels[:, 1:, None] * there[:, :, None], P, 2)
    return {"image": image.astype(np.int16), "mask": mask.astype(np.uint8), **extra, **common}


MODELS = ("gold", "silver", "bronze", "gold_patient", "levels", "classifier", "vit3d", "cnn3d")


@pytest.fixture(scope="module")
def made():
    """Model -> (task, params, stats), drawn once."""
    cache = {}

    def make(model):
        if model not in cache:
            task = task_of(config(model))
            cache[model] = (task, *jax.jit(task.init)(jax.random.key(0)))
        return cache[model]

    return make


@pytest.mark.parametrize("model", MODELS)
def test_the_same_study_answers_the_same_in_any_batch(made, model):
    task, params, stats = made(model)
    placement = place(jax.devices()[:1])
    batch = batch_for(model)
    order = np.array([2, 0, 3, 1])
    turned = {name: x[order] for name, x in batch.items()}
    padded = {name: np.concatenate([x[:3], x[:1]]) for name, x in batch.items()}
    padded["valid"] = np.array([True, True, True, False])
    if "there" in batch:  # what is not there may be anything
        noise = np.random.default_rng(9).integers(-1000, 1000, batch["image"].shape).astype(np.int16)
        there = batch["there"].reshape(*batch["there"].shape, *(1,) * (noise.ndim - 2))
        batch = {**batch, "image": np.where(there, batch["image"], noise)}
    step = evaluator(task, placement)
    tables = [run_pass(step, params, stats, [each], placement)[1] for each in (batch, turned, padded)]
    first, second, third = (task.study_targets(table) for table in tables)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_allclose(first[1], second[1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(first[1][:3], third[1], rtol=1e-4, atol=1e-6)
    assert all(x.ndim <= 2 for x in tables[0].values())
    if model in ("gold_patient", "levels"):
        np.testing.assert_array_equal(np.isnan(first[1][:, 1:]), ~batch["there"])
    figures = task.metrics(tables[0])
    assert set(figures) == {"vertebra_auc", "patient_auc"}


@pytest.mark.parametrize("model", ["gold", "levels", "classifier"])
def test_a_view_is_the_same_variation_of_every_study_in_any_batch(made, model):
    task, params, stats = made(model)
    batch = batch_for(model)
    predict = jax.jit(task.predict)

    def answers(view, rows):
        part = {name: x[rows] for name, x in batch.items()} | {"view": np.full(len(rows), view, np.int32)}
        return task.study_targets(jax.tree.map(np.asarray, {**part, **predict(params, stats, part)[3]}))[1]

    plain = task.study_targets({**batch, **predict(params, stats, batch)[3]})[1]
    first, second = answers(0, [0, 1, 2, 3]), answers(1, [0, 1, 2, 3])
    np.testing.assert_allclose(answers(0, [2, 3]), first[2:], rtol=1e-4, atol=1e-6)
    assert np.nanmax(abs(first - second)) > 1e-5 and np.nanmax(abs(first - plain)) > 1e-5
    assert np.nanmax(abs(first - plain)) < 0.5


def test_a_break_on_few_slices_asks_for_few_of_the_highest():
    table = {
        "study": np.zeros(2, np.int32),
        "level": np.array([1, 2]),
        "slice_prob": np.array([[0.9, 0.1, 0.2], [0.2, 0.2, 0.2]]),
    }
    for highest, c1 in ((1, 0.9), (2, 0.55), (5, 0.4)):
        found = task_of(config("gold", study={"highest": highest})).study_targets(table)[1]
        np.testing.assert_allclose(found[0, 1:3], [c1, 0.2])
    with pytest.raises(ConfigError, match=r"study\.highest=0: must be at least 1"):
        config("gold", study={"highest": 0})


@pytest.mark.parametrize("model", ["gold", "levels", "vit3d"])
def test_unknown_targets_and_padding_weigh_nothing(made, model):
    task, params, stats = made(model)
    batch = batch_for(model)
    unknown = {**batch, "targets_known": np.zeros_like(batch["targets_known"])}
    padded = {**batch, "valid": np.zeros(4, bool)}
    judge = jax.jit(lambda b: task.predict(params, stats, b)[:2])
    for each in (unknown, padded):
        total, weight = judge(each)
        assert float(total) == float(weight) == 0
    known = batch["targets_known"].copy()
    known[2:] = 0
    half = judge({**batch, "targets_known": known})
    changed = {**batch, "targets_known": known, "targets": batch["targets"].copy()}
    changed["targets"][2:] = np.nan
    if model == "gold":
        changed["slice_targets"] = np.where(known[:, None] > 0, batch["slice_targets"], np.nan)
    np.testing.assert_allclose(judge(changed), half)


@pytest.mark.parametrize("model", ["gold", "gold_patient"])
def test_it_learns_with_every_augmentation(model):
    augment = {"vertical_flip": True, "transpose": True, "distortion": 0.1, "blur": 0.5, "cutout": 0.2, "mixup": 0.2,
               "slice_shuffle": 0.2}  # fmt: skip
    settings = config(model, augment=augment, train={"bf16": True}, study=SMALL | {"model": model})
    task, placement = task_of(settings), place(jax.devices()[:1])
    optimizer = make_optimizer(settings.optim, 30)
    state = jax.jit(lambda: init_state(task, optimizer, 0))()
    step, losses = trainer(task, optimizer, 0, placement), []
    for number in range(30):
        state, parts = step(state, placement.put(batch_for(model, seed=number % 4)))
        losses.append(float(parts["loss"][0] / parts["loss"][1]))
    assert np.mean(losses[-6:]) < 0.85 * np.mean(losses[:4])
    assert {x.dtype for x in jax.tree.leaves((state.params, state.stats))} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("model", ["gold", "gold_patient"])
def test_targets_of_slices_move_with_the_slices(model):
    """Bright slices are the positive ones before and after they are shuffled; levels that are not there stay put."""
    off = {"flip": False, "rotation": 0.0, "zoom": 0.0, "shift": 0.0, "brightness": 0.0, "contrast": 0.0, "noise": 0.0}
    task = task_of(config(model, augment={**off, "slice_shuffle": 0.8}))
    batch = batch_for(model, B=6)
    targets = np.zeros_like(batch["slice_targets"])
    targets[..., 0] = 1
    if model == "gold_patient":
        targets *= batch["there"][:, :, None]
    image = np.broadcast_to(np.where(targets[..., None, None, None] > 0, 900, -900), batch["image"].shape)
    batch = {**batch, "slice_targets": targets, "image": image.astype(np.int16)}
    key = jax.random.key(1)
    seen = np.asarray(task._see(batch, key, task._config.augment))[..., 0].max((-1, -2)).reshape(targets.shape)
    followed = np.asarray(task._follow(batch, key)["slice_targets"])
    np.testing.assert_array_equal(followed, seen > 0.5)
    assert (followed != targets).any()
    np.testing.assert_array_equal(followed.sum(-1), targets.sum(-1))


@pytest.mark.parametrize("model", ["gold", "levels"])
def test_the_map_of_breaks_learns_from_boxes(model):
    """Boxes alone teach it, moved as the pictures are; where they are not known they teach nothing."""
    settings = config(model, study=SMALL | {"model": model, "where_weight": 1.0}, augment={"mixup": 0.3},
                      crops={"positions": P, "radius": 0, "size": 32}, optim={"lr": 1e-2})  # fmt: skip
    task, placement = task_of(settings), place(jax.devices()[:1])
    rng = np.random.default_rng(0)

    def batch(seed, known=1.0):
        made = batch_for(model, seed=seed)
        lead = made["slice_targets"].shape
        corner = rng.integers(0, 26, (*lead, 2))
        box = np.concatenate([corner, corner + 6], axis=-1).astype(np.float32)
        rows, columns = np.arange(32)[:, None], np.arange(32)
        inside = (box[..., 0, None, None] <= rows) & (rows < box[..., 2, None, None])
        inside = inside & (box[..., 1, None, None] <= columns) & (columns < box[..., 3, None, None])
        image = np.where(inside, 1000, 0)[..., None].astype(np.int16)
        mask = np.ones(inside.shape, np.uint8)
        known = np.full(lead[:-1], known, np.float32)
        return {**made, "image": image, "mask": mask, "box": box, "where_known": known}

    optimizer = make_optimizer(settings.optim, 40)
    state = jax.jit(lambda: init_state(task, optimizer, 0))()
    step, found = trainer(task, optimizer, 0, placement), []
    for number in range(40):
        state, parts = step(state, placement.put(batch(number)))
        found.append(float(parts["where"][0] / parts["where"][1]))
    assert np.mean(found[-6:]) < 0.7 * np.mean(found[:4])
    total, _, parts, _ = jax.jit(task.loss)(state.params, state.stats, batch(0, 0.0), jax.random.key(1))
    assert float(parts["where"][1]) == 0 and np.isfinite(float(total))
    view = jax.jit(task.predict)(state.params, state.stats, {**batch(0), "view": np.ones(4, np.int32)})
    assert np.isfinite(float(view[0]))


def test_a_frozen_encoder_stays_and_the_rest_learns():
    train = {"freeze_encoder": True, "init_from": "elsewhere"}
    settings = config("levels", train=train, study=SMALL | {"model": "levels", "where_weight": 1.0},
                      optim={"lr": 1e-2, "weight_decay": 0.1})  # fmt: skip
    task, placement = task_of(settings), place(jax.devices()[:1])
    optimizer = make_optimizer(settings.optim, 12)
    first = jax.jit(lambda: init_state(task, optimizer, 0))()
    assert "encoder" not in first.params and "where" in first.stats["encoder"]
    assert "encoder" in first.params["levels"] and "encoder" not in first.stats.get("levels", {})  # its transformer
    before = jax.tree.map(np.asarray, (first.params, first.stats))  # the step takes over its buffers
    state, step, losses = first, trainer(task, optimizer, 0, placement), []
    for number in range(12):
        state, parts = step(state, placement.put(batch_for("levels", seed=number % 3)))
        losses.append(float(parts["loss"][0] / parts["loss"][1]))
    jax.tree.map(np.testing.assert_array_equal, state.stats["encoder"], before[1]["encoder"])
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), state.params, before[0])
    assert all(jax.tree.leaves(moved)) and np.mean(losses[-3:]) < np.mean(losses[:3])


@pytest.mark.parametrize("model", ["gold", "gold_patient"])
def test_the_loss_is_of_the_slices_own_targets(made, model):
    task, params, stats = made(model)
    batch = batch_for(model)
    total = jax.jit(lambda b: task.predict(params, stats, b)[0])
    turned = {**batch, "slice_targets": 1 - batch["slice_targets"]}
    assert abs(float(total(batch)) - float(total(turned))) > 1e-3


def test_vertebrae_become_a_patient_by_hand():
    task = task_of(config("gold"))
    table = {
        "study": np.array([5, 5, 9]), "level": np.array([1, 7, 3]),
        "slice_prob": np.array([[0.1, 0.2, 0.3], [0.5, 0.5, 0.5], [0.9, 0.6, 0.3]]),
        "targets": np.array([0.0, 1.0, 1.0]), "targets_known": np.array([1.0, 1.0, 0.0]),
    }  # fmt: skip
    studies, p = task.study_targets(table)
    assert studies.tolist() == [5, 9]
    np.testing.assert_allclose(p[0, [0, 1, 7]], [1 - 0.8 * 0.5, 0.2, 0.5])
    np.testing.assert_allclose(p[1, [0, 3]], [0.6, 0.6])
    assert np.isnan(p[0, 2:7]).all()
    _, y = task.study_labels(table)
    assert y[0, [0, 1, 7]].tolist() == [1, 0, 1] and np.isnan(y[1]).all()


def test_gold_patients_fuse_their_own_answer():
    task = task_of(config("gold_patient"))
    there = np.zeros((1, 7))
    there[0, 2] = 1
    f = np.full((1, 7 * P), 0.9)
    f[0, 2 * P : 3 * P] = (0.2, 0.4, 0.6)
    table = {"study": np.array([3]), "slice_prob": f, "patient_prob": np.array([0.5]), "there": there}
    _, p = task.study_targets(table)
    np.testing.assert_allclose(p[0, [0, 3]], [0.4 * 0.6 + 0.01 * 0.6 + 0.6 * 0.5, 0.4])
    assert np.isnan(p[0, [1, 2, 4, 5, 6, 7]]).all()


def test_drawing_is_undone_by_what_was_drawn():
    f = np.array([[0.2, 0.6, 0.4]])
    for model, expected in (("gold", f / (5 - 4 * 0.6)), ("bronze", f / (5 - 4 * f))):
        task = task_of(config(model, loss={"positive_weight": 1.0}))
        table = {"study": np.zeros(1, int), "slice_prob": f, "breaks": 0.5 * f}
        found = task.clinical(table, 5.0)
        np.testing.assert_allclose(found["slice_prob"], expected)
        np.testing.assert_allclose(found["breaks"], 0.5 * f / (5 - 4 * 0.6))
        np.testing.assert_allclose(task.clinical(table)["slice_prob"], f)
        assert found["study"] is table["study"]
    task = task_of(config("gold_patient", loss={"positive_weight": 1.0}))
    found = task.clinical({"slice_prob": f, "patient_prob": np.array([0.7])}, 5.0)
    np.testing.assert_allclose(
        [*found["slice_prob"][0], *found["patient_prob"]], np.array([*f[0], 0.7]) / (5 - 4 * 0.7)
    )


def test_a_clip_is_drawn_for_its_own_vertebra():
    """By the rule of Bayes on (own vertebra broken, neighbour broken), which are independent given the picture."""
    odds, own, near = 21.0, 0.25, 0.55
    seen = np.array([[(1 - own) * (1 - near), (1 - own) * near], [own * (1 - near), own * near]])
    truth = seen * np.array([[odds], [1.0]])
    truth /= truth.sum()
    weighted = np.zeros(8)  # as the loss, which counts positives twice, makes them
    weighted[[0, 3, 4]] = [2 * p / (1 + p) for p in (1 - seen[0, 0], own, near)]
    task = StudyTask(config("cnn3d", study={"clip_depth": 4}))
    p = task.clinical({"target_prob": weighted[None], "level": np.array([3])}, odds)["target_prob"][0]
    np.testing.assert_allclose(p[[0, 3, 4]], [1 - truth[0, 0], truth[1].sum(), truth[:, 1].sum()])


def test_clips_join_by_how_much_they_show():
    task = StudyTask(config("cnn3d", study={"clip_depth": 4, "clip_visible": 0.3}))
    inside = np.zeros((3, 7))
    inside[0, 0], inside[1, 0], inside[1, 1] = 1.0, 0.5, 0.2  # C2: never enough, so the most there is
    inside[2, 0] = 0.1
    probabilities = np.zeros((3, 8))
    probabilities[:, 1] = (0.6, 0.3, 0.9)
    probabilities[:, 2] = (0.0, 0.7, 0.0)
    probabilities[:, 0] = (0.1, 0.8, 0.2)
    _, p = task.study_targets({"study": np.zeros(3, int), "inside": inside, "target_prob": probabilities})
    np.testing.assert_allclose(p[0, :3], [0.8, (0.6 + 0.5 * 0.3) / 1.5, 0.7])
    assert np.isnan(p[0, 3:]).all()


@pytest.mark.parametrize(("values", "message"), [
    ({"task": "crops", "study": {"model": "vit3d"}}, r"study.model='vit3d': task 'crops' has gold"),
    ({"task": "study"}, r"study.model='gold': task 'study' has classifier"),
    ({"task": "study", "study": {"model": "cnn3d"}, "model": {"pretrained": "x"}}, "'cnn3d' has no backbone"),
    ({"study": {"model": "gold", "clip_depth": 4}}, "clips are for classifier"),
    ({"study": {"slice_labels": "boxes"}}, "study.slice_labels"),
    ({"study": {"model": "levels", "slice_labels": "box"}}, "slices of 'levels' have no labels"),
    ({"study": {"model": "cnn3d", "where_weight": 1.0}, "task": "study"}, "'cnn3d' has no map of breaks"),
    ({"train": {"freeze_encoder": True}, "task": "crops"}, "the encoder would stay random"),
    ({"train": {"freeze_encoder": True}}, "task 'fracture' has no encoder of slices"),
    ({"train": {"freeze_encoder": True, "init_from": "w"}, "task": "study", "study": {"model": "vit3d"}},
     "'vit3d' has no encoder of slices"),
    ({"study": {"where_weight": -1.0}}, "study.where_weight"),
    ({"study": {"model": "cnn3d", "train_positions": 2}, "task": "study"}, "not for 'cnn3d', only for gold and bronze"),
    ({"study": {"model": "silver", "train_positions": 2}, "task": "crops"}, "not for 'silver', only for gold and"),
    ({"study": {"train_positions": 9}, "crops": {"positions": 8}, "task": "crops"},
     r"study\.train_positions=9: crops have crops\.positions=8"),
    ({"augment": {"bone_only": 0.2}, "task": "study", "study": {"model": "cnn3d"}},
     r"bone_only=0\.2: the model has no mask"),
    ({"augment": {"bone_only": 0.2}, "task": "fracture"}, r"bone_only=0\.2: the model has no mask"),
    ({"study": {"features": 10, "heads": 4}}, "must be a multiple of study.heads=4"),
    ({"optim": {"final_lr": 1e-5}}, "only optim.schedule='cosine' ends there"),
])  # fmt: skip
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(values)


@pytest.mark.parametrize("model", ["gold", "levels", "vit3d"])
def test_validation_is_not_judged_by_smoothed_labels(made, model):
    task, params, stats = made(model)
    batch = batch_for(model)
    smooth = task_of(config(model, loss={"label_smoothing": 0.2}))
    plain, other = (jax.jit(each.predict)(params, stats, batch)[0] for each in (task, smooth))
    np.testing.assert_array_equal(plain, other)
    trained = [jax.jit(each.loss)(params, stats, batch, jax.random.key(0))[0] for each in (task, smooth)]
    assert abs(float(trained[0]) - float(trained[1])) > 1e-3
