"""Samples are known whatever their padding, and the same ones are kept of two sides, in whatever order they come."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from alignment.training.samples import KEPT, TOKENS, Kept, Known
from alignment.training.streams import row_names


def test_padding_is_seen_and_does_not_change_a_name() -> None:
    generator = np.random.default_rng(0)
    texts = [generator.integers(1, 90, size) for size in generator.integers(1, 60, 40)]
    right = np.stack([np.pad(text, (0, 60 - len(text))) for text in texts])
    left = np.stack([np.pad(text, (80 - len(text), 0), constant_values=99) for text in texts])
    known = Known.by(right, left)
    assert known == Known((0, 99), TOKENS)
    names = known.names(right)
    assert (names == known.names(left)).all()
    assert len(set(names.tolist())) == len(texts)
    assert (known.names(right[:, :TOKENS]) == names).all()
    assert Known.by(right[:, :7], left) == Known((0, 99), 7)
    assert Known.by(right, left.astype(float)) == Known.by(right[:, 0], left) == Known()


@given(st.lists(st.integers(-(2**63), 2**63 - 1), unique=True), st.integers(0, 2))
def test_names_of_numbers_are_never_shared(numbers: list[int], more: int) -> None:
    rows = np.array(numbers, dtype=np.int64)
    names = row_names(np.stack([rows] * (1 + more), axis=1)) if more else row_names(rows)
    assert len(set(names.tolist())) == len(numbers)


def keep(order: np.ndarray, values: np.ndarray, size: int = 64) -> Kept:
    kept = Kept()
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        kept.add(row_names(rows), [rows, values[rows]])
    return kept


def test_both_sides_keep_the_same_samples() -> None:
    values = np.arange(20_000) % 7
    orders = [np.random.default_rng(seed).permutation(20_000) for seed in (0, 1)]
    one, two = (keep(order, values) for order in orders)
    ((ours, theirs),) = one.pairs(two, 0)
    assert (ours == theirs).all()
    assert KEPT <= len(ours) <= 2 * KEPT + 64
    ((ours_of, theirs_of),) = one.pairs(two, 1)
    assert (ours_of == ours % 7).all()
    assert (theirs_of == ours % 7).all()


def test_samples_that_are_not_told_apart_are_not_compared() -> None:
    rows, values = np.array([4, 5, 4, 6]), np.arange(10)
    ((ours, _),) = keep(rows, values).pairs(keep(rows[::-1], values), 0)
    assert sorted(ours.tolist()) == [5, 6]


def test_rows_of_other_lengths_are_compared_apart() -> None:
    one, two = Kept(), Kept()
    for start, width in ((0, 3), (4, 5)):
        names = row_names(np.arange(start, start + 4))
        one.add(names, [np.ones((4, width))])
        two.add(names, [np.ones((4, 9))])
    assert [(a.shape, b.shape) for a, b in one.pairs(two, 0)] == [((4, 3), (4, 9)), ((4, 5), (4, 9))]
