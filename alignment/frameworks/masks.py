"""Seeded dropout: what a dropout layer multiplies with, drawn by NumPy, so that both frameworks can be given the same."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

# What AlphaDropout puts in the place of a dropped value: −λα of SELU (Klambauer et al., arXiv 1706.02515, equation 14).
DROPPED = -1.7580993408473766


class Masks:
    """The keep masks of one model's dropout layers: mask number k of a pass depends on the seed, the step of training that
    the pass belongs to (None: it belongs to none), k and its shape alone.
    """

    def __init__(self, seed: int) -> None:
        self._seed, self._calls = seed, 0
        self._step: int | None = None

    def restart(self, step: int | None = None) -> None:
        """A new pass through the model begins: it gets the masks of an earlier one of the same step."""
        self._step, self._calls = step, 0

    def keep(self, shape: tuple[int, ...], rate: float) -> NDArray[np.bool_]:
        """The next mask: True with probability 1 − rate, to 1/65536. With another rate it is of the same random numbers."""
        self._calls += 1
        entropy = (self._seed, self._calls) if self._step is None else (self._seed, self._calls, self._step)
        count = math.prod(shape)
        # Raw bits, in 16 for each element: a training step draws millions, and floating-point numbers take five times as long.
        drawn = np.random.PCG64(entropy).random_raw(-(-count // 4)).astype("<u8", copy=False).view("<u2")
        return np.asarray(drawn[:count].reshape(shape) >= round(rate * 65536))


def scaled(keep: NDArray[np.bool_], rate: float, single: bool = False) -> NDArray[np.floating]:
    """What a value is multiplied with so that its expectation stays: 1 / (1 − rate) where it is kept, else 0.

    single: as float32, for values that are float32 themselves.
    """
    dtype = np.float32 if single else np.float64
    return np.multiply(keep.view(np.uint8), 1.0 / (1.0 - rate) if rate < 1.0 else 0.0, dtype=dtype)


def self_normalizing(keep: NDArray[np.bool_], rate: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(factor, summand) of AlphaDropout, by which mean 0 and variance 1 stay (the paper above, section 2)."""
    if rate >= 1.0:
        return np.zeros(keep.shape), np.zeros(keep.shape)
    a = ((1.0 - rate) * (1.0 + rate * DROPPED**2)) ** -0.5
    return a * keep, a * DROPPED * (~keep - rate)
