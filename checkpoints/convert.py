"""From one framework's state dict to another's: plan a layout from the slots of two live models, then move by it.

A layout is a plain value that can be saved, read and edited; a conversion never looks at anything but the layout and
the tensors, and proves each time that there and back is bit-identical.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from checkpoints._dtypes import DTYPES, FLOATING, RAW16, name_of, same_bits
from checkpoints.errors import CheckpointError
from checkpoints.layout_file import Extra, Layout, Move, Shape
from checkpoints.layouts import OPTIONAL, TABLES, Layer, Operation, compose, shape_after
from checkpoints.names import NameMap
from checkpoints.structure import Slot


@dataclass(frozen=True)
class Proof:
    """What one conversion showed: counts of tensors and bytes, and that there and back gave every bit again."""

    moved: int
    transposed: int
    reshaped: int
    dropped: int
    filled: int
    tied: int
    bytes: int
    round_trip: bool


# ---- planning ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """A slot with its canonical reading."""

    slot: Slot
    kind: str | None  # canonical kind; None: a bare tensor
    local: str  # canonical local name
    name: str  # canonical full name
    operation: Operation


def plan(
    source: Sequence[Slot],
    target: Sequence[Slot],
    source_framework: str,
    target_framework: str,
    names: NameMap | None = None,
) -> Layout:
    """The layout that turns `source`'s state dict into `target`'s.

    Tensors pair by name: the source's own name, taken through `names`, and each framework's word for the same tensor of
    the same layer kind (``running_mean`` and ``_mean``). Every source tensor is used exactly once or dropped with a
    reason, every target tensor filled exactly once, shapes and dtypes agree: CheckpointError lists all that don't.
    """
    names = names or NameMap()
    problems: list[str] = []
    givers = _places(source, source_framework, "source", problems)
    takers = _places(target, target_framework, "target", problems)
    own = {place.slot.name: place for place in takers}
    canonical = {place.name: place for place in takers}

    moves: list[Move] = []
    dropped: list[Extra] = []
    leftover: list[Slot] = []
    taken: dict[str, str] = {}
    for giver in givers:
        renamed = names.rename(giver.slot.name)
        if renamed is None:
            dropped.append(Extra(giver.slot.name, giver.slot.shape, giver.slot.dtype, "dropped by the name map"))
            continue
        wanted = _canonical_name(renamed.name, giver)
        taker = own.get(renamed.name) if renamed.changed else None
        taker = taker or canonical.get(wanted)
        if taker is None:
            reason = OPTIONAL.get((giver.kind or "", giver.local))
            if reason:
                dropped.append(Extra(giver.slot.name, giver.slot.shape, giver.slot.dtype, reason, restored=True))
            else:
                leftover.append(giver.slot)
            continue
        if taker.slot.name in taken:
            problems.append(
                f"{taker.slot.name}: filled twice, by {taken[taker.slot.name]} and by {giver.slot.name}; "
                "the name map must send each source to a name of its own"
            )
            continue
        taken[taker.slot.name] = giver.slot.name
        move = _move(giver, taker, renamed.operation, (source_framework, target_framework), problems)
        if move:
            moves.append(move)

    filled: list[Extra] = []
    missing: list[Slot] = []
    for taker in takers:
        if taker.slot.name in taken:
            continue
        reason = OPTIONAL.get((taker.kind or "", taker.local))
        if reason:
            filled.append(Extra(taker.slot.name, taker.slot.shape, taker.slot.dtype, reason, restored=True))
        else:
            missing.append(taker.slot)
    problems += [
        f"{slot.name}: {_describe(slot)} of the source has no counterpart in the target "
        "(rename it or drop it with a name map)"
        for slot in leftover
    ]
    problems += [f"{slot.name}: {_describe(slot)} of the target is filled by nothing" for slot in missing]
    _raise(problems, f"no layout from {source_framework} to {target_framework}")
    return Layout(
        source_framework=source_framework,
        target_framework=target_framework,
        moves=tuple(moves),
        dropped=tuple(dropped),
        filled=tuple(filled),
        source_ties=_ties(source),
        target_ties=_ties(target),
    )


def _places(slots: Sequence[Slot], framework: str, side: str, problems: list[str]) -> list[_Place]:
    table = TABLES.get(framework)
    if table is None:
        raise CheckpointError(f"no layout table for {framework!r}; there are {', '.join(TABLES)}")
    places: list[_Place] = []
    for slot in slots:
        layer = table.get(slot.kind, Layer(""))
        local = layer.names.get(slot.local, slot.local)
        place = _Place(slot, layer.kind or None, local, "", layer.operations.get(slot.local, "copy"))
        places.append(replace(place, name=_canonical_name(slot.name, place)))
    for what, names in (("named", [p.slot.name for p in places]), ("read as", [p.name for p in places])):
        seen: set[str] = set()
        doubles = {name for name in names if name in seen or seen.add(name)}  # type: ignore[func-returns-value]
        problems.extend(f"{name}: two tensors of the {side} are {what} this" for name in sorted(doubles))
    return places


def _canonical_name(name: str, place: _Place) -> str:
    """`name` with the framework's word for this tensor of its layer replaced by the canonical word."""
    if name == place.slot.local:
        return place.local
    ending = "." + place.slot.local
    return name.removesuffix(ending) + "." + place.local if name.endswith(ending) else name


def _move(
    giver: _Place, taker: _Place, asked: Operation | None, frameworks: tuple[str, str], problems: list[str]
) -> Move | None:
    source, target = giver.slot, taker.slot
    label = target.name if source.name == target.name else f"{source.name} → {target.name}"
    operation: Operation | None = asked
    if operation is None:
        # The kind decides how anything of two axes or more is stored; a vector has one way to be stored.
        if giver.kind != taker.kind and max(len(source.shape), len(target.shape)) > 1:
            problems.append(
                f"{label}: belongs to {source.kind} in {frameworks[0]} and to {target.kind} in {frameworks[1]}: "
                "no rule says how one stores what the other does (a name map's rename may give the operation)"
            )
            return None
        operation = compose(giver.operation, taker.operation)
    if operation is None:
        problems.append(f"{label}: no single operation does {giver.operation} and then {taker.operation}")
        return None
    if operation == "reshape" and source.shape == target.shape:
        operation = "copy"
    shape = shape_after(operation, source.shape, target.shape)
    if shape != target.shape:
        became = f" ({operation}: {_shape(shape)})" if shape is not None and operation != "copy" else ""
        problems.append(
            f"{label}: {source.kind} of the source has shape {_shape(source.shape)}{became}, "
            f"{target.kind} of the target expects {_shape(target.shape)}"
        )
        return None
    if source.dtype != target.dtype:
        problems.append(f"{label}: the source has dtype {source.dtype}, the target expects {target.dtype}")
        return None
    return Move(source.name, target.name, operation, source.shape, target.shape, source.dtype)


def _ties(slots: Sequence[Slot]) -> tuple[tuple[str, ...], ...]:
    groups: dict[str, list[str]] = {}
    for slot in slots:
        if slot.tied_to is not None:
            groups.setdefault(slot.tied_to, [slot.tied_to]).append(slot.name)
    return tuple(tuple(group) for group in groups.values())


# ---- converting ----------------------------------------------------------------------------------------------------


def convert(tensors: Mapping[str, np.ndarray], layout: Layout) -> dict[str, np.ndarray]:
    """The target's state dict: `tensors` (all of the source's, of the layout's shapes and dtypes) moved by `layout`.

    Sixteen raw bits (uint16 of a .pdparams, two raw bytes of a .npz) become bfloat16 where the layout says bfloat16,
    and nowhere else. A name absent from `tensors` is read from a name tied to it. CheckpointError lists every tensor
    that is missing, left over, of another shape or dtype, and tied names whose values differ. Results own their memory.
    """
    return _forward(_admit(tensors, layout), layout)


def convert_proved(tensors: Mapping[str, np.ndarray], layout: Layout) -> tuple[dict[str, np.ndarray], Proof]:
    """`convert`, and the proof: every move undone gives the source back bit for bit (else CheckpointError)."""
    admitted = _admit(tensors, layout)
    result = _forward(admitted, layout)
    wrong = [
        move.source
        for move in layout.moves
        if not same_bits(_apply(result[move.target], _undo(move)), admitted[move.source])
    ]
    _raise([f"{name}: there and back is not bit-identical" for name in wrong], "the conversion proves itself wrong")
    return result, proof_of(layout, sum(array.nbytes for array in result.values()))


def proof_of(layout: Layout, nbytes: int) -> Proof:
    """The proof of a conversion by `layout` that ended well: `nbytes` of tensors, there and back bit-identical."""
    operations = [move.operation for move in layout.moves]
    return Proof(
        moved=len(layout.moves),
        transposed=operations.count("transpose"),
        reshaped=operations.count("reshape"),
        dropped=len(layout.dropped),
        filled=len(layout.filled),
        tied=sum(len(group) - 1 for group in layout.target_ties),
        bytes=nbytes,
        round_trip=True,
    )


def check_source(tensors: Mapping[str, np.ndarray], layout: Layout) -> None:
    """CheckpointError unless the names, shapes and dtypes of `tensors` are those of the layout's source.

    The values are not looked at, so stand-ins will do: see `OpenCheckpoint.stand_ins`.
    """
    _, problems = _fitting(tensors, layout)
    _raise(problems, _no_fit(layout))


def holders(layout: Layout, names: Container[str]) -> list[tuple[Move, str]]:
    """The moves whose source is there, each with the name among `names` that holds it: its own, or one tied to it."""
    present = _present(layout, names)
    return [(move, present[move.source]) for move in layout.moves if move.source in present]


def undo(array: np.ndarray, move: Move) -> np.ndarray:
    """One of the target's tensors (a weight, or its gradient) in the source's layout."""
    return _apply(array, _undo(move))


def reverse(layout: Layout) -> Layout:
    """The way back. CheckpointError where `layout` drops tensors that nothing could restore."""
    lost = [f"{extra.name}: {extra.reason}; it can't be restored" for extra in layout.dropped if not extra.restored]
    _raise(lost, "this layout has no way back")
    return backwards(layout)


def backwards(layout: Layout) -> Layout:
    """`reverse`, also where something dropped could not be restored: for what only looks at the moves."""
    return Layout(
        source_framework=layout.target_framework,
        target_framework=layout.source_framework,
        moves=tuple(_undo(move) for move in layout.moves),
        dropped=layout.filled,
        filled=layout.dropped,
        source_ties=layout.target_ties,
        target_ties=layout.source_ties,
    )


def retype(layout: Layout, dtypes: Mapping[str, str]) -> Layout:
    """`layout` for a checkpoint of another floating dtype: `dtypes` maps source names to dtype names.

    Only a floating dtype replaces a floating dtype: what the file holds stays what it is, bit for bit.
    """

    present = _present(layout, dtypes)

    def new(move: Move) -> Move:
        dtype = dtypes.get(present.get(move.source, ""), move.dtype)
        return replace(move, dtype=dtype) if dtype in FLOATING and move.dtype in FLOATING else move

    return replace(layout, moves=tuple(new(move) for move in layout.moves))


def as_stored(slots: Sequence[Slot], tensors: Mapping[str, np.ndarray], names: NameMap) -> tuple[Slot, ...]:
    """The slots of a file whose names `names` turns into those of a live model's `slots`, for `plan` with these names.

    A tensor that the map drops, or turns into no slot's name, is a bare tensor of its own shape and dtype.
    """
    by_name = {slot.name: slot for slot in slots}
    first: dict[str, str] = {}
    stored: list[Slot] = []
    for name, array in tensors.items():
        renamed = names.rename(name)
        slot = by_name.get(renamed.name) if renamed else None
        if slot is None:
            stored.append(Slot(name, "tensor", name, array.shape, name_of(array.dtype)))
            continue
        leader = first.setdefault(slot.tied_to or slot.name, name)
        stored.append(replace(slot, name=name, tied_to=None if leader == name else leader))
    return tuple(stored)


def _admit(tensors: Mapping[str, np.ndarray], layout: Layout) -> dict[str, np.ndarray]:
    """The source tensors by name, checked against the layout."""
    admitted, problems = _fitting(tensors, layout)
    for group in layout.source_ties:
        held = [name for name in group if name in admitted]
        problems.extend(
            f"{name}: differs from {held[0]}, yet the model ties them: which of the two is meant can't be known"
            for name in held[1:]
            if not same_bits(admitted[held[0]], admitted[name])
        )
    _raise(problems, _no_fit(layout))
    return admitted


def _no_fit(layout: Layout) -> str:
    ways = f"{layout.source_framework} to {layout.target_framework}"
    return f"this checkpoint does not fit the layout from {ways}"


def _fitting(tensors: Mapping[str, np.ndarray], layout: Layout) -> tuple[dict[str, np.ndarray], list[str]]:
    """The source tensors by name, and what is wrong with their names, shapes and dtypes."""
    present = _present(layout, tensors)
    problems: list[str] = []
    admitted: dict[str, np.ndarray] = {}
    for move in layout.moves:
        if move.source not in present:
            problems.append(f"{move.source}: missing; expected {move.dtype} {_shape(move.shape_from)}")
            continue
        array = tensors[present[move.source]]
        if move.dtype == "bfloat16" and array.dtype in RAW16:
            array = array.view(DTYPES["bfloat16"])
        if array.shape != move.shape_from:
            problems.append(f"{move.source}: has shape {_shape(array.shape)}, expected {_shape(move.shape_from)}")
        elif name_of(array.dtype) != move.dtype:
            problems.append(
                f"{move.source}: has dtype {name_of(array.dtype)}, expected {move.dtype}{_hint(array, move)}"
            )
        else:
            admitted[move.source] = array.astype(DTYPES[move.dtype], copy=False)  # little-endian
    known = {move.source for move in layout.moves} | {extra.name for extra in layout.dropped}
    for name in tensors:
        if name not in known:
            array = tensors[name]
            problems.append(f"{name}: {name_of(array.dtype)} {_shape(array.shape)} is not in the layout")
    return admitted, problems


def _present(layout: Layout, names: Container[str]) -> dict[str, str]:
    """Source name -> the name among `names` that holds its tensor: itself, or one tied to it."""
    tied = {name: group for group in layout.source_ties for name in group}
    found = {}
    for move in layout.moves:
        holder = next((name for name in (move.source, *tied.get(move.source, ())) if name in names), None)
        if holder is not None:
            found[move.source] = holder
    return found


def _forward(admitted: Mapping[str, np.ndarray], layout: Layout) -> dict[str, np.ndarray]:
    result = {move.target: _apply(admitted[move.source], move) for move in layout.moves}
    result |= {extra.name: np.zeros(extra.shape, DTYPES[extra.dtype]) for extra in layout.filled}
    problems = [
        f"{name}: would differ from {group[0]}, yet the target ties them"
        for group in layout.target_ties
        for name in group[1:]
        if group[0] in result and name in result and not same_bits(result[group[0]], result[name])
    ]
    _raise(problems, "the target can't hold these values")
    return result


def _apply(array: np.ndarray, move: Move) -> np.ndarray:
    return np.array(apply_view(array, move), order="C", copy=True)


def apply_view(array: np.ndarray, move: Move) -> np.ndarray:
    """`array` moved by `move`: a view where NumPy can make one."""
    return array.T if move.operation == "transpose" else array.reshape(move.shape_to)


def undo_view(array: np.ndarray, move: Move) -> np.ndarray:
    """The way back of `apply_view`."""
    return apply_view(array, _undo(move))


def _undo(move: Move) -> Move:
    return replace(move, source=move.target, target=move.source, shape_from=move.shape_to, shape_to=move.shape_from)


def _hint(array: np.ndarray, move: Move) -> str:
    if array.dtype in RAW16 and move.dtype in FLOATING:
        return " (sixteen raw bits may be bfloat16, which this format can't say: --bfloat16 says so)"
    return ""


def _shape(shape: Shape | None) -> str:
    return "[" + ", ".join(map(str, shape or ())) + "]"


def _describe(slot: Slot) -> str:
    return f"{slot.kind}'s {slot.role} {slot.dtype} {_shape(slot.shape)}"


def _raise(problems: Sequence[str], what: str) -> None:
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise CheckpointError(f"{what}: {count}\n" + "\n".join(f"  {problem}" for problem in problems))
