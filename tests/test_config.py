import pytest

from cspine_jax import config
from cspine_jax.errors import ConfigError


def test_round_trip_keeps_every_field():
    changed = config.from_dict({"seed": 3, "data": {"fold": 1, "phantom": {"studies": 7}}, "optim": {"lr": 1}})
    assert config.from_dict(config.to_dict(changed)) == changed
    assert changed.optim.lr == 1.0 and isinstance(changed.optim.lr, float)
    assert changed.data.phantom.studies == 7 and changed.data.phantom.size == config.PhantomConfig().size


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": {"folds": 1}}, "data.folds: no such field; did you mean data.fold?"),
        ({"data": {"fold": "a"}}, "data.fold='a': must be int"),
        ({"data": {"fold": True}}, "data.fold=True: must be int"),
        ({"data": {"fold": 5}}, r"data.fold=5: must be in 0..4"),
        ({"data": {"depth": 4}}, "data.depth=4: a stack needs a centre slice; use 5"),
        ({"data": {"phantom": {"size": 3}}}, "data.phantom.size=3: must be at least 32"),
        ({"data": 3}, "data=3: must be a group of fields"),
        ({"train": {"total_steps": 3, "total_epochs": 1.0}}, "give exactly one above 0"),
        ({"train": {"choose_by": "auc"}}, "train.choose_by='auc': must be one of loss, vertebra_auc, patient_auc"),
        ({"train": {"choose_by": "patient_auc"}}, "task 'fracture' has no such figure; set it to 'loss'"),
        ({"model": {"type": 4}}, "model.type=4: must be one of 1, 2, 3"),
        ({"augment": {"window_width": 0}}, "augment.window_width=0.0: must be above 0"),
    ],
)
def test_bad_values_are_refused_with_the_fix(values, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")) as error:
        config.from_dict(values)
    assert "\n" not in str(error.value)


def test_a_recipe_that_gives_one_duration_replaces_the_default_one():
    assert config.from_dict({"train": {"total_steps": 3}}).train.total_epochs == 0


def test_flatten():
    assert config.flatten({"a": 1, "b": {"c": {"d": 2}}}) == {"a": 1, "b.c.d": 2}
