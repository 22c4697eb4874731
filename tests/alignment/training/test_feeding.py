from __future__ import annotations

import hashlib
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.errors import AlignmentError
from alignment.training.feeding import Feed, Order, OrderSampler, Position, review_feed
from fake_data import Batch, DataError, epoch_order
from fake_data.amazon import encode_reviews, review_batch, synthetic_reviews

GOLDEN_ORDER = [9, 5, 3, 11, 7, 8, 0, 10, 6, 1, 2, 4]
GOLDEN_DIGEST = "3db695199c60647948890441442f7234b8e3893f3984a4251c6c5b8751ea7341"


def feed_of(rows: int = 23, **options: object) -> Feed:
    ids = np.arange(rows * 3, dtype=np.int32).reshape(rows, 3)
    return Feed({"ids": ids}, np.arange(rows) % 5, **{"batch_size": 4, "seed": 7, **options})  # type: ignore[arg-type]


def content(batch: Batch) -> tuple[str, dict[str, list], list | None]:
    targets = None if batch.targets is None else batch.targets.tolist()
    return batch.name, {name: value.tolist() for name, value in batch.inputs.items()}, targets


def test_an_order_is_the_same_everywhere_and_for_ever() -> None:
    """Recorded once: whoever resumes a run, on any machine, with any NumPy, must get these orders."""
    assert epoch_order(12, seed=0, epoch=0).tolist() == GOLDEN_ORDER
    digest = hashlib.sha256(epoch_order(100_000, seed=5, epoch=3).astype("<i8").tobytes()).hexdigest()
    assert digest == GOLDEN_DIGEST


@given(st.integers(1, 200), st.integers(0, 2**32 - 1), st.integers(0, 10))
def test_an_order_has_every_row_once_and_every_epoch_its_own(rows: int, seed: int, epoch: int) -> None:
    order = epoch_order(rows, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(rows))
    if rows > 30:  # by chance less than once in 10**32
        assert (order != epoch_order(rows, seed=seed, epoch=epoch + 1)).any()
        assert (order != epoch_order(rows, seed=seed + 1, epoch=epoch)).any()


def test_no_order_of_nothing() -> None:
    with pytest.raises(DataError, match="there must be a row"):
        epoch_order(0, seed=0, epoch=0)


@given(
    rows=st.integers(1, 60),
    batch_size=st.integers(1, 20),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_the_batches_of_an_epoch_are_its_order_cut(
    rows: int, batch_size: int, shuffle: bool, drop_last: bool, epoch: int
) -> None:
    if drop_last and rows < batch_size:
        with pytest.raises(AlignmentError, match="fill no batch"):
            Order(rows, batch_size, 1, shuffle, drop_last)
        return
    order = Order(rows, batch_size, 1, shuffle, drop_last)
    batches = list(order.batches(epoch))
    assert len(batches) == len(order)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    given_rows = np.concatenate(batches).tolist()
    kept = rows - rows % batch_size if drop_last else rows
    assert given_rows == order.of_epoch(epoch)[:kept].tolist()
    assert shuffle or given_rows == list(range(kept))


@given(st.integers(0, 20), st.booleans())
def test_going_on_from_a_position_gives_what_would_have_come(taken: int, drop_last: bool) -> None:
    feed = feed_of(drop_last=drop_last)
    whole = list(islice(feed.batches(), taken + 9))
    position = whole[taken - 1][0] if taken else Position()
    again = list(islice(feed.batches(position), 9))
    assert [place for place, _ in again] == [place for place, _ in whole[taken:]]
    assert [content(batch) for _, batch in again] == [content(batch) for _, batch in whole[taken:]]


def test_a_position_at_the_end_of_an_epoch_is_the_start_of_the_next() -> None:
    feed = feed_of()
    assert len(feed) == 6
    one, two = (list(islice(feed.batches(start), 2)) for start in (Position(0, 6), Position(1, 0)))
    assert [content(batch) for _, batch in one] == [content(batch) for _, batch in two]
    assert [place for place, _ in islice(feed.batches(Position(0, 5)), 1)] == [Position(1, 0)]


def test_rows_stay_together_and_integers_come_as_int64() -> None:
    feed = feed_of()
    for batch in feed.epoch(2):
        rows = batch.inputs["ids"][:, 0] // 3
        assert batch.inputs["ids"].dtype == np.int64
        assert batch.targets is not None
        assert (batch.targets == rows % 5).all()


def test_a_batch_reads_its_own_rows_of_a_memory_map(tmp_path: Path) -> None:
    class Watched(np.memmap):
        asked: list[np.ndarray] = []  # noqa: RUF012

        def __getitem__(self, rows: object) -> object:
            if isinstance(rows, np.ndarray):
                self.asked.append(rows)
            return super().__getitem__(rows)

    np.arange(40, dtype=np.int32).tofile(tmp_path / "ids")
    ids = Watched(tmp_path / "ids", dtype=np.int32, mode="r", shape=(20, 2))
    feed = Feed({"ids": ids}, None, batch_size=6, seed=3)
    ((_, batch),) = islice(feed.batches(Position(4, 2)), 1)
    assert [rows.tolist() for rows in Watched.asked] == [epoch_order(20, seed=3, epoch=4)[12:18].tolist()]
    assert type(batch.inputs["ids"]) is np.ndarray
    assert batch.targets is None


def test_reviews_come_as_review_batch_gives_them() -> None:
    reviews = encode_reviews(synthetic_reviews(30, seed=0), length=32)
    feed = review_feed(reviews, batch_size=8, length=16, shuffle=False, mask_name="mask")
    for number, batch in enumerate(islice(feed.epoch(), 3)):
        other = review_batch(reviews, batch_size=8, length=16, start=8 * number, mask_name="mask")
        assert content(batch)[1:] == content(other)[1:]
        assert [value.dtype for value in batch.inputs.values()] == [value.dtype for value in other.inputs.values()]
    with pytest.raises(AlignmentError, match="encoded with 1 to 32 tokens"):
        review_feed(reviews, batch_size=8, length=33)


def test_a_sampler_gives_the_batches_of_the_epoch_that_was_set() -> None:
    order = Order(23, 4, seed=7)
    sampler = OrderSampler(order)
    assert list(sampler) == list(sampler) == [rows.tolist() for rows in order.batches(0)]
    sampler.set_epoch(2, step=4)
    assert list(sampler) == [rows.tolist() for rows in order.batches(2)][4:]
    assert len(sampler) == 2


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: feed_of(batch_size=0), "at least 1"),
        (lambda: Feed({}, np.zeros(3), 1), "there are none|targets has 3"),
        (lambda: Feed({"ids": np.zeros((3, 2))}, np.zeros(4), 1), "ids has 3, targets has 4"),
        (lambda: Feed({"ids": np.array(3)}, None, 1), "ids has 0"),
        (lambda: Position(-1, 0), "count from 0"),
    ],
)
def test_bad_feeds_are_refused(make: object, said: str) -> None:
    with pytest.raises(AlignmentError, match=said):
        make()  # type: ignore[operator]


def test_settings_tell_feeds_apart() -> None:
    assert feed_of().settings == {"rows": 23, "batch_size": 4, "seed": 7, "shuffle": True, "drop_last": False}
