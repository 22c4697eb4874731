"""Batches that hold other samples, or the same ones in another order, though both sides were given one seed.

What a side saw is told by its samples, one name each: their places in the data set, or hashes of them. Two things are
looked at apart: in what order the samples came, and how they were cut into batches. What a batch holds of the same samples
(dtype, padding, labels) is a matter of its own.

Sources: Paddle's `paddle/io/dataloader/sampler.py` (RandomSampler draws `np.random.choice(np.arange(n), n, replace=False)`
from NumPy's global generator, which is its `permutation(n)`), `dataloader_iter.py` (with workers one more number is drawn
before each epoch) and `batch_sampler.py` (DistributedBatchSampler shuffles by `RandomState(epoch)`). torch draws from its
own generator; its order is taken as it is given.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import lgamma, log

import numpy as np
from numpy.typing import NDArray

from alignment.causes.suspect import Cause, Trial

Samples = tuple[Hashable, ...]

# Epochs whose draws are tried, and numbers drawn for that at most.
EPOCHS = 100
MOST_DRAWN = 20_000_000
# How seldom an order drawn at random may look like one that is tried.
CHANCE = 1e-9
# The most worker seeds and epochs tried for one order.
TRIED = 2 * EPOCHS


@dataclass(frozen=True, eq=False)
class DataSuspect:
    """What the two sides went through, where that differs.

    record: "order" (the samples one after the other) or "batches" (how many are in each). reference_batches,
    candidate_batches: for each batch the names of its samples. dataset: the names of all samples, as they are stored.
    seed: what both sides were seeded with; None where it is not known.
    """

    record: str
    reference_batches: tuple[Samples, ...]
    candidate_batches: tuple[Samples, ...]
    dataset: Sequence[Hashable]
    seed: int | None = None
    name: str = "data"

    @cached_property
    def reference(self) -> Samples:
        """The reference's samples in order."""
        return tuple(sample for batch in self.reference_batches for sample in batch)

    @cached_property
    def candidate(self) -> Samples:
        """The candidate's samples in order."""
        return tuple(sample for batch in self.candidate_batches for sample in batch)

    @property
    def sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Samples of each batch, of the reference and of the candidate."""
        ours, theirs = self.reference_batches, self.candidate_batches
        return tuple(len(batch) for batch in ours), tuple(len(batch) for batch in theirs)

    @cached_property
    def draws(self) -> tuple[str | None, str | None]:
        """Which draw of NumPy's global generator gives each side's order, in words; None where none does."""
        return _draw(self, self.reference), _draw(self, self.candidate)

    @cached_property
    def by_number(self) -> tuple[int | None, int | None]:
        """Which small number, other than the seed, as the seed of NumPy's generator gives each side's order."""
        return _by_number(self, self.reference), _by_number(self, self.candidate)

    @property
    def by_epoch(self) -> tuple[str | None, str | None]:
        """Which epoch's number as the seed gives each side's order, in words; where no seed is known it may be a seed, too."""
        first, second = (
            None if number is None or self.seed is None else f"that of epoch {number}, whatever the seed"
            for number in self.by_number
        )
        return first, second


@dataclass(frozen=True)
class InputSuspect:
    """What a batch holds, where that differs for the same samples.

    record, name: "input" and its name, or "data" and "pairing". trials: cause -> what its correction leaves of the rows that
    differ; they were made while the batches were at hand.
    """

    name: str
    trials: Mapping[str, Trial]
    record: str = "input"


# ----------------------------------------------------------------------------------------------------------------- order


def out_of_place(one: Samples, two: Samples) -> int:
    """Samples of which another stands in the same place, as far as both go."""
    return sum(a != b for a, b in zip(one, two, strict=False))


def _tells(samples: Samples, tried: int) -> bool:
    """Are the samples so many that none of `tried` orders fits them by chance? Of equal ones each counts once."""
    return lgamma(len(set(samples)) + 1) > log(tried / CHANCE)


def _is(suspect: DataSuspect, samples: Samples, order: Sequence[int] | NDArray) -> bool:
    """Are these the data set's samples in that order, as far as they go?"""
    return len(samples) <= len(order) and all(
        suspect.dataset[index] == sample for sample, index in zip(samples, order, strict=False)
    )


def _draw(suspect: DataSuspect, samples: Samples) -> str | None:
    size = len(suspect.dataset)
    if suspect.seed is None or not size or not _tells(samples, TRIED):
        return None
    for workers in (False, True):
        generator = np.random.RandomState(suspect.seed)
        for epoch in range(min(EPOCHS, 1 + MOST_DRAWN // size)):
            if workers:
                generator.randint(0, sys.maxsize)  # Paddle draws the seed of its workers first
            if _is(suspect, samples, generator.permutation(size)):
                return f"epoch {epoch + 1}{' of a loader with workers' if workers else ''} after seed {suspect.seed}"
    return None


def _by_number(suspect: DataSuspect, samples: Samples) -> int | None:
    size = len(suspect.dataset)
    if not size or not _tells(samples, EPOCHS):
        return None
    for number in range(min(EPOCHS, 1 + MOST_DRAWN // size)):
        if number != suspect.seed and _is(suspect, samples, np.random.RandomState(number).permutation(size)):
            return number
    return None


def _stored(suspect: DataSuspect, samples: Samples) -> bool:
    return _tells(samples, 1) and _is(suspect, samples, range(len(suspect.dataset)))


def _reordered(suspect: DataSuspect, change: str) -> Trial:
    """The candidate's samples brought into the reference's order: what is left has no partner at all."""
    short, long = sorted((suspect.reference, suspect.candidate), key=len)
    before = float(out_of_place(suspect.reference, suspect.candidate))
    left = float((Counter(short) - Counter(long)).total())
    return Trial(change, before, left, before > 0.0 and left == 0.0, "samples out of place")


def _told_by(
    found: Callable[[DataSuspect], tuple[str | None, str | None]], whose: str, suspect: DataSuspect
) -> Iterator[Trial]:
    """One side's order is one that can be told, and the other's is not."""
    ours, theirs = found(suspect)
    if (ours is None) != (theirs is None):
        side, other = ("candidate", "reference") if ours is None else ("reference", "candidate")
        change = (
            f"drawing one order for both, where the {side}'s is {whose} ({theirs or ours}) and the {other}'s is not"
        )
        yield _reordered(suspect, change)


def _other_draw(suspect: DataSuspect) -> Iterator[Trial]:
    ours, theirs = suspect.draws
    if ours is not None and theirs is not None and ours != theirs:
        yield _reordered(suspect, f"drawing {ours} on both sides, where the candidate draws {theirs}")


def _not_shuffled(suspect: DataSuspect) -> Iterator[Trial]:
    ours, theirs = _stored(suspect, suspect.reference), _stored(suspect, suspect.candidate)
    if ours != theirs:
        side = "candidate" if theirs else "reference"
        yield _reordered(suspect, f"shuffling alike, where the {side} takes the samples as they are stored")


def _other_order(suspect: DataSuspect) -> Iterator[Trial]:
    short, long = sorted((suspect.reference, suspect.candidate), key=len)
    common = set(short)
    # Samples that are left out move the others up, and are no other order.
    if tuple(sample for sample in long if sample in common) != short:
        yield _reordered(suspect, "bringing the candidate's samples into the reference's order")


# --------------------------------------------------------------------------------------------------------------- batches


def _differing(one: Sequence[int], two: Sequence[int]) -> int:
    return sum(a != b for a, b in zip(one, two, strict=False)) + abs(len(one) - len(two))


def _recut(suspect: DataSuspect, change: str, sizes: Sequence[int]) -> Trial:
    """The candidate's batches with other sizes."""
    ours, theirs = suspect.sizes
    after = _differing(ours, sizes)
    return Trial(change, float(_differing(ours, theirs)), float(after), after == 0, "batches of another size")


def _even(sizes: Sequence[int]) -> int | None:
    """Size of the batches, where all but the last have it and that has no more."""
    return sizes[0] if sizes and set(sizes[:-1]) <= {sizes[0]} and sizes[-1] <= sizes[0] else None


def _dropped(suspect: DataSuspect) -> Iterator[Trial]:
    ours, theirs = suspect.sizes
    short, long = sorted((ours, theirs), key=len)
    size = _even(long)
    if not short or size is None or short != long[:-1] or long[-1] == size or sum(long) != len(suspect.dataset):
        return
    side, sizes = ("candidate", (*theirs, long[-1])) if short == theirs else ("reference", theirs[:-1])
    change = f"keeping or leaving out the last {long[-1]} samples alike, which the {side} leaves out"
    yield _recut(suspect, change, sizes)


def _padded(suspect: DataSuspect) -> Iterator[Trial]:
    ours, theirs = suspect.sizes
    short, long = sorted((ours, theirs), key=sum)
    size = _even(long)
    if size is None or len(short) != len(long) or short[:-1] != long[:-1] or sum(short) != len(suspect.dataset):
        return
    side, samples = ("candidate", suspect.candidate) if long == theirs else ("reference", suspect.reference)
    seen, extra = set(samples[: sum(short)]), samples[sum(short) :]
    foreign = set(suspect.dataset).isdisjoint(extra)
    if size == long[-1] > short[-1] and (foreign or seen.issuperset(extra)):
        what = "what is no sample of the data set" if foreign else "samples that were there already"
        change = f"filling up or leaving the last batch alike, where the {side} adds {len(extra)} of {what}"
        yield _recut(suspect, change, (*theirs[:-1], ours[-1]))


def _other_size(suspect: DataSuspect) -> Iterator[Trial]:
    ours, theirs = suspect.sizes
    one, two = _even(ours), _even(theirs)
    if one is not None and two is not None and one != two and max(len(ours), len(theirs)) > 1:
        total = sum(theirs)
        sizes = [min(one, total - start) for start in range(0, total, one)]
        yield _recut(suspect, f"batches of {one} samples, not of {two}", sizes)


# ------------------------------------------------------------------------------------------------------------- the table

GLOBAL = "NumPy's global generator's"

CAUSES: tuple[Cause, ...] = (
    Cause(
        "shuffle-missing",
        "one side shuffles, and the other takes the samples as they are stored",
        "pass shuffle=True, or a sampler, on both sides",
        ("order",),
        _not_shuffled,
    ),
    Cause(
        "shuffle-draw",
        "both orders are drawn by NumPy's generator with the seed, but not the same draw",
        "seed NumPy right before the epoch on both sides, and draw nothing else from it",
        ("order",),
        _other_draw,
    ),
    Cause(
        "shuffle-rng",
        "one side shuffles by NumPy's global generator, as Paddle's DataLoader does, and the other by another one: "
        "the same seed gives another order",
        "draw the order once, and pass it as a sampler on both sides; paddle.seed does not reach it, np.random.seed does",
        ("order",),
        partial(_told_by, lambda suspect: suspect.draws, GLOBAL),
    ),
    Cause(
        "shuffle-by-epoch",
        "one side shuffles by the number of the epoch alone, as Paddle's DistributedBatchSampler does",
        "draw the order once, and pass it as a sampler on both sides; a seed does not reach it, set_epoch does",
        ("order",),
        partial(_told_by, lambda suspect: suspect.by_epoch, "NumPy's generator's"),
    ),
    Cause(
        "data-order",
        "the same samples in another order, by generators that are not known here",
        "draw the order once, and pass it as a sampler on both sides",
        ("order",),
        _other_order,
    ),
    Cause(
        "drop-last",
        "the last batch, which is not full, is left out on one side only",
        "set drop_last= as the reference has it",
        ("batches",),
        _dropped,
    ),
    Cause(
        "last-batch-padded",
        "the last batch is filled up on one side only",
        "leave it short, or fill it up alike, and leave what was added out of losses and metrics",
        ("batches",),
        _padded,
    ),
    Cause(
        "batch-size",
        "batches of another size",
        "set batch_size= as the reference has it; over several devices it is a device's or all devices' together",
        ("batches",),
        _other_size,
    ),
)


# ------------------------------------------------------------------------------------------------------ what a batch holds


def _made(cause: str, suspect: InputSuspect) -> Iterator[Trial]:
    if cause in suspect.trials:
        yield suspect.trials[cause]


# (name, record, what is wrong, what to change)
TABLE = (
    (
        "data-dtype",
        "input",
        "the values come in another dtype",
        "cast on the candidate's side, before the batch is made: class labels as int64, which both frameworks' losses take",
    ),
    (
        "data-shape",
        "input",
        "the rows have an axis of size 1 more or less, as [N] against [N, 1]",
        "bring both to one shape before the loss and the metric: [N] against [N, 1] is broadcast to [N, N] without a word",
    ),
    (
        "data-padding",
        "input",
        "the rows are padded at the other end, with another id, or to another length",
        "pad as the reference does, and give the model that padding id: masks and the embedding's padding row depend on it",
    ),
    (
        "data-offset",
        "input",
        "every value is another by the same whole number, as labels from 1 against labels from 0",
        "count from where the reference does: a loss takes labels 0 to C - 1, and an id is a row of the embedding",
    ),
    (
        "data-rounding",
        "input",
        "the values differ by rounding: they were computed by another route",
        "prepare the data once, by one library, and let both sides read the result",
    ),
    (
        "data-pairing",
        "data",
        "the same inputs and the same labels, but not together: rows have other samples' labels",
        "shuffle row numbers, and take inputs and labels by the same ones",
    ),
)

INPUTS: tuple[Cause, ...] = tuple(
    Cause(name, summary, remedy, (record,), partial(_made, name)) for name, record, summary, remedy in TABLE
)
