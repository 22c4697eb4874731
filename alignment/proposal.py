"""A mapping to edit: all that two models' names, order and shapes tell, and what they leave open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from alignment.experiment import build_sides
from alignment.mapping import ModelMapping, entry, quoted, to_toml
from alignment.matching import Match, Matching, Tree
from alignment.scope import corresponding, match_rest, told_scope
from alignment.twins import Twin


@dataclass(frozen=True)
class Proposal:
    """A mapping file. text: TOML with comments. ambiguous, unmatched: how many names are left open, and have no counterpart."""

    text: str
    summary: str
    ambiguous: int
    unmatched: int


def propose(
    twin: Twin,
    settings: Mapping[str, Any] | None = None,
    mapping: ModelMapping | None = None,
    address: str | None = None,
    trees: tuple[Tree, Tree] | None = None,
) -> Proposal:
    """Match a twin's two models and write down what was found, for a person to edit.

    Args:
        settings: constructor keywords that replace the twin's own. mapping: what is known already; None: the twin's own.
        address: what the twin is called on the command line, if not by its name.
        trees: the two models as they are known, in place of such as are built.

    Raises:
        AlignmentError: a model can't be built, or the mapping speaks of what is not there.
    """
    if trees is None:
        reference, candidate = build_sides(twin, settings or {})
        trees = reference.tree, candidate.tree
    known = twin.mapping if mapping is None else mapping
    scope = told_scope(*trees, known, twin.names)
    matching = match_rest(*trees, scope)
    scope = replace(scope, modules={one: two.candidate for one, two in matching.modules.items()})
    paths = corresponding(scope, *trees, None)
    there = {slot.name for slot in trees[1].slots}
    modules = dict(matching.modules)
    holders = {path for slot in trees[0].slots for path in _above(slot.name)}
    for one, two in paths.items():
        # What has tensors was matched by these, or was not.
        if one not in holders and one not in modules and one.rpartition(".")[0] in modules:
            modules[one] = Match(two, _kept_name(one, two))
    tensors = {one: two for one, two in matching.tensors.items() if two.candidate in there}
    found = replace(
        known,
        modules={one: two.candidate for one, two in modules.items() if one or two.candidate},
        tensors={one: two.candidate for one, two in tensors.items()},
    )
    beside = {
        key: {one: f"by {two.how}" for one, two in pairs.items()}
        for key, pairs in (("modules", modules), ("tensors", tensors))
    }
    below = {
        "modules": list(_choices(matching, modules=True)),
        "tensors": [*_choices(matching, modules=False), *_left(matching, trees)],
    }
    name = address or twin.name
    summary = f"tensors matched: {matching.summary() or 'none'}"
    head = [
        f"How the parts of the candidate ({twin.candidate.name}) correspond to the reference's ({twin.reference.name}).",
        f"Written by `align map {name}`; use it with `align check {name} --mapping FILE`.",
        f"{summary}; beside each entry stands how it was found. The reference's name comes first.",
    ]
    return Proposal(
        "".join(f"# {line}\n" for line in head) + "\n" + to_toml(found, beside, below),
        summary,
        sum(len(one.reference) for one in matching.ambiguous),
        sum(map(len, matching.unmatched)),
    )


def _kept_name(one: str, two: str) -> Any:
    """How modules without tensors were found: by their names, or by kind in order."""
    return "name" if one.rpartition(".")[2] == two.rpartition(".")[2] else "order"


def _above(name: str) -> Iterable[str]:
    """Paths of the modules around a tensor."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def _choices(matching: Matching, modules: bool) -> Iterable[str]:
    for ambiguity in matching.ambiguous:
        if ambiguity.modules == modules:
            yield f"ambiguous ({ambiguity.what}): uncomment one line for each name on the left"
            yield from (entry(one, two) for one in ambiguity.reference for two in ambiguity.candidate)


def _left(matching: Matching, trees: tuple[Tree, Tree]) -> Iterable[str]:
    for side, names, tree in zip(("reference", "candidate"), matching.unmatched, trees, strict=True):
        slots = {slot.name: slot for slot in tree.slots}
        if names:
            yield f"the {side}'s without a counterpart (give them one, or leave them out with ignore):"
        for name in names:
            slot = slots[name]
            yield f"  {quoted(name)}  {slot.kind}'s {slot.role} {list(slot.shape)}"
