"""Twin files are meant to be read side by side: the same definitions, arguments and attributes, in the same order."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path.name for path in (ROOT / "fastformer_torch").glob("fast*.py"))
OTHER_WORDS = {"bias": "bias_attr"}


def outline(package: str, file: str) -> list[tuple[str, ...]]:
    """Every class and function with its arguments, and every attribute that is set, in order."""
    found: list[tuple[str, ...]] = []
    for node in ast.walk(ast.parse((ROOT / package / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            found.append(("class", node.name))
        elif isinstance(node, ast.FunctionDef):
            names = [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
            found.append(("def", node.name, *(OTHER_WORDS.get(name, name) for name in names)))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.append(("set", node.attr))
    return found


@pytest.mark.parametrize("file", FILES)
def test_both_packages_define_the_same_in_the_same_order(file: str) -> None:
    assert outline("fastformer_torch", file) == outline("fastformer_paddle", file)


@pytest.mark.parametrize("file", FILES)
def test_most_lines_are_the_same(file: str) -> None:
    ours, theirs = (
        (ROOT / package / file).read_text().splitlines() for package in ("fastformer_torch", "fastformer_paddle")
    )
    assert abs(len(ours) - len(theirs)) <= 6
    common = set(ours) & set(theirs)
    assert sum(line in common for line in ours) >= 0.85 * len(ours)


def test_there_are_files_to_compare() -> None:
    assert FILES == ["fast_transformer.py", "fastformer_classifier.py", "fastformer_text_classifier.py"]
