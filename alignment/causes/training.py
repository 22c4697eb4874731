"""A training whose steps differ though one pass through the models does not: learning rates, and gradients over steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignment.causes.gradients import factor_of
from alignment.causes.suspect import Cause, Trial, relative

# How far learning rates may differ that are the same: some frameworks hold them in float32.
RATE = 1e-6
# What is left of a difference of float32 gradients, as a share of them, where a cause explains it.
GRADIENT = 1e-3


@dataclass(frozen=True, eq=False)
class RateSuspect:
    """Learning rates that differ. reference, candidate: one for each step of a training, from the first. base: what the
    schedule is of, where that is known.
    """

    name: str
    reference: NDArray[np.float64]
    candidate: NDArray[np.float64]
    base: float | None = None
    record: str = "rate"


@dataclass(frozen=True, eq=False)
class SeriesSuspect:
    """A parameter's gradients of successive steps, of both sides from the same weights each time, that differ.

    before: what the candidate's was at the step before the first; zero where there was none.
    """

    name: str
    before: NDArray[np.float64]
    reference: tuple[NDArray[np.float64], ...]
    candidate: tuple[NDArray[np.float64], ...]
    record: str = "gradient"


def _rates(suspect: RateSuspect, change: str, corrected: NDArray, wanted: NDArray) -> Trial:
    before, after = relative(suspect.candidate, suspect.reference), relative(corrected, wanted)
    return Trial(change, before, after, bool(before > after and after <= RATE))


def _off_by_one(suspect: RateSuspect) -> Iterator[Trial]:
    """The rate of each step is the schedule's of the step after it, or before it."""
    ours, theirs = suspect.reference, suspect.candidate
    if len(ours) < 3 or not all(np.ptp(rates) > RATE * np.abs(rates).max() for rates in (ours, theirs)):
        return  # a rate that stays is that of every other step
    yield _rates(
        suspect, "taking the rates of a step earlier: the candidate's schedule is one step ahead", theirs[:-1], ours[1:]
    )
    yield _rates(
        suspect, "taking the rates of a step later: the candidate's schedule is one step behind", theirs[1:], ours[:-1]
    )


def _not_stepped(suspect: RateSuspect) -> Iterator[Trial]:
    """The rate stays where the schedule begins, or what it would be without one."""
    ours, theirs = suspect.reference, suspect.candidate
    if not np.ptp(theirs) <= RATE * np.abs(theirs).max() < np.ptp(ours):
        return
    for stays, where in ((ours[0], "where the schedule begins"), (suspect.base, "at that of no schedule")):
        if stays is not None and abs(theirs[0] - stays) <= RATE * abs(stays):
            yield _rates(suspect, f"moving the schedule on, whose rate stays {where}", theirs / theirs[0] * ours, ours)
            return


def _scaled(suspect: RateSuspect) -> Iterator[Trial]:
    """All rates are a constant multiple of the reference's."""
    factor = factor_of(suspect.candidate, suspect.reference) if suspect.candidate.any() else None
    if factor is not None:
        yield _rates(
            suspect, f"dividing every learning rate by {factor:.6g}", suspect.candidate / factor, suspect.reference
        )


def _added_up(suspect: SeriesSuspect) -> Iterator[Trial]:
    """Each gradient is the sum of all up to it: from one step to the next it grows by the reference's."""
    theirs = np.stack((suspect.before, *suspect.candidate))
    ours, corrected = np.stack(suspect.reference), np.diff(theirs, axis=0)
    before, after = relative(theirs[1:], ours), relative(corrected, ours)
    yield Trial("taking what the step before left out of each gradient", before, after, after <= GRADIENT < before)


CAUSES: tuple[Cause, ...] = (
    Cause(
        "scheduler-off-by-one",
        "the learning rate of each step is the schedule's of the step after it or before it",
        "call scheduler.step() once after each optimizer.step(), and not before the first",
        ("rate",),
        _off_by_one,
    ),
    Cause(
        "scheduler-not-stepped",
        "the learning rate stays where it began",
        "call scheduler.step() after each step",
        ("rate",),
        _not_stepped,
    ),
    Cause(
        "lr-scaled",
        "every learning rate is a constant multiple of the reference's",
        "set the reference's learning rate",
        ("rate",),
        _scaled,
    ),
    Cause(
        "grads-not-cleared",
        "gradients add up over steps",
        "call clear_grad() after each step",
        ("gradient",),
        _added_up,
    ),
)
