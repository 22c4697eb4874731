"""Defaults from a file: `alignment.toml`, or `[tool.alignment]` in `pyproject.toml`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from alignment.errors import AlignmentError
from checkpoints.tables import read_toml


def find_config() -> Path | None:
    """alignment.toml, or else pyproject.toml, in the working directory."""
    return next((path for path in (Path("alignment.toml"), Path("pyproject.toml")) if path.is_file()), None)


def read_config(
    path: Path | None, known: Collection[str], flags: Collection[str] = (), repeated: Collection[str] = ()
) -> dict[str, Any]:
    """The options a configuration file sets, by their command-line names without the dashes.

    Args:
        path: the file asked for; None looks for alignment.toml and then pyproject.toml in the working directory.
        known: the options there are. flags: those that are true or false. repeated: those that take a list; ``set`` may be
            a table.

    Raises:
        AlignmentError: the file is missing or no TOML, or has an unknown key.
    """
    if path is None:
        path = find_config()
        if path is None:
            return {}
    try:
        table = read_toml(path)
    except (OSError, ValueError) as error:
        raise AlignmentError(f"{path}: can't read the configuration: {error}") from error
    if path.name == "pyproject.toml":
        tool = table.get("tool", {})
        table = tool.get("alignment", {}) if isinstance(tool, dict) else {}
    if not isinstance(table, dict):
        raise AlignmentError(f"{path}: [tool.alignment] must be a table")
    if "tool" in table:
        raise AlignmentError(f"{path}: the options stand at the top level here, not under [tool.alignment]")
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise AlignmentError(f"{path}: unknown key {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    if isinstance(table.get("set"), dict):
        table["set"] = [f"{name}={_text(value)}" for name, value in table["set"].items()]
    return {key: _value(path, key, value, key in flags, key in repeated) for key, value in table.items()}


def _value(path: Path, key: str, value: Any, flag: bool, repeated: bool) -> Any:
    parts = value if isinstance(value, list) and repeated else [value]
    right = isinstance(value, bool) if flag else all(type(part) in (str, int, float) for part in parts)
    if not right:
        raise AlignmentError(f"{path}: {key} = {value!r} is not a value that --{key} takes")
    if flag:
        return value
    return [str(part) for part in parts] if repeated else str(value)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
