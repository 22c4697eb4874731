"""A recipe from a TOML file.

[optimizer]
kind = "adamw"
learning_rate = 1e-3
weight_decay = 0.01

[schedule]
kind = "cosine"
T_max = 1000

[clip]
kind = "global norm"
limit = 1.0

[[groups]]
pattern = "*.bias"
weight_decay = 0.0
"""

from __future__ import annotations

import sys
from pathlib import Path

from alignment.errors import AlignmentError
from alignment.training.recipe import Recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_recipe(path: Path) -> Recipe:
    """The recipe that a TOML file says; what it leaves out has its default.

    Raises:
        AlignmentError: it can't be read, has an unknown key, or a value that is not right; the message names the file.
    """
    try:
        return Recipe.from_dict(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, AlignmentError) as error:
        raise AlignmentError(f"{path}: can't read the recipe: {error}") from error
