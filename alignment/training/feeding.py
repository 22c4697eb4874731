"""Batches for training: epochs of an encoded data set in an order that both sides can share, from any place on.

    feed = Feed({"input_ids": reviews.ids}, reviews.labels, batch_size=64, seed=0)
    for position, batch in feed.batches(Position(epoch=3, step=120)):
        ...  # position is what to save: the next batch to come

The order of an epoch follows from the seed and the epoch's number alone (`fake_data.epoch_order`), so a position is two
numbers, and going on from it reads nothing of what came before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.errors import AlignmentError
from fake_data import Batch, epoch_order
from fake_data.amazon import EncodedReviews

Inputs = dict[str, NDArray]


@dataclass(frozen=True, order=True)
class Position:
    """The next batch to come. epoch, step: from 0; step counts the batches of the epoch."""

    epoch: int = 0
    step: int = 0

    def __post_init__(self) -> None:
        if self.epoch < 0 or self.step < 0:
            raise AlignmentError(f"epoch {self.epoch}, step {self.step}: both count from 0")


@dataclass(frozen=True)
class Order:
    """Which rows make up each batch of each epoch.

    rows: of the data set. shuffle: an order of its own for each epoch, by the seed; else the rows as they are stored.
    drop_last: leave out the last batch of an epoch where it is not full.
    """

    rows: int
    batch_size: int
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = False

    def __post_init__(self) -> None:
        if self.rows < 1 or self.batch_size < 1:
            raise AlignmentError(f"{self.rows} rows in batches of {self.batch_size}: both must be at least 1")
        if not len(self):
            raise AlignmentError(
                f"{self.rows} rows fill no batch of {self.batch_size}, and drop_last leaves out the rest: "
                "choose a smaller batch_size"
            )

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.rows // self.batch_size if self.drop_last else -(-self.rows // self.batch_size)

    def of_epoch(self, epoch: int) -> NDArray[np.int64]:
        """All rows in the order of that epoch, int64 [rows], those that drop_last leaves out at the end."""
        return epoch_order(self.rows, seed=self.seed, epoch=epoch) if self.shuffle else np.arange(self.rows)

    def batches(self, epoch: int = 0, step: int = 0) -> Iterator[NDArray[np.int64]]:
        """The rows of each batch of one epoch from `step` on, int64 [batch_size] or, of the last, less."""
        order = self.of_epoch(epoch)
        for number in range(step, len(self)):
            yield order[number * self.batch_size : (number + 1) * self.batch_size]


class OrderSampler:
    """One order for both frameworks' own loaders, as their ``batch_sampler``.

        sampler = OrderSampler(Order(len(dataset), batch_size=64, seed=0))
        torch.utils.data.DataLoader(dataset, batch_sampler=sampler)
        paddle.io.DataLoader(dataset, batch_sampler=sampler)

    Each pass gives the batches of one epoch as lists of row numbers. Call `set_epoch` before each, as with a distributed
    sampler: a pass does not count, so that one which is broken off, or runs ahead in a worker, changes no order.
    """

    def __init__(self, order: Order) -> None:
        self.order, self.position = order, Position()

    @property
    def batch_size(self) -> int:
        """Rows of a full batch."""
        return self.order.batch_size

    def set_epoch(self, epoch: int, step: int = 0) -> None:
        """Choose the epoch of the passes to come, and the batch they start with."""
        self.position = Position(epoch, step)

    def __len__(self) -> int:
        return max(len(self.order) - self.position.step, 0)

    def __iter__(self) -> Iterator[list[int]]:
        for rows in self.order.batches(self.position.epoch, self.position.step):
            yield rows.tolist()


@dataclass(frozen=True, eq=False)
class Feed:
    """Batches of a data set in memory, or in memory-mapped files, of which a batch touches its own rows alone.

    inputs: name -> array [rows, ...]. targets: [rows, ...], or None. derive: makes the inputs of a batch out of those rows
    (cuts them, adds a mask). batch_size, seed, shuffle, drop_last: see `Order`.

    Signed integers come as int64, which both frameworks' embeddings and losses take, whatever width they are stored in.
    """

    inputs: Mapping[str, NDArray]
    targets: NDArray | None
    batch_size: int
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = False
    derive: Callable[[Inputs], Inputs] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        arrays = {**self.inputs, **({} if self.targets is None else {"targets": self.targets})}
        counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
        if not self.inputs or len(set(counts.values())) > 1 or not max(counts.values()):
            said = ", ".join(f"{name} has {count}" for name, count in counts.items()) or "there are none"
            raise AlignmentError(f"inputs and targets need the same rows, one or more, on the first axis: {said}")
        _ = self.order  # refuses sizes that make no batch

    @cached_property
    def order(self) -> Order:
        """Which rows come when."""
        rows = len(next(iter(self.inputs.values())))
        return Order(rows, self.batch_size, self.seed, self.shuffle, self.drop_last)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.order)

    @property
    def settings(self) -> dict[str, Any]:
        """What a saved position belongs to, as JSON values: with other settings it means other batches."""
        return {name: getattr(self.order, name) for name in ("rows", "batch_size", "seed", "shuffle", "drop_last")}

    def epoch(self, number: int = 0, step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from `step` on."""
        for place, rows in enumerate(self.order.batches(number, step), start=step):
            yield self._batch(rows, f"epoch {number} batch {place}")

    def batches(self, start: Position | None = None) -> Iterator[tuple[Position, Batch]]:
        """Batches without end, epoch after epoch, each with the position of the one that follows it."""
        start = start or Position()
        epoch, step = start.epoch + start.step // len(self), start.step % len(self)
        while True:
            for batch in self.epoch(epoch, step):
                step += 1
                yield (Position(epoch, step) if step < len(self) else Position(epoch + 1)), batch
            epoch, step = epoch + 1, 0

    def _batch(self, rows: NDArray[np.int64], name: str) -> Batch:
        inputs = {key: _taken(array, rows) for key, array in self.inputs.items()}
        if self.derive is not None:
            inputs = self.derive(inputs)
        return Batch(name, inputs, None if self.targets is None else _taken(self.targets, rows))


def _taken(array: NDArray, rows: NDArray[np.int64]) -> NDArray:
    taken = np.asarray(array[rows])
    return taken.astype(np.int64) if taken.dtype.kind == "i" else taken


def review_feed(
    reviews: EncodedReviews,
    *,
    batch_size: int,
    seed: int = 0,
    length: int | None = None,
    shuffle: bool = True,
    drop_last: bool = False,
    input_name: str = "input_ids",
    mask_name: str | None = None,
) -> Feed:
    """Reviews as batches like those of `fake_data.amazon.review_batch`: ids int64 [B, length], targets int64 [B].

    Args:
        length: cuts the rows; None: as long as they were encoded.
        mask_name: name of a further input, bool [B, length], True for real tokens.

    Raises:
        AlignmentError: sizes that make no batch, or rows encoded shorter than `length`.
    """
    encoded = reviews.ids.shape[1]
    if length is not None and not 1 <= length <= encoded:
        raise AlignmentError(f"length is {length}, but the reviews were encoded with 1 to {encoded} tokens")
    ids = reviews.ids[:, :length]

    def masked(inputs: Inputs) -> Inputs:
        return inputs if mask_name is None else {**inputs, mask_name: inputs[input_name] != 0}

    return Feed({input_name: ids}, reviews.labels, batch_size, seed, shuffle, drop_last, masked)
