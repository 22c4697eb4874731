"""Figures in place of tensors: they prove what they prove, and no more."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from alignment.compare import Pair, compare
from alignment.figures import Figures, compare_figures, figures_of, float32_error, value_of

VALUES = st.floats(-1e6, 1e6, allow_subnormal=False)
ANY = st.floats(width=64)


def judged(ours: np.ndarray, theirs: np.ndarray):
    """Both sides in both precisions, by figures and as they are."""
    narrow = [value.astype(np.float32) for value in (ours, theirs)]
    error = float32_error(ours, [narrow[0]])
    by_figures = compare_figures(
        figures_of(narrow[0]), figures_of(narrow[1]), figures_of(ours, error), figures_of(theirs)
    )
    return by_figures, compare(Pair(narrow[0], narrow[1], ours, theirs))


@st.composite
def values_and_moves(draw) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(array_shapes(max_dims=2, max_side=5))
    moves = st.sampled_from([0.0, 0.0, 1e-16, 1e-9, 1e-3, 2.0])
    return draw(arrays(np.float64, shape, elements=VALUES)), draw(arrays(np.float64, shape, elements=moves))


@example((np.array([1.0, 1.001e3]), np.array([1e-3, 1e-9])))  # so far apart that the values are judged in two parts
@given(values_and_moves())
def test_what_figures_refute_the_values_refute(drawn) -> None:
    ours, moved = drawn
    theirs = ours * (1 + moved)
    figures, values = judged(ours, theirs)
    if figures.verdict == "diverged":
        assert values.verdict == "diverged"
        if figures.dtype == "float64":
            assert figures.seen <= np.abs(theirs - ours).max() * (1 + 1e-12)
    if figures.verdict == "aligned":
        assert values.verdict == "aligned"
        np.testing.assert_array_equal(theirs, ours)


@pytest.mark.parametrize("wrong", [1.5, -1.0, 1.001])
def test_a_mistake_is_seen_by_its_figures(wrong) -> None:
    ours = np.random.default_rng(0).standard_normal((7, 9))
    assert judged(ours, ours * wrong)[0].verdict == "diverged"


def test_a_permutation_is_left_open() -> None:
    ours = np.random.default_rng(0).standard_normal((7, 9))
    figures, values = judged(ours, ours[::-1])
    assert (figures.verdict, values.verdict) == ("inconclusive", "diverged")


@given(arrays(np.float64, array_shapes(max_dims=3, max_side=4, min_side=0), elements=ANY))
def test_figures_of_anything(value) -> None:
    found = figures_of(value)
    finite = value[np.isfinite(value)]
    assert found.non_finite == (np.isnan(value).sum(), (value == np.inf).sum(), (value == -np.inf).sum())
    assert (found.smallest, found.largest) == ((finite.min(), finite.max()) if finite.size else (None, None))
    for figure in (found.total, found.absolute, found.norm):
        assert figure is None or math.isfinite(figure)
    assert found.norm is None or math.isclose(
        found.norm, math.hypot(*finite.tolist()) if finite.size else 0.0, rel_tol=1e-9
    )
    only = value_of(found)
    assert (only is not None) == (value.size == 1 and found.extreme <= 2.0**53)
    if only is not None:
        np.testing.assert_array_equal(only, value)


@pytest.mark.parametrize(
    ("one", "two", "said"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2)), "shape"),
        (np.zeros(3), np.zeros(3, np.int64), "dtype"),
        (np.array([1.0, np.nan]), np.array([1.0, 2.0]), "NaN"),
        (np.arange(3), np.arange(3) + 1, "other bits"),
    ],
)
def test_what_no_rounding_explains(one, two, said) -> None:
    ours, theirs = figures_of(one), figures_of(two)
    found = compare_figures(ours, theirs, ours, theirs)
    assert found.verdict == "diverged"
    assert said in found.reason
    assert compare_figures(ours, None, ours, None).verdict == "diverged"


def test_what_stays_open() -> None:
    empty, nan = figures_of(np.zeros((0, 2))), figures_of(np.array([np.nan, 1.0]))
    plain, other = figures_of(np.array([1.0, 2.0])), figures_of(np.array([1.5, 2.5]))
    for found in (
        compare_figures(empty, empty, empty, empty),
        compare_figures(nan, nan, nan, nan),
        compare_figures(None, None, plain, plain),
        compare_figures(plain, other, plain, other),  # the reference's float32 error is not known
    ):
        assert found.verdict == "inconclusive", found.reason
    known = replace(plain, error=(1e-9, 1e-9))
    assert compare_figures(plain, other, known, other).verdict == "diverged"
    assert isinstance(known, Figures)
