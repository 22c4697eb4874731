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

from pathlib import Path

from alignment.errors import AlignmentError
from alignment.training.recipe import Recipe
from checkpoints.tables import read_toml


def read_recipe(path: Path) -> Recipe:
    """The recipe that a TOML file says; what it leaves out has its default.

    Raises:
        AlignmentError: it can't be read, has an unknown key, or a value that is not right; the message names the file.
    """
    try:
        return Recipe.from_dict(read_toml(path))
    except (OSError, ValueError, AlignmentError) as error:
        raise AlignmentError(f"{path}: can't read the recipe: {error}") from error
