"""Recipes by name and variant: all of them parse, and what cannot be loaded says so."""

from pathlib import Path

import jax
import numpy as np
import pytest

from cspine_jax.config import from_dict
from cspine_jax.errors import ConfigError
from cspine_jax.recipes import load_recipe, run_name, split_variant, variants
from cspine_jax.training.study_task import StudyTask
from cspine_jax.training.weights_file import read

CONFIGS = Path(__file__).parents[1] / "configs"
STUDY_LEVEL = ("bronze", "classifier", "cnn3d", "gold_type1", "gold_type2", "levels", "silver", "vit3d")
ALL = [
    f"{path}{':' if variant else ''}{variant}"
    for path in sorted(CONFIGS.glob("*.py"))
    for variant in ("", *variants(str(path)))
]


@pytest.mark.parametrize("recipe", ALL, ids=lambda recipe: Path(recipe).name)
def test_every_recipe_parses(recipe):
    config = from_dict(load_recipe(recipe))
    assert config.name == Path(split_variant(recipe)[0]).stem or ":" not in recipe


@pytest.mark.parametrize("name", STUDY_LEVEL)
def test_study_level_recipes_have_three_variants_and_full_is_the_default(name):
    path = str(CONFIGS / f"{name}.py")
    assert {"full", "phantom", "smoke"} <= set(variants(path))
    assert load_recipe(path) == load_recipe(f"{path}:full")
    full, phantom, smoke = (from_dict(load_recipe(f"{path}:{v}")) for v in ("full", "phantom", "smoke"))
    assert full.data.manual_dir == "data/rsna" and full.train.bf16 and full.optim.weight_decay > 0
    assert phantom.data.manual_dir == smoke.data.manual_dir == ""
    assert (phantom.data.phantom.studies, phantom.data.phantom.seed, phantom.data.phantom.size) == (1500, 77, 192)
    assert smoke.data.phantom.studies <= 10 and smoke.train.total_steps <= 4
    assert full.study.model == phantom.study.model == smoke.study.model
    text = (CONFIGS / f"{name}.py").read_text()
    assert all(part in text for part in (f"configs/{name}.py:smoke", "Cost:", "Expected:"))


def test_gold_goes_on_from_the_packages_gold():
    gold = CONFIGS / "gold_type1.py"
    phantom, more = (from_dict(load_recipe(f"{gold}:{variant}")) for variant in ("phantom", "phantom-more"))
    assert more.train.init_from == "package:gold" and not more.train.freeze_encoder
    assert (more.crops, more.study, more.data) == (phantom.crops, phantom.study, phantom.data)
    assert (phantom.augment.bone_only, more.model.pretrained) == (0.0, "") and more.augment.bone_only > 0


@pytest.mark.parametrize("name", ["bronze", "gold_type1", "gold_type2", "levels", "silver"])
def test_staged_recipes_stand_on_the_packages_gold_which_has_seen_none_of_their_phantoms(name):
    path = CONFIGS / f"{name}.py"
    phantom, staged = (from_dict(load_recipe(f"{path}:{variant}")) for variant in ("phantom", "phantom-staged"))
    gold = from_dict(load_recipe(f"{CONFIGS / 'gold_type1.py'}:phantom"))
    assert staged.train.init_from == "package:gold" and staged.train.freeze_encoder
    card = read("package:gold")[1].networks["fracture"]
    given = from_dict(card["config"])
    assert (given.study.model, given.model.backbone) == ("gold", staged.model.backbone)
    assert given.crops == staged.crops
    assert card["phantom_seeds"] and staged.data.phantom.seed not in card["phantom_seeds"]
    assert (phantom.model.pretrained, staged.model.pretrained) == ("imagenet", "")
    assert staged.crops == phantom.crops == gold.crops and staged.study == phantom.study
    assert staged.model.backbone == gold.model.backbone and staged.data.phantom == gold.data.phantom


@pytest.mark.parametrize("backbone", ["basic_cnn", "inception_v3", "resnet50", "efficientnet_b5"])
def test_the_backbones_of_document_a(backbone):
    path = CONFIGS / "classifier.py"
    assert load_recipe(f"{path}:full-{backbone}")["model"]["backbone"] == backbone
    task = StudyTask(from_dict(load_recipe(f"{path}:smoke-{backbone}")))
    size = task._config.data.size
    batch = {"image": np.zeros((2, 5, size, size, 3), np.int16), "there": np.ones((2, 5), bool),
             "targets": np.zeros((2, 8)), "targets_known": np.ones((2, 8)), "valid": np.ones(2, bool)}  # fmt: skip
    jax.eval_shape(lambda: task.predict(*task.init(jax.random.key(0)), batch))  # it takes images of that size


def test_the_ablation_of_document_c():
    path = CONFIGS / "vit3d.py"
    settings = []
    for variant in ("full-batch1", "full-lr5e-4", "full"):
        config = from_dict(load_recipe(f"{path}:{variant}"))
        settings.append((config.data.batch_size, config.optim.lr, config.loss.label_smoothing))
        assert (config.study.every, config.study.max_slices, config.data.depth, config.study.with_mask) == (
            2, 105, 5, True,
        )  # fmt: skip
    assert settings == [(1, 3e-4, 0.0), (1, 5e-4, 0.1), (2, 3e-4, 0.1)]


def test_names():
    assert split_variant("configs/a.py:smoke") == ("configs/a.py", "smoke")
    assert split_variant("configs/a.py") == ("configs/a.py", "")
    assert run_name("configs/a.py:full-resnet50") == "a_full-resnet50" and run_name("configs/a.py") == "a"


@pytest.mark.parametrize(("recipe", "message"), [
    ("gold_type1.py:smok", r"has no variant 'smok'; did you mean .*gold_type1\.py:smoke\?"),
    ("gold_type1.py:xyz", r"has no variant 'xyz'; it has full, phantom, phantom-more, phantom-staged, smoke"),
    ("quickstart.py:smoke", r"quickstart\.py has no variants; leave out ':smoke'"),
    ("gold_typ1.py:smoke", r"no such file; did you mean .*gold_type1\.py\?"),
])  # fmt: skip
def test_what_cannot_be_loaded(recipe, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(str(CONFIGS / recipe))


def test_a_recipe_that_fails_says_where(tmp_path):
    (tmp_path / "bad.py").write_text("def get_config():\n    return 1 / 0\n")
    with pytest.raises(ConfigError, match=r"bad\.py: ZeroDivisionError"):
        load_recipe(str(tmp_path / "bad.py"))
    (tmp_path / "worse.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(ConfigError, match=r"worse\.py: ModuleNotFoundError"):
        variants(str(tmp_path / "worse.py"))
