"""Which reviews are for training, validation and test: disjoint, shuffled, the same for the same seed everywhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fake_data._raw import Raw
from fake_data.errors import DataError

CLASSES = 5
SHARES = (8, 1, 1)  # of ten
BALANCED = 1_000  # units of ten reviews of each class: 8,000 / 1,000 / 1,000
RANDOM = 5_000  # units of ten reviews: 40,000 / 5,000 / 5,000


@dataclass(frozen=True, eq=False)
class Split:
    """Row numbers of the reviews in each part, int64, disjoint, in random order; `notes` say what was scaled down."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    notes: tuple[str, ...] = ()

    def rows(self) -> np.ndarray:
        """All rows, train first, then validation, then test."""
        return np.concatenate([self.train, self.validation, self.test])

    def parts(self) -> dict[str, tuple[int, int]]:
        """Where each part starts and ends in `rows`."""
        first, second = len(self.train), len(self.train) + len(self.validation)
        return {"train": (0, first), "validation": (first, second), "test": (second, second + len(self.test))}


def balanced_split(labels: np.ndarray, *, seed: int) -> Split:
    """8,000 reviews of each class for training, 1,000 for validation and 1,000 for test; `labels` int [n] in 0 … 4.

    Where the rarest class has fewer than 10,000, all parts shrink alike and a note says so. DataError below ten.
    """
    counts = np.bincount(labels, minlength=CLASSES)
    rarest = int(counts.argmin())
    fewest = int(counts[rarest])
    unit = min(BALANCED, fewest // 10)
    if unit == 0:
        raise DataError(
            f"a balanced split needs ten reviews of each rating, but {fewest} have {rarest + 1} stars; "
            "read a larger file, or split at random"
        )
    raw = Raw(seed, "split", "balanced")
    chosen = []
    for class_ in range(CLASSES):
        rows = np.flatnonzero(labels == class_)
        chosen.append(_deal(rows[raw.shuffled(len(rows))], unit))
    parts = [np.concatenate(part) for part in zip(*chosen, strict=True)]
    train, validation, test = (part[raw.shuffled(len(part))] for part in parts)
    notes: tuple[str, ...] = ()
    if unit < BALANCED:
        notes = (
            f"only {fewest:,} reviews have {rarest + 1} stars, so each class gives {8 * unit:,} / {unit:,} / {unit:,} "
            "for training, validation and test, not 8,000 / 1,000 / 1,000",
        )
    return Split(train, validation, test, notes)


def random_split(count: int, *, seed: int) -> Split:
    """40,000 of `count` reviews for training, 5,000 for validation and 5,000 for test, at random.

    Of fewer than 50,000 reviews all parts shrink alike and a note says so. DataError below ten.
    """
    unit = min(RANDOM, count // 10)
    if unit == 0:
        raise DataError(f"a split needs ten reviews, but there are {count}; read a larger file")
    notes: tuple[str, ...] = ()
    if unit < RANDOM:
        notes = (
            f"only {count:,} reviews, so {8 * unit:,} / {unit:,} / {unit:,} are for training, validation and test, "
            "not 40,000 / 5,000 / 5,000",
        )
    return Split(*_deal(Raw(seed, "split", "random").shuffled(count), unit), notes)


def _deal(rows: np.ndarray, unit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first eight units of the rows, the next and the next."""
    train, validation, test, _ = np.split(rows, np.cumsum(SHARES) * unit)
    return train, validation, test
