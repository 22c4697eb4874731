"""Which sample a row is, whatever its padding; and some samples of each side, the same ones of both, to compare in any order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from alignment.training.corrections import ENDS, run_at
from alignment.training.streams import Names, row_names

# Tokens that a sample is known by: few enough that rows cut to another length have them.
TOKENS = 32
# Samples of each side that are kept.
KEPT = 512


@dataclass(frozen=True)
class Known:
    """What samples are known by: their first `tokens` between what may be padding on either side; without any, the whole row.

    The same for both sides, so that equal rows have equal names even where `padding` is none.
    """

    padding: tuple[int, ...] = ()
    tokens: int = TOKENS

    @classmethod
    def by(cls, *sides: NDArray) -> Known:
        """Of rows [n, L] of whole numbers of each side: 0 may be padding, and what stands in long runs at one of their ends."""
        if not all(rows.ndim == 2 and rows.dtype.kind == "i" and rows.size for rows in sides):
            return cls()
        runs = [(max(run_at(rows, end) for end in ENDS), len(rows)) for rows in sides]
        padding = {0, *(value for (length, value), count in runs if length > 1 + count / 4)}
        return cls(tuple(sorted(padding)), min(TOKENS, *(rows.shape[1] for rows in sides)))

    def names(self, rows: NDArray) -> Names:
        """A name for each row, uint64 [n]."""
        if not self.padding or rows.ndim != 2:
            return row_names(rows)
        real = np.logical_and.reduce([rows != pad for pad in self.padding])
        width = rows.shape[1]
        first = real.argmax(axis=1)
        count = np.where(real.any(axis=1), width - real[:, ::-1].argmax(axis=1) - first, 0)
        place = np.arange(self.tokens)
        tokens = np.take_along_axis(rows, np.minimum(first[:, None] + place, width - 1), axis=1)
        return row_names(np.where(place < count[:, None], tokens, self.padding[0]))


class Kept:
    """The samples with the smallest names: of two sides that have the same samples the same ones, whatever their order."""

    def __init__(self) -> None:
        self._rows: dict[int, list[NDArray] | None] = {}
        self._below = 2**64

    def add(self, names: Names, inputs: Sequence[NDArray]) -> None:
        """Rows of a batch, and their names."""
        for place in np.flatnonzero(names < self._below) if self._below < 2**64 else range(len(names)):
            name = int(names[place])
            # Of samples that can't be told apart none is compared.
            self._rows[name] = None if name in self._rows else [rows[place].copy() for rows in inputs]
        if len(self._rows) > 2 * KEPT:
            smallest = sorted(self._rows)[: KEPT + 1]
            self._below = smallest[KEPT]
            self._rows = {name: self._rows[name] for name in smallest[:KEPT]}

    def pairs(self, other: Kept, number: int) -> Iterator[tuple[NDArray, NDArray]]:
        """One input's rows of the samples that both have, [n, ...] of both sides, those of equal shapes together."""
        ours, theirs = self._rows, other._rows
        found = [(a[number], b[number]) for name in ours if (a := ours[name]) and (b := theirs.get(name))]

        def shapes(pair: tuple[NDArray, NDArray]) -> tuple[tuple[int, ...], tuple[int, ...]]:
            return pair[0].shape, pair[1].shape

        for _, group in groupby(sorted(found, key=shapes), key=shapes):
            one, two = zip(*group, strict=True)
            yield np.stack(one), np.stack(two)
