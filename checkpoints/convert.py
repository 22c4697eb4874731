"""From one framework's state dict to another's: plan a layout from the slots of two live models, then move by it.

A layout is a plain value that can be saved, read and edited; a conversion never looks at anything but the layout and
the tensors, and proves each time that there and back is bit-identical.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from checkpoints._dtypes import DTYPES, FLOATING, RAW16, name_of, same_bits
from checkpoints.errors import CheckpointError
from checkpoints.layout_file import Extra, Layout, Move, Part, Shape, label_of, part_shape
from checkpoints.layouts import FROZEN, OPTIONAL, TABLES, Layer, Operation, compose, reason_to_lack, shape_after
from checkpoints.names import NameMap
from checkpoints.structure import Slot


@dataclass(frozen=True)
class Proof:
    """What one conversion showed: counts of tensors and bytes, and that there and back gave every bit again.

    moved: what was moved, a part of a packed tensor counted by itself; parts: how many of these are such parts.
    """

    moved: int
    parts: int
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
    """A slot, or a part of one, with its canonical reading."""

    slot: Slot
    kind: str | None  # canonical kind; None: a bare tensor
    local: str  # canonical local name
    stored: str  # the end of the slot's name
    read: str  # the canonical end in its place
    operation: Operation
    part: Part | None = None

    @property
    def name(self) -> str:
        """The canonical full name."""
        return self.called(self.slot.name)

    @property
    def label(self) -> str:
        """The slot's name, and which part of it."""
        return label_of(self.slot.name, self.part)

    def called(self, name: str) -> str:
        """The canonical name of this tensor where its own is `name`."""
        if name == self.stored:
            return self.read
        ending = "." + self.stored
        return name.removesuffix(ending) + "." + self.read if name.endswith(ending) else name


def plan(
    source: Sequence[Slot],
    target: Sequence[Slot],
    source_framework: str,
    target_framework: str,
    names: NameMap | None = None,
) -> Layout:
    """The layout that turns `source`'s state dict into `target`'s.

    Tensors pair by name: the source's own name, taken through `names`, and each framework's word for the same tensor of
    the same layer kind (``running_mean`` and ``_mean``); a packed tensor pairs by its parts. Every source tensor is used
    exactly once or dropped with a reason, every target tensor filled exactly once, shapes and dtypes agree:
    CheckpointError lists all that don't. A further name of a tied tensor needs no counterpart where its tensor has one.
    """
    names = names or NameMap()
    problems: list[str] = []
    givers = _places(source, source_framework, "source", problems)
    takers = _places(target, target_framework, "target", problems)
    tensor = {_group(place.slot): replace(place, part=None) for place in takers}
    own = {slot.name: tensor[_group(slot)] for slot in target if _group(slot) in tensor}
    own |= {place.slot.name: replace(place, part=None) for place in takers}
    canonical = {place.name: place for place in takers}
    labelled = {place.label: place for place in takers if place.part}
    labels: dict[str, list[str]] = {}
    for place in takers:
        labels.setdefault(place.slot.name, []).append(place.label)

    moves: list[Move] = []
    dropped: list[Extra] = []
    leftover: list[_Place] = []
    taken: dict[str, str] = {}
    for giver in givers:
        renamed = names.rename(giver.slot.name, giver.label.removeprefix(giver.slot.name))
        if renamed is None:
            unwanted = Extra(giver.slot.name, giver.slot.shape, giver.slot.dtype, "dropped by the name map")
            dropped += [] if unwanted in dropped else [unwanted]
            continue
        taker = labelled.get(renamed.name)
        taker = taker or (own.get(renamed.name) if renamed.changed and giver.part is None else None)
        taker = taker or canonical.get(giver.called(renamed.name))
        taker = taker or (own.get(renamed.name) if renamed.changed else None)
        if taker is None:
            extra = _optional(giver)
            dropped += [extra] if extra else []
            leftover += [] if extra else [giver]
            continue
        # A whole is taken by any of its parts, and each part by the whole.
        same = [taker.label] if taker.part else labels[taker.slot.name]
        rival = next((taken[label] for label in (taker.slot.name, *same) if label in taken), None)
        if rival is not None:
            problems.append(
                f"{taker.label}: filled twice, by {rival} and by {giver.label}; "
                "the name map must send each source to a name of its own"
            )
            continue
        taken[taker.label] = giver.label
        move = _move(giver, taker, renamed.operation, (source_framework, target_framework), problems)
        if move:
            moves.append(move)

    filled: list[Extra] = []
    missing: list[_Place] = []
    for taker in takers:
        if taker.label in taken or taker.slot.name in taken:
            continue
        extra = _optional(taker)
        filled += [extra] if extra else []
        missing += [] if extra else [taker]
    given = set(taken.values())
    paired = {(_group(giver.slot), giver.part) for giver in givers if giver.label in given}
    problems += [
        f"{place.label}: {_describe(place)} of the source has no counterpart in the target "
        "(rename it or drop it with a name map)"
        for place in leftover
        if (_group(place.slot), place.part) not in paired
    ]
    paired = {(_group(taker.slot), taker.part) for taker in takers if taker.label in taken}
    problems += [
        f"{place.label}: {_describe(place)} of the target is filled by nothing"
        for place in missing
        if (_group(place.slot), place.part) not in paired
    ]
    _raise(problems, f"no layout from {source_framework} to {target_framework}")
    return Layout(
        source_framework=source_framework,
        target_framework=target_framework,
        moves=_whole(moves),
        dropped=tuple(dropped),
        filled=tuple(filled),
        source_ties=_ties(source),
        target_ties=_ties(target),
    )


def _optional(place: _Place) -> Extra | None:
    slot = place.slot
    why, zero = reason_to_lack(OPTIONAL, place.kind, place.local), False
    if why is None and slot.role == "buffer":
        why, zero = reason_to_lack(FROZEN, place.kind, place.local), True
    return None if why is None else Extra(slot.name, slot.shape, slot.dtype, why, restored=True, zero=zero)


def _places(slots: Sequence[Slot], framework: str, side: str, problems: list[str]) -> list[_Place]:
    table = TABLES.get(framework)
    if table is None:
        raise CheckpointError(f"no layout table for {framework!r}; there are {', '.join(TABLES)}")
    read = _without_aliases([_read(slot, table) for slot in slots])
    places = [part for place in read for part in _parts(place, table, side, problems)]
    for what, names in (("named", [p.slot.name for p in read]), ("read as", [p.name for p in places])):
        seen: set[str] = set()
        doubles = {name for name in names if name in seen or seen.add(name)}  # type: ignore[func-returns-value]
        problems.extend(f"{name}: two tensors of the {side} are {what} this" for name in sorted(doubles))
    return places


def _read(slot: Slot, table: Mapping[str, Layer]) -> _Place:
    """By the rules of the layer that holds the tensor, and then of those around that."""
    layer = table.get(slot.kind, Layer(""))
    read = layer.names.get(slot.local, slot.local)
    held, local = _holder(layer, read, table)
    operation = layer.operations.get(slot.local, "copy")
    place = _Place(slot, held.kind or None, local, slot.local, read, operation)
    for kind, inside in slot.within:
        outer = table.get(kind, Layer(""))
        within = outer.canonical_inside(place.called(inside)) if inside.endswith(place.stored) else None
        if within is not None:
            place = replace(place, stored=inside, read=within)
            if "." not in within:  # the outer layer's own, to the other framework
                place = replace(place, kind=outer.kind, local=within)
    return place


def _holder(layer: Layer, read: str, table: Mapping[str, Layer]) -> tuple[Layer, str]:
    """The layer that `layer` is made of whose tensor has the canonical name `read`, or itself; and the name in that one."""
    inner, _, local = read.rpartition(".")
    return (table[layer.made_of[inner]], local) if inner in layer.made_of else (layer, read)


def _without_aliases(places: list[_Place]) -> list[_Place]:
    """Where a layer names a tensor inside it once more as its own: one place, under its name, as the inner one is read."""
    own = {(_group(place.slot), place.slot.name.rpartition(".")[0], place.slot.kind): place for place in places}
    inner: dict[str, _Place] = {}
    aliases: set[str] = set()
    for place in places:
        for kind, inside in place.slot.within:
            path = place.slot.name.removesuffix(inside).removesuffix(".")
            outer = own.get((_group(place.slot), path, kind))
            if outer is not None:
                inner[outer.slot.name] = replace(place, slot=outer.slot, stored=outer.slot.local)
                aliases.add(place.slot.name)
    return [inner.get(place.slot.name, place) for place in places if place.slot.name not in aliases]


def _group(slot: Slot) -> str:
    """The first name of a tensor."""
    return slot.tied_to or slot.name


def _parts(place: _Place, table: Mapping[str, Layer], side: str, problems: list[str]) -> list[_Place]:
    """The canonical tensors that a packed one holds; of any other, itself."""
    slot, layer = place.slot, table.get(place.slot.kind, Layer(""))
    packed = layer.packed.get(slot.local, {})
    if not packed:
        return [place]
    parts = [Part(word, index, len(packed)) for index, word in enumerate(packed)]
    if part_shape(slot.shape, parts[0]) is None:
        problems.append(f"{slot.name}: {_shape(slot.shape)} of the {side} has no {len(packed)} equal parts")
        return [place]
    found = []
    for part, read in zip(parts, packed.values(), strict=True):
        held, local = _holder(layer, read, table)
        whole = place.read.removesuffix(place.local)
        found.append(replace(place, kind=held.kind, local=local, read=whole + read, part=part))
    return found


def opened(slot: Slot, framework: str) -> tuple[tuple[str, Slot], ...]:
    """The tensors of the layers that a layer is made of (`Layer.made_of`), where `slot` holds any of these; else itself.

    Returns the label of each (its own name, or which part of it) and what it would be in such a layer:
    ``"attn.in_proj_weight[q]"`` and the slot ``"attn.q_proj.weight"`` of kind ``"Linear"``.
    """
    layer = TABLES.get(framework, {}).get(slot.kind, Layer(""))
    packed = layer.packed.get(slot.local, {})
    parts: list[Part | None] = [Part(word, index, len(packed)) for index, word in enumerate(packed)]
    found = []
    for part, read in zip(parts or [None], packed.values() or [layer.names.get(slot.local, slot.local)], strict=True):
        inner, _, local = read.rpartition(".")
        shape = part_shape(slot.shape, part)
        if inner not in layer.made_of or shape is None:
            return ((slot.name, slot),)
        tied = None if slot.tied_to is None else label_of(slot.tied_to, part)
        name = slot.name.removesuffix(slot.local) + read
        held = replace(slot, name=name, kind=layer.made_of[inner], local=local, shape=shape, tied_to=tied)
        found.append((label_of(slot.name, part), held))
    return tuple(found)


def _whole(moves: Sequence[Move]) -> tuple[Move, ...]:
    """The moves, with one in place of those that take every part of one tensor to the same part of another."""
    alike = Counter((m.source, m.target) for m in moves if m.part_from is not None and m.part_from == m.part_to)
    found = []
    for move in moves:
        part = move.part_from
        if part is None or alike[move.source, move.target] != part.count:
            found.append(move)
        elif part.index == 0:
            found.append(replace(move, part_from=None, part_to=None))
    return tuple(found)


def _move(
    giver: _Place, taker: _Place, asked: Operation | None, frameworks: tuple[str, str], problems: list[str]
) -> Move | None:
    source, target = giver.slot, taker.slot
    label = target.name if source.name == target.name else f"{giver.label} → {taker.label}"
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
    before, after = part_shape(source.shape, giver.part), part_shape(target.shape, taker.part)
    assert before is not None
    assert after is not None
    if operation == "reshape" and before == after:
        operation = "copy"
    shape = shape_after(operation, before, after)
    if shape != after:
        became = f" ({operation}: {_shape(shape)})" if shape is not None and operation != "copy" else ""
        problems.append(
            f"{label}: {source.kind} of the source has shape {_shape(before)}{became}, "
            f"{target.kind} of the target expects {_shape(after)}"
        )
        return None
    if source.dtype != target.dtype:
        problems.append(f"{label}: the source has dtype {source.dtype}, the target expects {target.dtype}")
        return None
    return Move(source.name, target.name, operation, source.shape, target.shape, source.dtype, giver.part, taker.part)


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
        if not same_bits(undo(result[move.target], move), part_of(admitted[move.source], move))
    ]
    _raise([f"{name}: there and back is not bit-identical" for name in wrong], "the conversion proves itself wrong")
    return result, proof_of(layout, sum(array.nbytes for array in result.values()))


def proof_of(layout: Layout, nbytes: int) -> Proof:
    """The proof of a conversion by `layout` that ended well: `nbytes` of tensors, there and back bit-identical."""
    operations = [move.operation for move in layout.moves]
    return Proof(
        moved=len(layout.moves),
        parts=sum(move.part_from is not None or move.part_to is not None for move in layout.moves),
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
    """One of the target's tensors (a weight, or its gradient) in the source's layout: what `part_of` takes of that."""
    return _apply(array, _undo(move))


def part_of(array: np.ndarray, move: Move) -> np.ndarray:
    """What `move` takes of one of the source's tensors (a weight, or its gradient): all of it or, a view, a part."""
    return _cut(array, move.part_from)


def split(tensors: Mapping[str, np.ndarray], layout: Layout) -> dict[str, np.ndarray]:
    """The source's tensors with the parts that are moved apart in place of a whole, by `Move.label`; others as they are."""
    found = {name: [(name, array)] for name, array in tensors.items()}
    for source, moves in _by_source(layout).items():
        if source in found and moves[0].part_from is not None:
            found[source] = [(move.label, part_of(tensors[source], move)) for move in moves]
    return dict(entry for entries in found.values() for entry in entries)


def join(tensors: Mapping[str, np.ndarray], layout: Layout) -> dict[str, np.ndarray]:
    """What `split` was given: the source's tensors by their own names."""
    found = {name: (name, array) for name, array in tensors.items()}
    for source, moves in _by_source(layout).items():
        if moves[0].part_from is not None and all(move.label in found for move in moves):
            whole = np.concatenate([tensors[move.label] for move in sorted(moves, key=_index_from)])
            found[moves[0].label] = (source, whole)
            for move in moves[1:]:
                del found[move.label]
    return dict(found.values())


def split_slots(slots: Sequence[Slot], layout: Layout) -> tuple[Slot, ...]:
    """The source's slots as `split` gives its tensors, parts by `Move.label` and with their own shape."""
    packed = _by_source(layout)
    found: list[Slot] = []
    for slot in slots:
        for move in packed.get(slot.name, ()):
            shape = part_shape(slot.shape, move.part_from)
            assert shape is not None
            tied = None if slot.tied_to is None else label_of(slot.tied_to, move.part_from)
            local = label_of(slot.local, move.part_from)
            found.append(replace(slot, name=move.label, local=local, shape=shape, tied_to=tied))
        found += [] if slot.name in packed else [slot]
    return tuple(found)


def _by_source(layout: Layout) -> dict[str, list[Move]]:
    found: dict[str, list[Move]] = {}
    for move in layout.moves:
        found.setdefault(move.source, []).append(move)
    return found


def _index_from(move: Move) -> int:
    return 0 if move.part_from is None else move.part_from.index


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
    problems += [
        lost(extra.name)
        for extra in layout.dropped
        if extra.zero and extra.name in tensors and tensors[extra.name].any()
    ]
    for group in layout.source_ties:
        held = [name for name in group if name in admitted]
        problems.extend(
            f"{name}: differs from {held[0]}, yet the model ties them: which of the two is meant can't be known"
            for name in held[1:]
            if not same_bits(admitted[held[0]], admitted[name])
        )
    _raise(problems, _no_fit(layout))
    return admitted


def lost(name: str) -> str:
    """What is wrong with a tensor that may be dropped only where it is all zeros, and isn't."""
    return f"{name}: has values other than zero, and the target has no place for them"


def _no_fit(layout: Layout) -> str:
    ways = f"{layout.source_framework} to {layout.target_framework}"
    return f"this checkpoint does not fit the layout from {ways}"


def _fitting(tensors: Mapping[str, np.ndarray], layout: Layout) -> tuple[dict[str, np.ndarray], list[str]]:
    """The source tensors by name, and what is wrong with their names, shapes and dtypes."""
    present = _present(layout, tensors)
    moves = {move.source: move for move in layout.moves}
    dropped = {extra.name for extra in layout.dropped}
    problems = [
        f"{name}: missing; expected {move.dtype} {_shape(move.shape_from)}"
        for name, move in moves.items()
        if name not in present
    ]
    further = aliases(layout.source_ties, moves)
    expected = {name: (tensors[holder], moves[name]) for name, holder in present.items()}
    expected |= {name: (tensors[name], moves[first]) for name, first in further.items() if name in tensors}
    admitted: dict[str, np.ndarray] = {}
    for name, (array, move) in expected.items():
        if move.dtype == "bfloat16" and array.dtype in RAW16:
            array = array.view(DTYPES["bfloat16"])
        if array.shape != move.shape_from:
            problems.append(f"{name}: has shape {_shape(array.shape)}, expected {_shape(move.shape_from)}")
        elif name_of(array.dtype) != move.dtype:
            problems.append(f"{name}: has dtype {name_of(array.dtype)}, expected {move.dtype}{_hint(array, move)}")
        else:
            admitted[name] = array.astype(DTYPES[move.dtype], copy=False)  # little-endian
    problems.extend(
        f"{name}: {name_of(array.dtype)} {_shape(array.shape)} is not in the layout"
        for name, array in tensors.items()
        if name not in moves and name not in dropped and name not in further
    )
    return admitted, problems


def aliases(ties: Sequence[Sequence[str]], moved: Container[str]) -> dict[str, str]:
    """Further name of a tied tensor that is not moved by itself -> the first name that is."""
    found = {}
    for group in ties:
        first = next((name for name in group if name in moved), None)
        if first is not None:
            found.update({name: first for name in group if name not in moved})
    return found


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
    result: dict[str, np.ndarray] = {}
    parts: dict[str, dict[int, np.ndarray]] = {}
    for move in layout.moves:
        moved = _apply(admitted[move.source], move)
        if move.part_to is None:
            result[move.target] = moved
            continue
        here = parts.setdefault(move.target, {})
        here[move.part_to.index] = moved
        if len(here) == move.part_to.count:
            result[move.target] = np.concatenate([here[index] for index in range(move.part_to.count)])
    result |= {extra.name: np.zeros(extra.shape, DTYPES[extra.dtype]) for extra in layout.filled}
    problems = [f"{name}: not all of its parts are filled" for name in parts if name not in result]
    problems += [
        f"{name}: would differ from {group[0]}, yet the target ties them"
        for group in layout.target_ties
        for name in group[1:]
        if group[0] in result and name in result and not same_bits(result[group[0]], result[name])
    ]
    _raise(problems, "the target can't hold these values")
    return fill_aliases(result, layout)


def fill_aliases(tensors: Mapping[str, np.ndarray], layout: Layout) -> dict[str, np.ndarray]:
    """The target's tensors, each further name that nothing is moved to with what the first name of its tensor has."""
    further = aliases(layout.target_ties, {move.target for move in layout.moves})
    return {**tensors, **{name: tensors[first] for name, first in further.items()}}


def _apply(array: np.ndarray, move: Move) -> np.ndarray:
    return np.array(apply_view(array, move), order="C", copy=True)


def apply_view(array: np.ndarray, move: Move) -> np.ndarray:
    """`array`, or the part of it that is moved, moved by `move`: a view where NumPy can make one."""
    taken, shape = _cut(array, move.part_from), part_shape(move.shape_to, move.part_to)
    assert shape is not None
    return taken.T if move.operation == "transpose" else taken.reshape(shape)


def undo_view(array: np.ndarray, move: Move) -> np.ndarray:
    """The way back of `apply_view`, from the whole target: what `part_of` takes of the source."""
    return apply_view(array, _undo(move))


def _cut(array: np.ndarray, part: Part | None) -> np.ndarray:
    if part is None:
        return array
    size = len(array) // part.count
    return array[part.index * size : (part.index + 1) * size]


def _undo(move: Move) -> Move:
    return replace(
        move,
        source=move.target,
        target=move.source,
        shape_from=move.shape_to,
        shape_to=move.shape_from,
        part_from=move.part_to,
        part_to=move.part_from,
    )


def _hint(array: np.ndarray, move: Move) -> str:
    if array.dtype in RAW16 and move.dtype in FLOATING:
        return " (sixteen raw bits may be bfloat16, which this format can't say: --bfloat16 says so)"
    return ""


def _shape(shape: Shape | None) -> str:
    return "[" + ", ".join(map(str, shape or ())) + "]"


def _describe(place: _Place) -> str:
    slot = place.slot
    return f"{slot.kind}'s {slot.role} {slot.dtype} {_shape(part_shape(slot.shape, place.part))}"


def _raise(problems: Sequence[str], what: str) -> None:
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise CheckpointError(f"{what}: {count}\n" + "\n".join(f"  {problem}" for problem in problems))
