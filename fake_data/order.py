"""The order in which the rows of a data set come in an epoch, the same on every platform and with every NumPy version."""

from __future__ import annotations

import numpy as np

from fake_data._raw import Raw
from fake_data.errors import DataError


def epoch_order(count: int, *, seed: int, epoch: int) -> np.ndarray:
    """The row numbers 0 … count - 1 in the random order of that epoch, int64 [count].

    It depends on these three numbers alone, so any epoch's order is had without those before it. Raises DataError where
    there is no row, or the epoch is negative.
    """
    if count < 1 or epoch < 0:
        raise DataError(f"an order of {count} rows in epoch {epoch}: there must be a row, and epochs count from 0")
    return Raw(seed, "order", str(int(epoch))).shuffled(count)
