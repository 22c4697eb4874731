"""Nested values: what a model is called with and what it returns, as named leaves and a plain description of the rest."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.errors import AlignmentError

# Values of a call that are no arrays and are given to both sides as they are.
PLAIN = (bool, int, float, str, type(None))


def transform(value: Any, change: Callable[[str, Any], Any], path: str = "") -> Any:
    """`value` with each of its leaves replaced by ``change(path, leaf)``, its containers being of the same types.

    Containers are tuples (named ones, too), lists, dicts and dataclass instances, nested in any way; all else is a leaf.
    Paths are positions, keys and field names joined by dots: ``"0"``, ``"past.1"``. What did not change is the same object.
    """
    if isinstance(value, tuple):
        parts = [transform(part, change, _join(path, i)) for i, part in enumerate(value)]
        if all(new is old for new, old in zip(parts, value, strict=True)):
            return value
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, list):
        parts = [transform(part, change, _join(path, i)) for i, part in enumerate(value)]
        same = all(new is old for new, old in zip(parts, value, strict=True))
        return value if same else type(value)(parts)
    if isinstance(value, dict):
        changed = {key: transform(part, change, _join(path, key)) for key, part in value.items()}
        return _with(
            value, {k: v for k, v in changed.items() if v is not value[k]}, lambda c, k, v: c.__setitem__(k, v)
        )
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        changed = {name: transform(part, change, _join(path, name)) for name, part in fields.items()}
        return _with(value, {k: v for k, v in changed.items() if v is not fields[k]}, object.__setattr__)
    return change(path, value)


def _with(value: Any, changes: Mapping[Any, Any], put: Callable[[Any, Any, Any], None]) -> Any:
    """A shallow copy with changes; the value itself where there are none."""
    if not changes:
        return value
    result = copy.copy(value)
    for key, part in changes.items():
        put(result, key, part)
    return result


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def leaves(value: Any) -> list[tuple[str, Any]]:
    """(path, leaf) of every leaf, in order."""
    found: list[tuple[str, Any]] = []

    def note(path: str, leaf: Any) -> Any:
        found.append((path, leaf))
        return leaf

    transform(value, note)
    return found


def describe(
    arguments: tuple[Any, ...], keywords: Mapping[str, Any], targets: Any = None
) -> tuple[dict[str, NDArray], Any]:
    """A call's arrays by name, and a JSON-able description of the call from which `restore` makes it again.

    Arrays are NumPy's or anything NumPy can view (tensors of either framework on the host). Names are ``"x0"`` for the first
    positional argument, ``"mask"`` for a keyword, ``"x1.past.0"`` for what is nested, ``"targets.boxes"`` for targets.

    Raises:
        AlignmentError: a value is neither an array nor a number, text, None, tuple, list or dict of such.
    """
    arrays: dict[str, NDArray] = {}

    def tree(value: Any, name: str) -> Any:
        if isinstance(value, PLAIN) and not (isinstance(value, float) and not math.isfinite(value)):
            return {"value": value}
        if isinstance(value, (tuple, list)):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [tree(part, f"{name}.{i}") for i, part in enumerate(value)]}
        if isinstance(value, Mapping):
            if not all(isinstance(key, str) for key in value):
                raise AlignmentError(f"input {name}: the keys of a dict must be texts")
            return {"dict": {key: tree(part, f"{name}.{key}") for key, part in value.items()}}
        arrays[name] = as_array(value, name)
        return {"array": name}

    structure = {
        "arguments": [tree(value, f"x{i}") for i, value in enumerate(arguments)],
        "keywords": {key: tree(value, key) for key, value in keywords.items()},
        "targets": tree(targets, "targets"),
    }
    return arrays, structure


def as_array(value: Any, name: str) -> NDArray:
    """A NumPy copy of an array or of a tensor on the host.

    Raises:
        AlignmentError: it is none, or holds objects.
    """
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        value = value.detach().cpu()
    try:
        array = np.array(value.numpy() if hasattr(value, "detach") else value)
    except Exception as error:  # whatever a foreign object's conversion raises
        raise AlignmentError(f"input {name}: a {type(value).__name__} can't be made an array: {error}") from error
    if array.dtype.kind not in "biuf":
        raise AlignmentError(
            f"input {name}: a {type(value).__name__} of {array.dtype} is no array of numbers; inputs are arrays, numbers, "
            "texts, None, and tuples, lists and dicts of them"
        )
    return array


def restore(structure: Any, tensors: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any], Any]:
    """Positional arguments, keywords and targets of a call that `describe` described, with `tensors` for its arrays."""

    def value(tree: Mapping[str, Any]) -> Any:
        if "array" in tree:
            return tensors[tree["array"]]
        if "dict" in tree:
            return {key: value(part) for key, part in tree["dict"].items()}
        if "list" in tree:
            return [value(part) for part in tree["list"]]
        return tuple(value(part) for part in tree["tuple"]) if "tuple" in tree else tree["value"]

    arguments = [value(tree) for tree in structure["arguments"]]
    return arguments, {key: value(tree) for key, tree in structure["keywords"].items()}, value(structure["targets"])
