"""Reviews as arrays: ids cut and padded to a length, and labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fake_data.amazon._lines import Progress
from fake_data.amazon.reader import BadLine, ReviewReader
from fake_data.amazon.tokens import PADDING, UNKNOWN, Indexer
from fake_data.batches import Batch
from fake_data.errors import DataError


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The word of each id: `words[0]` is "<padding>"; where rare words were left out, the last is "<unknown>"."""

    words: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.words)


@dataclass(frozen=True, eq=False)
class EncodedReviews:
    """Reviews ready for a model.

    `ids` int32 [n, length], padding 0 at the end; `labels` int64 [n], 0 to 4 for 1 to 5 stars; `notes` say what a
    person should know (reviews without words, a truncated file); `bad` counts the lines that held no review.
    """

    ids: np.ndarray
    labels: np.ndarray
    vocabulary: Vocabulary
    bad: int = 0
    bad_lines: tuple[BadLine, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def num_tokens(self) -> int:
        """How many ids there are, padding included: the rows an embedding needs."""
        return len(self.vocabulary)


class Tokens(NamedTuple):
    """Tokens of some reviews one after the other, int32 [tokens], and how many each review has, int64 [reviews]."""

    flat: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True, eq=False)
class TokenisedReviews:
    """All tokens of many reviews by provisional id, about four bytes a token: what selections are made from."""

    parts: list[Tokens]  # some thousand reviews each, in file order
    labels: np.ndarray  # int64 [n]
    words: tuple[str, ...]  # words[0] has id 1
    reader: ReviewReader

    def __len__(self) -> int:
        return len(self.labels)

    def encode(
        self,
        rows: np.ndarray | None = None,
        *,
        length: int = 512,
        min_count: int = 1,
        max_size: int | None = None,
        order: str = "appearance",
    ) -> EncodedReviews:
        """The reviews of `rows` (all by default) in that order, and the vocabulary of just these.

        Ids go from 1 by first appearance in the file, or with order="frequency" from the most frequent word on (ties by
        first appearance). A word met fewer than `min_count` times, or beyond the `max_size` most frequent, becomes
        "<unknown>", the last id. Words count wherever they stand, also beyond `length`.

        Raises DataError when an argument is out of range.
        """
        if length < 1 or min_count < 1 or (max_size is not None and max_size < 1):
            raise DataError("length, min_count and max_size must be at least 1")
        if order not in ("appearance", "frequency"):
            raise DataError(f'order is "{order}", not "appearance" or "frequency"')
        if rows is not None and not ((rows >= 0) & (rows < len(self.labels))).all():
            raise DataError(f"rows are out of range: there are {len(self.labels):,} reviews")
        wanted = np.arange(len(self.labels)) if rows is None else np.unique(rows)
        parts = self._select(wanted)
        if rows is None and min_count == 1 and max_size is None and order == "appearance":
            ranks, words = None, self.words  # they are numbered so already
        else:
            ranks, words = _rank(parts, self.words, min_count, max_size, order)
        ids = np.zeros((len(wanted), length), dtype=np.int32)
        row = 0
        for part in parts:
            _fill(ids[row : row + len(part.counts)], part, ranks)
            row += len(part.counts)
        labels = self.labels[wanted]
        if rows is not None:
            at = np.searchsorted(wanted, rows)
            ids, labels = ids[at], labels[at]
        vocabulary = Vocabulary((PADDING, *words))
        empty = sum(int((part.counts == 0).sum()) for part in parts)
        return EncodedReviews(ids, labels, vocabulary, self.reader.bad, self.reader.bad_lines, self._notes(empty))

    def _select(self, wanted: np.ndarray) -> list[Tokens]:
        """The tokens of the `wanted` reviews (ascending)."""
        if len(wanted) == len(self.labels):
            return self.parts
        keep = np.zeros(len(self.labels), dtype=bool)
        keep[wanted] = True
        parts, row = [], 0
        for flat, counts in self.parts:
            here = keep[row : row + len(counts)]
            row += len(counts)
            if here.any():
                parts.append(Tokens(flat[np.repeat(here, counts)], counts[here]))
        return parts

    def _notes(self, empty: int) -> tuple[str, ...]:
        notes = []
        if self.reader.truncated:
            notes.append(f"{self.reader.name}: {self.reader.truncated}; these were kept")
        if empty:
            notes.append(f"{empty:,} reviews have no word: wholly padded rows")
        return tuple(notes)


def tokenise_reviews(
    source: str | Path | Iterable[Mapping[str, Any]],
    *,
    max_reviews: int | None = None,
    lower: bool = True,
    strict: bool = False,
    allow_truncated: bool = False,
    progress: Progress | None = None,
) -> TokenisedReviews:
    """One pass over a file (or dicts) that keeps every token as an id; reading stops after `max_reviews`.

    Raises DataError as ReviewReader does.
    """
    if max_reviews is not None and max_reviews < 1:
        raise DataError("max_reviews must be at least 1")
    reader = ReviewReader(source, strict=strict, allow_truncated=allow_truncated, progress=progress)
    indexer = Indexer(lower)
    parts, labels, left = [], [], max_reviews
    for texts, stars in reader.blocks():
        if left is not None:
            texts, stars = texts[:left], stars[:left]
            left -= len(texts)
        parts.append(Tokens(*indexer.index(texts)))
        labels.append(np.array(stars, dtype=np.int64))
        if left == 0:
            break
    return TokenisedReviews(parts, np.concatenate(labels), indexer.words(), reader)


def encode_reviews(
    source: str | Path | Iterable[Mapping[str, Any]],
    *,
    length: int = 512,
    max_reviews: int | None = None,
    lower: bool = True,
    min_count: int = 1,
    max_size: int | None = None,
    order: str = "appearance",
    strict: bool = False,
    allow_truncated: bool = False,
    progress: Progress | None = None,
) -> EncodedReviews:
    """The reviews of a file (or of dicts) as ids [n, length] and labels [n]; the file is read no further than needed.

    For the arguments and errors see `ReviewReader` and `TokenisedReviews.encode`.
    """
    reviews = tokenise_reviews(
        source,
        max_reviews=max_reviews,
        lower=lower,
        strict=strict,
        allow_truncated=allow_truncated,
        progress=progress,
    )
    return reviews.encode(length=length, min_count=min_count, max_size=max_size, order=order)


def review_batch(
    reviews: EncodedReviews,
    *,
    batch_size: int,
    length: int | None = None,
    start: int = 0,
    input_name: str = "input_ids",
    mask_name: str | None = None,
    name: str = "reviews",
) -> Batch:
    """Rows start … start + batch_size - 1 as a batch: ids int64 [B, N] under `input_name`, the mask of real tokens
    (bool [B, N], True = real) under `mask_name` where that is given, targets int64 [B]. `length` cuts the rows.

    Raises DataError when there are fewer rows, or the reviews were encoded shorter than `length`.
    """
    length = reviews.ids.shape[1] if length is None else length
    if batch_size < 1 or start < 0 or start + batch_size > len(reviews.ids):
        raise DataError(
            f"rows {start} to {start + batch_size} were asked for, but there are {len(reviews.ids):,} reviews"
        )
    if not 1 <= length <= reviews.ids.shape[1]:
        raise DataError(f"length is {length}, but the reviews were encoded with 1 to {reviews.ids.shape[1]} tokens")
    rows = slice(start, start + batch_size)
    ids = reviews.ids[rows, :length].astype(np.int64)
    inputs = {input_name: ids}
    if mask_name is not None:
        inputs[mask_name] = ids != 0
    return Batch(name, inputs, reviews.labels[rows].astype(np.int64))


def _fill(ids: np.ndarray, part: Tokens, ranks: np.ndarray | None) -> None:
    """Write the tokens of some reviews into their rows of zeros, int32 [reviews, length]; what is longer is cut."""
    length = ids.shape[1]
    kept = np.minimum(part.counts, length)
    before = np.cumsum(kept) - kept
    step = np.arange(int(kept.sum()))
    source = np.repeat(np.cumsum(part.counts) - part.counts - before, kept) + step
    target = np.repeat(np.arange(len(kept)) * length - before, kept) + step
    tokens = part.flat[source]
    ids.reshape(-1)[target] = tokens if ranks is None else ranks[tokens]


def _rank(
    parts: list[Tokens], words: tuple[str, ...], min_count: int, max_size: int | None, order: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """New id of each provisional one, int32 [len(words) + 1], and the words from id 1 on."""
    counts = np.zeros(len(words) + 1, dtype=np.int64)
    first = np.zeros(len(words) + 1, dtype=np.int64)
    place = 0
    for flat, _ in parts:
        met, at, times = np.unique(flat, return_index=True, return_counts=True)
        first[met] = np.where(counts[met] == 0, at + place, first[met])
        counts[met] += times
        place += len(flat)
    present = np.flatnonzero(counts)
    by_appearance = present[np.argsort(first[present])]
    by_frequency = by_appearance[np.argsort(-counts[by_appearance], kind="stable")]
    kept = by_frequency[counts[by_frequency] >= min_count][:max_size]
    limited = len(kept) < len(present)
    if order == "appearance":
        kept = by_appearance[np.isin(by_appearance, kept)]
    ranks = np.full(len(words) + 1, len(kept) + 1, dtype=np.int32)
    ranks[kept] = np.arange(1, len(kept) + 1)
    named = tuple(words[id_ - 1] for id_ in kept.tolist())
    return ranks, (*named, UNKNOWN) if limited else named
