"""The layout of a conversion as a value and as a readable JSON file.

The file has one line for each tensor, so that two layouts can be read side by side and edited by hand; it is checked
strictly when it is read.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from checkpoints._dtypes import DTYPES
from checkpoints._files import write_aside
from checkpoints._pickle import are_sizes
from checkpoints.errors import CheckpointError
from checkpoints.layouts import OPERATIONS, Operation, shape_after
from checkpoints.tables import parse_json

Shape = tuple[int, ...]

SCHEMA = "checkpoints.layout/1"


@dataclass(frozen=True)
class Part:
    """One of `count` equal parts of a tensor along its first axis: the one at `index`, and the word for it ("q")."""

    word: str
    index: int
    count: int


@dataclass(frozen=True)
class Move:
    """One tensor's way: the source's name and shape, the operation, the target's name and shape; the dtype stays.

    part_from, part_to: the part of the source that is moved, the part of the target that it fills; None: the whole. The
    shapes are those of the whole tensors.
    """

    source: str
    target: str
    operation: Operation
    shape_from: Shape
    shape_to: Shape
    dtype: str
    part_from: Part | None = None
    part_to: Part | None = None

    @property
    def label(self) -> str:
        """What is moved, in words: the source's name, and which part of it (``"in_proj_weight[q]"``)."""
        return label_of(self.source, self.part_from)


@dataclass(frozen=True)
class Extra:
    """A tensor that only one side has: dropped from the source, or filled with zeros in the target.

    restored: it may be filled with zeros on the way back; False where its values would be lost. zero: it has to be zero,
    or it can't be dropped.
    """

    name: str
    shape: Shape
    dtype: str
    reason: str
    restored: bool = False
    zero: bool = False


# What a file may leave out.
FREE: dict[type, frozenset[str]] = {Move: frozenset({"part_from", "part_to"}), Extra: frozenset({"zero"})}


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
        lines += [_block(key, map(_entry, getattr(self, key))) for key in ("moves", "dropped", "filled")]
        lines += [_block(key, getattr(self, key)) for key in ("source_ties", "target_ties")]
        text = "{\n" + ",\n".join(lines) + "\n}\n"
        with write_aside(Path(path)) as file:
            file.write(text.encode())

    @staticmethod
    def load(path: str | Path) -> Layout:
        """Read a layout file; CheckpointError names the file and the first thing in it that isn't right."""
        path = Path(path)
        try:
            data = parse_json(path.read_text(encoding="utf-8"))
            return _layout(data)
        except OSError as error:
            raise CheckpointError(f"{path}: can't read the layout: {error.strerror}") from error
        except ValueError as error:
            raise CheckpointError(f"{path}: not a layout file: {error}") from error


def label_of(name: str, part: Part | None) -> str:
    """A tensor's name, with which part of it is meant."""
    return name if part is None else f"{name}[{part.word}]"


def part_shape(shape: Shape, part: Part | None) -> Shape | None:
    """The shape of a part of a tensor of `shape`; None where it has no such parts."""
    if part is None:
        return shape
    return (shape[0] // part.count, *shape[1:]) if shape and shape[0] % part.count == 0 else None


def _entry(value: Move | Extra) -> dict[str, Any]:
    """What a line of the file says: what may be left out only where there is something to say."""
    left_out = FREE.get(type(value), frozenset())
    return {key: item for key, item in asdict(value).items() if item or key not in left_out}


def _block(name: str, entries: Iterable[object]) -> str:
    rows = ",\n".join("    " + json.dumps(entry, ensure_ascii=False) for entry in entries)
    return f'  "{name}": [\n{rows}\n  ]' if rows else f'  "{name}": []'


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
    zeros = sum(math.prod(extra.shape) for extra in extras["filled"] if math.prod(extra.shape) != 1)
    there = sum(math.prod(move.shape_to) for move in moves if move.part_to is None or move.part_to.index == 0)
    _require(zeros <= there, "filled: no more can be filled with zeros than is moved")
    for side, moved, extra in (
        ("source", [(move.source, move.part_from, move.shape_from, move.dtype) for move in moves], "dropped"),
        ("target", [(move.target, move.part_to, move.shape_to, move.dtype) for move in moves], "filled"),
    ):
        names = _wholes(moved, side) + [tensor.name for tensor in extras[extra]]
        counts = Counter(names)
        doubles = sorted(name for name, count in counts.items() if count > 1)
        _require(not doubles, f"the {side} names {', '.join(doubles)} stand more than once")
        tied: set[str] = set()
        for group in data[f"{side}_ties"]:
            ok = isinstance(group, list) and len(group) > 1 and set(map(type, group)) == {str}
            ok = ok and len(set(group)) == len(group) and tied.isdisjoint(group) and not counts.keys().isdisjoint(group)
            _require(ok, f"{side}_ties: each must be a list of at least two names, one of them a name of the {side}'s")
            tied.update(group)
    return Layout(
        source_framework=data["source_framework"],
        target_framework=data["target_framework"],
        moves=moves,
        dropped=extras["dropped"],
        filled=extras["filled"],
        source_ties=tuple(map(tuple, data["source_ties"])),
        target_ties=tuple(map(tuple, data["target_ties"])),
    )


def _wholes(moved: list[tuple[str, Part | None, Shape, str]], side: str) -> list[str]:
    """The names of one side's moved tensors, each once where all of its parts are moved once."""
    parts: dict[tuple[str, int, Shape, str], list[int]] = {}
    for name, part, shape, dtype in moved:
        if part is not None:
            parts.setdefault((name, part.count, shape, dtype), []).append(part.index)
    for (name, count, _, _), indices in parts.items():
        _require(sorted(indices) == list(range(count)), f"the {side}'s {name}: its parts must be moved once each")
    return [name for name, part, _, _ in moved if part is None] + [name for name, *_ in parts]


def _move(entry: Any, where: str) -> Move:
    _keys(entry, Move, where)
    parts = {key: _part(entry[key], f"{where}: {key}") for key in ("part_from", "part_to") if key in entry}
    known = isinstance(entry["operation"], str) and entry["operation"] in OPERATIONS
    _require(known, f"{where}: operation must be one of {', '.join(OPERATIONS)}")
    _strings(entry, ("source", "target"), where)
    _dtype(entry, where)
    shapes = {key: _shape(entry, key, where) for key in ("shape_from", "shape_to")}
    before = part_shape(shapes["shape_from"], parts.get("part_from"))
    after = part_shape(shapes["shape_to"], parts.get("part_to"))
    _require(before is not None and after is not None, f"{where}: the first axis has no such parts")
    assert before is not None
    assert after is not None
    _require(
        shape_after(entry["operation"], before, after) == after,
        f"{where}: {entry['operation']} does not make {list(after)} of {list(before)}",
    )
    return Move(**(entry | shapes | parts))


def _part(entry: Any, where: str) -> Part:
    _keys(entry, Part, where)
    _strings(entry, ("word",), where)
    index, count = entry["index"], entry["count"]
    _require(are_sizes([index, count]) and index < count > 1, f"{where}: index must be below count, and count above 1")
    return Part(**entry)


def _extra(entry: Any, where: str) -> Extra:
    _keys(entry, Extra, where)
    _strings(entry, ("name", "reason"), where)
    for key in ("restored", "zero"):
        _require(isinstance(entry.get(key, False), bool), f"{where}: {key} must be true or false")
    _dtype(entry, where)
    return Extra(**(entry | {"shape": _shape(entry, "shape", where)}))


def _keys(entry: Any, of: type, where: str) -> None:
    free = FREE.get(of, frozenset())
    wanted = {field.name for field in fields(of)} - free
    _require(isinstance(entry, dict), f"{where} must be an object")
    _require(
        wanted <= set(entry) <= wanted | free,
        f"{where} must have exactly the keys {', '.join(sorted(wanted))}"
        + (f", and may have {', '.join(sorted(free))}" if free else ""),
    )


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
