"""Seeded batches of a declared spec: an ordinary one, and those on which ports go wrong.

The same spec, seed, sizes and name give the same bytes on every platform, with every NumPy version.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fake_data._raw import Raw
from fake_data.errors import DataError
from fake_data.spec import TARGETS, Field, Floats, Ids, InputSpec, Labels, Shape

IdMaker = Callable[[Ids, Raw, tuple[int, ...]], np.ndarray]


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch: `inputs` in forward order, and `targets` where the spec has them.

    structure: how a model is called with the inputs where they are not simply its positional arguments, as
    `alignment.structures.describe` says it.
    """

    name: str
    inputs: dict[str, np.ndarray]
    targets: np.ndarray | None
    structure: Any = None


def make_batch(spec: InputSpec, *, seed: int, batch_size: int, length: int, name: str = "random") -> Batch:
    """An ordinary random batch: "B" is `batch_size`, "N" is `length`, and another `name` gives other values.

    Where the spec declares padding or a mask, rows have different real lengths with the padding at the end. In a batch
    of two or more rows the first is full and every other has 1 … N - 1 real tokens, so both kinds are always met; a
    single row has 1 … N.

    Raises DataError when a size is below 1 or `length` is above the spec's max_length.
    """
    _check_sizes(spec, batch_size, length)
    return _make(spec, seed, name, _ragged(seed, name, batch_size, length), length)


def adversarial_batches(spec: InputSpec, *, seed: int, batch_size: int, length: int) -> tuple[Batch, ...]:
    """The batches on which ports go wrong, as far as the spec allows them:

    - "full-length": no padding anywhere.
    - "length-1": N is 1.
    - "padded-row": one wholly padded row (the second) among ordinary ones; at least two rows. Needs padding or a mask.
    - "same-token": every id is one and the same real id. Needs ids.
    - "boundary-ids": the lowest and highest real ids and those beside the padding id take turns. Needs ids.
    - "longest": N is the spec's max_length, at most two rows, the first of them full.

    Raises DataError as `make_batch` does.
    """
    _check_sizes(spec, batch_size, length)
    full = np.full(batch_size, length)
    batches = []
    if spec.has_length():
        batches.append(_make(spec, seed, "full-length", full, length))
        batches.append(_make(spec, seed, "length-1", np.ones(batch_size, dtype=np.int64), 1))
    if spec.padded():
        lengths = _ragged(seed, "padded-row", max(2, batch_size), length)
        lengths[1] = 0
        batches.append(_make(spec, seed, "padded-row", lengths, length))
    if any(isinstance(field, Ids) for field in spec.fields.values()):
        batches.append(_make(spec, seed, "same-token", full, length, _same_id))
        batches.append(_make(spec, seed, "boundary-ids", full, length, _boundary_ids))
    if spec.has_length():
        lengths = _ragged(seed, "longest", min(2, batch_size), spec.max_length)
        lengths[0] = spec.max_length
        batches.append(_make(spec, seed, "longest", lengths, spec.max_length))
    return tuple(batches)


def _make(
    spec: InputSpec, seed: int, name: str, lengths: np.ndarray, length: int, make_ids: IdMaker | None = None
) -> Batch:
    """The batch whose row b has lengths[b] real tokens; as real ids are never padding, that is what its masks say, too."""
    arrays: dict[str, np.ndarray] = {}
    size = partial(_resolve, batch_size=len(lengths), length=length)
    for field_name, field in spec.fields.items():
        raw = Raw(seed, "batch", name, field_name)
        arrays[field_name] = _values(field, raw, size(field.shape), lengths, make_ids or _random_ids)
    targets = arrays.pop(TARGETS, None)
    return Batch(name, arrays, targets)


def _values(field: Field, raw: Raw, shape: tuple[int, ...], lengths: np.ndarray, make_ids: IdMaker) -> np.ndarray:
    if isinstance(field, Ids):
        ids = make_ids(field, raw, shape)
        return ids if field.padding is None else np.where(_real(field.shape, shape, lengths), ids, field.padding)
    if isinstance(field, Labels):
        return raw.integers(0, field.classes, shape)
    if isinstance(field, Floats):
        return (raw.normals(shape) * field.scale).astype(field.dtype)
    return _real(field.shape, shape, lengths)


def _real(symbols: Shape, shape: tuple[int, ...], lengths: np.ndarray) -> np.ndarray:
    """Where tokens are real, bool [*shape]: position n of row b is when n < lengths[b]."""
    row = np.indices(shape, sparse=True)
    return np.broadcast_to(row[symbols.index("N")] < lengths[row[symbols.index("B")]], shape).copy()


def _ragged(seed: int, name: str, batch_size: int, length: int) -> np.ndarray:
    """The real length of each row, int64 [batch_size]."""
    raw = Raw(seed, "lengths", name)
    if batch_size == 1:
        return raw.integers(1, length + 1, (1,))
    lengths = raw.integers(1, max(2, length), (batch_size,))
    lengths[0] = length
    return lengths


def _random_ids(field: Ids, raw: Raw, shape: tuple[int, ...]) -> np.ndarray:
    ids = raw.integers(field.low, field.low + field.real_count(), shape)
    if field.padding is not None and field.low <= field.padding < field.high:
        ids += ids >= field.padding
    return ids


def _same_id(field: Ids, raw: Raw, shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, _random_ids(field, raw, (1,))[0])


def _boundary_ids(field: Ids, raw: Raw, shape: tuple[int, ...]) -> np.ndarray:
    return np.resize(np.array(field.boundaries(), dtype=np.int64), shape)


def _resolve(shape: Shape, batch_size: int, length: int) -> tuple[int, ...]:
    return tuple({"B": batch_size, "N": length}[size] if isinstance(size, str) else size for size in shape)


def _check_sizes(spec: InputSpec, batch_size: int, length: int) -> None:
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}, but a batch has at least one row")
    if not 1 <= length <= spec.max_length:
        raise DataError(f"length is {length}, but this spec takes 1 to {spec.max_length} tokens")
