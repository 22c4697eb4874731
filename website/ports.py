"""What is wrong in a wrong port of the gallery: its source with the fault beside its source without, as a diff."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from mutants.gallery import GALLERY, GalleryMutant

ROOT = Path(__file__).resolve().parents[1]


def difference(mutant: GalleryMutant) -> str:
    """Lines of the candidate: `-` as the wrong port has them, `+` as they should be."""
    module, name = str(GALLERY[mutant.twin].candidate.target).split(":")
    lines: list[str] = []
    for function in functions(ROOT / f"{module.replace('.', '/')}.py", name):
        wrong, right = (ast.unparse(WithFault(fault).visit(copy(function))).splitlines() for fault in (mutant.name, ""))
        changes = list(difflib.unified_diff(wrong, right, n=1, lineterm=""))[2:]
        lines += [line for line in changes if not line.startswith("@@")]
    outside = min(len(line[1:]) - len(line[1:].lstrip()) for line in lines)
    return "\n".join(line[0] + line[1 + outside :] for line in lines)


@cache
def functions(file: Path, name: str) -> tuple[ast.FunctionDef, ...]:
    """The methods of a class."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    return tuple(node for node in found.body if isinstance(node, ast.FunctionDef))


def copy(function: ast.FunctionDef) -> ast.FunctionDef:
    """One that may be changed, of the same text."""
    (found,) = ast.parse(ast.unparse(function)).body
    assert isinstance(found, ast.FunctionDef)
    return found


class WithFault(ast.NodeTransformer):
    """Code as it runs with one fault: every question which fault it is has been answered."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def answer(self, test: ast.expr) -> bool | None:
        """What `fault == "name"` is; None for any other test."""
        if not isinstance(test, ast.Compare) or len(test.ops) != 1 or not isinstance(test.comparators[0], ast.Constant):
            return None
        asked = test.left.id if isinstance(test.left, ast.Name) else getattr(test.left, "attr", "")
        if asked != "fault" or not isinstance(test.ops[0], (ast.Eq, ast.NotEq)):
            return None
        return (test.comparators[0].value == self.fault) == isinstance(test.ops[0], ast.Eq)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.body = self.block(node.body)
        return node

    def visit_If(self, node: ast.If) -> ast.stmt | list[ast.stmt]:
        answer = self.answer(node.test)
        if answer is not None:
            return self.block(node.body if answer else node.orelse)
        node.body, node.orelse = self.block(node.body) or [ast.Pass()], self.block(node.orelse)
        return node

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        answer = self.answer(node.test)
        if answer is None:
            return self.generic_visit(node)
        chosen: ast.AST = self.visit(node.body if answer else node.orelse)
        return chosen

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """Without the annotation, which one branch has for all."""
        found = node if node.value is None else ast.Assign([node.target], node.value, lineno=node.lineno)
        return self.generic_visit(found)

    def block(self, statements: Sequence[ast.stmt]) -> list[ast.stmt]:
        """The statements up to the first that returns."""
        found: list[ast.stmt] = []
        for statement in self.visited(statements):
            found.append(statement)
            if isinstance(statement, ast.Return):
                break
        return found

    def visited(self, statements: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
        for statement in statements:
            one = self.visit(statement)
            yield from one if isinstance(one, list) else [one]
