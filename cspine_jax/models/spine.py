"""The two networks of the 3D segmentation: where each vertebra is and which (coarse), and its exact shape (fine)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cspine_jax.anatomy import NUM_LABELS
from cspine_jax.config import VolumeConfig
from cspine_jax.models.layers3d import pack
from cspine_jax.models.unet3d import UNet3d

OFFSET_UNIT_MM = 10.0
"""The network votes in centimetres: its outputs then are of order one."""

NUM_COLOURS = 3
"""Neighbouring vertebrae never share a colour, and those that do are at least 40 mm apart."""


def widths(config: VolumeConfig) -> tuple[int, ...]:
    """Features of each level, finest first."""
    return tuple(min(config.width * 2**level, config.max_width) for level in range(config.levels))


class SpineNet(nnx.Module):
    """Level of every voxel, and a vote for the centre of its vertebra.

    Voting makes vertebrae countable before they are named (Hough voting; cf. Novotny et al. 2018): a name can then be
    given to a whole vertebra, in order, rather than to voxels one by one.
    """

    def __init__(self, config: VolumeConfig, *, dtype: Any = None, rngs: nnx.Rngs):
        self.unet = UNet3d(8, NUM_LABELS + 3, widths(config), light=config.light, dtype=dtype, rngs=rngs)

    def __call__(self, image: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """One pass.

        Args:
            image: `[B, D, H, W]`, normalised, at the config's spacing; sides multiples of 2 ** levels.
            train: use and record the batch's statistics.

        Returns:
            On the grid of twice the spacing: `logits` float32 `[B, D/2, H/2, W/2, 20]` (0 background, 1..7 C1..C7,
            8..19 T1..T12) and `offsets` float32 `[B, D/2, H/2, W/2, 3]`, mm (z, y, x) to the vertebra's centroid.
        """
        return self.packed(pack(image[..., None]), train)

    def packed(self, image: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """The same from a packed image `[B, D/2, H/2, W/2, 8]`."""
        y = self.unet(image, train)
        return {"logits": y[..., :NUM_LABELS], "offsets": y[..., NUM_LABELS:] * OFFSET_UNIT_MM}


class RefineNet(nnx.Module):
    """The exact shape of vertebrae whose rough place is known, by colour: (level - C1) mod 3.

    It needs to know no names, so one small network serves every level and a window needs to see little.
    """

    def __init__(self, config: VolumeConfig, *, dtype: Any = None, rngs: nnx.Rngs):
        self.unet = UNet3d(
            8 + NUM_COLOURS,
            1 + NUM_COLOURS,
            widths(config),
            unpacked=True,
            light=config.light,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, image: jax.Array, colours: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """One pass.

        Args:
            image: `[B, D, H, W]`, normalised, at the config's spacing; sides multiples of 2 ** levels.
            colours: `[B, D/2, H/2, W/2, 3]`, rough probability of each colour on the grid of twice the spacing.
            train: use and record the batch's statistics.

        Returns:
            `logits` float32 `[B, D, H, W, 4]`: background, colour 0, 1, 2.
        """
        return self.packed(jnp.concatenate([pack(image[..., None]), colours], axis=-1), train)

    def packed(self, x: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """The same from packed image and colours `[B, D/2, H/2, W/2, 11]`."""
        return {"logits": self.unet(x, train)}


def colour_of(labels: jax.Array) -> jax.Array:
    """Vertebra labels (0 background, 1.. C1..) -> 0 background, 1..3 colours."""
    return jnp.where(labels > 0, (labels - 1) % NUM_COLOURS + 1, 0)
