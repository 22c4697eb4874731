"""The mapping: what a person says of two models whose names, or parts, differ. A value, and a TOML or JSON file.

A pattern is a regular expression for a whole name: a module's path or a tensor's name in the state dict, of either side. One
that matches a module stands for all that is inside it.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from alignment.compare import Tolerance
from alignment.errors import AlignmentError
from checkpoints import CheckpointError, NameMap, Rename, write_aside
from checkpoints.layouts import OPERATIONS, Operation
from checkpoints.tables import read_table

FIGURES = tuple(entry.name for entry in fields(Tolerance))


@dataclass(frozen=True)
class LayoutRule:
    """The reference's tensors that `pattern` matches are stored by `operation`, whatever their layers' kinds say.

    A transpose leaves the vectors of a module alone: they have one way to be stored.
    """

    pattern: str
    operation: Operation


@dataclass(frozen=True)
class OwnTolerance:
    """How much rounding is allowed for what `pattern` matches, and why; None: as for all others. See `compare.Tolerance`."""

    pattern: str
    reason: str
    precision_ratio: float | None = None
    semantics_margin: float | None = None
    floor_ulps: float | None = None

    @property
    def tolerance(self) -> Tolerance:
        """The figures, with the usual ones where this says nothing."""
        given = {name: getattr(self, name) for name in FIGURES}
        return Tolerance(**{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class ModelMapping:
    """How a candidate's parts correspond to the reference's, and what of them is compared.

    renames:    rules for the names of tensors, in order: the reference's becomes the candidate's.
    modules:    reference's module path -> the candidate's. What is inside follows by the rules of `alignment.matching`.
    tensors:    reference's tensor -> the candidate's. It goes before `modules`, and `modules` before `renames`.
    layouts:    tensors that are stored in another way than their layers' kinds say.
    ignore:     patterns of modules and tensors, of either side, that are not compared.
    boundary:   patterns of modules whose inner modules are not compared: what they are given and give is.
    tolerances: patterns of modules and tensors with a tolerance of their own; the first that matches decides.

    Raises:
        AlignmentError: a pattern is no regular expression, a name stands for two, a tolerance is not finite and positive.
    """

    renames: tuple[Rename, ...] = ()
    modules: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)
    layouts: tuple[LayoutRule, ...] = ()
    ignore: tuple[str, ...] = ()
    boundary: tuple[str, ...] = ()
    tolerances: tuple[OwnTolerance, ...] = ()

    def __post_init__(self) -> None:
        try:
            NameMap(self.renames)
        except CheckpointError as error:
            raise AlignmentError(str(error)) from error
        for what, pattern in self.patterns():
            try:
                re.compile(pattern)
            except (re.error, RecursionError, OverflowError) as error:
                raise AlignmentError(f"{what}: {pattern!r} is no regular expression: {error}") from error
        for what, pairs in (("modules", self.modules), ("tensors", self.tensors)):
            doubles = sorted(name for name, count in Counter(pairs.values()).items() if count > 1)
            if doubles:
                raise AlignmentError(
                    f"{what}: {', '.join(map(repr, doubles))} stands for more than one of the reference"
                )
        for operation in (rule.operation for rules in (self.renames, self.layouts) for rule in rules):
            if operation not in (None, *OPERATIONS):
                raise AlignmentError(f"operation {operation!r} is none of {', '.join(OPERATIONS)}")
        for own in self.tolerances:
            where = f"tolerance {own.pattern!r}"
            if not own.reason.strip():
                raise AlignmentError(f"{where}: give the reason: it stands in the report")
            if all(getattr(own, name) is None for name in FIGURES):
                raise AlignmentError(f"{where}: give {', '.join(FIGURES[:-1])} or {FIGURES[-1]}")
            try:
                _ = own.tolerance
            except ValueError as error:
                raise AlignmentError(f"{where}: {error}") from error

    def patterns(self) -> Iterator[tuple[str, str]]:
        """Every pattern with where it stands, but for those of `renames`."""
        yield from (("layout", rule.pattern) for rule in self.layouts)
        yield from (("ignore", pattern) for pattern in self.ignore)
        yield from (("boundary", pattern) for pattern in self.boundary)
        yield from (("tolerance", own.pattern) for own in self.tolerances)

    @staticmethod
    def read(path: str | Path) -> ModelMapping:
        """Read a mapping from a .toml or .json file.

        Raises:
            AlignmentError: names the file and the first thing in it that isn't right.
        """
        path = Path(path)
        try:
            return _mapping(read_table(path, "a mapping"))
        except OSError as error:
            raise AlignmentError(f"{path}: can't read the mapping: {error.strerror}") from error
        except (ValueError, OverflowError, RecursionError, AlignmentError) as error:
            raise AlignmentError(f"{path}: not a mapping: {error}") from error

    @staticmethod
    def from_dict(data: Any) -> ModelMapping:
        """The mapping that a file of these keys would be.

        Raises:
            AlignmentError: the first thing in it that isn't right.
        """
        try:
            return _mapping(data)
        except (ValueError, OverflowError, RecursionError) as error:
            raise AlignmentError(f"not a mapping: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The mapping with the keys of a file, as plain lists, tables, strings and numbers; empty where it says nothing."""
        simple = {key: list(getattr(self, key)) for key in ("ignore", "boundary")}
        pairs = {key: dict(getattr(self, key)) for key in ("modules", "tensors")}
        return {key: value for key, value in (simple | pairs | dict(_tables(self))).items() if value}

    def write(self, path: str | Path) -> None:
        """Write the mapping to a .toml or .json file; it is there whole or not at all.

        Raises:
            AlignmentError: another suffix.
        """
        path = Path(path)
        if path.suffix not in (".toml", ".json"):
            raise AlignmentError(f"{path}: a mapping is a .toml or .json file")
        with write_aside(path) as file:
            text = to_toml(self) if path.suffix == ".toml" else json.dumps(self.to_dict(), indent=2) + "\n"
            file.write(text.encode())


@functools.lru_cache(maxsize=1 << 16)
def covers(pattern: str, name: str) -> bool:
    """Does a pattern match a name, or a module that it is inside of?"""
    compiled = re.compile(pattern)
    while True:
        if compiled.fullmatch(name):
            return True
        if "." not in name:
            return False
        name = name.rpartition(".")[0]


# --------------------------------------------------------------------------------------------------------------- files


def to_toml(
    mapping: ModelMapping,
    beside: Mapping[str, Mapping[str, str]] | None = None,
    below: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """The mapping as TOML.

    beside: ``"modules"`` or ``"tensors"`` -> reference's name -> a comment on that entry. below: the same -> comments after
    the table's entries.
    """
    beside, below = beside or {}, below or {}
    blocks = []
    for key in ("ignore", "boundary"):
        patterns = getattr(mapping, key)
        if patterns:
            blocks.append(f"{key} = [" + ", ".join(quoted(pattern) for pattern in patterns) + "]")
    for key in ("modules", "tensors"):
        pairs = getattr(mapping, key)
        said = beside.get(key, {})
        rows = [entry(one, two) + (f"  # {said[one]}" if one in said else "") for one, two in pairs.items()]
        rows += [f"# {line}" for line in below.get(key, ())]
        if rows:
            blocks.append("\n".join([f"[{key}]", *rows]))
    for key, values in _tables(mapping):
        for table in values:
            rows = [
                f"{name} = {quoted(value) if isinstance(value, str) else repr(value)}" for name, value in table.items()
            ]
            blocks.append("\n".join([f"[[{key}]]", *rows]))
    return "\n\n".join(blocks) + "\n" if blocks else ""


def entry(one: str, two: str) -> str:
    """One line of [modules] or [tensors]."""
    return f"{quoted(one)} = {quoted(two)}"


def quoted(text: str) -> str:
    """A TOML basic string; JSON's escapes are among TOML's."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _tables(mapping: ModelMapping) -> Iterable[tuple[str, list[dict[str, Any]]]]:
    for key, values in (
        ("rename", mapping.renames),
        ("layout", mapping.layouts),
        ("tolerance", mapping.tolerances),
    ):
        rows = [{part.name: getattr(value, part.name) for part in fields(value)} for value in values]
        yield key, [{name: value for name, value in row.items() if value is not None} for row in rows]


KEYS = ("rename", "modules", "tensors", "layout", "ignore", "boundary", "tolerance")


def _mapping(data: Any) -> ModelMapping:
    _table(data, "the mapping", KEYS)
    figures = dict.fromkeys(FIGURES, (int, float))
    return ModelMapping(
        tuple(
            Rename(**row)
            for row in _rows(data, "rename", {"pattern": (str,), "replace": (str,)}, {"operation": (str,)})
        ),
        _pairs(data, "modules"),
        _pairs(data, "tensors"),
        tuple(LayoutRule(**row) for row in _rows(data, "layout", {"pattern": (str,), "operation": (str,)})),
        _patterns(data, "ignore"),
        _patterns(data, "boundary"),
        tuple(OwnTolerance(**row) for row in _rows(data, "tolerance", {"pattern": (str,), "reason": (str,)}, figures)),
    )


def _table(data: Any, where: str, known: Iterable[str]) -> None:
    if not isinstance(data, dict):
        raise ValueError(f"{where} must be a table")
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ValueError(f"{where}: unknown key {', '.join(map(repr, unknown))}; known: {', '.join(known)}")


def _pairs(data: Mapping[str, Any], key: str) -> dict[str, str]:
    found = data.get(key, {})
    if not isinstance(found, dict):
        raise ValueError(f"{key} must be a table of names")
    for name, value in found.items():
        if not isinstance(value, str):
            hint = f' (put a name with dots in quotes: "{name}.…")' if isinstance(value, dict) else ""
            raise ValueError(f"{key}: {name!r} must be given one name{hint}")
    return found


def _patterns(data: Mapping[str, Any], key: str) -> tuple[str, ...]:
    found = data.get(key, [])
    if not isinstance(found, list) or not all(isinstance(pattern, str) for pattern in found):
        raise ValueError(f"{key} must be a list of patterns")
    return tuple(found)


def _rows(
    data: Mapping[str, Any],
    key: str,
    needed: Mapping[str, tuple[type, ...]],
    optional: Mapping[str, tuple[type, ...]] | None = None,
) -> Iterator[dict[str, Any]]:
    found, known = data.get(key, []), {**needed, **(optional or {})}
    if not isinstance(found, list):
        raise ValueError(f"{key} must be a list of tables: [[{key}]]")
    for number, row in enumerate(found, start=1):
        where = f"{key} {number}"
        _table(row, where, known)
        lacking = [name for name in needed if name not in row]
        if lacking:
            raise ValueError(f"{where}: {', '.join(lacking)} is missing")
        for name, value in row.items():
            if type(value) not in known[name]:
                wanted = "a string" if known[name] == (str,) else "a number"
                raise ValueError(f"{where}: {name} must be {wanted}, not {value!r}")
        yield {name: value if isinstance(value, str) else _finite(value) for name, value in row.items()}


def _finite(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf
