"""A CT volume and two networks -> the vertebrae in it: votes, instances, anatomical order, fine masks, files.

Voxel indices are (z, y, x) everywhere; "level" is an index into `LEVELS` (0 = C1 .. 18 = T12), mask values
are level + 1.
"""

from cspine_jax.anatomy import LABEL_NAMES

LEVELS: tuple[str, ...] = tuple(LABEL_NAMES[value] for value in sorted(LABEL_NAMES))
"""C1..C7, T1..T12: what the networks tell apart, from head to feet."""

COLOURS = 3
"""Levels are coloured level mod 3 for the fine network: neighbours differ, and it needs no names."""

AIR = -1000
"""HU of what lies outside a volume."""
