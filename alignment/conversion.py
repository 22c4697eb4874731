"""The layout between the checkpoints of a twin's two models: that of its check, in either direction.

live = join_models(get_twin("my_models:twin"), ("torch", "paddle"))
converted, proof = checkpoints.convert_proved(checkpoints.read("model.pth"), live.layout)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from alignment.experiment import Built, build_sides
from alignment.frameworks import Framework
from alignment.mapping import ModelMapping
from alignment.scope import Scope, listed, settle_scope
from alignment.twins import Twin
from checkpoints import (
    CheckpointError,
    Extra,
    Layout,
    Move,
    NameMap,
    as_stored,
    backwards,
    label_of,
    plan,
    reverse,
)
from checkpoints.names import Renamed

Tensors = Mapping[str, np.ndarray]

IGNORED = "ignored by the mapping"


@dataclass(frozen=True)
class Joined:
    """Two live models, and the layout from a checkpoint of the first to one of the second, in the models' own dtypes.

    left_out: tensors of the second that the layout does not fill, since the mapping ignores them. notes: how tensors were
    matched, where names alone did not do it.
    """

    source: Framework
    target: Framework
    source_model: Any
    target_model: Any
    layout: Layout
    left_out: tuple[Extra, ...] = ()
    notes: tuple[str, ...] = ()


def join_models(
    twin: Twin,
    frameworks: tuple[str, str],
    settings: Mapping[str, Any] | None = None,
    mapping: ModelMapping | None = None,
    *,
    drop_ignored: bool = False,
    names: NameMap | None = None,
    tensors: Tensors | None = None,
) -> Joined:
    """Build both sides of a twin and find the layout between their checkpoints, as a check of the twin does.

    Args:
        frameworks: of the source and of the target. Where both sides have the same, the reference is the source; where one
            alone has it, the layout copies that side's tensors.
        settings: constructor keywords that replace the twin's own.
        mapping: how the two sides' parts correspond; None: the twin's own.
        drop_ignored: leave out tensors that the mapping ignores and that have no counterpart; otherwise they are an error.
        names, tensors: what turns the names of the source's file into those of the model, and its tensors by their own
            names, of which shapes and dtypes alone are looked at.

    Raises:
        AlignmentError: a model can't be built, the mapping speaks of what is not there, or leaves open what is what.
        CheckpointError: the tensors do not correspond, or not all of them can be converted.
    """
    built = _settle(twin, frameworks, settings or {}, mapping)
    layout, kept = built.layout, built.kept
    ignored = tuple(extra for extra in layout.dropped if extra.reason == IGNORED)
    if (kept or ignored) and not drop_ignored:
        raise CheckpointError(
            f"the mapping ignores tensors that have no counterpart: {listed([e.name for e in (*ignored, *kept)])}. They "
            "can't be converted; leave them out with --drop-ignored (drop_ignored=True)"
        )
    sides, left_out = built.sides, kept
    if frameworks[0] != sides[0].framework.name:
        sides, left_out = sides[::-1], ignored
        layout = reverse(replace(layout, dropped=tuple(extra for extra in layout.dropped if extra not in ignored)))
        layout = replace(layout, dropped=(*layout.dropped, *kept))
    if names is not None:
        layout = _of_file(layout, sides, left_out, names, tensors or {})
    one, two = sides
    return Joined(one.framework, two.framework, one.model, two.model, layout, left_out, built.scope.notes)


def compared_layout(
    twin: Twin, frameworks: tuple[str, str], settings: Mapping[str, Any], mapping: ModelMapping | None = None
) -> Layout:
    """The layout by which two checkpoints of a twin are compared; arguments and errors as for `join_models`.

    What the mapping ignores is among what is dropped or filled, and so compared with nothing.
    """
    built = _settle(twin, frameworks, settings, mapping)
    layout, scope = built.layout, built.scope
    ignored = [move for move in layout.moves if scope.ignores(move.source, move.target)]
    dropped = {move.source: Extra(move.source, move.shape_from, move.dtype, IGNORED) for move in ignored}
    filled = {move.target: Extra(move.target, move.shape_to, move.dtype, IGNORED) for move in ignored}
    layout = replace(
        layout,
        moves=tuple(move for move in layout.moves if move not in ignored),
        dropped=(*layout.dropped, *dropped.values()),
        filled=(*layout.filled, *filled.values(), *built.kept),
    )
    return layout if frameworks[0] == built.sides[0].framework.name else backwards(layout)


@dataclass(frozen=True)
class _Settled:
    """Both sides, the reference first, and the layout from it; kept: the candidate's tensors that nothing is moved to."""

    sides: tuple[Built, Built]
    layout: Layout
    kept: tuple[Extra, ...]
    scope: Scope


def _settle(
    twin: Twin, frameworks: tuple[str, str], settings: Mapping[str, Any], mapping: ModelMapping | None
) -> _Settled:
    sides = {side.framework: side for side in (twin.candidate, twin.reference)}
    absent = [framework for framework in frameworks if framework not in sides]
    if absent:
        raise CheckpointError(f"the twin {twin.name} has no {absent[0]} side; it has {' and '.join(sorted(sides))}")
    known = twin.mapping if mapping is None else mapping
    if frameworks[0] == frameworks[1] and len(sides) > 1:  # the one side that has it, and itself
        twin = replace(twin, reference=sides[frameworks[0]], candidate=sides[frameworks[0]], names=NameMap())
        known = ModelMapping()
    one, two = build_sides(twin, settings)
    layout, mismatch, scope = settle_scope(one.tree, two.tree, known, twin.names)
    if layout is None:
        raise CheckpointError("\n  ".join((*mismatch, *scope.notes)))
    dropped = (
        replace(extra, reason=IGNORED) if not extra.restored and scope.ignores(extra.name) else extra
        for extra in layout.dropped
    )
    kept = (Extra(slot.name, slot.shape, slot.dtype, IGNORED) for slot in two.tree.slots if slot.name in scope.kept)
    return _Settled((one, two), replace(layout, dropped=tuple(dropped)), tuple(kept), scope)


def _of_file(
    layout: Layout, sides: tuple[Built, Built], left_out: tuple[Extra, ...], names: NameMap, tensors: Tensors
) -> Layout:
    """The layout for a file whose names `names` turns into the model's."""
    moves: dict[str, list[Move]] = {}
    for move in layout.moves:
        moves.setdefault(move.source, []).append(move)
    ignored = {extra.name for extra in layout.dropped if extra.reason == IGNORED}
    exact: dict[str, Renamed | None] = {}
    for name in tensors:
        renamed = names.rename(name)
        if renamed is None or renamed.name in ignored:
            exact[name] = None
            continue
        for move in moves.get(renamed.name, ()):
            target = label_of(move.target, move.part_to)
            exact[label_of(name, move.part_from)] = Renamed(target, renamed.operation or move.operation, True)
    giving, taking = (side.tree for side in sides)
    unfilled = {extra.name for extra in left_out}
    planned = plan(
        as_stored(giving.slots, tensors, names),
        [slot for slot in taking.slots if slot.name not in unfilled],
        giving.framework,
        taking.framework,
        replace(names, exact={**names.exact, **exact}),
    )
    dropped = (
        replace(extra, reason=IGNORED) if (to := names.rename(extra.name)) is not None and to.name in ignored else extra
        for extra in planned.dropped
    )
    return replace(planned, dropped=tuple(dropped))
