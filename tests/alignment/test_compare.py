"""The verdict of one pair: what must be aligned, what must not, and that nothing passes by default."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from alignment.compare import Pair, Tolerance, bitwise, compare, measure, overall, settle

SEEDS = st.integers(0, 2**32 - 1)


def right_pair(seed: int, shape: tuple[int, ...] = (8, 16), size: float = 1.0) -> Pair:
    """Both sides round differently around one truth, as two right implementations do."""
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal(shape) * size

    def rounded(dtype: type, relative: float) -> np.ndarray:
        return (truth + relative * size * rng.standard_normal(shape)).astype(dtype)

    return Pair(
        rounded(np.float32, 1e-7), rounded(np.float32, 1e-7), rounded(np.float64, 1e-16), rounded(np.float64, 1e-16)
    )


@given(SEEDS, st.sampled_from([1e-12, 1e-3, 1.0, 1e6]))
def test_rounding_is_aligned_at_every_size(seed: int, size: float) -> None:
    assert compare(right_pair(seed, size=size)).verdict == "aligned"


@given(SEEDS, st.sampled_from([1e-12, 1e-3, 1.0, 1e6]), st.sampled_from([1e-8, 1e-4, 1.0]))
def test_a_mistake_diverges_at_every_size(seed: int, size: float, mistake: float) -> None:
    pair = right_pair(seed, size=size)
    assert pair.candidate64 is not None
    result = compare(replace(pair, candidate64=pair.candidate64 * (1 + mistake)))
    assert result.verdict == "diverged"
    assert result.decided_by == "semantics"
    assert result.seen is not None
    assert result.allowed is not None
    assert result.seen > result.allowed


@given(SEEDS)
def test_one_wrong_element_is_found_and_located(seed: int) -> None:
    pair = right_pair(seed)
    assert pair.candidate64 is not None
    wrong = pair.candidate64.copy()
    wrong[3, 5] += 1e-6
    result = compare(replace(pair, candidate64=wrong))
    assert (result.verdict, result.worst_index) == ("diverged", (3, 5))
    assert result.max_abs == pytest.approx(1e-6, rel=1e-6)


def test_a_true_zero_gradient_is_aligned_though_its_relative_difference_is_above_one() -> None:
    rng = np.random.default_rng(0)
    noise = [rng.standard_normal(16) for _ in range(4)]
    pair = Pair(
        (1e-13 * noise[0]).astype(np.float32), (2e-13 * noise[1]).astype(np.float32), 1e-22 * noise[2], 1e-22 * noise[3],
        scale=0.1,
    )  # fmt: skip
    result = compare(pair)
    assert result.verdict == "aligned"
    assert result.reason.startswith("true zero")
    assert result.rel_l2 is not None
    assert result.rel_l2 > 0.5


def test_a_constant_of_1e_9_in_a_true_zero_gradient_diverges() -> None:
    rng = np.random.default_rng(0)
    noise = [rng.standard_normal(16) for _ in range(4)]
    pair = Pair(
        (1e-13 * noise[0]).astype(np.float32), (1e-9 + 1e-13 * noise[1]).astype(np.float32), 1e-22 * noise[2],
        1e-9 + 1e-22 * noise[3], scale=0.1,
    )  # fmt: skip
    result = compare(pair)
    assert result.verdict == "diverged"
    assert "true value is zero" in result.reason


def test_a_float32_result_much_worse_than_the_references_diverges_on_precision() -> None:
    pair = right_pair(1)
    assert pair.candidate32 is not None
    coarse = pair.candidate32.astype(np.float16).astype(np.float32)
    result = compare(replace(pair, candidate32=coarse))
    assert (result.verdict, result.decided_by, result.dtype) == ("diverged", "precision", "float32")
    assert result.error_ratio is not None
    assert result.error_ratio > 100


def test_a_lucky_reference_is_judged_by_its_other_batches() -> None:
    lucky, usual = right_pair(1, ()), right_pair(2, ())
    assert lucky.reference64 is not None
    lucky = replace(
        lucky, reference32=lucky.reference64.astype(np.float32), candidate32=np.float32(lucky.reference64 * (1 + 2e-6))
    )
    usual = replace(usual, reference32=np.float32(usual.reference64 * (1 + 2e-6)))
    tolerance = Tolerance()
    alone = settle([measure(lucky, tolerance)])[0]
    together = settle([measure(lucky, tolerance), measure(usual, tolerance)])[0]
    assert alone.verdict == "diverged"
    assert together.verdict == "aligned"


def test_long_sequential_sums_are_allowed_more_and_short_ones_are_not() -> None:
    pair = right_pair(3, (256,))
    assert pair.reference64 is not None
    rng = np.random.default_rng(5)
    serial = (pair.reference64 + 2.5e-6 * rng.standard_normal(256)).astype(np.float32)
    assert compare(replace(pair, candidate32=serial, summands=1)).verdict == "diverged"
    assert compare(replace(pair, candidate32=serial, summands=32_768)).verdict == "aligned"


@pytest.mark.parametrize("field", ["reference32", "candidate32", "reference64", "candidate64"])
def test_a_missing_tensor_is_never_aligned(field: str) -> None:
    assert compare(replace(right_pair(0), **{field: None})).verdict == "diverged"


def test_nothing_on_both_sides_is_inconclusive() -> None:
    assert compare(Pair(None, None, None, None)).verdict == "inconclusive"
    assert compare(replace(right_pair(0), reference64=None, candidate64=None)).verdict == "inconclusive"


def test_an_empty_tensor_is_inconclusive() -> None:
    empty = np.zeros((0, 4))
    pair = Pair(empty.astype(np.float32), empty.astype(np.float32), empty, empty)
    assert compare(pair).verdict == "inconclusive"


def test_broadcastable_shapes_diverge() -> None:
    pair = right_pair(0, (4, 1))
    assert pair.candidate64 is not None
    result = compare(replace(pair, candidate64=np.broadcast_to(pair.candidate64, (4, 4))))
    assert (result.verdict, result.decided_by) == ("diverged", "metadata")
    assert "[4, 1]" in result.reason
    assert "[4, 4]" in result.reason


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("fields", [("candidate64",), ("candidate32",), ("reference64", "reference32")])
def test_a_value_that_is_not_finite_on_one_side_diverges(value: float, fields: tuple[str, ...]) -> None:
    pair = right_pair(0)
    for field in fields:
        broken = getattr(pair, field).copy()
        broken[1, 2] = value
        pair = replace(pair, **{field: broken})
    result = compare(pair)
    assert result.verdict == "diverged"
    assert result.worst_index == (1, 2)


def test_nan_everywhere_is_not_aligned_though_every_bit_is_equal() -> None:
    nothing = np.full(3, math.nan)
    pair = Pair(nothing.astype(np.float32), nothing.astype(np.float32), nothing, nothing.copy())
    assert compare(pair).verdict == "inconclusive"


def test_the_same_nan_on_both_sides_proves_nothing() -> None:
    pair = right_pair(0)
    values = {}
    for field in ("reference32", "candidate32", "reference64", "candidate64"):
        values[field] = getattr(pair, field).copy()
        values[field][0, 0] = math.nan
    assert compare(Pair(**values)).verdict == "inconclusive"


def test_float32_overflow_on_both_sides_excuses_nothing() -> None:
    pair = right_pair(0)
    values = {}
    for field in ("reference32", "candidate32"):
        values[field] = getattr(pair, field).copy()
        values[field][0, 0] = math.inf
    assert pair.candidate64 is not None
    assert compare(replace(pair, **values)).verdict == "inconclusive"
    assert compare(replace(pair, **values, candidate64=pair.candidate64 * 2)).verdict != "aligned"


def test_a_noise_run_that_overflows_is_no_yardstick() -> None:
    pair = right_pair(0)
    assert pair.candidate64 is not None
    overflowed = np.full((8, 16), math.inf, np.float32)
    wrong = replace(pair, candidate64=pair.candidate64 * 1.001, noise=(overflowed, np.full_like(overflowed, math.nan)))
    assert compare(wrong).verdict == "diverged"


def test_infinities_of_other_sign_diverge() -> None:
    pair = right_pair(0)
    values = {}
    for field, value in (("reference32", 1), ("candidate32", -1), ("reference64", 1), ("candidate64", -1)):
        values[field] = getattr(pair, field).copy()
        values[field][0, 0] = value * math.inf
    assert compare(Pair(**values)).verdict == "diverged"


def test_integers_and_booleans_must_be_equal() -> None:
    same = np.arange(6)
    assert compare(Pair(same, same, same, same)).verdict == "aligned"
    other = same.copy()
    other[4] = 9
    result = compare(Pair(same, other, same, other))
    assert (result.verdict, result.worst_index) == ("diverged", (4,))
    flags = same > 2
    assert compare(Pair(flags, ~flags, flags, ~flags)).verdict == "diverged"
    assert compare(Pair(same, same, same, same.astype(np.float64))).verdict == "diverged"


@pytest.mark.parametrize("field", ["semantics_margin", "precision_ratio", "floor_ulps"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0])
def test_a_tolerance_that_would_pass_anything_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        Tolerance(**{field: value})


@given(hnp.arrays(np.float32, (3, 4), elements=st.floats(width=32)))
def test_bitwise_equality_counts_every_bit(values: np.ndarray) -> None:
    assert bitwise(values, values.copy()).verdict == "aligned"
    changed = values.copy()
    changed.view(np.uint32)[2, 1] ^= 1
    result = bitwise(values, changed)
    assert (result.verdict, result.worst_index) == ("diverged", (2, 1))


def test_bitwise_tells_zeros_apart_and_refuses_another_dtype() -> None:
    assert bitwise(np.array([0.0]), np.array([-0.0])).verdict == "diverged"
    assert bitwise(np.zeros(2, np.float32), np.zeros(2)).verdict == "diverged"
    assert bitwise(np.zeros(0), np.zeros(0)).verdict == "inconclusive"
    assert bitwise(None, np.zeros(2)).verdict == "diverged"
    assert bitwise(None, None).verdict == "inconclusive"


def test_the_overall_verdict_fails_closed() -> None:
    assert overall([]) == "inconclusive"
    assert overall(["aligned", "aligned"]) == "aligned"
    assert overall(["aligned", "inconclusive"]) == "inconclusive"
    assert overall(["inconclusive", "diverged", "aligned"]) == "diverged"
