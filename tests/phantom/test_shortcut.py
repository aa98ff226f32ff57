"""No shortcut: what a study looks like as a whole must not tell whether a vertebra in it is broken."""

import concurrent.futures
import multiprocessing

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cspine_jax.phantom import make_study, sample_study

STUDIES, SEED, SMALL = 400, 11, {"size": 64, "scale": 0.1}
EDGES = np.array([-4000, -1010, -900, -500, -200, -120, -80, -40, 0, 25, 50, 75, 100, 150, 200, 250, 300, 350, 400])
EDGES = np.concatenate([EDGES, np.arange(500, 1600, 100), [1800, 2000, 2500, 3000, 4000]])


def features_and_label(index):
    """Histogram of HU (shares), slice count and geometry of one study; 1 if it has a fracture."""
    study = make_study(SEED, index, **SMALL)
    q = study.plan.acquisition
    histogram = np.histogram(study.hu, EDGES)[0] / study.hu.size
    extent = q.spacing_mm * (q.slices - 1)
    geometry = [q.slices, q.spacing_mm, q.thickness_mm, q.pixel_mm, extent, q.top_mm, *q.centre_mm, *q.origin_mm]
    moments = [study.hu.mean(dtype=float), study.hu.std(dtype=float), q.ascending, q.first_number]
    return np.concatenate([histogram, geometry, moments]), study.plan.labels[0]


def cross_validated_auc(x, y):
    """AUC of a standardised logistic regression; each study is predicted by a model of the other four folds."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=5000))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return roc_auc_score(y, cross_val_predict(model, x, y, cv=folds, method="predict_proba")[:, 1])


def test_the_probe_finds_a_planted_shortcut():
    rng = np.random.default_rng(0)
    y = rng.random(400) < 0.48
    x = rng.normal(size=(400, 40))
    assert cross_validated_auc(x, y) < 0.6
    x[:, 7] += 1.2 * y
    assert cross_validated_auc(x, y) > 0.65


@pytest.mark.slow
def test_histograms_slice_counts_and_geometry_do_not_tell_the_patient_label():
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        rows = list(pool.map(features_and_label, range(STUDIES), chunksize=8))
    x, y = np.stack([row for row, _ in rows]), np.array([label for _, label in rows])
    planned = np.array([sample_study(SEED, index, **SMALL).labels[0] for index in range(STUDIES)])
    auc = cross_validated_auc(x, y)
    print(
        f"\nshortcut test: patient AUC {auc:.3f} over {STUDIES} studies, {y.sum()} fractured of {planned.sum()} planned"
    )
    assert y.sum() > 0.85 * planned.sum()  # few labels are lost to coarse sampling
    assert auc < 0.60
