"""Where a module stands in its author's source: the class, the line that makes it, and the line that calls it."""

from __future__ import annotations

import ast
import functools
import inspect
import sysconfig
import textwrap
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# This package, the standard library, and what is installed beside it: no place where a model's author has to look.
_LIBRARIES = tuple(
    f"{folder}/" for folder in (Path(__file__).parent, *map(sysconfig.get_path, ("stdlib", "purelib", "platlib")))
)


def class_site(cls: Callable[..., Any]) -> str | None:
    """``"file:line"`` of a class, or of its forward where it has one, or of a function; None where there is no source."""
    for thing in (cls.__dict__.get("forward"), cls):
        try:
            if thing is not None:
                _, line = inspect.getsourcelines(thing)
                return f"{_short(inspect.getsourcefile(thing) or '?')}:{line}"
        except (OSError, TypeError):
            continue
    return None


def making_site(parent: type, attribute: str) -> str | None:
    """``"file:line"`` of the statement in `parent` (or a base) that assigns ``self.attribute``; None where there is none."""
    for cls in parent.__mro__:
        line = _assigned(cls).get(attribute)
        if line is not None:
            return f"{_short(inspect.getsourcefile(cls) or '?')}:{line}"
    return None


def raising_site(error: BaseException) -> str | None:
    """``"file:line"`` of the innermost line of a model's own code that led to an error; None where none did."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [one for one in frames if Path(one.filename).is_file() and not one.filename.startswith(_LIBRARIES)]
    return f"{_short(own[-1].filename)}:{own[-1].lineno}" if own else None


@functools.cache
def _assigned(cls: type) -> dict[str, int]:
    """Attribute -> the line of the first statement in a class's own source that assigns it."""
    try:
        source, first = inspect.getsourcelines(cls)
        tree = ast.parse(textwrap.dedent("".join(source)))
    except (OSError, TypeError, SyntaxError):
        return {}
    found: dict[str, int] = {}
    for node in ast.walk(tree):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        for target in targets:
            if isinstance(target, ast.Attribute) and isinstance(node, ast.stmt):
                found.setdefault(target.attr, first + node.lineno - 1)
    return found


def _short(path: str) -> str:
    """A path relative to the working directory, where it lies below it."""
    try:
        return str(Path(path).resolve().relative_to(Path.cwd()))
    except ValueError:
        return path


def short_site(site: str) -> str:
    """``"file:line"`` with the file as the reader would name it from here."""
    file, _, line = site.rpartition(":")
    return f"{_short(file)}:{line}"
