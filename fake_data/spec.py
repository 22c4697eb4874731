"""What a model takes in, declared as values: the fields of a batch in forward order, their dtypes, bounds and shapes.

A shape may name "B" (the batch size) and "N" (the length); both become numbers when a batch is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fake_data._raw import WIDEST
from fake_data.errors import DataError

Shape = tuple[int | str, ...]

FLOATS = ("float16", "float32", "float64")
TARGETS = "targets"


@dataclass(frozen=True)
class Ids:
    """Token ids, int64 [*shape] in [low, high); `padding` fills what lies behind the last real token of a row.

    Real tokens never take the padding id. DataError when no id is left, or a padded field lacks "B" or "N".
    """

    low: int
    high: int
    shape: Shape
    padding: int | None = None

    def __post_init__(self) -> None:
        _check_shape(self, self.shape, padded=self.padding is not None)
        if not 0 < self.high - self.low <= WIDEST:
            raise DataError(f"{self}: [low, high) must hold 1 to 2**32 ids")
        if self.real_count() < 1:
            raise DataError(f"{self}: the padding id is the only id, so no token can be real")

    def real_count(self) -> int:
        """How many ids a real token may take."""
        inside = self.padding is not None and self.low <= self.padding < self.high
        return self.high - self.low - inside

    def boundaries(self) -> tuple[int, ...]:
        """The lowest and the highest real id, then those beside the padding id, without repetition."""
        real = [id_ for id_ in (self.low, self.low + 1, self.high - 1, self.high - 2) if id_ != self.padding]
        real = [id_ for id_ in real if self.low <= id_ < self.high]
        beside = [] if self.padding is None else [self.padding - 1, self.padding + 1]
        return tuple(dict.fromkeys([min(real), max(real), *(i for i in beside if self.low <= i < self.high)]))


@dataclass(frozen=True)
class Mask:
    """Which tokens are real, bool [*shape], True = real; with `of`, where that field's ids are not padding."""

    shape: Shape
    of: str | None = None

    def __post_init__(self) -> None:
        _check_shape(self, self.shape, padded=True)


@dataclass(frozen=True)
class Labels:
    """Class indices, int64 [*shape] in [0, classes)."""

    classes: int
    shape: Shape

    def __post_init__(self) -> None:
        _check_shape(self, self.shape)
        if not 0 < self.classes <= WIDEST:
            raise DataError(f"{self}: classes must be 1 to 2**32")


@dataclass(frozen=True)
class Floats:
    """Standard normal values times `scale`, float16, float32 or float64 [*shape]."""

    shape: Shape
    dtype: str = "float32"
    scale: float = 1.0

    def __post_init__(self) -> None:
        _check_shape(self, self.shape)
        if self.dtype not in FLOATS:
            raise DataError(f"{self}: dtype must be one of {', '.join(FLOATS)}")


Field = Ids | Mask | Labels | Floats


@dataclass(frozen=True)
class InputSpec:
    """All fields of a batch in forward order, and the greatest length "N" the model takes.

    The field called "targets" is what the loss compares with; the others are the inputs.
    DataError when the fields contradict each other.
    """

    fields: dict[str, Field]
    max_length: int

    def __post_init__(self) -> None:
        if not any(name != TARGETS for name in self.fields):
            raise DataError('a spec needs at least one field besides "targets"')
        if self.max_length < 1:
            raise DataError(f"max_length is {self.max_length}, but a batch holds at least one token")
        for name, field in self.masks():
            ids = None if field.of is None else self.fields.get(field.of)
            if field.of is not None and not (isinstance(ids, Ids) and ids.padding is not None):
                raise DataError(f'field "{name}" is the mask of "{field.of}", which is no Ids field with a padding id')
            if ids is not None and ids.shape != field.shape:
                raise DataError(f'field "{name}" has shape {field.shape}, but "{field.of}" has {ids.shape}')

    def masks(self) -> Iterator[tuple[str, Mask]]:
        """The mask fields, by name."""
        return ((name, field) for name, field in self.fields.items() if isinstance(field, Mask))

    def padded(self) -> bool:
        """Whether rows may end in padding: some field has a padding id, or there is a mask."""
        return any(isinstance(f, Mask) or (isinstance(f, Ids) and f.padding is not None) for f in self.fields.values())

    def has_length(self) -> bool:
        """Whether any shape names "N"."""
        return any("N" in field.shape for field in self.fields.values())


def _check_shape(field: object, shape: Shape, padded: bool = False) -> None:
    for size in shape:
        if isinstance(size, str) and size not in ("B", "N"):
            raise DataError(f'{field}: a shape names "B", "N" or a number, not "{size}"')
        if not isinstance(size, str) and size < 1:
            raise DataError(f"{field}: a size must be at least 1, not {size}")
    if padded and (shape.count("B"), shape.count("N")) != (1, 1):
        raise DataError(f'{field}: what may be padded has "B" and "N" once each in its shape')
