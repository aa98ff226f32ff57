from types import SimpleNamespace

import numpy as np
import pytest

from cspine_jax.ct import resample


@pytest.mark.parametrize("depths", [(0, 1, 51, 101), (0, 50, 51, 151), (0, 2.5, 5, 7.5, 107.5)])
def test_the_spacing_is_one_that_occurs(depths):
    headers = [SimpleNamespace(name=f"{k}.dcm") for k in range(len(depths))]
    spacing, odd = resample._gaps(SimpleNamespace(depths=np.array(depths, float), headers=headers))
    assert spacing == np.diff(depths).min()
    assert len(odd) == (np.diff(depths) > spacing).sum()
