"""Random values that are the same on every platform and with every NumPy version.

NumPy promises the raw 64-bit stream of a bit generator, but not the streams of its distributions, and the logarithms
and cosines of the usual normal generators differ between C libraries. So everything here starts from raw Philox words
and goes on with integer arithmetic, or with single IEEE operations that every machine rounds alike.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np

WIDEST = 1 << 32


class Raw:
    """One stream of random values, named by a seed and any number of labels: other labels, an independent stream."""

    def __init__(self, seed: int, *labels: str) -> None:
        name = "\x1f".join([str(int(seed)), *labels]).encode()
        key = np.frombuffer(hashlib.sha256(name).digest()[:16], dtype="<u8").astype(np.uint64)
        self._words = np.random.Philox(key=key)

    def words(self, count: int) -> np.ndarray:
        """`count` raw words, uint64 [count]."""
        return np.asarray(self._words.random_raw(count), dtype=np.uint64)

    def integers(self, low: int, high: int, shape: tuple[int, ...]) -> np.ndarray:
        """Integers in [low, high), int64 [*shape], by multiply-shift: no value is likelier than another by more than
        (high - low) / 2**32, which is also the widest range."""
        span = high - low
        if not 0 < span <= WIDEST:
            raise ValueError(f"integers in [{low}, {high}): the range must hold 1 to 2**32 values")
        words = self.words(math.prod(shape)) >> np.uint64(32)
        return ((words * np.uint64(span)) >> np.uint64(32)).astype(np.int64).reshape(shape) + low

    def normals(self, shape: tuple[int, ...]) -> np.ndarray:
        """Normal values with mean 0 and variance 1, float64 [*shape]: twelve uniforms of 48 bits, summed as integers.

        The sum is below 2**52, so turning it into a float is exact and no machine rounds it differently. What it costs:
        the tails end at ±6 and the fourth moment is 2.9 where a true normal has 3.
        """
        total = np.zeros(math.prod(shape), dtype=np.uint64)
        for _ in range(12):
            total += self.words(total.size) >> np.uint64(16)
        # 6 is the mean of twelve uniforms, half a step of 2**-48 each is what the truncation took: both exact.
        return ((total.astype(np.float64) - (6.0 * 2.0**48 - 6.0)) * 2.0**-48).reshape(shape)

    def shuffled(self, count: int) -> np.ndarray:
        """The numbers 0 … count - 1 in random order, int64 [count]: sorted by a random word each, ties by number."""
        return np.argsort(self.words(count), kind="stable").astype(np.int64)
