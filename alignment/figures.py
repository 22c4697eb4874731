"""A few figures in place of a tensor, and what can be said of two tensors of which no more is known.

Equal hashes of the bits prove that two tensors are equal. Figures that differ prove that the tensors do, and by how much at
least; figures that agree prove nothing, and so are never "aligned" by themselves.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignment.compare import EPS32, EPS64, Comparison, Tolerance


@dataclass(frozen=True)
class Figures:
    """What is kept of a tensor.

    bits: BLAKE2b of dtype, shape and bytes in row-major order. nan, above, below: how many elements are NaN, +∞ and −∞.
    The others are of the finite elements, in float64: their sum (total), the sum of their sizes (absolute), their L2 norm,
    and the extremes; None where a figure is too large for a float64, and for the extremes where no element is finite.
    error: (RMS, largest) float32 error of the reference in this tensor, over its noise runs; known for its float64 run alone.
    """

    shape: tuple[int, ...]
    dtype: str
    bits: str
    nan: int
    above: int
    below: int
    total: float | None
    absolute: float | None
    norm: float | None
    smallest: float | None
    largest: float | None
    error: tuple[float, float] | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def non_finite(self) -> tuple[int, int, int]:
        """How many elements are NaN, +∞ and −∞."""
        return self.nan, self.above, self.below

    @property
    def extreme(self) -> float:
        """The largest size of a finite element."""
        return max(abs(self.smallest or 0.0), abs(self.largest or 0.0))


def figures_of(value: NDArray, error: tuple[float, float] | None = None) -> Figures:
    """The figures of a tensor; `error` is stated, where it is known."""
    digest = hashlib.blake2b(f"{value.dtype}{list(value.shape)}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(value).tobytes())
    wide = value.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    largest = float(np.abs(finite).max(initial=0.0))
    with np.errstate(over="ignore"):
        norm = largest * float(np.sqrt(np.sum(np.square(finite / largest)))) if largest else 0.0
        total, absolute = float(finite.sum()), float(np.abs(finite).sum())
    return Figures(
        value.shape,
        str(value.dtype),
        digest.hexdigest(),
        int(np.isnan(wide).sum()),
        int(np.isposinf(wide).sum()),
        int(np.isneginf(wide).sum()),
        _finite(total),
        _finite(absolute),
        _finite(norm),
        float(finite.min()) if finite.size else None,
        float(finite.max()) if finite.size else None,
        error,
    )


def _finite(figure: float) -> float | None:
    return figure if math.isfinite(figure) else None


def float32_error(truth: NDArray, runs: Iterable[NDArray | None]) -> tuple[float, float] | None:
    """(RMS, largest) distance of float32 runs from the float64 value; None where that has no meaning."""
    if truth.dtype.kind != "f" or not truth.size or not np.isfinite(truth).all():
        return None
    fitting = [run for run in runs if run is not None and run.shape == truth.shape and np.isfinite(run).all()]
    errors = [np.abs(run.astype(np.float64) - truth) for run in fitting]
    if not errors:
        return None
    rms = max(math.sqrt(float(np.mean(np.square(error)))) for error in errors)
    return rms, max(float(error.max()) for error in errors)


def value_of(figures: Figures) -> NDArray | None:
    """The tensor itself where its figures say all: one element is its own sum. None for any other."""
    if figures.size != 1 or figures.extreme > 2.0**53:  # whole numbers beyond are no float64
        return None
    special = dict(zip((math.nan, math.inf, -math.inf), figures.non_finite, strict=True))
    value = next((number for number, count in special.items() if count), figures.smallest)
    return np.full(figures.shape, value, figures.dtype)


def compare_figures(
    reference32: Figures | None,
    candidate32: Figures | None,
    reference64: Figures | None,
    candidate64: Figures | None,
    scale: float = 0.0,
    tolerance: Tolerance | None = None,
) -> Comparison:
    """Judge one tensor by its figures alone: aligned if its bits are equal, diverged if a figure proves it, else open.

    With a, b of n elements and d = a − b: |Σa − Σb| ≤ n·max|d|, |Σ|a| − Σ|b|| ≤ n·max|d|, |‖a‖ − ‖b‖| ≤ √n·max|d| (triangle
    inequality), and each extreme moves by at most max|d|. So each pair of figures gives a lower bound of max|d|.

    scale: as in `alignment.Pair`.
    """
    tolerance = tolerance or Tolerance()
    four = (reference32, candidate32, reference64, candidate64)
    early = _metadata(*four)
    if early is not None:
        return early
    assert reference32 is not None
    assert candidate32 is not None
    assert reference64 is not None
    assert candidate64 is not None
    shape = reference64.shape
    if (reference32.bits, reference64.bits) == (candidate32.bits, candidate64.bits):
        if any(reference64.non_finite) or any(reference32.non_finite):
            reason = "both sides are NaN or infinite at the same positions: no evidence there"
            return Comparison("inconclusive", "metadata", reason, shape, reference64.dtype)
        reason = "the same bits in float64 and float32, by their hash"
        return Comparison("aligned", "bitwise", reason, shape, reference64.dtype, 0.0, 0.0, seen=0.0, allowed=0.0)
    if not reference64.dtype.startswith("float"):
        reason = "other bits where equal ones are due, by their hash"
        return Comparison("diverged", "bitwise", reason, shape, reference64.dtype, strain=math.inf)
    if reference64.error is None:
        reason = "other bits; the reference's float32 error is not recorded, so its figures can't be judged"
        return Comparison("inconclusive", "metadata", reason, shape, reference64.dtype)
    rounding = reference64.error[1] * (EPS64 / EPS32) + EPS64 * reference64.extreme
    allowed = tolerance.semantics_margin * rounding + tolerance.floor_ulps * EPS64 * scale
    which, seen = _least_difference(reference64, candidate64)
    if seen > allowed:
        reason = f"the {which} alone shows that float64 differs by {seen:.3g} or more, rounding explains {allowed:.1g}"
        return Comparison(
            "diverged",
            "semantics",
            reason,
            shape,
            "float64",
            seen,
            None,
            None,
            None,
            seen,
            allowed,
            _strain(seen, allowed),
        )
    reason = f"no figure differs by more than rounding ({seen:.1g}, allowed {allowed:.1g}), but other values can have them: open"
    return Comparison("inconclusive", "metadata", reason, shape, "float64", seen=seen, allowed=allowed)


def _metadata(
    reference32: Figures | None, candidate32: Figures | None, reference64: Figures | None, candidate64: Figures | None
) -> Comparison | None:
    for run, one, two in (("float64", reference64, candidate64), ("float32", reference32, candidate32)):
        if one is None and two is None:
            return Comparison("inconclusive", "metadata", f"no {run} run has this tensor: nothing was compared")
        if one is None or two is None:
            side = "reference" if one is None else "candidate"
            return Comparison("diverged", "metadata", f"missing on the {side} side", strain=math.inf)
        for what, ours, theirs in (("shape", one.shape, two.shape), ("dtype", one.dtype, two.dtype)):
            if ours != theirs:
                shown = [list(x) if isinstance(x, tuple) else x for x in (ours, theirs)]
                reason = f"{what} in the {run} run: reference {shown[0]}, candidate {shown[1]}"
                return Comparison("diverged", "metadata", reason, one.shape, strain=math.inf)
        if not one.size:
            return Comparison("inconclusive", "metadata", "empty: nothing was compared", one.shape)
        if one.non_finite != two.non_finite:
            reason = f"{run}: NaN, +∞, −∞ {list(one.non_finite)} times in the reference, {list(two.non_finite)} in the candidate"
            return Comparison("diverged", "metadata", reason, one.shape, run, strain=math.inf)
    return None


def _least_difference(one: Figures, two: Figures) -> tuple[str, float]:
    """The figure that proves the largest difference of an element, and that difference.

    A figure is itself rounded, by at most n·eps of the sum of sizes it is made of (Higham, section 4.2): that is taken off.
    """
    count = max(1, one.size - sum(one.non_finite))
    summed = count * EPS64 * max(one.absolute or 0.0, two.absolute or 0.0)
    root = math.sqrt(count)
    found = [
        ("sum", one.total, two.total, 2 * summed, count),
        ("sum of sizes", one.absolute, two.absolute, 2 * summed, count),
        ("norm", one.norm, two.norm, 2 * count * EPS64 * max(one.norm or 0.0, two.norm or 0.0), root),
        ("smallest element", one.smallest, two.smallest, 0.0, 1.0),
        ("largest element", one.largest, two.largest, 0.0, 1.0),
    ]
    bounds = [
        (name, max(0.0, abs(a - b) - rounding) / share)
        for name, a, b, rounding, share in found
        if a is not None and b is not None
    ]
    return max(bounds, key=lambda bound: bound[1], default=("figures", 0.0))


def _strain(seen: float, allowed: float) -> float:
    return seen / allowed if allowed else math.inf
