"""A recipe as plain values: of a TOML file, and as a run folder keeps it.

[optimizer]
kind = "adamw"
learning_rate = 1e-3
weight_decay = 0.01

[schedule]
kind = "cosine"
options = {T_max = 1000}

[clip]
kind = "global norm"
limit = 1.0

[[groups]]
pattern = "*.bias"
weight_decay = 0.0
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from alignment.errors import AlignmentError
from alignment.training.recipe import Clip, Group, Optimizer, Recipe, Schedule

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Value = TypeVar("Value", Optimizer, Schedule, Clip, Group)


def read_recipe(path: Path) -> Recipe:
    """The recipe of a TOML file.

    Raises:
        AlignmentError: it can't be read, has an unknown key, or a value of another type; the message names it.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise AlignmentError(f"{path}: can't read the recipe: {error}") from error
    return recipe_of(table, str(path))


def recipe_of(table: Mapping[str, Any], where: str) -> Recipe:
    """The recipe that plain values say; what they leave out has its default. where: for messages.

    Raises:
        AlignmentError: an unknown key, or a value of another type.
    """
    known = {field.name for field in fields(Recipe)}
    unknown = sorted(set(table) - known)
    if unknown:
        raise AlignmentError(f"{where}: unknown table {', '.join(unknown)}; a recipe has {', '.join(sorted(known))}")
    groups = table.get("groups", ())
    if not isinstance(groups, (list, tuple)):
        raise AlignmentError(f"{where}: groups are tables, [[groups]]")
    clip = table.get("clip")
    return Recipe(
        _made(Optimizer, table.get("optimizer", {}), f"{where}: optimizer"),
        _made(Schedule, table.get("schedule", {}), f"{where}: schedule"),
        None if clip is None else _made(Clip, clip, f"{where}: clip"),
        tuple(_made(Group, group, f"{where}: groups") for group in groups),
    )


def to_table(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values that JSON and `recipe_of` take."""
    return {
        "optimizer": {**asdict(recipe.optimizer), "betas": list(recipe.optimizer.betas)},
        "schedule": {"kind": recipe.schedule.kind, "options": dict(recipe.schedule.options)},
        "clip": None if recipe.clip is None else asdict(recipe.clip),
        "groups": [asdict(group) for group in recipe.groups],
    }


def _made(kind: type[Value], table: Any, where: str) -> Value:
    if not isinstance(table, Mapping):
        raise AlignmentError(f"{where} is a table of settings, not {table!r}")
    hints = get_type_hints(kind)
    unknown = sorted(set(table) - set(hints))
    if unknown:
        raise AlignmentError(f"{where}: unknown key {', '.join(unknown)}; known: {', '.join(hints)}")
    given = {name: _value(value, hints[name], f"{where}: {name}") for name, value in table.items()}
    try:
        return kind(**given)
    except TypeError:
        needed = ", ".join(name for name in hints if name not in given)
        raise AlignmentError(f"{where}: {needed} is missing") from None


def _value(value: Any, hint: Any, where: str) -> Any:
    """A value as the field it is for holds it."""
    kinds = {kind for part in (get_args(hint) or (hint,)) for kind in (part if isinstance(part, type) else type(part),)}
    if hint == tuple[float, float]:
        if isinstance(value, (list, tuple)) and len(value) == 2 and all(_is_number(part) for part in value):
            return float(value[0]), float(value[1])
        raise AlignmentError(f"{where} is two numbers, not {value!r}")
    if kinds == {str}:
        choices = [part for part in get_args(hint) if isinstance(part, str)]
        if isinstance(value, str) and (not choices or value in choices):
            return value
        raise AlignmentError(f"{where} is {' or '.join(map(repr, choices)) or 'a text'}, not {value!r}")
    if hint is bool and isinstance(value, bool):
        return value
    if float in kinds and (_is_number(value) or (value is None and type(None) in kinds)):
        return None if value is None else float(value)
    if isinstance(value, Mapping) and float not in kinds:
        return dict(value)
    wanted = "true or false" if hint is bool else "a number" if float in kinds else "a table"
    raise AlignmentError(f"{where} is {wanted}, not {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
