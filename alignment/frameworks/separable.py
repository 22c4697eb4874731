"""Pooling and interpolation as one matrix for each axis: what they are, to the last digit of float64.

Some kernels keep their factors in float32 whatever they compute in. Where a run in float64 is to tell what a model means, they
are replaced by these. All matrices are float64 of shape [size after, size before].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def windows(size: int, after: int, kernel: int, stride: int, padding: int, counted: bool) -> Matrix:
    """Means over windows. counted: divide by the elements of padding, too; a window that leaves the padding is cut there."""
    matrix = np.zeros((after, size))
    for row in range(after):
        start, end = row * stride - padding, min(row * stride - padding + kernel, size + padding)
        inside = slice(max(start, 0), min(end, size))
        matrix[row, inside] = 1.0 / (end - start if counted else inside.stop - inside.start)
    return matrix


def adaptive_windows(size: int, after: int) -> Matrix:
    """Means over the windows that divide an axis into `after` parts as equal as can be."""
    matrix = np.zeros((after, size))
    for row in range(after):
        inside = slice(row * size // after, -(-(row + 1) * size // after))
        matrix[row, inside] = 1.0 / (inside.stop - inside.start)
    return matrix


def linear(size: int, after: int, align_corners: bool, scale: float | None = None) -> Matrix:
    """Linear interpolation. scale: how far apart positions are, where that is not told by the two sizes."""
    at = np.maximum(_positions(size, after, align_corners, scale), 0.0)
    low = np.floor(at).astype(int)
    high, share = np.minimum(low + 1, size - 1), at - low
    matrix, rows = np.zeros((after, size)), np.arange(after)
    np.add.at(matrix, (rows, low), 1.0 - share)
    np.add.at(matrix, (rows, high), share)
    return matrix


def cubic(size: int, after: int, align_corners: bool, scale: float | None = None) -> Matrix:
    """Cubic convolution (Keys, 1981) with a = −0.75, as both frameworks have it; beyond the border its values go on."""
    at = _positions(size, after, align_corners, scale)
    low, a = np.floor(at).astype(int), -0.75
    matrix, rows = np.zeros((after, size)), np.arange(after)
    for offset in range(-1, 3):
        t = np.abs(at - low - offset)
        near, far = ((a + 2) * t - (a + 3)) * t * t + 1, ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
        np.add.at(matrix, (rows, np.clip(low + offset, 0, size - 1)), np.where(t <= 1, near, far))
    return matrix


def _positions(size: int, after: int, align_corners: bool, scale: float | None) -> NDArray[np.float64]:
    rows = np.arange(after, dtype=np.float64)
    if align_corners:
        return rows * ((size - 1) / (after - 1) if after > 1 else 0.0)
    return np.asarray((rows + 0.5) * (size / after if scale is None else 1.0 / scale) - 0.5)
