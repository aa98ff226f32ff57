"""Files -> volumes: sorting, geometry, HU, masks. numpy only; pydicom and nibabel stop here.

The conventions, said once: a volume is an int16 array [D, H, W] of Hounsfield units with axes (z, y, x); index 0 is
the most superior slice, rows advance towards the patient's back, columns towards the patient's left. Spacing is
(z, y, x) in mm. The affine maps a voxel index (z, y, x, 1) to LPS millimetres (x towards the left, y towards the
back, z towards the head).
"""

from cspine_jax.ct.identity import Identity
from cspine_jax.ct.masks import read_mask
from cspine_jax.ct.quality import Quality, assess
from cspine_jax.ct.read import read_study
from cspine_jax.ct.volume import Resampling, Volume

__all__ = ["Identity", "Quality", "Resampling", "Volume", "assess", "read_mask", "read_study"]
