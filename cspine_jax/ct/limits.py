"""Bounds on what one study may cost. A real neck CT stays far below each of them."""

MAX_FILES = 20_000
"""Files looked at in one study."""

MAX_ARCHIVE_BYTES = 16 << 30
"""Bytes a zip archive may say it unpacks to."""

MAX_RATIO = 500
"""Times a zip member may grow; a CT slice grows two- to fourfold, an empty one a hundredfold."""

MOST_AIR_HU = -200
"""The darkest voxel of a CT in HU lies below this: there is air around or in every patient."""

MAX_SIDE = 4_096
"""Rows or columns of an image."""

MAX_VOLUME_BYTES = 8 << 30
"""Bytes of one volume in int16 (a 512 x 512 x 1,082 study takes 0.6 GB)."""

MAX_HEADER_BYTES = 64 << 20
"""Bytes of an inflated header and frame in a deflated file."""

MAX_FRAME_BYTES = 256 << 20
"""Bytes of one compressed image."""

DECODER_MEMORY_BYTES = 1 << 30
"""Private memory of a decoder process; the shared volume does not count."""

DECODER_SECONDS = 20
"""Processor seconds a decoder may spend on one frame."""
