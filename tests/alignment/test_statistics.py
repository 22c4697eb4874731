"""`compare_arrays` against plain float64 NumPy, over every dtype, layout and odd value."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import alignment.statistics as module
from alignment import AlignmentError
from alignment.statistics import compare_arrays

FLOATS = [np.dtype(name) for name in ("float16", "float32", "float64")] + [np.dtype(ml_dtypes.bfloat16)]
INTS = [np.dtype(name) for name in ("int8", "uint8", "int16", "int32", "int64", "uint64", "bool")]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 64, so that small arrays have many."""
    monkeypatch.setattr(module, "BLOCK", 64)


def plain(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """The definitions, written down: finite values, float64 (long double where that is wider)."""
    x, y = (array.astype(np.float64).astype(np.longdouble) for array in (a, b))
    d = np.abs(y - x)
    norm = np.sqrt((x * x).sum())
    return {
        "max_abs": float(d.max()),
        "mean_abs": float(d.mean()),
        "rms": float(np.sqrt((d * d).mean())),
        "relative_l2": float(np.sqrt((d * d).sum()) / norm) if norm else (math.inf if d.any() else 0.0),
    }


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays of one dtype; the second the first but for some elements."""
    dtype = draw(st.sampled_from([*FLOATS, *INTS]))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=13))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if dtype in FLOATS:
        scale = draw(
            st.sampled_from(
                [1.0, 1e-3, 100.0] + [1e-30, 1e30] * (dtype.itemsize > 2) + [1e-250, 1e250] * (dtype.itemsize == 8)
            )
        )
        a = (rng.standard_normal(shape) * scale).astype(dtype)
        b = (a.astype(np.float64) * (1 + rng.standard_normal(shape) * draw(st.sampled_from([0, 1e-6, 0.1])))).astype(
            dtype
        )
    elif dtype.kind == "b":
        a, b = rng.random(shape) < 0.5, rng.random(shape) < 0.5
    else:
        limits = np.iinfo(dtype)
        a, b = (rng.integers(limits.min, limits.max, shape, dtype, endpoint=True) for _ in range(2))
    a, b = np.asarray(a), np.asarray(b)
    keep = rng.random(shape) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    b = np.asarray(np.where(keep, a, b), dtype)
    if draw(st.booleans()):
        b = np.array(b, order="F")
    return a, b


@settings(max_examples=400, deadline=None)
@given(pairs(), st.sampled_from([1, 3]))
def test_figures_are_those_of_plain_numpy(pair: tuple[np.ndarray, np.ndarray], threads: int) -> None:
    a, b = pair
    found = compare_arrays(a, b, threads=threads)
    wide = a.dtype.kind in "iu" and a.dtype.itemsize == 8
    if wide:  # float64 would round before it subtracts
        gaps = [abs(int(x) - int(y)) for x, y in zip(a.ravel(), b.ravel(), strict=True)]
        expected = {"max_abs": float(max(gaps)), "mean_abs": sum(gaps) / len(gaps)}
    else:
        expected = plain(a, b)
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=4e-6 if a.dtype.itemsize <= 4 else 1e-12), name
    assert found.elements == a.size
    assert found.differing == np.count_nonzero(a != b)
    assert found.equal_bits == (a.tobytes() == b.tobytes())
    assert (found.both_not_finite, found.one_not_finite) == (0, 0)
    if found.differing:
        assert found.worst is not None
        assert (found.worst_reference, found.worst_candidate) == (a[found.worst].item(), b[found.worst].item())
        assert found.max_abs == pytest.approx(
            float(abs(int(b[found.worst]) - int(a[found.worst]))) if wide else expected["max_abs"], rel=1e-6
        )
    else:
        assert found.worst is None


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, -0.0, 1.0, 1e30, -2.5, math.nan, math.inf, -math.inf]), min_size=1, max_size=150),
    st.data(),
    st.sampled_from(["float32", "float64"]),
)
def test_nothing_that_is_not_finite_is_passed_over(values: list[float], data: st.DataObject, dtype: str) -> None:
    others = data.draw(st.permutations(values)) if data.draw(st.booleans()) else list(values)
    a, b = np.array(values, dtype), np.array(others, dtype)
    found = compare_arrays(a, b, atol=1e9, rtol=0.5)
    matched = (np.isnan(a) & np.isnan(b)) | (np.isinf(a) & (a == b))
    odd = ~(np.isfinite(a) & np.isfinite(b)) & ~matched
    assert found.both_not_finite == matched.sum()
    assert found.one_not_finite == odd.sum()
    assert found.differing == ((a != b) & ~matched).sum()
    with np.errstate(all="ignore"):
        within = np.isclose(b.astype(np.float64), a.astype(np.float64), 0.5, 1e9, equal_nan=True)
    assert found.beyond == (~within).sum()
    if odd.any():
        assert found.worst == (int(odd.argmax()),)
        assert found.max_abs == found.mean_abs == found.rms == found.relative_l2 == math.inf
    else:
        assert math.isfinite(found.max_abs)


def test_a_single_nan_in_a_long_array_is_found_and_spoils_every_figure() -> None:
    a = np.zeros(10_000, np.float32)
    b = a.copy()
    b[7_777] = np.nan
    found = compare_arrays(a, b, atol=1.0)
    assert (found.worst, found.one_not_finite, found.differing, found.beyond) == ((7_777,), 1, 1, 1)
    assert found.max_abs == math.inf
    assert not found.equal_bits


@settings(max_examples=100, deadline=None)
@given(pairs(), st.sampled_from([0.0, 1e-7, 0.01, 1.0]), st.sampled_from([0.0, 1e-6, 0.3]))
def test_tolerances_count_what_numpy_counts(pair: tuple[np.ndarray, np.ndarray], atol: float, rtol: float) -> None:
    a, b = pair
    if a.dtype.kind in "iu" and a.dtype.itemsize == 8:
        return
    x, y = a.astype(np.float64), b.astype(np.float64)
    assert compare_arrays(a, b, atol=atol, rtol=rtol).beyond == np.count_nonzero(
        np.abs(y - x) > atol + rtol * np.abs(x)
    )
    assert compare_arrays(a, b).beyond is None


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(FLOATS), st.sampled_from([1, 3, 1000, 10**6]))
def test_ulp_percentiles(seed: int, dtype: np.dtype, reach: int) -> None:
    rng = np.random.default_rng(seed)
    width = dtype.itemsize
    top = int(np.array(ml_dtypes.finfo(dtype).max).view(f"i{width}"))
    ranks = rng.integers(-top, top, 300)
    moved = np.clip(ranks + rng.integers(-reach, reach, 300), -top, top)

    def floats(values: np.ndarray) -> np.ndarray:
        sign = np.int64(-(2**63)) if width == 8 else np.int64(1 << (8 * width - 1))
        bits = np.where(values < 0, np.abs(values) | sign, values)
        return bits.astype(f"i{width}").view(dtype)

    found = compare_arrays(floats(ranks), floats(moved), ulps=True).ulps
    gaps = np.sort(np.abs(moved - ranks))
    assert found is not None
    assert found.max == gaps[-1]
    for share, value in ((0.5, found.p50), (0.9, found.p90), (0.99, found.p99)):
        exact = gaps[math.ceil(share * gaps.size) - 1]
        assert value == exact if exact < 2**16 else exact <= value <= exact * (1 + 1 / 256)


def test_ulps_across_zero_and_the_whole_range() -> None:
    a = np.array([-0.0, 5e-324, -1.7e308, 1.0])
    b = np.array([0.0, -5e-324, 1.7e308, np.nextafter(1.0, 2.0)])
    found = compare_arrays(a, b, ulps=True).ulps
    assert found is not None
    assert found.max == 2 * int(np.float64(1.7e308).view(np.int64))
    assert found.p50 == 1
    with pytest.raises(AlignmentError, match="one floating dtype"):
        compare_arrays(np.ones(2), np.ones(2, np.float32), ulps=True)


def test_the_sign_of_zero_is_a_bit_and_no_value() -> None:
    found = compare_arrays(np.zeros(100), -np.zeros(100))
    assert (found.differing, found.max_abs, found.equal_bits) == (0, 0.0, False)


def test_different_dtypes_complex_numbers_and_empty_arrays() -> None:
    a = np.linspace(0, 1, 300, dtype=np.float32)
    found = compare_arrays(a, a.astype(ml_dtypes.bfloat16))
    assert found.max_abs == np.abs(a.astype(ml_dtypes.bfloat16).astype(np.float64) - a).max()
    assert not found.equal_bits
    big = np.array([2**53 + 1, -(2**63)], np.int64)
    assert compare_arrays(big, big - np.array([1, -1])).max_abs == 1
    assert compare_arrays(big, big.astype(">i8")).differing == 0
    z = np.array([3 + 4j, np.nan])
    assert compare_arrays(z, np.array([0j, np.nan])).max_abs == 5
    assert compare_arrays(np.array([2**64 - 1], np.uint64), np.array([0], np.uint64)).max_abs == 2.0**64
    empty = compare_arrays(np.ones((0, 3)), np.ones((0, 3)), atol=0.0)
    assert (empty.elements, empty.beyond, empty.worst) == (0, 0, None)


def test_tiny_differences_beside_large_values_do_not_vanish() -> None:
    a, b = np.array([1.0, 1e-25], np.float32), np.array([1.0, 3e-25], np.float32)
    found = compare_arrays(a, b)
    assert found.rms == pytest.approx(2e-25 / math.sqrt(2), rel=1e-6)
    assert found.relative_l2 == pytest.approx(2e-25, rel=1e-6)
    found = compare_arrays(np.array([1.0, 1e-200]), np.array([1.0, 3e-200]))
    assert found.rms == pytest.approx(2e-200 / math.sqrt(2))
    assert compare_arrays(np.array([3e38], np.float32), np.array([-3e38], np.float32)).rms == pytest.approx(
        6e38, rel=1e-6
    )


@pytest.mark.parametrize(("dtype", "bound"), [(np.float32, 2e-6), (np.float64, 4e-15)])
@pytest.mark.parametrize("size", [256, 1000, (1 << 17) + 300])
def test_long_arrays_are_summed_to_the_last_row_and_beyond(monkeypatch, size, dtype, bound) -> None:
    monkeypatch.setattr(module, "BLOCK", 1 << 17)
    rng = np.random.default_rng(size)
    a, b = rng.standard_normal((2, size)).astype(dtype)
    gap = (b - a).astype(np.longdouble)
    found = compare_arrays(a, b)
    assert found.mean_abs == pytest.approx(float(np.abs(gap).mean()), rel=bound)
    assert found.rms == pytest.approx(float(np.sqrt(np.mean(gap**2))), rel=bound)
    norm = np.sqrt(np.sum(gap**2) / np.sum(a.astype(np.longdouble) ** 2))
    assert found.relative_l2 == pytest.approx(float(norm), rel=bound)


def test_a_memory_map_is_compared_in_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 1 << 16)
    values = np.random.default_rng(0).standard_normal((2000, 1500)).astype(np.float32)
    values.tofile(tmp_path / "a")
    values.T.copy().tofile(tmp_path / "b")
    a = np.memmap(tmp_path / "a", np.float32, "r", shape=(2000, 1500))
    b = np.memmap(tmp_path / "b", np.float32, "r", shape=(1500, 2000))
    compare_arrays(a[:10], b.T[:10], threads=2)
    tracemalloc.start()
    found = compare_arrays(a, b.T, threads=2)
    same = compare_arrays(a, a, threads=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.equal_bits
    assert same.equal_bits
    assert peak < 4 << 20
    b = np.memmap(tmp_path / "b", np.float32, "r+", shape=(1500, 2000))
    b[1234, 567] += 1
    assert compare_arrays(a, b.T).worst == (567, 1234)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones(2), np.ones(3)), r"shape \[2\] and \[3\]"),
        ((np.array(["a"]), np.array(["a"])), "no numbers"),
        ((np.ones(2, "V2"), np.ones(2, "V2")), "no numbers"),
    ],
)
def test_what_cannot_be_compared_is_said(arguments: tuple[np.ndarray, np.ndarray], message: str) -> None:
    with pytest.raises(AlignmentError, match=message):
        compare_arrays(*arguments)
    for tolerance in (-1.0, math.nan, math.inf):
        with pytest.raises(AlignmentError, match="atol must be"):
            compare_arrays(np.ones(1), np.ones(1), atol=tolerance)
