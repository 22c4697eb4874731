"""The two module trees as a report has them, and which module of a tree a tensor belongs to."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from alignment.compare import Verdict
from alignment.correspondence import OF_MODULES, holder, path_of
from alignment.experiment import Experiment
from alignment.frameworks import Framework
from alignment.report import Module, TensorResult, TwinResult
from alignment.sources import class_site, making_site

ROOT = "(root)"
# The verdicts from best to worst.
SEVERITY: tuple[Verdict, ...] = ("aligned", "inconclusive", "diverged")


@dataclass(frozen=True)
class Node:
    """One module of a tree with what was found there.

    parent: its place in the tree; None for the root. tensors: places in `TwinResult.tensors`. verdict: the worst of these;
    below: the worst of these and of all modules below; None where nothing was compared. roots: root divergences there and below.
    """

    module: Module
    parent: int | None
    tensors: tuple[int, ...]
    verdict: Verdict | None
    below: Verdict | None
    roots: int


def module_trees(experiment: Experiment) -> tuple[tuple[Module, ...], tuple[Module, ...]]:
    """The reference's modules and the candidate's, in order of definition, with the line that makes each where it is known."""
    pairs = experiment.paths
    ours = _tree(experiment.reference, experiment.reference_model, pairs)
    theirs = _tree(experiment.candidate, experiment.candidate_model, {two: one for one, two in pairs.items()})
    return ours, theirs


def _tree(framework: Framework, model: Any, counterparts: dict[str, str]) -> tuple[Module, ...]:
    modules = framework.modules(model)
    own = {module.path for module in modules if module.own}
    return tuple(
        Module(m.path, m.kind, m.own, counterparts.get(m.path), _site(framework, model, m.path, own)) for m in modules
    )


def _site(framework: Framework, model: Any, path: str, own: Collection[str]) -> str | None:
    """The nearest line of the user's code: a container's child is made where the container is."""
    if model is None:
        return None  # a capture knows no source
    while path:
        parent, _, local = path.rpartition(".")
        if parent in own:
            return making_site(type(framework.module(model, parent)), local)
        path = parent
    return class_site(type(model))


def module_of(record: str, name: str, paths: Collection[str]) -> str | None:
    """The path, among `paths`, of the module that a tensor belongs to, by the name it has on that side; None for none."""
    if record == "module":
        path = "" if name == ROOT else name
    elif record in OF_MODULES:
        path = path_of(name)
    elif record in ("parameter", "buffer", "initializer", "gradient", "update"):
        path = holder(name, paths)
    else:
        path = ""  # what the model returns, and what is made of that
    return path if path in paths else None


def nodes(twin: TwinResult, side: str) -> tuple[Node, ...]:
    """The tree of one side, ``"reference"`` or ``"candidate"``, with the tensors of every module."""
    tree = twin.reference_tree if side == "reference" else twin.candidate_tree
    places = {module.path: place for place, module in enumerate(tree)}
    held: list[list[int]] = [[] for _ in tree]
    for number, tensor in enumerate(twin.tensors):
        name = tensor.reference_name if side == "reference" else tensor.candidate_name
        path = None if name is None else module_of(tensor.record, name, places)
        if path is not None:
            held[places[path]].append(number)
    parents = [_parent(module.path, places) for module in tree]
    below = [list(own) for own in held]
    for place in reversed(range(len(tree))):  # a parent stands before its children
        parent = parents[place]
        if parent is not None and parent < place:
            below[parent] += below[place]
    return tuple(
        Node(
            module,
            parents[place],
            tuple(held[place]),
            _worst(twin.tensors[number] for number in held[place]),
            _worst(twin.tensors[number] for number in below[place]),
            sum(twin.tensors[number].root for number in below[place]),
        )
        for place, module in enumerate(tree)
    )


def _parent(path: str, places: dict[str, int]) -> int | None:
    while path:
        path = path.rpartition(".")[0]
        if path in places:
            return places[path]
    return None


def _worst(tensors: Iterable[TensorResult]) -> Verdict | None:
    return max((tensor.verdict for tensor in tensors if tensor.waived is None), key=SEVERITY.index, default=None)
