"""Bounds on what one study may cost. A real neck CT stays far below each of them."""

MAX_FILES = 20_000
"""Files looked at in one study."""

MAX_SIDE = 4_096
"""Rows or columns of an image."""

MAX_VOLUME_BYTES = 8 << 30
"""Bytes of one volume in int16 (a 512 x 512 x 1,082 study takes 0.6 GB)."""

MAX_HEADER_BYTES = 64 << 20
"""Bytes of an inflated header and frame in a deflated file."""

DECODER_MEMORY_BYTES = 4 << 30
"""Address space of a decoder process."""

DECODER_SECONDS = 20
"""Processor seconds a decoder may spend on one frame."""
