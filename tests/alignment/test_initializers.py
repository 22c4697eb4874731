"""Own initialisers: right ones pass, each real mistake is seen, at the sizes parameters really have."""

from __future__ import annotations

import numpy as np
import pytest

from alignment.initializers import FALSE_ALARM_RATE, compare_initializers

SEEDS = 32


def uniform(bound: float, shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-bound, bound, (SEEDS, *shape)).astype(np.float32)


def normal(deviation: float, shape: tuple[int, ...], seed: int) -> np.ndarray:
    return (deviation * np.random.default_rng(seed).standard_normal((SEEDS, *shape))).astype(np.float32)


@pytest.mark.parametrize("shape", [(64, 64), (5, 64), (5,), (1,)])
@pytest.mark.parametrize("draw", [uniform, normal])
def test_the_same_distribution_under_other_seeds_is_aligned(draw, shape) -> None:
    assert compare_initializers(draw(0.125, shape, 1), draw(0.125, shape, 2), tests=50).verdict == "aligned"


def test_the_false_alarm_rate_holds() -> None:
    # At a rate of 1e-6 for the family, 300 families of one must be silent; a level of 1 % would alarm about ten times.
    assert FALSE_ALARM_RATE == 1e-6
    results = [compare_initializers(uniform(1, (8,), s), uniform(1, (8,), s + 10_000), tests=1) for s in range(300)]
    assert {result.verdict for result in results} == {"aligned"}


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        (uniform(1 / 8, (64, 64), 1), uniform(np.sqrt(6 / 128), (64, 64), 2)),  # torch's Linear, Paddle's Xavier
        (uniform(1 / 8, (64,), 1), np.zeros((SEEDS, 64), np.float32)),  # torch's bias, Paddle's zero bias
        (uniform(1 / 8, (1,), 1), np.zeros((SEEDS, 1), np.float32)),
        (normal(1.0, (100, 16), 1), uniform(np.sqrt(6 / 116), (100, 16), 2)),  # torch's Embedding, Paddle's Xavier
        (normal(0.02, (64, 64), 1), normal(0.025, (64, 64), 2)),
        (normal(0.02, (64, 64), 1), uniform(0.02 * np.sqrt(3), (64, 64), 2)),  # the same deviation, another shape
        (normal(0.02, (64, 64), 1), normal(0.02, (64, 64), 2) + np.float32(0.002)),
        (np.ones((SEEDS, 8), np.float32), np.zeros((SEEDS, 8), np.float32)),
    ],
)
def test_real_mistakes_diverge(reference: np.ndarray, candidate: np.ndarray) -> None:
    assert compare_initializers(reference, candidate, tests=50).verdict == "diverged"


def test_a_padding_row_must_be_zero_on_both_sides() -> None:
    one, two = normal(0.02, (10, 8), 1), normal(0.02, (10, 8), 2)
    one[:, 0] = 0
    result = compare_initializers(one, two, tests=1)
    assert (result.verdict, result.worst_index) == ("diverged", (0, 0))
    two[:, 0] = 0
    assert compare_initializers(one, two, tests=1).verdict == "aligned"


def test_too_little_is_inconclusive() -> None:
    assert compare_initializers(np.zeros((1, 4)), np.zeros((1, 4)), tests=1).verdict == "inconclusive"
    assert compare_initializers(np.zeros((8, 0)), np.zeros((8, 0)), tests=1).verdict == "inconclusive"
