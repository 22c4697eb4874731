"""Do two initialisers draw from the same distribution? Judged per parameter, from several seeds of each side.

Positions that hold one constant under every seed (zero biases, LayerNorm's ones, a padding row, a buffer) must hold the
same constant on the other side, but for the rounding of a computed one. All other values are two samples: their means,
their standard deviations and their shapes are tested, and the smallest p-value decides against a stated false-alarm rate.
`seen` and `allowed` are −log10 of the two.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from alignment.compare import Comparison, Verdict

# Probability that a check of right twins raises any alarm here, all parameters and tests together.
FALSE_ALARM_RATE = 1e-6

# Below this many values a side, measured kurtosis is too rough for tail probabilities.
FEW = 2000
# At this size the tests see a change of scale of 1 %; more values only cost time.
MANY = 200_000


def compare_initializers(reference: NDArray, candidate: NDArray, tests: int) -> Comparison:
    """Judge one parameter.

    Args:
        reference, candidate: values under several seeds, [seeds, *shape], in the reference's layout.
        tests: how many parameters are judged in all; the false-alarm rate is divided among them (Bonferroni).
    """
    shape = reference.shape[1:]
    if reference.shape[1:] != candidate.shape[1:]:
        reason = f"shape: reference {list(shape)}, candidate {list(candidate.shape[1:])}"
        return Comparison("diverged", "metadata", reason, shape, strain=math.inf)
    if not reference.size or len(reference) < 2 or len(candidate) < 2:
        return Comparison("inconclusive", "metadata", "too few values to judge a distribution", shape)
    fixed, fixed_too = (values == values[:1] for values in (reference, candidate))
    fixed, fixed_too = fixed.all(axis=0), fixed_too.all(axis=0)
    if not np.array_equal(fixed, fixed_too):
        return _constant_on_one_side(reference, candidate, fixed, fixed_too)
    constants = np.flatnonzero(fixed.ravel())
    one, two = reference[0].ravel()[constants], candidate[0].ravel()[constants]
    wrong = np.flatnonzero(~_equal_but_for_rounding(one, two))
    if wrong.size:
        where = tuple(int(i) for i in np.unravel_index(constants[wrong[0]], shape))
        gap = float(np.abs(one.astype(np.float64) - two).max())
        reason = f"constant {one[wrong[0]]:.6g} on the reference side, {two[wrong[0]]:.6g} on the candidate's"
        return Comparison("diverged", "bitwise", reason, shape, "float32", gap, None, None, where, gap, 0.0, math.inf)
    if constants.size == fixed.size:
        what = f"constant {one[0]:.6g}" if np.unique(one).size == 1 else "the same constants"
        return Comparison(
            "aligned", "bitwise", f"{what} on both sides", shape, "float32", 0.0, 0.0, None, None, 0.0, 0.0
        )
    return _same_distribution(reference[:, ~fixed].ravel(), candidate[:, ~fixed].ravel(), shape, tests)


def _equal_but_for_rounding(one: NDArray, two: NDArray) -> NDArray[np.bool_]:
    """Equal, or two units in the last place apart: computed constants (rotary frequencies) round differently."""
    if not np.issubdtype(one.dtype, np.floating):
        return np.asarray(one == two)
    return np.asarray((one == two) | (np.abs(one - two) <= 2 * np.spacing(np.abs(one))))


def _constant_on_one_side(
    reference: NDArray, candidate: NDArray, fixed: NDArray[np.bool_], fixed_too: NDArray[np.bool_]
) -> Comparison:
    where = tuple(int(i) for i in np.argwhere(fixed != fixed_too)[0])
    side, values, other = ("reference", reference, candidate) if fixed[where] else ("candidate", candidate, reference)
    spread = float(np.std(other, dtype=np.float64))
    reason = (
        f"{int((fixed != fixed_too).sum())} of {fixed.size} elements are constant on one side only: at {list(where)} the "
        f"{side} is always {values[0][where]:.6g}, the other side varies (standard deviation {spread:.3g})"
    )
    return Comparison("diverged", "bitwise", reason, fixed.shape, "float32", worst_index=where, strain=math.inf)


def _same_distribution(one: NDArray, two: NDArray, shape: tuple[int, ...], tests: int) -> Comparison:
    one, two = _thin(one).astype(np.float64), _thin(two).astype(np.float64)
    stds = float(one.std()), float(two.std())
    p_values = {"shape": _kolmogorov_smirnov(one, two)}
    if min(one.size, two.size) < FEW:
        p_values["standard deviation"] = _variance_ratio(one, two)
    else:
        mean_error = math.hypot(stds[0] / math.sqrt(one.size), stds[1] / math.sqrt(two.size))
        log_std_error = math.hypot(_log_std_error(one), _log_std_error(two))
        p_values["mean"] = _two_sided((one.mean() - two.mean()) / mean_error)
        p_values["standard deviation"] = _two_sided(math.log(stds[0] / stds[1]) / log_std_error)
    test, p_value = min(p_values.items(), key=lambda item: item[1])
    seen, allowed = -math.log10(max(p_value, 1e-300)), -math.log10(FALSE_ALARM_RATE / (max(tests, 1) * 3))
    figures = (
        f"mean {one.mean():.3g} and {two.mean():.3g}, standard deviation {stds[0]:.4g} and {stds[1]:.4g}, largest "
        f"{np.abs(one).max():.4g} and {np.abs(two).max():.4g} (reference and candidate, {one.size} values each)"
    )
    verdict: Verdict
    if seen <= allowed:
        verdict, reason = "aligned", f"same distribution: {figures}; smallest p {p_value:.2g}"
    else:
        verdict = "diverged"
        reason = f"another distribution, by its {test}: {figures}; p {p_value:.1g}, allowed {10**-allowed:.1g}"
    return Comparison(
        verdict,
        "semantics",
        reason,
        shape,
        "float32",
        abs(stds[0] - stds[1]),
        None,
        None,
        None,
        seen,
        allowed,
        seen / allowed,
    )


def _variance_ratio(one: NDArray, two: NDArray) -> float:
    """p-value of the F test, which holds for normal values and is on the safe side for uniform ones (lighter tails)."""
    from scipy.special import fdtr, fdtrc

    ratio = float(one.var(ddof=1) / two.var(ddof=1))
    return 2.0 * float(min(fdtr(one.size - 1, two.size - 1, ratio), fdtrc(one.size - 1, two.size - 1, ratio)))


def _kolmogorov_smirnov(one: NDArray, two: NDArray) -> float:
    """p-value of the two-sample test by its limiting distribution, which is on the safe side for small samples."""
    from scipy.special import kolmogorov

    one, two = np.sort(one), np.sort(two)
    both = np.concatenate([one, two])
    gap = np.searchsorted(one, both, "right") / one.size - np.searchsorted(two, both, "right") / two.size
    return float(kolmogorov(np.abs(gap).max() * math.sqrt(one.size * two.size / (one.size + two.size))))


def _thin(values: NDArray) -> NDArray:
    return values if values.size <= MANY else np.random.default_rng(0).permutation(values)[:MANY]


def _log_std_error(values: NDArray) -> float:
    """Standard error of log(standard deviation): sqrt((kurtosis - 1) / 4n), by the delta method."""
    centred = values - values.mean()
    variance = float(np.mean(centred**2))
    kurtosis = float(np.mean(centred**4)) / variance**2
    return math.sqrt((kurtosis - 1.0) / (4.0 * values.size))


def _two_sided(z: float) -> float:
    return math.erfc(abs(z) / math.sqrt(2.0))
