"""A call as a line of Python: what a module was called with, tensors by their place, for a script that calls it again."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Callable, Mapping
from enum import Enum
from functools import reduce
from typing import Any

import numpy as np

# Larger arrays that are no tensors are not written out.
MOST_ELEMENTS = 64


def call_text(arguments: tuple[Any, ...], keywords: Mapping[str, Any], is_tensor: Callable[[Any], bool]) -> str:
    """``"(arguments), {keywords}"`` as source text.

    Tensors are ``given('0')``, ``given('mask')``, ``given('1.past.0')``: named as `alignment.structures.transform` names
    them. Objects of other classes are ``filled('module:Class', {…})`` (dataclasses, kinds of dict), ``made(…)`` (named tuples)
    and ``load('module:name')`` (classes, functions, members of enumerations); what can't be said is ``missing('Kind')``.
    """
    positional = [_text(value, str(i), is_tensor) for i, value in enumerate(arguments)]
    named = [f"{key!r}: {_text(value, key, is_tensor)}" for key, value in keywords.items()]
    return f"({''.join(f'{part}, ' for part in positional).rstrip(' ')}), {{{', '.join(named)}}}"


def _text(value: Any, path: str, is_tensor: Callable[[Any], bool]) -> str:
    def part(key: object, one: Any) -> str:
        return _text(one, f"{path}.{key}", is_tensor)

    if is_tensor(value):
        return f"given({path!r})"
    if isinstance(value, Enum):
        address = address_of(type(value))
        return f"load({f'{address}.{value.name}'!r})" if address else _missing(value)
    if type(value) in (bool, int, str, bytes, complex, type(None), type(...)):
        return repr(value)
    if type(value) is float:
        return repr(value) if math.isfinite(value) else f"float({str(value)!r})"
    if type(value) in (slice, range):
        return repr(value)
    if isinstance(value, (tuple, list)):
        parts = [part(i, one) for i, one in enumerate(value)]
        if hasattr(value, "_fields"):
            address = address_of(type(value))
            return f"made({address!r}, [{', '.join(parts)}])" if address else _missing(value)
        return f"[{', '.join(parts)}]" if isinstance(value, list) else f"({''.join(f'{one}, ' for one in parts)})"
    if isinstance(value, dict):
        inside = "{" + ", ".join(f"{key!r}: {part(key, one)}" for key, one in value.items()) + "}"
        return inside if type(value) is dict else _filled(value, inside)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return _filled(value, "{" + ", ".join(f"{key!r}: {part(key, one)}" for key, one in fields) + "}")
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return f"np.{value.dtype.name}({value.item()!r})" if np.isfinite(value) else _missing(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biu" and value.size <= MOST_ELEMENTS:
        return f"np.array({value.tolist()!r}, dtype={value.dtype.name!r})"
    if re.fullmatch(r"(torch|paddle)\.\w+", str(value)):  # a dtype
        return str(value)
    address = address_of(value)
    return f"load({address!r})" if address else _missing(value)


def _filled(value: Any, inside: str) -> str:
    address = address_of(type(value))
    return f"filled({address!r}, {inside})" if address else _missing(value)


def _missing(value: Any) -> str:
    return f"missing({type(value).__qualname__!r})"


def address_of(value: Any) -> str | None:
    """``"module:name"`` under which another process finds a class or function; None where it finds none."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module in ("__main__", "__mp_main__"):
        return None
    try:
        there = reduce(getattr, name.split("."), sys.modules[module])
    except (AttributeError, KeyError):
        return None
    return f"{module}:{name}" if there is value else None
