"""Wide phantoms: far beyond the challenge's people and scans, and never another draw of the challenge's own."""

import numpy as np
import pytest

from cspine_jax.errors import ConfigError
from cspine_jax.phantom.dataset import make_study
from cspine_jax.phantom.sample import sample_study


def test_wide_studies_span_what_real_ct_brings():
    plans = [sample_study(3, i, size=64, variety="wide") for i in range(300)]
    lengths = np.array([p.acquisition.slices * p.acquisition.spacing_mm for p in plans])
    assert lengths.min() < 80 and lengths.max() > 280
    fields = np.array([p.acquisition.size * p.acquisition.pixel_mm for p in plans])
    assert fields.min() < 130 and fields.max() > 285
    tops = np.array([p.acquisition.top_mm for p in plans])
    assert (tops < 40).mean() > 0.1  # begins below C1
    lordosis = np.array([p.anatomy.lordosis_deg for p in plans])
    assert lordosis.min() < -15 and lordosis.max() > 45


def test_fractures_are_those_of_the_same_study_of_the_challenge():
    for index in range(20):
        plain, wide = (sample_study(3, index, size=64, variety=v) for v in ("rsna", "wide"))
        assert plain.fractures == wide.fractures
        assert plain.uid != wide.uid
        assert plain.anatomy != wide.anatomy


def test_a_short_piece_shows_some_vertebrae_only():
    short = next(i for i in range(40) if len(np.unique(make_labels(i))) < 6)
    labels = np.unique(make_labels(short))
    present = labels[labels > 0]
    assert np.array_equal(present, np.arange(present.min(), present.max() + 1))


def make_labels(index: int) -> np.ndarray:
    return make_study(3, index, size=48, scale=0.2, variety="wide").labels


def test_an_unknown_variety_is_refused():
    with pytest.raises(ConfigError, match="variety='all': must be one of rsna, wide"):
        sample_study(0, 0, variety="all")
