"""The batches a twin is tried on: ordinary ones from fake data or reviews, and the adversarial ones."""

from __future__ import annotations

import gzip
import itertools
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from alignment.errors import AlignmentError
from alignment.structures import as_array, describe
from alignment.twins import Settings, Twin
from fake_data import Batch, InputSpec, Labels, adversarial_batches, make_batch
from fake_data.amazon import EncodedReviews, encode_reviews, synthetic_reviews

# Enough for a vocabulary in the thousands; a whole file would only make the embedding larger.
REVIEWS = 512
ORDINARY_BATCHES = 2
DEFAULT_LENGTH = 64
# Of a data loader only so many are taken: a few batches tell what a model computes.
GIVEN_BATCHES = 4
# Larger files are checked only as far as they are read: a second of decompression is the most a check should spend on it.
WHOLE_FILE_BYTES = 64 << 20


@dataclass(frozen=True)
class Chosen:
    """settings: the twin's, with the vocabulary's size taken from the data where nobody fixed it. source: what the data is."""

    settings: dict[str, Any]
    batches: tuple[Batch, ...]
    source: str
    notes: tuple[str, ...]


def make_batches(
    twin: Twin, settings: Settings, *, fixed: bool, data: str | None, seed: int, batch_size: int, length: int | None
) -> Chosen:
    """All batches of a check.

    Args:
        fixed: the vocabulary's size was asked for, and must not follow the data.
        data: ``"fake"``, ``"synthetic"``, a reviews file, or None for the twin's own choice.
        length: tokens of an ordinary batch; None: 64, or the model's longest where that is less.

    Raises:
        AlignmentError: the vocabulary or the number of classes is too small for the data, or the length too large.
        DataError: the reviews can't be read.
    """
    settings = dict(settings)
    declared = _declared(twin, settings)
    if not isinstance(declared, InputSpec):
        if data is not None:
            raise AlignmentError(f"{twin.name} brings its own inputs: leave out --data")
        return Chosen(settings, given_batches(declared, needs_targets(twin)), "given inputs", ())
    data = data or twin.data
    notes: tuple[str, ...] = ()
    ordinary: list[Batch]
    if data == "fake":
        spec = declared_spec(twin, settings)
        length = _length(spec, length)
        ordinary = [
            make_batch(spec, seed=seed, batch_size=batch_size, length=length, name=f"random-{number}")
            for number in range(1, ORDINARY_BATCHES + 1)
        ]
        source = "fake data"
    elif twin.vocabulary is None:
        raise AlignmentError(f"{twin.name} takes no reviews: leave out --data, or use --data fake")
    else:
        count = max(REVIEWS, ORDINARY_BATCHES * batch_size)
        spec = declared_spec(twin, settings)
        length = _length(spec, length)
        synthetic = data == "synthetic"
        if not synthetic:
            _refuse_damaged(Path(data))
        reviews = encode_reviews(
            synthetic_reviews(count, seed) if synthetic else data, length=length, max_reviews=count
        )
        if len(reviews.labels) < ORDINARY_BATCHES * batch_size:
            raise AlignmentError(
                f"{data}: {len(reviews.labels)} reviews, but {ORDINARY_BATCHES} batches of {batch_size} are wanted; "
                "use a larger file or a smaller --batch-size"
            )
        if not fixed:
            settings[twin.vocabulary] = reviews.num_tokens
        elif settings[twin.vocabulary] < reviews.num_tokens:
            raise AlignmentError(
                f"{twin.vocabulary}={settings[twin.vocabulary]} is too small: these reviews have {reviews.num_tokens} ids, "
                f"padding included; use --set {twin.vocabulary}={reviews.num_tokens} or leave it out"
            )
        spec = declared_spec(twin, settings)
        ordinary = [_reviews(twin, settings, spec, reviews, number, batch_size) for number in range(ORDINARY_BATCHES)]
        source = f"{'synthetic reviews' if synthetic else data}, {len(reviews.labels)} read"
        notes = (*reviews.notes, *(f"line {bad.number}: {bad.why}" for bad in reviews.bad_lines[:3]))
        if reviews.bad:
            notes = (f"{reviews.bad} lines held no review", *notes)
    hard = adversarial_batches(spec, seed=seed, batch_size=batch_size, length=length)
    return Chosen(settings, (*ordinary, *hard), source, notes)


def _refuse_damaged(path: Path) -> None:
    """A gzip file of moderate size is read to its end: a cut file must not pass for a whole one because its head is fine."""
    if not path.is_file() or path.stat().st_size > WHOLE_FILE_BYTES:
        return
    with path.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            return
    try:
        with gzip.open(path) as stream:
            while stream.read(1 << 20):
                pass
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise AlignmentError(f"{path}: the gzip data is cut or damaged ({error}); get the file again") from error


def _declared(twin: Twin, settings: Settings) -> Any:
    if isinstance(twin.inputs, InputSpec) or not callable(twin.inputs):
        return twin.inputs
    try:
        return twin.inputs(settings)
    except (Exception, SystemExit) as error:  # a user's function may raise anything
        listed = ", ".join(f"{name}={value}" for name, value in settings.items())
        raise AlignmentError(f"{twin.name} takes no input with {listed}: {error}") from error


def declared_spec(twin: Twin, settings: Settings) -> InputSpec:
    """What a twin declares of its inputs with these settings.

    Raises:
        AlignmentError: it brings inputs of its own, or has none with these settings.
    """
    spec = _declared(twin, settings)
    if not isinstance(spec, InputSpec):
        raise AlignmentError(f"{twin.name} brings its own inputs, and declares none to make fake data of")
    return spec


def needs_targets(twin: Twin) -> bool:
    """Does a batch of a twin's own inputs come with targets?"""
    return twin.loss != "outputs"


def given_batches(inputs: Any, targets: bool, most: int = GIVEN_BATCHES) -> tuple[Batch, ...]:
    """Batches of inputs as they are: of one, or the first `most` of an iterable of several (see `alignment.twins.Twin`).

    Raises:
        AlignmentError: there is none, or one is of another form.
    """
    one = isinstance(inputs, (tuple, Mapping)) or hasattr(inputs, "__array__")
    if not one and not isinstance(inputs, Iterable):
        raise AlignmentError(
            f"inputs are an array, a tuple of arguments, a dict of keywords or an iterable of such, not a "
            f"{type(inputs).__name__}"
        )
    try:
        several = [inputs] if one else list(itertools.islice(inputs, most))
    except (Exception, SystemExit) as error:  # a user's data loader may raise anything
        raise AlignmentError(f"the inputs can't be read: {type(error).__name__}: {error}") from error
    if not several:
        raise AlignmentError("the inputs hold no batch")
    return tuple(_given(value, targets, f"given-{number}") for number, value in enumerate(several, 1))


def _given(value: Any, with_targets: bool, name: str) -> Batch:
    targets = None
    if with_targets:
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise AlignmentError(f"batch {name}: the loss needs targets, so a batch is a pair (inputs, targets)")
        value, targets = value
    keywords = dict(value) if isinstance(value, Mapping) else {}
    arguments = () if isinstance(value, Mapping) else tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if not all(isinstance(key, str) for key in keywords):
        raise AlignmentError(f"batch {name}: the keys of a dict of keywords must be texts")
    plain = hasattr(targets, "__array__")
    arrays, structure = describe(arguments, keywords, None if plain else targets)
    if not arrays:
        raise AlignmentError(f"batch {name} holds no array")
    return Batch(name, arrays, as_array(targets, "targets") if plain else None, structure)


def _length(spec: InputSpec, length: int | None) -> int:
    if length is None:
        return min(DEFAULT_LENGTH, spec.max_length)
    if length > spec.max_length:
        raise AlignmentError(f"length {length} is more than the {spec.max_length} tokens this model takes")
    return length


def _reviews(
    twin: Twin, settings: Settings, spec: InputSpec, reviews: EncodedReviews, number: int, batch_size: int
) -> Batch:
    """Rows of the reviews in the form this twin takes: ids, the mask where it is an input, and targets."""
    rows = slice(number * batch_size, (number + 1) * batch_size)
    ids, labels = reviews.ids[rows].astype(np.int64), reviews.labels[rows].astype(np.int64)
    mask = ids != 0
    if twin.padding(settings) != 0:
        # Padding is the last id here: words move down by one and padding goes to the end.
        ids = np.where(mask, ids - 1, twin.padding(settings))
    names = [name for name in spec.fields if name != "targets"]
    targets = spec.fields["targets"]
    assert isinstance(targets, Labels)
    if len(targets.shape) > 1:
        # A language model's targets: the next token, and padding after the last.
        labels = np.concatenate([ids[:, 1:], np.full_like(ids[:, :1], twin.padding(settings))], axis=1)
    elif labels.max() >= targets.classes:
        raise AlignmentError(
            f"reviews have 5 classes; num_classes={targets.classes} is too small: use --set num_classes=5"
        )
    return Batch(f"reviews-{number + 1}", dict(zip(names, (ids, mask), strict=False)), labels)


def make_training(
    twin: Twin,
    settings: Settings,
    *,
    fixed: bool,
    data: str | None,
    seed: int,
    batch_size: int,
    length: int | None,
    steps: int,
) -> Chosen:
    """A batch for each step of a training, ``"step-1"`` and so on; the arguments are those of `make_batches`.

    Reviews are taken in the order of the file, and from its beginning again after the last whole batch. Where the
    vocabulary's size is fixed and the reviews have more words, the most frequent are kept. Inputs of a twin's own are
    taken as they come, and again from the first.

    Raises:
        AlignmentError: there is no whole batch, or the sizes don't fit the data.
        DataError: the reviews can't be read.
    """
    settings = dict(settings)
    declared = _declared(twin, settings)
    if not isinstance(declared, InputSpec):
        if data is not None:
            raise AlignmentError(f"{twin.name} brings its own inputs: leave out --data")
        given = given_batches(declared, needs_targets(twin), steps)
        taken = itertools.islice(itertools.cycle(given), steps)
        named = tuple(replace(batch, name=f"step-{number}") for number, batch in enumerate(taken, 1))
        return Chosen(settings, named, "given inputs", _again(len(given), steps))
    data, spec = data or twin.data, declared_spec(twin, settings)
    length = _length(spec, length)
    if data == "fake":
        made = (
            make_batch(spec, seed=seed, batch_size=batch_size, length=length, name=f"step-{number}")
            for number in range(1, steps + 1)
        )
        return Chosen(settings, tuple(made), "fake data", ())
    if twin.vocabulary is None:
        raise AlignmentError(f"{twin.name} takes no reviews: leave out --data, or use --data fake")
    synthetic = data == "synthetic"
    if not synthetic:
        _refuse_damaged(Path(data))
    # The ids besides words are padding, and one for all that is left out.
    most = max(1, int(settings[twin.vocabulary]) - 2) if fixed else None
    wanted = steps * batch_size
    source: Any = synthetic_reviews(wanted, seed) if synthetic else data
    reviews = encode_reviews(source, length=length, max_reviews=wanted, max_size=most)
    whole = len(reviews.labels) // batch_size
    if not whole:
        raise AlignmentError(
            f"{data}: {len(reviews.labels)} reviews are no batch of {batch_size}; use a larger file or a smaller --batch-size"
        )
    if not fixed:
        settings[twin.vocabulary] = reviews.num_tokens
        spec = declared_spec(twin, settings)
    batches = [_reviews(twin, settings, spec, reviews, number, batch_size) for number in range(min(whole, steps))]
    named = tuple(replace(batches[step % whole], name=f"step-{step + 1}") for step in range(steps))
    source = f"{'synthetic reviews' if synthetic else data}, {len(reviews.labels):,} read"
    return Chosen(settings, named, source, (*reviews.notes, *_again(whole, steps)))


def _again(batches: int, steps: int) -> tuple[str, ...]:
    if batches >= steps:
        return ()
    return (f"the {batches} whole batches were taken again from step {batches + 1} on",)
