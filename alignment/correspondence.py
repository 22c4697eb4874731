"""Which module of the candidate corresponds to which of the reference, and so what a record is called on either side."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from alignment.frameworks import ModuleInfo
from alignment.trace import GRADIENT_OF, Kind, Record, Trace
from checkpoints import Layout, Move, Slot, part_of

# Kinds of records that are named after a module; the others are named after a tensor of the state dict.
OF_MODULES: frozenset[Kind] = frozenset((*GRADIENT_OF, *GRADIENT_OF.values()))


def correspond(
    reference: Iterable[ModuleInfo],
    candidate: Iterable[ModuleInfo],
    owners: Iterable[tuple[str, str]],
    told: Mapping[str, str] | None = None,
    homes: Mapping[str, tuple[str, ...]] | None = None,
) -> dict[str, str]:
    """Reference's module path -> the candidate's.

    Modules with tensors of their own correspond as these do, and their parents with them; below a parent that corresponds,
    children pair by name, and those left over by kind, in order. What then has no counterpart is left out.

    owners: the modules of each tensor and of its counterpart.
    told: pairs that are known. homes: reference's path -> further paths of the candidate below which its children may be.
    """
    ours, theirs, homes = list(reference), list(candidate), homes or {}
    known = {module.path for module in theirs}
    found = {"": "", **(told or {})}
    for one, two in owners:
        while one and two and one not in found:
            found[one] = two
            one, two = one.rpartition(".")[0], two.rpartition(".")[0]
    for module in ours:
        parent, _, local = module.path.rpartition(".")
        places = (*((found[parent],) if parent in found else ()), *homes.get(parent, ()))
        if module.path in found or not places:
            continue
        taken = set(found.values())
        named = (same for place in places if (same := f"{place}.{local}".lstrip(".")) in known - taken)
        alike = (
            other.path
            for other in theirs
            if other.path not in taken and _parent(other.path) in places and _kind(other) == _kind(module)
        )
        match = next(named, None) or next(alike, None)
        if match is not None:
            found[module.path] = match
    return found


def _parent(path: str) -> str | None:
    return path.rpartition(".")[0] if path else None


def _kind(module: ModuleInfo) -> str:
    return module.kind.lower().removeprefix("compat.")


def holder(name: str, paths: Collection[str]) -> str:
    """The module of `paths` that holds a tensor: what is inside a layer that is compared as a whole is that layer's."""
    path = name.rpartition(".")[0]
    while path and path not in paths:
        path = path.rpartition(".")[0]
    return path


def is_within(path: str, outer: str) -> bool:
    """Is a module `outer`, or inside it?"""
    return not outer or path == outer or path.startswith(f"{outer}.")


def common_path(paths: Sequence[str]) -> str:
    """The innermost module that all of these are, or are inside of."""
    shared = paths[0]
    while not all(is_within(path, shared) for path in paths):
        shared = shared.rpartition(".")[0]
    return shared


def first_names(slots: Iterable[Slot], moved: Collection[str]) -> dict[str, str | None]:
    """Name -> the first name of its tensor among `moved`; None where that is itself. Names that a framework adds are in none."""
    first: dict[str, str] = {}
    found: dict[str, str | None] = {}
    for slot in slots:
        if slot.name in moved:
            leader = first.setdefault(slot.tied_to or slot.name, slot.name)
            found[slot.name] = None if leader == slot.name else leader
    return found


def parted(record: Record, packed: Mapping[str, Iterable[Move]]) -> Iterator[Record]:
    """A record of the reference or, where it is of one of the `packed` tensors, a record of each of its parts."""
    moves = packed.get(record.name) if record.kind in ("gradient", "update") else None
    if moves is None:
        yield record
    for move in moves or ():
        value = None if record.value is None else part_of(record.value, move)
        yield replace(record, name=move.label, value=value)


def packed_tensors(layout: Layout | None) -> dict[str, list[Move]]:
    """The reference's tensors whose parts have counterparts of their own, and what is done with each part."""
    found: dict[str, list[Move]] = {}
    for move in layout.moves if layout else ():
        if move.part_from is not None:
            found.setdefault(move.source, []).append(move)
    return found


def path_of(label: str) -> str:
    """The module path in the name of a record: ``"layers.0.norm#2[1]"``, ``"layers.0.norm[mask]"`` -> ``"layers.0.norm"``."""
    return re.sub(r"(#\d+)?(\[.*\])?$", "", label)


def renamed(trace: Trace, paths: Mapping[str, str]) -> Trace:
    """The trace with its modules called as `paths` says; those it does not name keep their name."""
    if all(one == two for one, two in paths.items()):
        return trace
    records = (
        replace(record, name=rename(record.name, paths)) if record.kind in OF_MODULES else record
        for record in trace.records
    )
    sites, calls = ({rename(n, paths): said for n, said in of.items()} for of in (trace.sites, trace.calls))
    return replace(trace, records=tuple(records), sites=sites, calls=calls)


def rename(label: str, paths: Mapping[str, str]) -> str:
    """One record's name with its module called as `paths` says."""
    path = path_of(label)
    return paths.get(path, path) + label[len(path) :]
