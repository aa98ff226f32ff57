"""A study gets the same answer alone, padded with anything, in another place of the batch, and in other company."""

import jax
import numpy as np
import pytest
from flax import nnx

from cspine_jax.models.backbones import basic_cnn
from cspine_jax.models.study.bronze import CropClassifier
from cspine_jax.models.study.classifier import StudyClassifier
from cspine_jax.models.study.cnn3d import CNN3D
from cspine_jax.models.study.gold import PatientSequence, VertebraSequence
from cspine_jax.models.study.levels import LevelsModel
from cspine_jax.models.study.silver import TransformerSequence
from cspine_jax.models.study.vit3d import ViT3D
from tests.models.drawn import drawn

TINY = {"in_channels": 2}
LSTM = {**TINY, "hidden": 4}
ATTENTION = {"heads": 2, "depth": 1}
MODELS = {
    "classifier": lambda rngs: StudyClassifier("study_tiny", **TINY, rngs=rngs),
    "bronze": lambda rngs: CropClassifier("study_tiny", **TINY, rngs=rngs),
    "gold vertebra": lambda rngs: VertebraSequence("study_tiny", **LSTM, rngs=rngs),
    "gold patient": lambda rngs: PatientSequence("study_tiny", **LSTM, layers=1, chunk=4, rngs=rngs),
    "bronze with a map": lambda rngs: CropClassifier("study_tiny", **TINY, where=True, rngs=rngs),
    "levels with a map": lambda rngs: LevelsModel(
        "study_tiny", **LSTM, features=8, **ATTENTION, chunk=4, where=True, rngs=rngs
    ),
    "silver": lambda rngs: TransformerSequence("study_tiny", **TINY, features=8, **ATTENTION, rngs=rngs),
    "silver learned": lambda rngs: TransformerSequence(
        "study_tiny", **TINY, features=8, positions="learned", **ATTENTION, rngs=rngs
    ),
    "levels": lambda rngs: LevelsModel("study_tiny", **LSTM, features=8, **ATTENTION, rngs=rngs),
    "vit3d": lambda rngs: ViT3D(**TINY, tubelet=(2, 4, 4), features=16, **ATTENTION, rngs=rngs),
    "vit3d learned": lambda rngs: ViT3D(
        **TINY, tubelet=(2, 4, 4), features=16, positions="learned", **ATTENTION, rngs=rngs
    ),
    "cnn3d": lambda rngs: CNN3D(**TINY, widths=(4, 6), blocks=(1, 1), rngs=rngs),
    "cnn3d (2+1)D": lambda rngs: CNN3D(**TINY, widths=(4, 6), blocks=(1, 1), factorised=True, rngs=rngs),
}

LENGTHS = (3, 9, 5)
PADDED = 9


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(basic_cnn.VARIANTS, "study_tiny", basic_cnn.Config(widths=(4,), blocks=(0,)))


def studies(seven):
    """image, mask: three studies of LENGTHS slices, NaN beyond; for each of seven vertebrae, or once."""
    shape = (3, 7, PADDED) if seven else (3, PADDED)
    mask = np.arange(PADDED) < np.array(LENGTHS).reshape(-1, *[1] * (len(shape) - 1))
    mask = np.broadcast_to(mask, shape).copy()
    if seven:
        mask[0, 1] = False  # absent vertebrae
        mask[2, 4:] = False
    image = np.random.default_rng(0).random((*shape, 9, 8, 2)).astype(np.float32)
    return np.where(mask[..., None, None, None], image, np.nan), mask


@pytest.mark.parametrize("name", MODELS)
def test_alone_padded_reordered_and_rebatched_studies_get_the_same_answer(name):
    seven = name.startswith("levels")
    graph, state = drawn(MODELS[name])
    run = jax.jit(lambda image, mask: nnx.merge(graph, state)(image, mask))

    def answers(image, mask):
        """Answers a study, those of masked slices and levels (which mean nothing) left out."""
        y = run(image, mask)
        level = np.concatenate([np.ones((len(mask), 1), bool), mask.any(-1)], axis=1) if seven else None
        parts = list(y.values()) if isinstance(y, dict) else [y]
        kept = []
        for k in range(len(mask)):
            use = [level[k] if seven else mask[k] if p.shape == mask.shape else ... for p in parts]
            kept.append([np.asarray(p[k])[where] for p, where in zip(parts, use, strict=True)])
        return kept

    image, mask = studies(seven)
    together = answers(image, mask)
    assert all(np.isfinite(part).all() for study in together for part in study)
    assert all(abs(a.flat[0] - b.flat[0]) > 1e-4 for a, b in zip(together[0], together[2], strict=True))

    def same(study, other):
        for a, b in zip(study, other, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)

    order = [2, 0, 1]
    for k, study in zip(order, answers(image[order], mask[order]), strict=True):
        same(study, together[k])
    company = image.copy()
    company[1] = 0.5
    garbage = np.where(np.isnan(company), 7.0, company)
    crowd = answers(garbage, mask)
    same(crowd[0], together[0])
    same(crowd[2], together[2])
    n = LENGTHS[2]
    alone = answers(image[2:, ..., :n, :, :, :], mask[2:, ..., :n])[0]
    same(alone, together[2])


def test_the_order_of_slices_means_nothing_to_document_as_classifier():
    graph, state = drawn(MODELS["classifier"])
    image, mask = studies(False)
    order = np.random.default_rng(1).permutation(PADDED)
    run = jax.jit(lambda image, mask: nnx.merge(graph, state)(image, mask))
    np.testing.assert_allclose(run(image, mask), run(image[:, order], mask[:, order]), atol=1e-5)
