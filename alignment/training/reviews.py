"""The reviews as a classification task: read, split, encoded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from alignment.errors import AlignmentError
from alignment.inputs import declared_spec
from alignment.training.feeding import Feed
from alignment.twins import Settings, Twin
from fake_data import InputSpec, Labels
from fake_data.amazon import balanced_split, random_split, synthetic_reviews, tokenise_reviews

RATINGS = 5
# Made-up reviews where no file is given. The rarest rating has one in twenty, and a balanced split takes as many of each.
SYNTHETIC_REVIEWS = 20_000
SYNTHETIC_SEED = 0
PARTS = ("train", "validation", "test")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Part:
    """Some reviews in the form a twin takes.

    inputs: by name: ids int64 [n, length], and the mask bool [n, length] where the twin takes one. labels: int64 [n], 0 to 4.
    """

    inputs: Mapping[str, NDArray]
    labels: NDArray

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> Part:
        """The first `count` of them, or all there are."""
        return Part({name: array[:count] for name, array in self.inputs.items()}, self.labels[:count])

    def feed(self, batch_size: int, seed: int | None = None) -> Feed:
        """Their batches: in an order of each epoch's own by the seed, or as they are stored."""
        return Feed(self.inputs, self.labels, batch_size, seed or 0, shuffle=seed is not None)


@dataclass(frozen=True, eq=False)
class ReviewTask:
    """What is trained on.

    settings: the twin's, with the vocabulary's size as the reviews have it. words: word of each id. length: tokens of a
    row. hash: SHA-256 of all ids and labels of the three parts and of the words. source: what was read, in words.
    """

    settings: dict[str, Any]
    train: Part
    validation: Part
    test: Part
    words: tuple[str, ...]
    length: int
    hash: str
    source: str
    notes: tuple[str, ...] = ()

    def part(self, name: str) -> Part:
        """``"train"``, ``"validation"`` or ``"test"``."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]


def read_task(
    twin: Twin,
    settings: Settings,
    *,
    data: str = "synthetic",
    reviews: int | None = None,
    split: Literal["balanced", "random"] = "balanced",
    split_seed: int = 0,
    length: int | None = None,
    min_count: int = 2,
    max_words: int | None = None,
    progress: Progress | None = None,
) -> ReviewTask:
    """Read the reviews and split them.

    Args:
        data: ``"synthetic"`` or the path of a file of reviews. reviews: read no more than so many; None: all of a file,
            20,000 made-up ones.
        split: ``"balanced"``: as many of each rating; ``"random"``: as they come (see `fake_data.amazon`).
        length: tokens of a row; None: the model's longest.
        min_count, max_words: what is kept of the vocabulary; other words become ``<unknown>``.
        progress: told (what, done, total).

    Raises:
        AlignmentError: the twin does not classify reviews, or a size does not fit.
        DataError: the reviews can't be read, or are too few to split.
    """
    if twin.vocabulary is None:
        raise AlignmentError(
            f"{twin.name} takes no reviews; train a twin that does, or one whose Twin says vocabulary=…"
        )
    spec = declared_spec(twin, settings)
    longest = int(spec.max_length)
    if length is not None and length > longest:
        raise AlignmentError(
            f"length {length} is more than the {longest} tokens this model takes; use --set to raise it"
        )
    length = longest if length is None else length
    classes = _classes(twin, spec)
    synthetic = data == "synthetic"
    count = SYNTHETIC_REVIEWS if synthetic and reviews is None else reviews
    tell = None if progress is None else lambda done, total: progress("reading reviews", done, total)
    tokenised = tokenise_reviews(
        synthetic_reviews(count or 0, SYNTHETIC_SEED) if synthetic else Path(data), max_reviews=count, progress=tell
    )
    dealt = (
        balanced_split(tokenised.labels, seed=split_seed)
        if split == "balanced"
        else random_split(len(tokenised), seed=split_seed)
    )
    encoded = tokenised.encode(dealt.rows(), length=length, min_count=min_count, max_size=max_words, order="frequency")
    settings = {**settings, twin.vocabulary: encoded.num_tokens}
    names = tuple(name for name in declared_spec(twin, settings).fields if name != "targets")
    ids, mask = encoded.ids.astype(np.int64), encoded.ids != 0
    padding = twin.padding(settings)
    if padding != 0:
        # Padding is the last id here: words move down by one and padding goes to the end.
        ids = np.where(mask, ids - 1, padding)
    labels = encoded.labels.astype(np.int64)
    parts = {
        name: Part({key: array[start:end] for key, array in zip(names, (ids, mask), strict=False)}, labels[start:end])
        for name, (start, end) in dealt.parts().items()
    }
    source = (
        f"{len(tokenised):,} {'synthetic reviews' if synthetic else f'reviews of {Path(data).name}'}, {split} split"
    )
    notes = (*encoded.notes, *dealt.notes)
    if encoded.bad:
        notes = (f"{encoded.bad:,} lines held no review", *notes)
    if classes > RATINGS:
        notes = (
            f"the model tells {classes} classes apart, and reviews have {RATINGS}: --set num_classes={RATINGS}",
            *notes,
        )
    return ReviewTask(
        settings,
        parts["train"],
        parts["validation"],
        parts["test"],
        encoded.vocabulary.words,
        length,
        _hash(parts, encoded.vocabulary.words),
        source,
        notes,
    )


def _classes(twin: Twin, spec: InputSpec) -> int:
    """How many classes the model tells apart, where ratings can be some of them."""
    targets = spec.fields.get("targets")
    if not isinstance(targets, Labels) or len(targets.shape) != 1:
        raise AlignmentError(f"{twin.name} gives no rating of a review: its targets are not one label a row")
    if targets.classes < RATINGS:
        raise AlignmentError(
            f"reviews have {RATINGS} ratings; num_classes={targets.classes} is too small: use --set num_classes={RATINGS}"
        )
    return targets.classes


def _hash(parts: dict[str, Part], words: tuple[str, ...]) -> str:
    digest = hashlib.sha256("\n".join(words).encode())
    for name in PARTS:
        for key, array in {**parts[name].inputs, "targets": parts[name].labels}.items():
            digest.update(f"\n{name} {key} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()
