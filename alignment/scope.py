"""What of two models is compared, with what, and how strictly: a mapping and what was matched, settled for two live models."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import checkpoints
from alignment.compare import Comparison, Tolerance
from alignment.correspondence import OF_MODULES, common_path, correspond, holder, is_within, path_of
from alignment.errors import AlignmentError
from alignment.mapping import ModelMapping, OwnTolerance, covers
from alignment.matching import Match, Matching, Tree, chains, homes, match
from checkpoints import CheckpointError, Layout, NameMap, Slot, label_of, opened
from checkpoints.layouts import Operation
from checkpoints.names import Renamed

# Names in a report that shortened lists hold.
SHOWN = 6
# Tensors of a run that belong to no module: they may have a tolerance of their own, and are always compared.
RESULTS = ("logits", "output", "loss")

# Records of what a module is given.
GIVEN = ("input", "input gradient")

ASK_FOR_A_MAPPING = (
    "write a mapping file with: align map TWIN -o mapping.toml, edit it, and give it with --mapping mapping.toml"
)


@dataclass(frozen=True)
class Scope:
    """What is compared. Names are (the reference's, the candidate's), None where a side has none.

    names:    how the reference's tensors are called in the candidate, for the converter.
    kept:     the candidate's tensors that are given no weights: they keep their own.
    modules:  reference's module path -> the candidate's, as far as it was told or matched.
    wrappers: modules, of the reference and of the candidate, that only wrap another.
    inside:   modules, of the reference and of the candidate, whose inner modules are not compared.
    attention: those among them of which one side's is an attention layer of its framework's and the other's is not: they are
              called in different ways, so that what they are given is not compared either.
    notes:    what the report says of all this.
    """

    mapping: ModelMapping = field(default_factory=ModelMapping)
    names: NameMap = field(default_factory=NameMap)
    kept: frozenset[str] = frozenset()
    modules: Mapping[str, str] = field(default_factory=dict)
    wrappers: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())
    inside: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    attention: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    notes: tuple[str, ...] = ()

    def ignores(self, *names: str | None) -> bool:
        """Is what is called so on either side left out of the comparison?"""
        return any(covers(pattern, path) for path in _paths(names) for pattern in self.mapping.ignore)

    def is_inside(self, side: int, path: str) -> bool:
        """Is a module inside one that is compared at its boundary? side: 0 the reference, 1 the candidate."""
        return any(path != outer and is_within(path, outer) for outer in self.inside[side])

    def is_outside(self, side: int, record: str, name: str) -> bool:
        """Is a record of a run compared, as far as it goes by modules that are not looked into?"""
        if record not in OF_MODULES:
            return True
        path = path_of(name)
        return not self.is_inside(side, path) and not (record in GIVEN and path in self.attention[side])

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
                if self.is_inside(side, path) or (record in GIVEN and path in self.attention[side]):
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


@dataclass(frozen=True)
class Said:
    """A scope without patterns, as a file holds it: the names that they match in their place. See `Scope`.

    tolerances: names, and how much rounding is allowed for what is called so; the first that matches decides.
    """

    kept: tuple[str, ...] = ()
    modules: Mapping[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    boundary: tuple[str, ...] = ()
    tolerances: tuple[tuple[tuple[str, ...], OwnTolerance], ...] = ()
    notes: tuple[str, ...] = ()

    def scope(self, counterparts: Mapping[str, Renamed | None]) -> Scope:
        """The scope again. counterparts: what is said of the reference's tensors, `Scope.names` without rules."""
        mapping = ModelMapping(
            ignore=(any_of(self.ignore),) if self.ignore else (),
            boundary=(any_of(self.boundary),) if self.boundary else (),
            tolerances=tuple(own for _, own in self.tolerances),
        )
        return Scope(mapping, NameMap(exact=counterparts), frozenset(self.kept), self.modules, notes=self.notes)


def spell_out(scope: Scope, reference: Tree, candidate: Tree, records: Iterable[str]) -> Said:
    """The scope with names in place of patterns. records: names of what was recorded, which a pattern may match, too."""
    names = {*RESULTS, *_paths(records)}
    for tree in (reference, candidate):
        names |= {module.path for one in (tree, tree.opened) for module in one.modules}
        names |= {slot.name for slot in tree.slots} | {label for label, _ in tree.labelled}
    names |= {above for name in names for above in _above(name)}

    def matched(*patterns: str) -> tuple[str, ...]:
        found = {name for name in names if any(re.fullmatch(pattern, name) for pattern in patterns)}
        return tuple(sorted(name for name in found if found.isdisjoint(_above(name))))

    mapping, tolerances = scope.mapping, []
    for own in mapping.tolerances:
        found, reason = matched(own.pattern), "".join(mark if mark.isprintable() else " " for mark in own.reason)
        tolerances += [(found, replace(own, pattern=any_of(found), reason=reason))] if found else []
    return Said(
        tuple(sorted(scope.kept)),
        dict(scope.modules),
        matched(*mapping.ignore),
        matched(*mapping.boundary),
        tuple(tolerances),
        scope.notes,
    )


def any_of(names: Iterable[str]) -> str:
    """A pattern of these names and no other."""
    return "|".join(map(re.escape, names))


def _above(name: str) -> Iterator[str]:
    """The paths of the modules that a name is inside of, but for the model itself."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


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
        for label, one in opened(slot, reference.framework):
            renamed = exact.get(label, Renamed(one.name))
            if operation is not None and renamed is not None:
                exact[label] = replace(renamed, operation=operation)
    return Scope(mapping, replace(names, exact=exact), modules=mapping.modules)


def _less_and_less(reference: Tree, candidate: Tree, scope: Scope) -> Iterator[Scope]:
    """The scope with all tensors; without those ignored that match nothing; without those ignored whose names fit nothing."""
    yield scope
    if not scope.mapping.ignore:
        return
    whole = {label: slot.name for slot in candidate.slots for label, _ in opened(slot, candidate.framework)}
    ours, theirs = match_rest(reference, candidate, scope).unmatched
    yield _without(
        scope,
        {name for name in ours if scope.ignores(name)},
        {whole[name] for name in theirs if scope.ignores(whole[name])},
    )
    find = _finder(reference, candidate)
    dropped, paired = set(), set()
    for label, slot in reference.labelled:
        renamed = scope.names.exact.get(label, Renamed(slot.name))
        found = find(slot, renamed) if renamed is not None else None
        name, other = found or ("", None)
        fits = other is not None and reference.stored(slot) == candidate.stored(other)
        if other is not None and (fits or not scope.ignores(label, name)):
            paired.add(whole[name])
        elif scope.ignores(label):
            dropped.add(label)
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
    found = correspond(
        [module for module in reference.opened.modules if module.path not in ours],
        [module for module in candidate.opened.modules if module.path not in theirs],
        _owners(reference, candidate, layout),
        told,
        homes(reference, candidate, told),
    )
    there = [{module.path for module in tree.modules} | {""} for tree in (reference, candidate)]
    return {one: two for one, two in found.items() if one in there[0] and two in there[1]}


def _owners(reference: Tree, candidate: Tree, layout: Layout | None) -> list[tuple[str, str]]:
    """The module of each tensor of the reference that is moved, and that of its counterpart.

    In place of attention's projections stands, beside a module of the user's own, the layer itself with the module that has all
    that corresponds to its tensors and nothing else; nothing, where there is no such module.
    """
    names = [{label: slot.name for label, slot in tree.labelled} for tree in (reference, candidate)]
    paths = [{module.path for module in tree.opened.modules} for tree in (reference, candidate)]
    owners = []
    for move in layout.moves if layout else ():
        ends = label_of(move.source, move.part_from), label_of(move.target, move.part_to)
        one, two = (known.get(end, end) for known, end in zip(names, ends, strict=True))
        owners.append((holder(one, paths[0]), holder(two, paths[1])))
    for side, tree, other in ((0, reference, candidate), (1, candidate, reference)):
        for layer in sorted(tree.attention):
            inside = [pair for pair in owners if is_within(pair[side], layer)]
            partners = [pair[1 - side] for pair in inside]
            if not inside or any(is_within(path, own) for path in partners for own in other.attention):
                continue
            home = common_path(partners)
            first = owners.index(inside[0])
            owners = [pair for pair in owners if not is_within(pair[side], layer)]
            if home and not any(is_within(pair[1 - side], home) for pair in owners):
                owners.insert(first, (layer, home) if side == 0 else (home, layer))
    return owners


def _emptied(tree: Tree, without: Collection[str]) -> set[str]:
    """Paths of modules all of whose own tensors are left out."""
    left: set[str] = set()
    emptied: set[str] = set()
    for slot in tree.slots:
        for label, one in opened(slot, tree.framework):
            (emptied if label in without or slot.name in without else left).add(one.name.rpartition(".")[0])
    return emptied - left


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
    # What is in an attention layer of a framework's own is in no module tree.
    uneven = {one: two for one, two in paths.items() if (one in reference.attention) != (two in candidate.attention)}
    inside[0].update(dict.fromkeys(uneven))
    inside[1].update(dict.fromkeys(uneven.values()))
    for side, (tree, other) in enumerate(((reference, paths), (candidate, called))):
        for module in tree.modules:
            if any(re.fullmatch(pattern, module.path) for pattern in scope.mapping.boundary):
                inside[side][module.path] = None
                if module.path in other:
                    inside[1 - side][other[module.path]] = None
    return replace(
        scope,
        inside=(tuple(inside[0]), tuple(inside[1])),
        attention=(tuple(uneven), tuple(uneven.values())),
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
    paths = [{module.path for module in tree.opened.modules} for tree in (reference, candidate)]
    labels = [{label for label, _ in tree.labelled} for tree in (reference, candidate)]
    tensors = [
        {slot.name for slot in tree.slots} | own for tree, own in zip((reference, candidate), labels, strict=True)
    ]
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
    current = {
        (slot.name, label.removeprefix(slot.name))
        for slot in reference.slots
        for label, _ in opened(slot, reference.framework)
    }
    for rule in mapping.renames:
        renamed = {name: rule.applied(*name) for name in current}
        if not any(renamed.values()):
            problems.append(f"rename: {rule.pattern!r} matches no tensor of the reference")
        current = {new or name for name, new in renamed.items()}
    if problems:
        raise AlignmentError("the mapping does not fit these models: " + "; ".join(problems))


def _told(reference: Tree, mapping: ModelMapping, names: NameMap) -> dict[str, Renamed | None]:
    """What is said of each of the reference's tensors, or parts, that something is said of."""
    told: dict[str, Renamed | None] = {}
    for slot in reference.slots:
        for label, one in opened(slot, reference.framework):
            if label in mapping.tensors:
                told[label] = Renamed(mapping.tensors[label], None, True)
                continue
            owner, _, _ = one.name.rpartition(".")
            while owner not in mapping.modules and owner:
                owner = owner.rpartition(".")[0]
            renamed = names.rename(slot.name, label.removeprefix(slot.name))
            if owner in mapping.modules:
                rest = one.name[len(owner) + 1 if owner else 0 :]
                told[label] = Renamed(f"{mapping.modules[owner]}.{rest}".lstrip("."), None, True)
            elif renamed is None or renamed.changed:
                told[label] = renamed
    return told


def _operation(mapping: ModelMapping, slot: Slot) -> Operation | None:
    for rule in mapping.layouts:
        if covers(rule.pattern, slot.name):
            vector = rule.operation == "transpose" and len(slot.shape) < 2
            return None if vector and not re.fullmatch(rule.pattern, slot.name) else rule.operation
    return None


def _finder(reference: Tree, candidate: Tree) -> Callable[[Slot, Renamed], tuple[str, Slot] | None]:
    """A tensor of the reference, as it is opened, and what it is called in the candidate -> the candidate's with its label,
    by either framework's words."""
    own = {label: (label, slot) for label, slot in candidate.labelled}
    canonical = {candidate.canonical(slot): (label, slot) for label, slot in candidate.labelled}

    def find(slot: Slot, renamed: Renamed) -> tuple[str, Slot] | None:
        if renamed.changed and renamed.name in own:
            return own[renamed.name]
        return canonical.get(renamed.name.removesuffix(slot.local) + reference.local(slot))

    return find


def match_rest(reference: Tree, candidate: Tree, scope: Scope) -> Matching:
    """Match what the names leave open: tensors that are dropped or kept are out of it."""
    exact = scope.names.exact
    find = _finder(reference, candidate)
    kept = {label for slot in reference.slots for label, _ in opened(slot, reference.framework)}
    kept = {label for label in kept if exact.get(label, label) is not None}
    ours = replace(
        reference,
        slots=tuple(s for s in reference.slots if any(label in kept for label, _ in opened(s, reference.framework))),
    )
    theirs = replace(candidate, slots=tuple(s for s in candidate.slots if s.name not in scope.kept))
    pairs = {}
    for label, slot in ours.labelled:
        renamed = exact.get(label)
        inside = any(covers(re.escape(path), slot.name) for path in scope.mapping.modules if path)
        if renamed is None or not renamed.changed or (inside and label not in scope.mapping.tensors):
            continue
        target = find(slot, renamed)
        if target is not None:
            pairs[label] = target[0]
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
