"""The layout of a conversion as a value and as a readable JSON file.

The file has one line for each tensor, so that two layouts can be read side by side and edited by hand; it is checked
strictly when it is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from checkpoints._dtypes import DTYPES
from checkpoints._files import write_aside
from checkpoints._pickle import are_sizes
from checkpoints.errors import CheckpointError
from checkpoints.layouts import OPERATIONS, Operation, shape_after

Shape = tuple[int, ...]

SCHEMA = "checkpoints.layout/1"


@dataclass(frozen=True)
class Move:
    """One tensor's way: the source's name and shape, the operation, the target's name and shape; the dtype stays."""

    source: str
    target: str
    operation: Operation
    shape_from: Shape
    shape_to: Shape
    dtype: str


@dataclass(frozen=True)
class Extra:
    """A tensor that only one side has: dropped from the source, or filled with zeros in the target.

    restored: it may be filled with zeros on the way back; False where its values would be lost.
    """

    name: str
    shape: Shape
    dtype: str
    reason: str
    restored: bool = False


@dataclass(frozen=True)
class Layout:
    """What a conversion does with every tensor of both sides.

    source_ties, target_ties: groups of names that share one tensor in the live model, the first name first.
    """

    source_framework: str
    target_framework: str
    moves: tuple[Move, ...]
    dropped: tuple[Extra, ...] = ()
    filled: tuple[Extra, ...] = ()
    source_ties: tuple[tuple[str, ...], ...] = ()
    target_ties: tuple[tuple[str, ...], ...] = ()

    def save(self, path: str | Path) -> None:
        """Write the layout as JSON; the file is there whole or not at all."""
        lines = [f'  "schema": {json.dumps(SCHEMA)}']
        lines += [f'  "{key}": {json.dumps(getattr(self, key))}' for key in ("source_framework", "target_framework")]
        lines += [_block(key, map(asdict, getattr(self, key))) for key in ("moves", "dropped", "filled")]
        lines += [_block(key, getattr(self, key)) for key in ("source_ties", "target_ties")]
        text = "{\n" + ",\n".join(lines) + "\n}\n"
        with write_aside(Path(path)) as file:
            file.write(text.encode())

    @staticmethod
    def load(path: str | Path) -> Layout:
        """Read a layout file; CheckpointError names the file and the first thing in it that isn't right."""
        path = Path(path)
        try:
            data = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_no_doubles)
            return _layout(data)
        except OSError as error:
            raise CheckpointError(f"{path}: can't read the layout: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: not a layout file: {error}") from error


def _block(name: str, entries: Iterable[object]) -> str:
    rows = ",\n".join("    " + json.dumps(entry, ensure_ascii=False) for entry in entries)
    return f'  "{name}": [\n{rows}\n  ]' if rows else f'  "{name}": []'


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return result


def _layout(data: Any) -> Layout:
    if not isinstance(data, dict) or data.pop("schema", None) != SCHEMA:
        raise ValueError(f'"schema" must be "{SCHEMA}"')
    _keys(data, Layout, "the layout")
    for key in ("source_framework", "target_framework"):
        _require(isinstance(data[key], str), f"{key} must be a string")
    for key in ("moves", "dropped", "filled", "source_ties", "target_ties"):
        _require(isinstance(data[key], list), f"{key} must be a list")
    moves = tuple(_move(entry, f"moves[{index}]") for index, entry in enumerate(data["moves"]))
    extras = {
        key: tuple(_extra(entry, f"{key}[{index}]") for index, entry in enumerate(data[key]))
        for key in ("dropped", "filled")
    }
    # A layout from elsewhere must not be able to ask for a mountain of zeros.
    _require(
        all(math.prod(extra.shape) == 1 for extra in extras["filled"]), "filled: only single numbers can be filled"
    )
    for side, names in (
        ("source", [move.source for move in moves] + [extra.name for extra in extras["dropped"]]),
        ("target", [move.target for move in moves] + [extra.name for extra in extras["filled"]]),
    ):
        doubles = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) != len(names) else []
        _require(not doubles, f"the {side} names {', '.join(doubles)} stand more than once")
        for group in data[f"{side}_ties"]:
            ok = (
                isinstance(group, list)
                and len(group) > 1
                and set(map(type, group)) == {str}
                and set(group) <= set(names)
            )
            _require(ok, f"{side}_ties: each must be a list of at least two names of the {side}")
    return Layout(
        source_framework=data["source_framework"],
        target_framework=data["target_framework"],
        moves=moves,
        dropped=extras["dropped"],
        filled=extras["filled"],
        source_ties=tuple(map(tuple, data["source_ties"])),
        target_ties=tuple(map(tuple, data["target_ties"])),
    )


def _move(entry: Any, where: str) -> Move:
    _keys(entry, Move, where)
    known = isinstance(entry["operation"], str) and entry["operation"] in OPERATIONS
    _require(known, f"{where}: operation must be one of {', '.join(OPERATIONS)}")
    _strings(entry, ("source", "target"), where)
    _dtype(entry, where)
    before, after = _shape(entry, "shape_from", where), _shape(entry, "shape_to", where)
    _require(
        shape_after(entry["operation"], before, after) == after,
        f"{where}: {entry['operation']} does not make {list(after)} of {list(before)}",
    )
    return Move(**(entry | {"shape_from": before, "shape_to": after}))


def _extra(entry: Any, where: str) -> Extra:
    _keys(entry, Extra, where)
    _strings(entry, ("name", "reason"), where)
    _require(isinstance(entry["restored"], bool), f"{where}: restored must be true or false")
    _dtype(entry, where)
    return Extra(**(entry | {"shape": _shape(entry, "shape", where)}))


def _keys(entry: Any, of: type, where: str) -> None:
    wanted = {field.name for field in fields(of)}
    _require(isinstance(entry, dict), f"{where} must be an object")
    _require(set(entry) == wanted, f"{where} must have exactly the keys {', '.join(sorted(wanted))}")


def _strings(entry: dict[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in keys:
        _require(isinstance(entry[key], str) and bool(entry[key]), f"{where}: {key} must be a string that isn't empty")


def _dtype(entry: dict[str, Any], where: str) -> None:
    known = isinstance(entry["dtype"], str) and entry["dtype"] in DTYPES
    _require(known, f"{where}: dtype must be one of {', '.join(DTYPES)}")


def _shape(entry: dict[str, Any], key: str, where: str) -> Shape:
    shape = entry[key]
    ok = isinstance(shape, list) and are_sizes(shape)
    _require(ok and math.prod(shape) < 2**63, f"{where}: {key} must be a list of sizes")
    return tuple(shape)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
