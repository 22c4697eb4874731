"""Dump folders of PaDiff: ``report.json`` (what layers gave, and gradients) and ``params.json`` (weights and gradients).

Read off PaDiff's sources: padiff/tools/dump.py at 09d5f9e and c93491a, padiff/dump_tools.py at 09bfae0 and, as it began, at
69998ee. Each JSON file is a tree of layers; a layer's tensors are .npy files named by the path they had on the machine that
wrote them, of which only the last part is used, in the folder where PaDiff puts it. A layer's ``fwd_outputs`` are what it
gave. Its ``bwd_grads`` are the gradients of what it was given: hooks on its inputs record them (abstracts/hooks/hook.py).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from numpy.typing import NDArray

import checkpoints
from alignment.errors import AlignmentError
from alignment.foreign.dumps import INITIAL, Dump, DumpKey
from checkpoints import Slot

# The most a JSON file may have, and layers within layers.
MOST_BYTES, MOST_DEPTH = 200_000_000, 200
FILES = ("report.json", "params.json", "weights.json", "grads.json")
# Where PaDiff puts what a model began with, if it keeps that: its weights by name, and its inputs by number.
INIT_WEIGHTS, FIRST_INPUT = "init_weights", "first_input"


def read_padiff(folder: Path) -> Dump:
    """What a PaDiff dump folder holds, parameters with their layers' kinds.

    Layers go by their route without the model's own name, a second call as ``"route#2"``, a second output as ``"route[1]"``,
    and likewise the gradient of the second input that has one. What has no route (a function of the framework) goes by its
    place in its parent. Weights from before the first call are ``"NAME (initial)"``.

    Raises:
        AlignmentError: the folder has no file of PaDiff's, or these contradict themselves.
        CheckpointError: an array can't be read.
    """
    tensors: dict[DumpKey, NDArray | None] = {}
    slots: dict[str, Slot] = {}
    framework = model = ""
    found = [name for name in FILES if (folder / name).is_file()]
    if not found:
        # PaDiff writes MODEL/rank_0, or MODEL/step_0/rank_0.
        inner = sorted({file.parent for depth in ("*", "*/*") for file in folder.glob(f"{depth}/report.json")})
        hint = f"; name one of those in it: {', '.join(map(str, inner[:4]))}" if inner else ""
        raise AlignmentError(f"{folder}: is no dump folder of PaDiff: it has none of {', '.join(FILES)}{hint}")
    kinds: dict[str, str] = {}
    for name in found:
        told = _json(folder / name)
        framework, model = _text(told, "framework", folder / name), _text(told, "model_name", folder / name)
        if name == "report.json":
            calls: Counter[str] = Counter()
            trees = told.get("tree")
            # One call of the model, as PaDiff once wrote it, or a list of all.
            for number, root in enumerate(trees if isinstance(trees, list) else [trees]):
                prefix = _route(root)
                tensors.update(_layers(folder, root, prefix, f"({number})" if number else "", calls, kinds, 0))
            tensors.update(_first_input(folder))
        else:
            root = told.get("tree")
            for key, value, slot in _parameters(folder, root, _route(root), 0):
                tensors[key] = value
                if slot is not None:
                    slots[slot.name] = slot
    for name, value in _init_weights(folder):
        tensors[DumpKey(2, "parameter", name + INITIAL)] = value
        owner, _, local = name.rpartition(".")
        slots.setdefault(name, Slot(name, kinds.get(owner, ""), local, value.shape, str(value.dtype)))
    if not tensors:
        raise AlignmentError(f"{folder}: its files name no tensors")
    # What was given comes first; backward records in the order of the backward pass.
    forward = {key: value for key, value in tensors.items() if key.record == "input"}
    forward |= {key: value for key, value in tensors.items() if key.record not in ("input", "input gradient")}
    backward = {key: value for key, value in reversed(tensors.items()) if key.record == "input gradient"}
    ordered = dict(sorted({**forward, **backward}.items(), key=lambda item: item[0].step))
    return Dump("PaDiff", folder, ordered, framework, model, tuple(slots.values()))


def _layers(
    folder: Path, node: Any, prefix: str, place: str, calls: Counter[str], kinds: dict[str, str], depth: int
) -> Iterator[tuple[DumpKey, NDArray]]:
    if depth > MOST_DEPTH or not isinstance(node, dict):
        raise AlignmentError(f"{folder / 'report.json'}: its tree is none, or deeper than {MOST_DEPTH} layers")
    own = _own(_route(node), prefix) or place
    kinds[own] = str(node.get("name", ""))
    for number, child in enumerate(_list(node, "children", folder)):
        yield from _layers(folder, child, prefix, f"{own}({number})", calls, kinds, depth + 1)
    calls[own] += 1
    label = (own or "(root)") + (f"#{calls[own]}" if calls[own] > 1 else "")
    for step, record, listed in ((3, "activation", "fwd_outputs"), (5, "input gradient", "bwd_grads")):
        for number, entry in enumerate(_list(node, listed, folder)):
            path = entry.get("path") if isinstance(entry, dict) else entry
            key = DumpKey(step, record, label + (f"[{number}]" if number else ""))
            yield key, _array(folder, "tensors", path)


def _parameters(
    folder: Path, node: Any, prefix: str, depth: int
) -> Iterator[tuple[DumpKey, NDArray | None, Slot | None]]:
    if depth > MOST_DEPTH or not isinstance(node, dict):
        raise AlignmentError(f"{folder}: its tree of parameters is none, or deeper than {MOST_DEPTH} layers")
    own, kind = _own(_route(node), prefix), str(node.get("name", ""))
    for step, record, listed in ((2, "parameter", "weights"), (5, "gradient", "grads")):
        entries = node.get(listed, {})
        if not isinstance(entries, dict):
            raise AlignmentError(f"{folder}: the {listed} of {own or 'the model'} are no table")
        for local, path in entries.items():
            name = f"{own}.{local}".lstrip(".")
            value = None if path is None else _array(folder, listed, path)
            slot = None
            if record == "parameter" and value is not None:
                slot = Slot(name, kind, local, value.shape, str(value.dtype))
            yield DumpKey(step, record, name), value, slot
    for child in _list(node, "children", folder):
        yield from _parameters(folder, child, prefix, depth + 1)


def _init_weights(folder: Path) -> Iterator[tuple[str, NDArray]]:
    """The weights from before the first call, by name."""
    for path in sorted((folder / INIT_WEIGHTS).glob("*.npy")):
        if not path.stem.isprintable():
            raise AlignmentError(
                f"{folder / INIT_WEIGHTS}: refused: the name of a file can't be printed: {path.stem!r}"
            )
        yield path.stem, checkpoints.read_npy(path)


def _first_input(folder: Path) -> Iterator[tuple[DumpKey, NDArray]]:
    """The arrays the model was first called with, by their place in the call; what else it was given is no array."""
    for path in (folder / FIRST_INPUT).glob("input_*.npy"):
        place = path.stem.removeprefix("input_")
        if not place.isdecimal() or len(place) > 6:
            raise AlignmentError(f"{path}: refused: an input's file is input_ and its place, from 0")
        yield DumpKey(3, "input", f"(root)[{int(place)}]" if int(place) else "(root)"), checkpoints.read_npy(path)


def _array(folder: Path, inner: str, path: Any) -> NDArray:
    if not isinstance(path, str):
        raise AlignmentError(f"{folder}: a tensor's path is {str(path)[:60]!r}, not text")
    name = PureWindowsPath(PurePosixPath(path).name).name
    if not name.endswith(".npy"):
        raise AlignmentError(f"{folder}: refused: {path[:200]!r} is not the name of a .npy file")
    return checkpoints.read_npy(folder / inner / name)


def _route(node: Any) -> str:
    route = node.get("route", "") if isinstance(node, dict) else ""
    return route if isinstance(route, str) and route.isprintable() else ""


def _own(route: str, prefix: str) -> str:
    """The route below the model, whose own name comes first."""
    return "" if route == prefix else route.removeprefix(f"{prefix}.") if prefix else route


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise AlignmentError(f"{path}: is larger than the {MOST_BYTES:,} bytes that are read")
        told = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AlignmentError(f"{path}: can't be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise AlignmentError(f"{path}: is no JSON: {error}") from error
    if not isinstance(told, dict):
        raise AlignmentError(f"{path}: is no JSON object")
    return told


def _text(told: dict[str, Any], key: str, path: Path) -> str:
    value = told.get(key)
    if not isinstance(value, str) or not value.isprintable():
        raise AlignmentError(f"{path}: lacks a {key!r}, which PaDiff writes")
    return value


def _list(node: dict[str, Any], key: str, folder: Path) -> list[Any]:
    value = node.get(key, [])
    if not isinstance(value, list):
        raise AlignmentError(f"{folder}: the {key} of a layer are no list")
    return value
