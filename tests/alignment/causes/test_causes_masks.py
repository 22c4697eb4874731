"""Masks that are wrong are named by what the scores show, and near misses are not proved."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from alignment.causes.masks import CAUSES, spreads
from alignment.causes.suspect import Suspect, Tensor

from .fakes import drawn, fake, proved

REAL = np.arange(6) < np.array([[6], [4], [2]])  # b n
HERE = REAL[:, None, :]  # b 1 n
SCORES = drawn(3, 2, 6)
SOURCE = 2 * SCORES.transpose(0, 2, 1)  # what the scores are made of: b n h
LOWEST = np.finfo(np.float64).min


def added(scores: np.ndarray, mask: np.ndarray = HERE, fill: float = -1e4) -> np.ndarray:
    return scores + (1.0 - mask) * fill


def put(scores: np.ndarray, mask: np.ndarray = HERE, fill: float = -1e9) -> np.ndarray:
    return np.where(mask, scores, fill)


def masked(reference: np.ndarray, candidate: np.ndarray, *sources: np.ndarray, record: str = "input") -> Suspect:
    around: dict[str, Any] = {"masks": lambda: iter([Tensor("mask", REAL)])}
    return fake(reference, candidate, *sources, record=record, name="softmax", **around)


FAULTS: dict[str, tuple[str, Suspect]] = {
    "inverted": ("mask-inverted", masked(REAL, ~REAL)),
    "inverted, as numbers": ("mask-inverted", masked(REAL.astype(float), 1.0 - REAL)),
    "inverted, added": ("mask-inverted", masked(added(SCORES), added(SCORES, ~HERE))),
    "inverted, put": ("mask-inverted", masked(put(SCORES), put(SCORES, ~HERE), SOURCE)),
    "ignored where it is added": ("mask-ignored", masked(added(SCORES), SCORES)),
    "ignored where it is put": ("mask-ignored", masked(put(SCORES), SCORES)),
    "ignored, -max": ("mask-ignored", masked(put(SCORES, fill=LOWEST), SCORES)),
    "0 and 1": ("mask-added-as-0/1", masked(put(SCORES), SCORES + HERE)),
    "1 and 0": ("mask-added-as-0/1", masked(added(SCORES), SCORES + ~HERE)),
    "another number": ("mask-magnitude", masked(put(SCORES), put(SCORES, fill=-1e4))),
    "infinity": ("mask-magnitude", masked(put(SCORES), put(SCORES, fill=-np.inf))),
    "infinity, where it should be added": ("mask-magnitude", masked(added(SCORES), put(SCORES, fill=-np.inf), SOURCE)),
    "-max, where it should be added": ("mask-magnitude", masked(added(SCORES), put(SCORES, fill=LOWEST), SOURCE)),
}


@pytest.mark.parametrize("case", FAULTS)
def test_named_and_proved(case: str) -> None:
    name, suspect = FAULTS[case]
    assert proved(suspect, CAUSES) == [name]


NOISE = 1e-6 * drawn(3, 2, 6, seed=1)
SHORTER = HERE & (np.arange(6) < 3)
NEAR_MISSES: dict[str, Suspect] = {
    "a mask wrong in one place": masked(REAL, REAL ^ (np.arange(18).reshape(3, 6) == 7)),
    "ignored, and other scores": masked(added(SCORES), SCORES + NOISE),
    "ignored, and other scores beside -max": masked(put(SCORES, fill=LOWEST), SCORES + NOISE),
    "added as 0 and 2": masked(put(SCORES), SCORES + 2.0 * HERE),
    "inverted, and other scores": masked(added(SCORES), added(SCORES + NOISE, ~HERE)),
    "inverted, and nothing says what is lost": masked(put(SCORES), put(SCORES, ~HERE)),
    "another mask": masked(put(SCORES), put(SCORES, SHORTER)),
    "another number, and other scores": masked(put(SCORES), put(SCORES + NOISE, fill=-1e4)),
    "not a number": masked(put(SCORES), np.full_like(SCORES, np.nan)),
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_a_near_miss_is_not_proved(case: str) -> None:
    assert proved(NEAR_MISSES[case], CAUSES) == []


def test_a_mask_lies_over_a_tensor_by_the_order_of_its_axes() -> None:
    (spread,) = spreads(REAL, (3, 2, 1, 6))
    assert (spread == np.broadcast_to(REAL[:, None, None, :], (3, 2, 1, 6))).all()
    assert not list(spreads(REAL, (6, 3)))
