"""Small files that people write, TOML or JSON, read so that whatever is wrong with one is a ValueError."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]


def read_toml(path: Path) -> dict[str, Any]:
    """What a TOML file holds.

    Raises:
        OSError: it can't be read.
        ValueError: it is no UTF-8 or no TOML, or nested too deeply.
    """
    return parse_toml(path.read_text(encoding="utf-8"))


def read_table(path: Path, what: str) -> Any:
    """What a .toml or .json file holds; `what` it should be is said where it is neither.

    Raises:
        OSError: it can't be read.
        ValueError: it is of another kind by its suffix, or not what its suffix says.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix not in (".toml", ".json"):
        raise ValueError(f"{what} is a .toml or .json file")
    return parse_json(text) if path.suffix == ".json" else parse_toml(text)


def parse_toml(text: str) -> dict[str, Any]:
    """What a TOML text holds; ValueError says what is wrong with it."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_json(text: str) -> Any:
    """What a JSON text holds; ValueError says what is wrong with it. A key that stands twice in one object is wrong."""
    try:
        return json.loads(text, object_pairs_hook=_no_doubles)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return result
