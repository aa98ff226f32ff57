"""Band-limited random fields fixed in space, looked up by position: trabecular texture and uneven surfaces."""

import numpy as np

EDGE = 64


class Texture:
    """A periodic cube of Gaussian noise (mean 0, standard deviation 1) sampled at any position.

    Args:
        rng: random stream.
        correlation: standard deviation of the smoothing kernel, in cells.
        cell_mm: edge of a cell; the pattern repeats every 64 cells.
    """

    def __init__(self, rng: np.random.Generator, correlation: float, cell_mm: float):
        """Draws and smooths the cube (periodic, by Fourier transform)."""
        white = rng.standard_normal((EDGE, EDGE, EDGE), dtype=np.float32)
        f = np.fft.fftfreq(EDGE)
        gain = np.exp(-2 * (np.pi * correlation * f) ** 2)
        spectrum = np.fft.rfftn(white) * gain[:, None, None] * gain[None, :, None] * gain[None, None, : EDGE // 2 + 1]
        cube = np.fft.irfftn(spectrum, s=white.shape, axes=(0, 1, 2))
        cube = ((cube - cube.mean()) / cube.std()).astype(np.float32)
        self._solid, self._cube = cube, cube.ravel()
        self._per_mm = np.float32(1 / cell_mm)

    def __call__(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Noise at positions in mm (arrays that broadcast together); nearest cell, so keep cells below a voxel."""

        def cell(v: np.ndarray, stride: int) -> np.ndarray:
            return (np.floor(v * self._per_mm).astype(np.int32) & (EDGE - 1)) * np.int32(stride)

        return self._cube[cell(x, EDGE * EDGE) + cell(y, EDGE) + cell(z, 1)]

    def aligned(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Noise on the box spanned by coordinate vectors in mm, float32 [len(z), len(y), len(x)]: much faster."""
        cells = [np.floor(np.asarray(v) * self._per_mm).astype(np.int32) & (EDGE - 1) for v in (z, y, x)]
        return self._solid[cells[0]][:, cells[1]][:, :, cells[2]]
