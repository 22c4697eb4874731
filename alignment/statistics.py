"""How far two arrays are apart, in one pass: blocks that fit the cache, all cores, almost no memory of its own.

NumPy makes an array of the whole size for each step of ``np.abs(a - b).max()``; here each block goes through all steps
while it is in the cache. BLAS sums no more than a row of 256 at once: it takes threads of its own for longer ones, which
keep spinning beside those of a framework.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from alignment.errors import AlignmentError

BLOCK = 1 << 18
_ROW = 256

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_ULP_DTYPES = (*map(np.dtype, ("float16", "float32", "float64")), _BFLOAT16)
# What float32 holds exactly; the rest is compared in float64.
_IN_FLOAT32 = frozenset(map(np.dtype, ("float32", "float16", "int8", "uint8", "int16", "uint16", "bool"))) | {
    np.dtype(getattr(ml_dtypes, name)) for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")
}


@dataclass(frozen=True)
class Ulps:
    """Distances in units in the last place, over the pairs that are finite on both sides: percentiles and the largest.

    Exact up to 65,535; a larger percentile is at most 0.4 % above the exact one. The largest is always exact.
    """

    p50: int
    p90: int
    p99: int
    max: int


@dataclass(frozen=True)
class Statistics:
    """What `compare_arrays` found. Differences are candidate minus reference.

    elements:        how many pairs there are. Nothing was compared where this is 0.
    equal_bits:      same dtype and every bit the same; NaN payloads and the sign of zero count.
    differing:       pairs whose values differ; a NaN equals a NaN, and 0.0 equals -0.0.
    beyond:          pairs beyond ``atol + rtol * |reference|``; None where no tolerance was given.
    both_not_finite: pairs that are the same NaN or infinity on both sides: in no figure but `elements`.
    one_not_finite:  pairs with a NaN or infinity that the other side does not have. They count as differing and as beyond
                     any tolerance, and make the four figures infinite: a NaN is never left out of a mean.
    max_abs, mean_abs, rms: of the differences.
    relative_l2:     norm of the differences over the norm of the reference (0 where both are 0).
    worst:           index of the largest difference, or of the first pair in `one_not_finite`; None where nothing differs.
    worst_reference, worst_candidate: the two values there.
    """

    elements: int
    equal_bits: bool
    differing: int
    beyond: int | None
    both_not_finite: int
    one_not_finite: int
    max_abs: float
    mean_abs: float
    rms: float
    relative_l2: float
    worst: tuple[int, ...] | None
    worst_reference: float | int | complex | None
    worst_candidate: float | int | complex | None
    ulps: Ulps | None = None


def compare_arrays(
    reference: NDArray,
    candidate: NDArray,
    *,
    atol: float | None = None,
    rtol: float | None = None,
    ulps: bool = False,
    threads: int | None = None,
) -> Statistics:
    """Compare two arrays of one shape and of any numeric dtypes, also memory-mapped and strided ones.

    atol, rtol: a pair is beyond where ``|candidate - reference| > atol + rtol * |reference|``; one alone leaves the other 0.
    ulps: also percentiles of the distance in units in the last place; both must have one floating dtype.
    threads: default all cores this process may use. Memory beside the arrays: about 4 MiB for each thread.

    float32 and all that it holds exactly are subtracted in float32, other dtypes in float64 (64-bit integers are subtracted
    exactly first). A block of 262,144 is summed by rows of 256 and NumPy's pairwise summation of those, blocks exactly. All
    summands are positive, so the relative error of mean, RMS and relative L2 is below (256 + 19 + 4) u, u being 2⁻²⁴ or
    2⁻⁵³: 2e-5 or 4e-14 in the worst case, and a tenth of that with the wide sums of today's processors (Higham, Accuracy
    and Stability of Numerical Algorithms, 2nd ed., section 4.2; Shewchuk 1997 for the exact sum, which is `math.fsum`). A
    block whose squares would overflow or underflow is done again in scaled float64. `max_abs` is the float64 difference of
    the two values at `worst`, which is the largest up to 2⁻²⁴.

    Raises:
        AlignmentError: the shapes differ, a dtype is no number, a tolerance is negative or not finite, or ULPs make no
            sense for these dtypes.
    """
    _refuse(reference, candidate, atol, rtol, ulps)
    tolerance = None if atol is None and rtol is None else (atol or 0.0, rtol or 0.0)
    tiles = _Tiles(reference, candidate)
    workers = max(1, min(threads or available_cores(), tiles.count))
    numbers = itertools.count()  # next() of it is atomic: each worker takes the next tile that nobody has

    def work(_: int) -> _Sums:
        sums = _Sums(tiles, tolerance, ulps)
        with np.errstate(all="ignore"):
            for number in iter(numbers.__next__, None):
                if number >= tiles.count:
                    return sums
                sums.add(number)
        return sums

    if workers == 1:
        parts = [work(0)]
    else:
        with ThreadPoolExecutor(workers) as pool:
            parts = list(pool.map(work, range(workers)))
    return _statistics(reference, candidate, parts, tolerance, ulps)


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _refuse(reference: NDArray, candidate: NDArray, atol: float | None, rtol: float | None, ulps: bool) -> None:
    if reference.shape != candidate.shape:
        raise AlignmentError(f"arrays of shape {list(reference.shape)} and {list(candidate.shape)} can't be compared")
    for array in (reference, candidate):
        if array.dtype.kind not in "biufc" and array.dtype not in _IN_FLOAT32:
            raise AlignmentError(f"an array of dtype {array.dtype} holds no numbers that can be compared")
    for name, value in (("atol", atol), ("rtol", rtol)):
        if value is not None and not 0 <= value < math.inf:
            raise AlignmentError(f"{name} must be a finite number that isn't negative, not {value}")
    if ulps and (reference.dtype != candidate.dtype or reference.dtype not in _ULP_DTYPES):
        raise AlignmentError(
            f"distances in ULP need one floating dtype on both sides, not {reference.dtype} and {candidate.dtype}"
        )


class _Tiles:
    """Both arrays cut into the same blocks: runs of memory where both are contiguous, else tiles of all axes."""

    def __init__(self, reference: NDArray, candidate: NDArray) -> None:
        shape = reference.shape
        if reference.flags.c_contiguous and candidate.flags.c_contiguous:
            reference, candidate = reference.reshape(-1), candidate.reshape(-1)
        self.full_shape = shape
        self.reference, self.candidate = reference, candidate
        sizes = [1] * reference.ndim
        # Doubling the shortest edge gives tiles that are short along every axis, so that a transposed array is read in
        # pieces of whole cache lines, too.
        while math.prod(sizes) < BLOCK and (open_ := [k for k, n in enumerate(reference.shape) if sizes[k] < n]):
            shortest = min(open_, key=lambda axis: sizes[axis])
            sizes[shortest] *= 2
        self.sizes = sizes
        self.grid = tuple(-(-n // size) for n, size in zip(reference.shape, sizes, strict=True))
        self.count = math.prod(self.grid)

    def __getitem__(self, number: int) -> tuple[NDArray, NDArray]:
        where = self._slices(number)
        return self.reference[where], self.candidate[where]

    def _slices(self, number: int) -> tuple[slice, ...]:
        starts = self._starts(number)
        return tuple(slice(start, start + size) for start, size in zip(starts, self.sizes, strict=True))

    def _starts(self, number: int) -> list[int]:
        position = np.unravel_index(number, self.grid) if self.grid else ()
        return [int(index) * size for index, size in zip(position, self.sizes, strict=True)]

    def index(self, number: int, flat: int) -> tuple[int, ...]:
        """The index in the whole array of place `flat` of a tile."""
        shape = self[number][0].shape
        inside = np.unravel_index(flat, shape) if shape else ()
        whole = [start + int(k) for start, k in zip(self._starts(number), inside, strict=True)]
        if len(whole) != len(self.full_shape):  # contiguous arrays were flattened
            whole = [int(k) for k in np.unravel_index(whole[0], self.full_shape)] if self.full_shape else []
        return tuple(whole)


class _Sums:
    """What one thread has found so far, and its buffers."""

    def __init__(self, tiles: _Tiles, tolerance: tuple[float, float] | None, ulps: bool) -> None:
        self.tiles = tiles
        self.tolerance = tolerance
        dtypes = (tiles.reference.dtype, tiles.candidate.dtype)
        self.dtype = np.dtype(
            "float32" if all(dtype.newbyteorder("=") in _IN_FLOAT32 for dtype in dtypes) else "float64"
        )
        self.plain = all(dtype.kind not in "iuc" or dtype.itemsize <= 4 for dtype in dtypes)
        self.same_dtype = dtypes[0] == dtypes[1]
        self.histogram = _Histogram() if ulps else None
        size = math.prod(tiles.sizes)
        self.buffers = [np.empty(size, self.dtype) for _ in range(3)]
        self.ones = np.ones(size, self.dtype)
        self.equal_bits = self.same_dtype
        self.differing = self.beyond = self.both = self.one = 0
        self.absolute: list[float] = []
        self.squares: list[tuple[float, int]] = []  # RMS of a block and its number of pairs
        self.norms: list[tuple[float, int]] = []
        self.largest = 0.0
        self.worst: tuple[int, int] | None = None
        self.first_odd: tuple[int, int] | None = None

    def add(self, number: int) -> None:
        """Take tile `number` in."""
        a, b = self.tiles[number]
        if self.histogram is not None:
            self.histogram.add(a, b)
        if not self.plain or not self._fast(number, a, b):
            self._careful(number, a, b)
        if self.equal_bits:
            self.equal_bits = _equal_bits(a, b)

    def _fast(self, number: int, a: NDArray, b: NDArray) -> bool:
        """The usual case, all finite; False, and nothing taken in, where it is not usual."""
        n = a.size
        left = _as(a, self.dtype, self.buffers[0])
        right = _as(b, self.dtype, self.buffers[1])
        gap = self.buffers[2][:n]
        np.subtract(right, left, out=gap)
        np.abs(gap, out=gap)
        largest = float(np.maximum.reduce(gap))
        norm = _inner(left, left)
        if not _trusted(norm / n, self.dtype) and (norm or left.any()):
            return False
        if not largest:
            self._take(number, gap, largest, 0.0, 0.0, norm / n)
            return True
        squares = _inner(gap, gap)
        if not _trusted(squares / n, self.dtype):
            return False
        total = _inner(gap, self.ones[:n])
        self.differing += int(
            np.count_nonzero(gap.view(f"i{self.dtype.itemsize}"))
        )  # an absolute value's zero is all 0
        if self.tolerance is not None and largest * (1 + 2**-22) > self.tolerance[0]:
            self.beyond += _beyond(left.astype(np.float64), right.astype(np.float64), self.tolerance)
        self._take(number, gap, largest, total, squares / n, norm / n)
        return True

    def _take(self, number: int, gap: NDArray, largest: float, total: float, square: float, norm: float) -> None:
        self.absolute.append(total)
        self.squares.append((math.sqrt(square), gap.size))
        self.norms.append((math.sqrt(norm), gap.size))
        if largest > self.largest:
            self.largest, self.worst = largest, (number, int(gap.argmax()))

    def _careful(self, number: int, a: NDArray, b: NDArray) -> None:
        """Any values of any dtypes, in float64."""
        left, right, gap = _gaps(a.reshape(-1), b.reshape(-1))
        finite = np.isfinite(left) & np.isfinite(right)
        same = (left == right) | ((left != left) & (right != right))
        both, odd = ~finite & same, ~finite & ~same
        self.both += int(np.count_nonzero(both))
        self.one += int(np.count_nonzero(odd))
        self.differing += int(np.count_nonzero(odd)) + int(np.count_nonzero(gap[finite]))
        if odd.any() and self.first_odd is None:
            self.first_odd = number, int(odd.argmax())
        if self.tolerance is not None:
            far = gap > self.tolerance[0] + self.tolerance[1] * np.abs(left)
            self.beyond += int(np.count_nonzero(odd | (finite & far)))
        gap[~finite] = 0
        size = np.where(finite, np.abs(left), 0.0)
        count = int(np.count_nonzero(finite))
        if not count:
            return
        largest = float(gap.max())
        self.absolute.append(float(np.add.reduce(gap)))
        self.squares.append((_rms(gap, count), count))
        self.norms.append((_rms(size, count), count))
        if largest > self.largest:
            self.largest, self.worst = largest, (number, int(gap.argmax()))


def _inner(x: NDArray, y: NDArray) -> float:
    """Σ xᵢ·yᵢ in the arrays' dtype."""
    whole = x.size - x.size % _ROW
    rows = np.matmul(x[:whole].reshape(-1, 1, _ROW), y[:whole].reshape(-1, _ROW, 1))
    return float(np.add.reduce(rows, axis=None)) + float(np.add.reduce(x[whole:] * y[whole:]))


def _as(array: NDArray, dtype: np.dtype, buffer: NDArray) -> NDArray:
    """`array` flat and in `dtype`, in `buffer` where it isn't already."""
    if array.dtype == dtype and array.ndim == 1:
        return array
    out = buffer[: array.size]
    if array.dtype == _BFLOAT16 and dtype == np.float32:  # bfloat16 is the upper half of a float32
        shaped = out.view(np.uint32).reshape(array.shape)
        np.left_shift(array.view(np.uint16), np.uint32(16), out=shaped, dtype=np.uint32)
    else:
        np.copyto(out.reshape(array.shape), array, casting="unsafe")
    return out


def _trusted(mean_square: float, dtype: np.dtype) -> bool:
    """Whether no square of a block has overflowed or was of a NaN, and none that matters can have underflowed."""
    return (1e-24 if dtype == np.float32 else 1e-280) < mean_square < math.inf


def _gaps(a: NDArray, b: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Both as float64 (complex128) and |b - a| in float64; 64-bit integers are subtracted before they are rounded."""
    together = np.result_type(a, b) if a.dtype.kind in "iub" and b.dtype.kind in "iub" else None
    if together is not None and together.kind in "iu":  # uint64 beside a signed type has float64 as its common type
        exact = np.dtype("int64" if together.kind == "i" else "uint64")
        x, y = a.astype(exact), b.astype(exact)
        # Modulo 2⁶⁴ the difference of the larger and the smaller is exact.
        gap = np.maximum(x, y).view(np.uint64) - np.minimum(x, y).view(np.uint64)
        return x.astype(np.float64), y.astype(np.float64), gap.astype(np.float64)
    wide = np.dtype("complex128" if "c" in a.dtype.kind + b.dtype.kind else "float64")
    left, right = a.astype(wide), b.astype(wide)
    return left, right, np.abs(right - left)


def _beyond(left: NDArray, right: NDArray, tolerance: tuple[float, float]) -> int:
    return int(np.count_nonzero(np.abs(right - left) > tolerance[0] + tolerance[1] * np.abs(left)))


def _rms(values: NDArray, count: int) -> float:
    """Root of the mean square of float64 values that aren't negative, without overflow or underflow on the way."""
    largest = float(values.max())
    if not largest or not math.isfinite(largest):
        return largest
    exponent = math.frexp(largest)[1]
    scaled = np.ldexp(values, -exponent)
    return math.ldexp(math.sqrt(float(np.add.reduce(scaled * scaled)) / count), exponent)


def _root_mean_square(parts: Iterable[tuple[float, int]]) -> float:
    """The RMS of all blocks from the RMS and the size of each."""
    kept = [(value, count) for value, count in parts if count]
    largest = max((value for value, _ in kept), default=0.0)
    if not largest or not math.isfinite(largest):
        return largest
    total = math.fsum(count * (value / largest) ** 2 for value, count in kept)
    return largest * math.sqrt(total / sum(count for _, count in kept))


def _equal_bits(a: NDArray, b: NDArray) -> bool:
    if a.ndim == 1 and a.flags.c_contiguous and b.flags.c_contiguous:
        width = next(width for width in (8, 4, 2, 1) if a.nbytes % width == 0)
        return bool((a.view(f"u{width}") == b.view(f"u{width}")).all())
    return a.tobytes() == b.tobytes()


def _statistics(
    reference: NDArray, candidate: NDArray, parts: list[_Sums], tolerance: tuple[float, float] | None, ulps: bool
) -> Statistics:
    one = sum(part.one for part in parts)
    elements = reference.size
    both = sum(part.both for part in parts)
    compared = elements - both
    mean = math.fsum(total for part in parts for total in part.absolute) / compared if compared else 0.0
    rms = _root_mean_square(square for part in parts for square in part.squares)
    norm = _root_mean_square(norm for part in parts for norm in part.norms)
    tiles = parts[0].tiles
    place = min((part.first_odd for part in parts if part.first_odd is not None), default=None)
    if place is None:
        largest = max(part.largest for part in parts)
        place = min((part.worst for part in parts if part.worst is not None and part.largest == largest), default=None)
    worst = None if place is None else tiles.index(*place)
    ours, theirs = (None, None) if worst is None else (_value(reference[worst]), _value(candidate[worst]))
    relative = rms / norm if norm else (math.inf if rms else 0.0)
    histograms = [part.histogram for part in parts if part.histogram is not None]
    return Statistics(
        elements=elements,
        equal_bits=all(part.equal_bits for part in parts),
        differing=sum(part.differing for part in parts),
        beyond=None if tolerance is None else sum(part.beyond for part in parts),
        both_not_finite=both,
        one_not_finite=one,
        max_abs=math.inf if one else _distance(ours, theirs),
        mean_abs=math.inf if one else mean,
        rms=math.inf if one else rms,
        relative_l2=math.inf if one else relative,
        worst=worst,
        worst_reference=ours,
        worst_candidate=theirs,
        ulps=_Histogram.percentiles(histograms) if ulps else None,
    )


def _value(scalar: Any) -> float | int | complex:
    """A NumPy scalar as Python's number."""
    item = scalar.item()
    return item if isinstance(item, (bool, int, float, complex)) else float(item)


def _distance(ours: Any, theirs: Any) -> float:
    return 0.0 if ours is None else float(abs(theirs - ours))


class _Histogram:
    """Distances in ULP: one bin for each up to 65,535, then 256 bins for each power of two."""

    EXACT = 1 << 16
    FINE = 256

    def __init__(self) -> None:
        self.bins = np.zeros(self.EXACT + (65 - 16) * self.FINE, np.int64)
        self.largest = 0

    def add(self, a: NDArray, b: NDArray) -> None:
        finite = np.isfinite(a) & np.isfinite(b)
        x, y = _ordinal(a[finite]), _ordinal(b[finite])
        if not x.size:
            return
        gap = np.maximum(x, y).view(np.uint64) - np.minimum(x, y).view(np.uint64)
        self.largest = max(self.largest, int(gap.max()))
        small = gap < self.EXACT
        self.bins[: self.EXACT] += np.bincount(gap[small].astype(np.int64), minlength=self.EXACT)
        large = gap[~small]
        # The lowest bits go first, lest rounding to float64 carries a distance into the next power of two.
        large = np.where(large < 2**53, large, large & ~np.uint64(0x7FF))
        fraction, exponent = np.frexp(large.astype(np.float64))
        place = self.EXACT + (exponent - 17) * self.FINE + ((fraction - 0.5) * 2 * self.FINE).astype(np.int64)
        np.add.at(self.bins, place, 1)

    @classmethod
    def percentiles(cls, parts: list[_Histogram]) -> Ulps:
        bins = np.sum([part.bins for part in parts], axis=0)
        largest = max((part.largest for part in parts), default=0)
        ends = np.cumsum(bins)

        def at(share: float) -> int:
            """The smallest distance that `share` of all pairs don't exceed: the nearest-rank percentile."""
            if not ends[-1]:
                return 0
            place = int(np.searchsorted(ends, math.ceil(share * int(ends[-1]))))
            if place < cls.EXACT:
                return place
            power, step = divmod(place - cls.EXACT, cls.FINE)
            # The upper end of the bin: a percentile is never made to look smaller than it is.
            return min(largest, ((cls.FINE + step + 1) << (power + 8)) - 1)

        return Ulps(at(0.5), at(0.9), at(0.99), largest)


def _ordinal(values: NDArray) -> NDArray[np.int64]:
    """The rank of each finite float among those of its dtype, 0 for both zeros: neighbours differ by one."""
    width = values.dtype.itemsize
    bits = values.astype(values.dtype.newbyteorder("=")).view(f"i{width}").astype(np.int64)
    magnitude = bits & np.int64((1 << (8 * width - 1)) - 1)
    return np.where(bits < 0, -magnitude, magnitude)
