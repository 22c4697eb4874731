"""What of two models is compared, with what, and how strictly: a mapping and what was matched, settled for two live models."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import checkpoints
from alignment.compare import Comparison, Tolerance
from alignment.correspondence import OF_MODULES, correspond, path_of
from alignment.errors import AlignmentError
from alignment.mapping import ModelMapping, OwnTolerance, covers
from alignment.matching import Match, Matching, Tree, chains, homes, match
from checkpoints import CheckpointError, Layout, NameMap, Slot
from checkpoints.layouts import Operation
from checkpoints.names import Renamed

# Names in a report that shortened lists hold.
SHOWN = 6
# Tensors of a run that belong to no module: they may have a tolerance of their own, and are always compared.
RESULTS = ("logits", "output", "loss")

ASK_FOR_A_MAPPING = (
    "write a mapping file with: align map TWIN -o mapping.toml, edit it, and check with --mapping mapping.toml"
)


@dataclass(frozen=True)
class Scope:
    """What is compared. Names are (the reference's, the candidate's), None where a side has none.

    names:    how the reference's tensors are called in the candidate, for the converter.
    kept:     the candidate's tensors that are given no weights: they keep their own.
    modules:  reference's module path -> the candidate's, as far as it was told or matched.
    wrappers: modules, of the reference and of the candidate, that only wrap another.
    inside:   modules, of the reference and of the candidate, whose inner modules are not compared.
    notes:    what the report says of all this.
    """

    mapping: ModelMapping = field(default_factory=ModelMapping)
    names: NameMap = field(default_factory=NameMap)
    kept: frozenset[str] = frozenset()
    modules: Mapping[str, str] = field(default_factory=dict)
    wrappers: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())
    inside: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    notes: tuple[str, ...] = ()

    def ignores(self, *names: str | None) -> bool:
        """Is what is called so on either side left out of the comparison?"""
        return any(covers(pattern, path) for path in _paths(names) for pattern in self.mapping.ignore)

    def is_inside(self, side: int, path: str) -> bool:
        """Is a module inside one that is compared at its boundary? side: 0 the reference, 1 the candidate."""
        return any(path != outer and (not outer or path.startswith(f"{outer}.")) for outer in self.inside[side])

    def left_out(self, record: str, reference: str | None, candidate: str | None) -> str:
        """Why a record is not compared; empty where it is. What the model returns and the loss always are."""
        result = record == "gradient" and path_of(reference or "") in RESULTS
        if result or record in (*RESULTS, "metric"):
            return ""
        if self.ignores(reference, candidate):
            return "ignored"
        if record != "module" and record not in OF_MODULES:
            return ""
        for side, name in enumerate((reference, candidate)):
            for path in _paths([name]):
                if self.is_inside(side, path):
                    return "inside"
                if path in self.wrappers[side]:
                    return "wrapper"
        return ""

    def own(self, *names: str | None) -> OwnTolerance | None:
        """The tolerance of its own of what is called so on either side."""
        found = (own for own in self.mapping.tolerances if any(covers(own.pattern, path) for path in _paths(names)))
        return next(found, None)

    def tolerance(self, *names: str | None) -> Tolerance:
        """How much rounding is allowed for what is called so on either side."""
        own = self.own(*names)
        return own.tolerance if own else Tolerance()


def _paths(names: Iterable[str | None]) -> list[str]:
    """The names of tensors and the paths of modules that records are called after; "(root)" is the model itself."""
    return ["" if name == "(root)" else path_of(name) for name in names if name is not None]


def with_reason(comparison: Comparison, usual: Comparison, own: OwnTolerance) -> Comparison:
    """The comparison with its own tolerance; where that decided, the reason says so."""
    if comparison.verdict == usual.verdict:
        return comparison
    decided = f"{comparison.verdict} by a tolerance of its own ({own.reason}), {usual.verdict} by the usual one"
    return replace(comparison, reason=f"{decided}: {comparison.reason}")


# ------------------------------------------------------------------------------------------------------------- settling


def settle_scope(
    reference: Tree, candidate: Tree, mapping: ModelMapping, names: NameMap
) -> tuple[Layout | None, tuple[str, ...], Scope]:
    """Pair the tensors of two models: by names and by what the mapping says, and else by `alignment.matching`.

    What is ignored is given the same weights as all others, where it has a counterpart; else it is left out here, too.

    Returns the layout, or None with what keeps the tensors from corresponding, one line each; and the scope.

    Raises:
        AlignmentError: the mapping speaks of what is not there, or the tensors can't be matched without guessing.
    """
    scope = told_scope(reference, candidate, mapping, names)
    for tried in _less_and_less(reference, candidate, scope):
        layout, mismatch = _plan(reference, candidate, tried)
        if layout is not None:
            told = any((mapping.renames, mapping.modules, mapping.tensors))
            return layout, (), replace(tried, notes=(_counted(layout, tried),)) if told else tried
        matching = match_rest(reference, candidate, tried)
        if matching.complete:
            matched = _matched(reference, matching, tried)
            layout, _ = _plan(reference, candidate, matched)
            if layout is not None:
                return layout, (), matched
    if matching.ambiguous and not any(matching.unmatched):
        raise AlignmentError(_ambiguity(matching))
    other_names = matching.ambiguous or any(two.how in ("order", "shape") for two in matching.tensors.values())
    if all(matching.unmatched) or (any(matching.unmatched) and other_names):
        hint = f"if these are the same tensors under other names, {ASK_FOR_A_MAPPING}"
        scope = replace(scope, notes=(*scope.notes, hint))
    return None, mismatch, scope


def told_scope(reference: Tree, candidate: Tree, mapping: ModelMapping, names: NameMap) -> Scope:
    """What the names and the mapping say, before anything is matched.

    Raises:
        AlignmentError: the mapping speaks of what is not there.
    """
    _refuse_strays(reference, candidate, mapping)
    names = replace(names, renames=(*names.renames, *mapping.renames))
    exact = _told(reference, mapping, names)
    for slot in reference.slots:
        operation = _operation(mapping, slot)
        renamed = exact.get(slot.name, Renamed(slot.name))
        if operation is not None and renamed is not None:
            exact[slot.name] = replace(renamed, operation=operation)
    return Scope(mapping, replace(names, exact=exact), modules=mapping.modules)


def _less_and_less(reference: Tree, candidate: Tree, scope: Scope) -> Iterator[Scope]:
    """The scope with all tensors; without those ignored that match nothing; without those ignored whose names fit nothing."""
    yield scope
    if not scope.mapping.ignore:
        return
    unmatched = match_rest(reference, candidate, scope).unmatched
    yield _without(scope, *({name for name in side if scope.ignores(name)} for side in unmatched))
    find = _finder(reference, candidate)
    dropped, paired = set(), set()
    for slot in reference.slots:
        renamed = scope.names.exact.get(slot.name, Renamed(slot.name))
        other = find(slot, renamed) if renamed is not None else None
        fits = other is not None and reference.stored(slot) == candidate.stored(other)
        if other is not None and (fits or not scope.ignores(slot.name, other.name)):
            paired.add(other.name)
        elif scope.ignores(slot.name):
            dropped.add(slot.name)
    kept = {slot.name for slot in candidate.slots if slot.name not in paired and scope.ignores(slot.name)}
    yield _without(scope, dropped, kept)


def _without(scope: Scope, dropped: set[str], kept: set[str]) -> Scope:
    """The scope without some tensors of the reference and some of the candidate."""
    names = replace(scope.names, exact={**scope.names.exact, **dict.fromkeys(dropped)})
    return replace(scope, names=names, kept=frozenset(kept))


def _matched(reference: Tree, matching: Matching, scope: Scope) -> Scope:
    """The scope with all that was matched."""
    exact = dict(scope.names.exact)
    for one, two in matching.tensors.items():
        said = exact.get(one)
        exact[one] = Renamed(two.candidate, said.operation if said else None, True)
    return replace(
        scope,
        names=replace(scope.names, exact=exact),
        modules={one: two.candidate for one, two in matching.modules.items()},
        notes=_found(matching),
    )


def plan_scope(reference: Tree, candidate: Tree, scope: Scope) -> Layout:
    """The layout between two models of the same classes as those the scope was settled for.

    Raises:
        CheckpointError: their tensors do not correspond.
    """
    slots = tuple(slot for slot in candidate.slots if slot.name not in scope.kept)
    return checkpoints.plan(reference.slots, slots, reference.framework, candidate.framework, scope.names)


def corresponding(scope: Scope, reference: Tree, candidate: Tree, layout: Layout | None) -> dict[str, str]:
    """Reference's module path -> the candidate's."""
    told = {"": "", **scope.modules}
    # Modules of tensors that are left out are nobody's counterpart.
    dropped = {name for name, renamed in scope.names.exact.items() if renamed is None and scope.ignores(name)}
    ours, theirs = _emptied(reference, dropped) - told.keys(), _emptied(candidate, scope.kept) - set(told.values())
    return correspond(
        [module for module in reference.modules if module.path not in ours],
        [module for module in candidate.modules if module.path not in theirs],
        layout,
        told,
        homes(reference, candidate, told),
    )


def _emptied(tree: Tree, without: Collection[str]) -> set[str]:
    """Paths of modules all of whose own tensors are left out."""
    owners = {slot.name: slot.name.rpartition(".")[0] for slot in tree.slots}
    left = {owner for name, owner in owners.items() if name not in without}
    return {owners[name] for name in without} - left


def located(scope: Scope, reference: Tree, candidate: Tree, paths: Mapping[str, str]) -> Scope:
    """The scope with the modules that are compared at their boundary, and those that only wrap another.

    paths: which modules correspond.
    """
    called = {two: one for one, two in paths.items()}
    wrappers = [
        [path for chain in chains(tree) if set(chain) & known for path in chain if path not in known]
        for tree, known in ((reference, paths.keys()), (candidate, called.keys()))
    ]
    inside: tuple[dict[str, None], dict[str, None]] = ({}, {})
    for side, (tree, other) in enumerate(((reference, paths), (candidate, called))):
        for module in tree.modules:
            if any(re.fullmatch(pattern, module.path) for pattern in scope.mapping.boundary):
                inside[side][module.path] = None
                if module.path in other:
                    inside[1 - side][other[module.path]] = None
    return replace(
        scope,
        inside=(tuple(inside[0]), tuple(inside[1])),
        wrappers=(frozenset(wrappers[0]), frozenset(wrappers[1])),
    )


def listed(names: Sequence[str]) -> str:
    """Some of the names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(name or "(root)" for name in names[:SHOWN]) + more


def _plan(reference: Tree, candidate: Tree, scope: Scope) -> tuple[Layout | None, tuple[str, ...]]:
    try:
        return plan_scope(reference, candidate, scope), ()
    except CheckpointError as error:
        return None, tuple(line.strip() for line in str(error).splitlines())


def _refuse_strays(reference: Tree, candidate: Tree, mapping: ModelMapping) -> None:
    """What the mapping speaks of must be there: an entry that means nothing is a misspelt one."""
    paths = [{module.path for module in tree.modules} for tree in (reference, candidate)]
    tensors = [{slot.name for slot in tree.slots} for tree in (reference, candidate)]
    problems = []
    for what, pairs, known in (("modules", mapping.modules, paths), ("tensors", mapping.tensors, tensors)):
        for side, named in (("reference", pairs.keys()), ("candidate", pairs.values())):
            there = known[side == "candidate"]
            problems += [f"{what}: the {side} has no {what[:-1]} {name!r}" for name in named if name not in there]
    everything = paths[0] | paths[1] | tensors[0] | tensors[1]
    known_to = {
        "layout": tensors[0],
        "ignore": everything,
        "boundary": paths[0] | paths[1],
        "tolerance": everything | set(RESULTS),
    }
    for what, pattern in mapping.patterns():
        whole = what == "boundary"
        if not any(re.fullmatch(pattern, name) if whole else covers(pattern, name) for name in known_to[what]):
            of = "module" if whole else "tensor of the reference" if what == "layout" else "module or tensor"
            problems.append(f"{what}: {pattern!r} matches no {of}")
    current = tensors[0]
    for rule in mapping.renames:
        matches = {name: found for name in current if (found := re.fullmatch(rule.pattern, name))}
        if not matches:
            problems.append(f"rename: {rule.pattern!r} matches no tensor of the reference")
        current = {matches[name].expand(rule.replace) if name in matches else name for name in current}
    if problems:
        raise AlignmentError("the mapping does not fit these models: " + "; ".join(problems))


def _told(reference: Tree, mapping: ModelMapping, names: NameMap) -> dict[str, Renamed | None]:
    """What is said of each of the reference's tensors that something is said of."""
    told: dict[str, Renamed | None] = {}
    for slot in reference.slots:
        if slot.name in mapping.tensors:
            told[slot.name] = Renamed(mapping.tensors[slot.name], None, True)
            continue
        owner, _, _ = slot.name.rpartition(".")
        while owner not in mapping.modules and owner:
            owner = owner.rpartition(".")[0]
        renamed = names.rename(slot.name)
        if owner in mapping.modules:
            rest = slot.name[len(owner) + 1 if owner else 0 :]
            told[slot.name] = Renamed(f"{mapping.modules[owner]}.{rest}".lstrip("."), None, True)
        elif renamed is None or renamed.changed:
            told[slot.name] = renamed
    return told


def _operation(mapping: ModelMapping, slot: Slot) -> Operation | None:
    for rule in mapping.layouts:
        if covers(rule.pattern, slot.name):
            vector = rule.operation == "transpose" and len(slot.shape) < 2
            return None if vector and not re.fullmatch(rule.pattern, slot.name) else rule.operation
    return None


def _finder(reference: Tree, candidate: Tree) -> Callable[[Slot, Renamed], Slot | None]:
    """A tensor of the reference and what it is called in the candidate -> the candidate's, by either framework's words."""
    own = {slot.name: slot for slot in candidate.slots}
    canonical = {candidate.canonical(slot): slot for slot in candidate.slots}

    def find(slot: Slot, renamed: Renamed) -> Slot | None:
        if renamed.changed and renamed.name in own:
            return own[renamed.name]
        return canonical.get(renamed.name.removesuffix(slot.local) + reference.local(slot))

    return find


def match_rest(reference: Tree, candidate: Tree, scope: Scope) -> Matching:
    """Match what the names leave open: tensors that are dropped or kept are out of it."""
    exact = scope.names.exact
    find = _finder(reference, candidate)
    ours = replace(reference, slots=tuple(s for s in reference.slots if exact.get(s.name, s) is not None))
    theirs = replace(candidate, slots=tuple(s for s in candidate.slots if s.name not in scope.kept))
    pairs = {}
    for slot in ours.slots:
        renamed = exact.get(slot.name)
        inside = any(covers(re.escape(path), slot.name) for path in scope.mapping.modules if path)
        if renamed is None or not renamed.changed or (inside and slot.name not in scope.mapping.tensors):
            continue
        target = find(slot, renamed)
        if target is not None:
            pairs[slot.name] = target.name
    return match(ours, theirs, scope.mapping.modules, pairs)


def _found(matching: Matching) -> tuple[str, ...]:
    """How the tensors were matched, and which are so by something else than names."""
    odd = [
        f"{one} → {two.candidate} by {two.how}"
        for one, two in matching.modules.items()
        if two.how in ("order", "shape")
    ] + [
        f"{one} → {two.candidate} by {two.how}"
        for one, two in matching.tensors.items()
        if two.how in ("order", "shape") and one.rpartition(".")[0] not in _by(matching.modules)
    ]
    return (f"tensors matched: {matching.summary()}" + (f" ({listed(odd)})" if odd else ""),)


def _counted(layout: Layout, scope: Scope) -> str:
    """The same, where names and the mapping told it all."""
    told = {name for name, renamed in scope.names.exact.items() if renamed is not None and renamed.changed}
    said = sum(move.source in told for move in layout.moves)
    return f"tensors matched: {said} by mapping" + (
        f", {len(layout.moves) - said} by name" if said < len(layout.moves) else ""
    )


def _by(modules: Mapping[str, Match]) -> set[str]:
    return {one for one, two in modules.items() if two.how in ("order", "shape")}


def _ambiguity(matching: Matching) -> str:
    lines = [
        f"  {', '.join(one.reference)} ({one.what}): each may be any of {', '.join(one.candidate)}"
        for one in matching.ambiguous
    ]
    count = sum(len(one.reference) for one in matching.ambiguous)
    return (
        f"{count} modules or tensors of the candidate can't be matched to the reference's without guessing:\n"
        + "\n".join(lines)
        + f"\n{ASK_FOR_A_MAPPING[0].upper()}{ASK_FOR_A_MAPPING[1:]}"
    )
