"""Relations between values are named by what undoes them, and near misses are not proved."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from alignment.causes.suspect import Suspect
from alignment.causes.values import CAUSES, close, distance, tried

from .fakes import drawn, fake, proved

X, Y, Z = drawn(3, 6, 8), drawn(3, 6, 8, seed=1), drawn(3, 6, 8, seed=2)
SQUARE = drawn(5, 5, 8)
CUBE = drawn(4, 4, 5, seed=9)
POSITIONS = drawn(6, 8, seed=3)
HEADS = X.reshape(3, 6, 2, 4).transpose(0, 2, 1, 3)  # b h n d
SCORES = drawn(3, 2, 6)  # 2 heads of a width of 8
MASKED = np.where(np.arange(6) < 4, SCORES, SCORES - 1e4)
IMAGE = drawn(2, 3, 4, 4)
PADDED = np.pad(IMAGE, [(0, 0), (0, 0), (1, 1), (2, 0)])
TABLE, IDS = drawn(9, 8, seed=4), np.array([[3, 5, 0, 0], [1, 8, 2, 0]])
LOOKUP: dict[str, Any] = {"kind": "Embedding", "weights": {"weight": TABLE}, "inputs": [IDS]}
COUNT = np.arange(6)


def summed(right: np.ndarray, wrong: np.ndarray, *more: np.ndarray, names: tuple[str, ...] = ()) -> Suspect:
    return fake(right, wrong, *more, names=names)


FAULTS: dict[str, tuple[str, Suspect]] = {
    "scaled": ("scaled", fake(X, 1.7 * X)),
    "scaled by a length": ("scaled", fake(X, 3 * X)),
    "sign": ("sign-flipped", fake(X, -X)),
    "dropout": ("dropout-mode", fake(X, 0.8 * X)),
    "scale left out": ("scale-missing", fake(SCORES / 2, SCORES, X, record="input", name="softmax")),
    "scale left out, masked": (
        "scale-missing",
        fake((MASKED + 1e4 * (MASKED < -999)) / 2 - 1e4 * (MASKED < -999), MASKED, X, record="input", name="softmax"),
    ),
    "scale of the whole width": (
        "scale-wrong",
        fake(SCORES, SCORES / np.sqrt(2), X, record="input", name="softmax"),
    ),
    "another scale": ("scale-wrong", fake(SCORES, 0.3 * SCORES, X, record="input", name="softmax")),
    "first axes": ("batch-first", fake(SQUARE, SQUARE.swapaxes(0, 1))),
    "steps for rows": ("batch-first", fake(CUBE[:, 2], CUBE[2], CUBE)),
    "other axes": ("axes-swapped", fake(SQUARE.transpose(2, 0, 1), SQUARE.transpose(2, 1, 0))),
    "heads read by reshaping": ("sdpa-layout", fake(HEADS, X.reshape(3, 2, 6, 4))),
    "heads joined by reshaping": ("sdpa-layout", fake(X, HEADS.reshape(3, 6, 8))),
    "heads interleaved": ("sdpa-layout", fake(X, X.reshape(3, 6, 2, 4).swapaxes(2, 3).reshape(3, 6, 8))),
    "pixels before channels": (
        "flatten-order",
        fake(IMAGE.reshape(2, -1), IMAGE.transpose(0, 2, 3, 1).reshape(2, -1), IMAGE),
    ),
    "heads in another order": ("head-order", fake(X, np.concatenate([X[..., 4:], X[..., 2:4], X[..., :2]], -1))),
    "features in another order": ("features-permuted", fake(X, X[..., [3, 1, 0, 2, 7, 5, 4, 6]])),
    "reversed": ("reversed", fake(X, X[:, ::-1])),
    "shifted": ("shifted", fake(X, np.roll(X, 1, 1))),
    "counted from 1": ("position-off-by-one", fake(COUNT, COUNT + 1, record="input", name="positions")),
    "counted from 1, around": ("position-off-by-one", fake(COUNT, (COUNT + 1) % 6, record="input", name="positions")),
    "next rows": ("position-off-by-one", fake(TABLE[IDS], TABLE[(IDS + 1) % 9], IDS, **LOOKUP)),
    "padding row": ("padding-row", fake(TABLE[IDS], TABLE[IDS] * (IDS != 0)[..., None], IDS, **LOOKUP)),
    "residual": ("residual-missing", fake(X + Y, X, Z, Y)),
    "positions": (
        "positions-missing",
        fake(X + POSITIONS, X, POSITIONS, names=("the output of positions",)),
    ),
    "bias": ("bias-missing", fake(X + POSITIONS[0], X, POSITIONS[0], names=("owner.bias",))),
    "in place": (
        "inplace-alias",
        fake(X + POSITIONS[0], X, POSITIONS[0], names=("owner.shift",), weights={"shift": POSITIONS[0]}),
    ),
    "one summand more": ("extra-summand", fake(X, X + Y, Z, Y)),
    "rows zeroed": ("scatter-overwrite", fake(X + 0.1, np.where((COUNT % 4 == 0)[:, None], 0.1, X + 0.1), X)),
    "another tensor": ("swapped-tensor", fake(X, Y, X, Y)),
    "key for query": (
        "query-key-swapped",
        fake(X, Y, X, Y, names=("the output of query", "the output of key")),
    ),
    "key added for query": (
        "query-key-swapped",
        fake(Z + X, Z + Y, X, Y, names=("the output of query", "the output of key")),
    ),
    "offset": ("constant-offset", fake(X, X + 1e-6)),
    "float32": ("precision-lost", fake(X, X.astype(np.float32).astype(np.float64))),
    "padding on other sides": (
        "pad-order",
        fake(PADDED, np.pad(IMAGE, [(0, 0), (0, 0), (2, 0), (1, 1)])),
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_named_and_proved(case: str) -> None:
    name, suspect = FAULTS[case]
    assert proved(suspect) == [name]


NEARLY = 1 + 1e-6 * Z
NEAR_MISSES: dict[str, Suspect] = {
    "scaled, but not everything alike": fake(X, 1.7 * X * NEARLY),
    "scaled by two numbers": fake(X, X * np.where(COUNT < 5, 1.7, 1.6)[:, None]),
    "one number can be scaled to any other": fake(np.array([2.0]), np.array([3.0])),
    "axes exchanged, and a little more": fake(SQUARE, SQUARE.swapaxes(0, 1) + 1e-6),
    "the same numbers, shuffled": fake(X, np.random.default_rng(5).permutation(X.ravel()).reshape(X.shape)),
    "a summand, nearly": fake(X + Y, X + 1e-6 * Z, Y),
    "a summand that nothing can see": fake(X + Y, X, Z),
    "an offset, nearly": fake(X, X + 1e-6 + 1e-8 * Z),
    "more digits than float32": fake(X, X * (1 + 1e-8 * Z)),
    "less exact than float32": fake(X, (X * (1 + 1e-5 * Z)).astype(np.float32).astype(np.float64)),
    "zeros, and not for one id": fake(TABLE[IDS], TABLE[IDS] * (IDS > 1)[..., None], IDS, **LOOKUP),
    "zeros, and another difference": fake(TABLE[IDS], TABLE[IDS] * (IDS != 0)[..., None] + 1e-6, IDS, **LOOKUP),
    "positions, one of them wrong": fake(COUNT, np.array([1, 2, 3, 4, 5, 7]), record="input", name="positions"),
    "a picture in another frame, changed": fake(PADDED, np.pad(1.5 * IMAGE, [(0, 0), (0, 0), (2, 0), (1, 1)])),
    "not a number": fake(X, np.full_like(X, np.nan)),
    "another shape": fake(X, X[:, :3]),
    "scores scaled, and masked otherwise": fake(
        np.where(COUNT < 4, SCORES / 2, -1e4), np.where(COUNT < 3, SCORES, -1e4), X, record="input", name="softmax"
    ),
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_a_near_miss_is_not_proved(case: str) -> None:
    assert proved(NEAR_MISSES[case]) == []


def test_a_trial_says_how_much_the_correction_explains() -> None:
    cause = next(cause for cause in CAUSES if cause.name == "scaled")
    (trial,) = cause.test(fake(X, 3 * X))
    assert trial.before == pytest.approx(2.0)
    assert trial.after < 1e-15
    assert "3 (the length of axis 0)" in trial.change


@pytest.mark.parametrize(("error", "is_proved"), [(0.0, True), (1e-6, False)])
def test_scores_beside_a_mask_count_by_themselves(error: float, is_proved: bool) -> None:
    """Next to −1,000,000,000 an error of 1e-6 is rounding; among the scores it is not."""
    reference = np.where(COUNT < 4, SCORES, -1e9)
    suspect = fake(reference, np.where(COUNT < 4, 2 * SCORES, -1e9))
    (trial,) = tried(suspect, "correcting", np.where(COUNT < 4, SCORES + error, -1e9))
    assert trial.proved == is_proved
    assert trial.before == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("one", "two", "equal"), [(np.inf, np.inf, True), (np.nan, np.nan, True), (np.inf, 1.0, False)]
)
def test_values_that_are_not_finite(one: float, two: float, equal: bool) -> None:
    assert close(np.array([1.0, one]), np.array([1.0, two])) == equal


def test_a_distance_of_huge_values_is_a_number() -> None:
    lowest = np.finfo(np.float64).min
    assert distance(np.array([0.0, 1.0]), np.array([lowest, 1.0])) == pytest.approx(1.0)
    assert distance(np.array([-np.inf, 1.0]), np.array([lowest, 1.0])) == np.inf
