"""What is kept of a comparison for a person to look at: how large the differences are, where they sit, and the worst of them.

Made while the values are at hand, where that was asked for (`Options.details`), and bounded in size: a report holds no tensors.
Sizes of numbers are kept as decimal logarithms, rounded: that is how they are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from alignment.compare import EPS32, EPS64, Comparison, Pair, Tolerance, settle

# The most bins of a histogram, cells of a heat map along one axis, points of a scatter plot, and elements that are listed.
BINS, CELLS, POINTS, WORST = 40, 32, 200, 8
# Tensors of a twin whose details stay whole: the roots, then the first that diverge. Of all others a histogram is left.
MOST_WHOLE = 100
# Stands in a heat map for what no number is as large as: NaN or infinity on one side only.
INFINITE = 400.0


@dataclass(frozen=True)
class Element:
    """One element's values on both sides, in both precisions; None where there is none, or it is NaN or infinite."""

    index: tuple[int, ...]
    reference32: float | None
    candidate32: float | None
    reference64: float | None
    candidate64: float | None


@dataclass(frozen=True)
class Detail:
    """The differences of one tensor in one comparison; none of its tuples grows with the tensor.

    dtype: of the difference: the candidate's value minus the reference's, both float64; or float32, the candidate's float32
    value minus the float64 one. elements: how many there are; equal: how many differ by nothing; non_finite: how many are NaN
    or infinite on one side only.
    edges: log10 of the bins' edges, one more than bins. counts: elements whose absolute difference lies in each bin; noise:
    the same of the reference's own float32 rounding.
    plane: the tensor as a matrix, its last axis that is longer than one the columns. cells: rows and columns of the heat
    map; heat: row by row, log10 of the largest absolute difference in each cell, None where there is none, `INFINITE` where
    one side alone is not finite.
    points: log10 of (the reference's size, the absolute difference) of some elements, the worst among them.
    worst: the elements that differ most, the worst first.
    error32, noise32: RMS float32 error of the candidate and of the reference over the RMS of the tensor in float64, None where
    that is no more than rounding; floor64: the float64 rounding to expect, likewise: noise32 · eps(float64) / eps(float32).
    """

    dtype: str
    elements: int
    equal: int
    non_finite: int
    edges: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    noise: tuple[int, ...] = ()
    plane: tuple[int, ...] = ()
    cells: tuple[int, ...] = ()
    heat: tuple[float | None, ...] = ()
    points: tuple[tuple[float, float], ...] = ()
    worst: tuple[Element, ...] = ()
    error32: float | None = None
    noise32: float | None = None
    floor64: float | None = None

    @property
    def brief(self) -> Detail:
        """The same without what is large: a histogram, the worst element, and the errors."""
        return replace(self, plane=(), cells=(), heat=(), points=(), worst=self.worst[:1])


def detail_of(pair: Pair, comparison: Comparison, tolerance: Tolerance | None = None) -> Detail | None:
    """The details of one comparison; None where there are no two tensors of numbers of one shape.

    What differs in float64 is shown in float64. What does not is shown by its float32 error, and briefly, if that is sure to
    be rounding. comparison: as `measure` gives it; tolerance: what it was measured with.
    """
    truth = pair.reference64
    aligned = comparison.verdict == "aligned"
    brief = aligned and settle([comparison], tolerance)[0].verdict == "aligned"
    values = (pair.reference32, pair.candidate32, pair.reference64, pair.candidate64)
    if truth is None or not truth.size or any(v is not None and v.dtype.kind not in "fiub" for v in values):
        return None
    precise = aligned and truth.dtype.kind == "f" and pair.candidate32 is not None
    base, other = (pair.truth32, pair.candidate32) if precise else (truth, pair.candidate64)
    base = truth if base is None else base
    if other is None or any(v is not None and v.shape != truth.shape for v in (*values, base)):
        return None
    with np.errstate(all="ignore"):
        difference = _differences(base, other)
        own = truth if pair.reference_truth32 is None else pair.reference_truth32
        noise = None if pair.reference32 is None or truth.dtype.kind != "f" else _differences(own, pair.reference32)
        return _detail(values, base, difference, noise, "float32" if precise else str(truth.dtype), brief)


def _differences(base: NDArray, other: NDArray) -> NDArray[np.float64]:
    """|other − base|; 0 where both are the same infinity or NaN, infinite where one side alone is not finite."""
    difference = np.abs(np.asarray(other, np.float64) - np.asarray(base, np.float64))
    odd = ~np.isfinite(difference)
    if odd.any():
        same = (base == other) | (np.isnan(base) & np.isnan(other)) if base.dtype.kind == other.dtype.kind else False
        difference[odd] = math.inf
        difference[odd & same] = 0.0
    return difference


def _detail(
    values: Sequence[NDArray | None],
    base: NDArray,
    difference: NDArray[np.float64],
    noise: NDArray[np.float64] | None,
    dtype: str,
    brief: bool,
) -> Detail:
    edges, counts = _histogram([difference] if noise is None else [difference, noise])
    truth = values[2]
    assert truth is not None
    size, roundings = _rms(truth), None if noise is None else _rms(noise)
    error = values[1] is not None and truth.dtype.kind == "f"
    if roundings is not None and size <= roundings:
        size = 0.0  # zero but for rounding: there is nothing to be relative to
    noise32 = _share(roundings, size)
    detail = Detail(
        dtype,
        base.size,
        int(base.size - np.count_nonzero(difference)),
        int(np.count_nonzero(~np.isfinite(difference))),
        edges,
        counts[0],
        counts[1] if noise is not None else (),
        worst=_worst(values, difference, 1 if brief else WORST),
        error32=_share(_rms(difference if dtype == "float32" else _differences(truth, values[1])), size)  # type: ignore[arg-type]
        if error
        else None,
        noise32=noise32,
        floor64=None if noise32 is None else _rounded(noise32 * (EPS64 / EPS32)),
    )
    if brief:
        return detail
    columns = next((length for length in reversed(base.shape) if length > 1), 1)
    plane = (base.size // columns, columns)
    cells, heat = _heat(difference.reshape(plane))
    return replace(detail, plane=plane, cells=cells, heat=heat, points=_points(base, difference))


def _histogram(series: Sequence[NDArray[np.float64]]) -> tuple[tuple[float, ...], list[tuple[int, ...]]]:
    """log10 of common edges, and the counts of each series; what is zero or not finite is in no bin.

    Positive floats are ordered as their bits are, so that leading bits name a bin: an eighth of an octave, or so many
    octaves that the bins suffice.
    """
    bits = [values[(values > 0) & np.isfinite(values)].view(np.uint64) for values in series]
    filled = [one for one in bits if one.size]
    if not filled:
        return (), [() for _ in series]
    low, high = min(int(one.min()) for one in filled), max(int(one.max()) for one in filled)
    shift = 49
    while (high >> shift) - (low >> shift) >= BINS:
        shift += 1
    first, bins = low >> shift, (high >> shift) - (low >> shift) + 1
    places = np.arange(first, first + bins + 1, dtype=np.uint64) << np.uint64(shift)
    # The last edge may be beyond the largest number, the first is zero where it is among the smallest.
    logs = np.log10(np.clip(places, 1, np.float64(np.finfo(np.float64).max).view(np.uint64)).view(np.float64))
    counted = [
        np.bincount(((one >> np.uint64(shift)) - np.uint64(first)).view(np.int64), minlength=bins) for one in bits
    ]
    return tuple(np.round(logs, 2).tolist()), [tuple(counts.tolist()) for counts in counted]


def _heat(plane: NDArray[np.float64]) -> tuple[tuple[int, int], tuple[float | None, ...]]:
    """Rows and columns of a grid of at most CELLS × CELLS, and log10 of the largest value in each cell."""
    rows, columns = (np.linspace(0, n, min(n, CELLS), endpoint=False).astype(int) for n in plane.shape)
    largest = np.maximum.reduceat(np.maximum.reduceat(plane, rows, axis=0), columns, axis=1)
    logs = np.round(np.log10(largest), 1).ravel().tolist()
    heat = tuple(None if log == -math.inf else INFINITE if log == math.inf else log for log in logs)
    return (len(rows), len(columns)), heat


def _points(base: NDArray, difference: NDArray[np.float64]) -> tuple[tuple[float, float], ...]:
    """Half of them where the difference is largest, half evenly spread; those with a zero have no logarithm."""
    sizes, found = np.abs(np.asarray(base, np.float64)).ravel(), difference.ravel()
    usable = np.flatnonzero((sizes > 0) & (found > 0) & np.isfinite(sizes) & np.isfinite(found))
    if usable.size > POINTS:
        worst = usable[np.argpartition(found[usable], -POINTS // 2)[-POINTS // 2 :]]
        spread = usable[np.linspace(0, usable.size - 1, POINTS // 2).astype(int)]
        usable = np.union1d(worst, spread)
    x, y = (np.round(np.log10(values[usable]), 2).tolist() for values in (sizes, found))
    return tuple(zip(x, y, strict=True))


def _worst(values: Sequence[NDArray | None], difference: NDArray[np.float64], count: int) -> tuple[Element, ...]:
    flat = difference.ravel()
    count = min(count, flat.size)
    order = np.argpartition(flat, -count)[-count:] if count > 1 else [int(flat.argmax())]
    places = sorted((int(place) for place in order if flat[place] > 0), key=lambda place: -flat[place])
    return tuple(_element(values, np.unravel_index(place, difference.shape)) for place in places)


def _element(values: Sequence[NDArray | None], index: tuple[np.intp, ...]) -> Element:
    shown = [None if v is None or not math.isfinite(v[index]) else float(v[index]) for v in values]
    return Element(tuple(int(i) for i in index), *shown)


def _rms(values: NDArray) -> float:
    """Of the finite values."""
    wide = np.asarray(values, np.float64).ravel()
    finite = wide if np.isfinite(wide).all() else wide[np.isfinite(wide)]
    return math.sqrt(float(np.einsum("i,i->", finite, finite)) / max(1, finite.size))


def _share(part: float | None, whole: float) -> float | None:
    if part is None or not whole or not math.isfinite(part / whole):
        return None
    return _rounded(part / whole)


def _rounded(figure: float) -> float:
    return float(f"{figure:.3g}")
