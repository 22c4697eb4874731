"""A name map: how the tensors of one model are called in another, for pairs whose names differ."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkpoints.errors import CheckpointError
from checkpoints.layouts import OPERATIONS, Operation
from checkpoints.tables import read_table


@dataclass(frozen=True)
class Rename:
    """A whole source name that matches `pattern` becomes `replace` (``\\1`` … are the pattern's groups).

    operation: how the tensor changes, where the layer kinds can't tell; None leaves that to the kinds.
    """

    pattern: str
    replace: str
    operation: Operation | None = None

    def applied(self, name: str, part: str = "") -> tuple[str, str] | None:
        """The new name and part, which is empty where the part has got a name of its own; None where nothing matches."""
        match = re.fullmatch(self.pattern, name + part)
        if match is None and part:
            match = re.fullmatch(self.pattern, name)
            return None if match is None else (match.expand(self.replace), part)
        if match is None:
            return None
        new = match.expand(self.replace)
        return (new.removesuffix(part), part) if part and new.endswith(part) else (new, "")


@dataclass(frozen=True)
class Renamed:
    """A name after the map: the new name, the operation a rule asked for, and whether any rule matched."""

    name: str
    operation: Operation | None = None
    changed: bool = False


@dataclass(frozen=True)
class NameMap:
    """Renames in order, each on what the one before it made of the name, and patterns of whole names to drop.

    exact: single names and what becomes of each (None: it is dropped); these go before all rules.

    A part of a packed tensor has a name, too: ``"attn.in_proj_weight[q]"``. What is said of the whole holds for its parts.

    CheckpointError where a pattern or replacement is no valid regular expression.
    """

    renames: tuple[Rename, ...] = ()
    drop: tuple[str, ...] = ()
    exact: Mapping[str, Renamed | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for rule in self.renames:
            _compile(rule.pattern)
            try:
                # Matching nothing at all tells whether the replacement names a group that isn't there.
                match = re.match(rule.pattern + "|", "")
                _ = match and match.expand(rule.replace)
            except (re.error, IndexError) as error:
                raise CheckpointError(f"name map: replace {rule.replace!r} for {rule.pattern!r}: {error}") from error
        for pattern in self.drop:
            _compile(pattern)

    def rename(self, name: str, part: str = "") -> Renamed | None:
        """What becomes of one source name; None where it is dropped.

        part: ``"[q]"``, which part of the tensor is meant. It is no longer in the new name: that is the whole's or, where a
        rule was for the part alone, the part's own.
        """
        for known in (name + part, name):
            if known in self.exact:
                return self.exact[known]
        if any(re.fullmatch(pattern, name) for pattern in self.drop):
            return None
        operation: Operation | None = None
        changed = False
        for rule in self.renames:
            found = rule.applied(name, part)
            if found is not None:
                (name, part), changed = found, True
                operation = rule.operation or operation
        return Renamed(name, operation, changed)

    @staticmethod
    def load(path: str | Path) -> NameMap:
        """Read a name map from a .toml or .json file; CheckpointError names the file and what isn't right in it."""
        path = Path(path)
        try:
            return _name_map(read_table(path, "a name map"))
        except OSError as error:
            raise CheckpointError(f"{path}: can't read the name map: {error.strerror}") from error
        except ValueError as error:
            raise CheckpointError(f"{path}: not a name map: {error}") from error


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise CheckpointError(f"name map: {pattern!r} is no regular expression: {error}") from error


def _name_map(data: Any) -> NameMap:
    if not isinstance(data, dict) or not set(data) <= {"rename", "drop"}:
        raise ValueError('it holds "rename" (a list of tables) and "drop" (a list of patterns), nothing else')
    renames, drop = data.get("rename", []), data.get("drop", [])
    if not isinstance(drop, list) or not all(isinstance(pattern, str) for pattern in drop):
        raise ValueError("drop must be a list of patterns")
    if not isinstance(renames, list):
        raise ValueError("rename must be a list of tables")
    for entry in renames:
        if not isinstance(entry, dict) or not {"pattern", "replace"} <= set(entry) <= {
            "pattern",
            "replace",
            "operation",
        }:
            raise ValueError("each rename has pattern, replace and at most an operation")
        if not all(isinstance(value, str) for value in entry.values()):
            raise ValueError("pattern, replace and operation are strings")
        if entry.get("operation", "copy") not in OPERATIONS:
            raise ValueError(f"operation {entry['operation']!r} is none of {', '.join(OPERATIONS)}")
    return NameMap(tuple(Rename(**entry) for entry in renames), tuple(drop))
