"""Vertebra crops as records: one a vertebra that a mask shows, built once, read by random access.

`layout` names the crops and says what a record holds, `cut` is their geometry, `masks` finds the mask of each study
(the true one, or an out-of-fold prediction), `build` writes the records, `table` reads them back. Nothing here imports
jax.
"""

from cspine_jax.data.crops.build import build_crops, check_cut, crops_path
from cspine_jax.data.crops.layout import CropLayout
from cspine_jax.data.crops.table import CropTable

__all__ = ["CropLayout", "CropTable", "build_crops", "check_cut", "crops_path"]
