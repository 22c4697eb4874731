"""How the rows of an input may be others on one side though they stand for the same samples: each with its correction.

A correction is put to the test on every stretch of rows, and is gone with the first that it does not bring to equality; what is
left at the end is proved by all rows that were compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
from numpy.typing import NDArray

# Of the largest value: what converting by another route may cost in the narrower dtype, in units of its precision.
ROUNDING_ULPS = 16


@dataclass(frozen=True)
class Correction:
    """One way to bring the candidate's rows to the reference's.

    cause: its name. change: what is corrected, in words. holds: do these rows [n, ...] of both become equal by it?
    """

    cause: str
    change: str
    holds: Callable[[NDArray, NDArray], bool]


def corrections(ours: NDArray, theirs: NDArray, equal_before: bool) -> Iterator[Correction]:
    """What could be behind rows that differ, read off these: the first stretch where some do.

    equal_before: were all rows before these equal? Then what changes every value is none of it.
    """
    if ours.shape == theirs.shape:
        if ours.dtype.kind == "i" and not equal_before and ours.size:
            yield from _offset(ours, theirs)
        if ours.dtype.kind == "f":
            yield _rounding()
    if ours.dtype.kind == theirs.dtype.kind == "i" and ours.ndim == theirs.ndim == 2 and ours.size and theirs.size:
        yield from _padding(ours, theirs)


def rows_equal(ours: NDArray, theirs: NDArray) -> NDArray[np.bool_]:
    """Which rows are equal, bool [n]; NaN is equal to NaN. Of other shapes none is."""
    if ours.shape != theirs.shape:
        return np.zeros(len(ours), dtype=bool)
    same = ours == theirs
    if ours.dtype.kind == "f":
        same |= np.isnan(ours) & np.isnan(theirs)
    return np.asarray(same.all(axis=tuple(range(1, same.ndim))))


def _offset(ours: NDArray, theirs: NDArray) -> Iterator[Correction]:
    by = int(theirs.flat[0] - ours.flat[0])
    if by:

        def holds(one: NDArray, two: NDArray) -> bool:
            return one.shape == two.shape and bool((two - by == one).all())

        direction = "off" if by > 0 else "to"
        yield Correction("data-offset", f"{'taking' if by > 0 else 'adding'} {abs(by)} {direction} every value", holds)


def _rounding() -> Correction:
    def holds(one: NDArray, two: NDArray) -> bool:
        if one.shape != two.shape:
            return False
        wide, other = one.astype(np.float64), two.astype(np.float64)
        odd = ~(np.isfinite(wide) & np.isfinite(other))
        if not rows_equal(wide[odd], other[odd]).all():
            return False
        wide, other = wide[~odd], other[~odd]
        allowed = ROUNDING_ULPS * float(np.finfo(one.dtype).eps) * float(np.abs(wide).max(initial=0.0))
        return bool((np.abs(other - wide) <= allowed).all())

    return Correction("data-rounding", "rounding the values alike", holds)


# --------------------------------------------------------------------------------------------------------------- padding

ENDS = ("right", "left")


def _padding(ours: NDArray, theirs: NDArray) -> Iterator[Correction]:
    """Padding at each end, with each id that rows which differ have there in runs, or 0; and rows cut at either end."""
    differ = ~rows_equal(ours, theirs)
    other_shape = ours.shape != theirs.shape
    for end, other_end in product(ENDS, ENDS):
        likely = sorted({run_at(ours[differ], end)[1], run_at(theirs[differ], other_end)[1], 0})
        for pad, other_pad, cut in product(likely, likely, ENDS if other_shape else ENDS[:1]):
            said = [f"on the {end}, not on the {other_end}"] if end != other_end else []
            said += [f"with {pad}, not with {other_pad}"] if pad != other_pad else []
            said += [f"to the reference's length, or cut to it on the {cut}"] if other_shape else []
            if said:
                holds = partial(_same_tokens, (pad, other_pad), (end, other_end), cut)
                yield Correction("data-padding", f"padding {', '.join(said)}", holds)


def _same_tokens(pads: tuple[int, int], ends: tuple[str, str], cut: str, ours: NDArray, theirs: NDArray) -> bool:
    if ours.ndim != 2 or theirs.ndim != 2:
        return False
    most = min(ours.shape[1], theirs.shape[1])
    (mine, many), (its, more) = (
        _real(rows, pad, end, most, cut) for rows, pad, end in zip((ours, theirs), pads, ends, strict=True)
    )
    return bool((many == more).all() and (mine == its).all())


def run_at(rows: NDArray, end: str) -> tuple[float, int]:
    """How long the runs of one value at an end of rows [n, L] are in all, less one each, and of which value they are longest."""
    rows = rows[:, ::-1] if end == "right" else rows
    breaks = rows != rows[:, :1]
    lengths = np.where(breaks.any(axis=1), breaks.argmax(axis=1), rows.shape[1])
    values, places = np.unique(rows[:, 0], return_inverse=True)
    totals = np.bincount(places, weights=lengths - 1 + 1e-3)
    return float(totals.max()), int(values[totals.argmax()])


def _real(rows: NDArray, pad: int, end: str, most: int, cut: str) -> tuple[NDArray, NDArray]:
    """The tokens [n, most] without padding, from the first column on and 0 behind them, and how many there are [n].

    Of more than `most` those at the other end than `cut` are kept.
    """
    width = rows.shape[1]
    real = rows != pad
    any_real = real.any(axis=1)
    if end == "right":
        first = np.zeros(len(rows), dtype=np.int64)
        count = np.where(any_real, width - real[:, ::-1].argmax(axis=1), 0)
    else:
        first = np.where(any_real, real.argmax(axis=1), width)
        count = width - first
    if cut == "left":
        first = first + np.maximum(count - most, 0)
    count = np.minimum(count, most)
    place = np.arange(most)
    tokens = np.take_along_axis(rows, np.minimum(first[:, None] + place, width - 1), axis=1)
    return np.where(place < count[:, None], tokens, 0), count
