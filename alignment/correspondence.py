"""Which module of the candidate corresponds to which of the reference, and so what a record is called on either side."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from alignment.frameworks import ModuleInfo
from alignment.trace import GRADIENT_OF, Kind, Trace
from checkpoints import Layout

# Kinds of records that are named after a module; the others are named after a tensor of the state dict.
OF_MODULES: frozenset[Kind] = frozenset((*GRADIENT_OF, *GRADIENT_OF.values()))


def correspond(
    reference: Iterable[ModuleInfo],
    candidate: Iterable[ModuleInfo],
    layout: Layout | None,
    told: Mapping[str, str] | None = None,
    homes: Mapping[str, tuple[str, ...]] | None = None,
) -> dict[str, str]:
    """Reference's module path -> the candidate's.

    Modules with tensors of their own correspond as these do in `layout`, and their parents with them; below a parent that
    corresponds, children pair by name, and those left over by kind, in order. What then has no counterpart is left out.

    told: pairs that are known. homes: reference's path -> further paths of the candidate below which its children may be.
    """
    ours, theirs, homes = list(reference), list(candidate), homes or {}
    known = {module.path for module in theirs}
    found = {"": "", **(told or {})}
    for move in layout.moves if layout else ():
        one, two = move.source.rpartition(".")[0], move.target.rpartition(".")[0]
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


def path_of(label: str) -> str:
    """The module path in the name of a record: ``"layers.0.norm#2[1]"`` -> ``"layers.0.norm"``."""
    return re.sub(r"(#\d+)?(\[[\d.]+\])?$", "", label)


def renamed(trace: Trace, paths: Mapping[str, str]) -> Trace:
    """The trace with its modules called as `paths` says; those it does not name keep their name."""
    if all(one == two for one, two in paths.items()):
        return trace
    records = (
        replace(record, name=rename(record.name, paths)) if record.kind in OF_MODULES else record
        for record in trace.records
    )
    return replace(trace, records=tuple(records), sites={rename(n, paths): s for n, s in trace.sites.items()})


def rename(label: str, paths: Mapping[str, str]) -> str:
    """One record's name with its module called as `paths` says."""
    path = path_of(label)
    return paths.get(path, path) + label[len(path) :]
