"""Modules and tensors that have no partner on the other side, or not the same shape, ties or options there.

A correction changes the names, shapes or ties that a model would have, and the converter plans anew. It is right where
nothing of that layer is then left over, and nothing else is worse. The figures of a trial are how many tensors keep the
candidate from taking the reference's weights (or how many ties or options differ), before and after.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from alignment.causes.suspect import Array, Cause, Trial
from alignment.experiment import Experiment
from alignment.frameworks import ModuleInfo
from alignment.stages import structure
from checkpoints import CheckpointError, NameMap, Rename, Slot, plan
from checkpoints.layouts import TABLES, Layer, Operation

# How queries, keys and values are called where each has a tensor of its own.
PARTS = ("q", "k", "v"), ("query", "key", "value"), ("queries", "keys", "values")


@dataclass(frozen=True)
class Tree:
    """One side: its framework, its tensors, its modules by path, the rates of its dropouts, its own initial values."""

    framework: str
    slots: tuple[Slot, ...]
    modules: Mapping[str, ModuleInfo]
    rates: Mapping[str, float]
    state: Mapping[str, Array]

    def local(self, slot: Slot) -> str:
        """What a tensor is called in its layer, in torch's word."""
        layer = TABLES[self.framework].get(slot.kind, Layer(""))
        return layer.names.get(slot.local, slot.local)

    def of(self, path: str) -> tuple[Slot, ...]:
        """The tensors of one layer."""
        return tuple(slot for slot in self.slots if _layer(slot.name) == path)

    def without(self, dropped: Iterable[Slot]) -> Tree:
        """The tree without some tensors."""
        names = {slot.name for slot in dropped}
        return replace(self, slots=tuple(slot for slot in self.slots if slot.name not in names))

    def changed(self, old: Slot, *new: Slot) -> Tree:
        """The tree with other tensors in the place of one."""
        slots: list[Slot] = []
        for slot in self.slots:
            slots.extend(new if slot.name == old.name else (slot,))
        return replace(self, slots=tuple(slots))


@dataclass(frozen=True)
class StructureSuspect:
    """A module or tensor that the two sides do not both have, or not alike.

    record: "module", "parameter" or "buffer". name: the reference's, or the candidate's where the reference has none.
    one, two: the tensor on either side. reference, candidate: all around it. names: the twin's name map.
    """

    record: str
    name: str
    one: Slot | None
    two: Slot | None
    reference: Tree
    candidate: Tree
    names: NameMap

    @property
    def layer(self) -> str:
        """Path of the module, or of the one that holds the tensor."""
        return self.name if self.record == "module" else _layer(self.name)

    def problems(
        self, reference: Tree | None = None, candidate: Tree | None = None, more: Sequence[Rename] = ()
    ) -> tuple[str, ...]:
        """What keeps the candidate from taking the reference's weights, one line a tensor."""
        reference, candidate = reference or self.reference, candidate or self.candidate
        names = replace(self.names, renames=(*self.names.renames, *more))
        try:
            plan(reference.slots, candidate.slots, reference.framework, candidate.framework, names)
        except CheckpointError as error:
            return tuple(line.strip() for line in str(error).splitlines()[1:])
        return ()

    def trial(
        self,
        change: str,
        layer: str,
        reference: Tree | None = None,
        candidate: Tree | None = None,
        more: Sequence[Rename] = (),
        certain: bool = True,
    ) -> Iterator[Trial]:
        """One trial of other trees or more renames; none where it is no better. certain: what else must hold for a proof."""
        before, after = self.problems(), self.problems(reference, candidate, more)
        if len(after) >= len(before):
            return
        left = [line for line in after if line not in before or line.startswith(f"{layer}." if layer else "")]
        yield Trial(change, float(len(before)), float(len(after)), certain and not left, "tensors without a partner")


def structure_suspects(experiment: Experiment) -> Iterator[StructureSuspect]:
    """A suspect for every module and tensor that the structure stage finds different."""
    sides = []
    # The candidate's modules by the reference's names.
    called = experiment.called
    for side, model in (("reference", experiment.reference_model), ("candidate", experiment.candidate_model)):
        framework, _ = experiment.side(side)
        names = called if side == "candidate" else {}
        sides.append(
            Tree(
                framework.name,
                framework.slots(model),
                {names.get(module.path, module.path): module for module in framework.modules(model)},
                {names.get(path, path): rate for path, rate in framework.get_option(model, "Dropout", "p").items()},
                framework.read_state(model),
            )
        )
    reference, candidate = sides
    ours, theirs = ({slot.name: slot for slot in side.slots} for side in sides)
    for row in structure(experiment).tensors:
        if row.verdict == "diverged":
            one, two = ours.get(row.reference_name or ""), theirs.get(row.candidate_name or "")
            yield StructureSuspect(row.record, row.name, one, two, reference, candidate, experiment.scope.names)


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _same_kind(suspect: StructureSuspect) -> str:
    """Torch's word for the kind of layer that both sides have there; "" where they have different ones."""
    one, two = (side.modules.get(suspect.layer) for side in (suspect.reference, suspect.candidate))
    if one is None or two is None or one.own or two.own:
        return ""
    return one.kind if one.kind.lower() == two.kind.lower().removeprefix("compat.") else ""


# --------------------------------------------------------------------------------------------------------------- rules


def _extra(suspect: StructureSuspect) -> tuple[str, Tree, tuple[Slot, ...]]:
    """Which side has tensors in this layer that the other lacks, and these."""
    sides = (suspect.reference, suspect.candidate)
    found = [{side.local(slot): slot for slot in side.of(suspect.layer)} for side in sides]
    more = [tuple(slot for local, slot in found[i].items() if local not in found[1 - i]) for i in (0, 1)]
    if bool(more[0]) == bool(more[1]):
        return "", suspect.reference, ()
    return ("reference", sides[0], more[0]) if more[0] else ("candidate", sides[1], more[1])


def _affine(instance: bool, suspect: StructureSuspect) -> Iterator[Trial]:
    kind = _same_kind(suspect)
    if suspect.record == "module" or "Norm" not in kind or kind.startswith("InstanceNorm") != instance:
        return
    side, tree, extra = _extra(suspect)
    if not extra or not {tree.local(slot) for slot in extra} <= {"weight", "bias"}:
        return
    neutral = all(np.all(tree.state[slot.name] == (tree.local(slot) == "weight")) for slot in extra)
    said = " (they are 1 and 0 and change nothing at first)" if neutral else ""
    change = f"leaving out {' and '.join(slot.name for slot in extra)} on the {side} side{said}"
    yield from _without(suspect, change, side, tree.without(extra), neutral)


def _instance_norm(suspect: StructureSuspect) -> Iterator[Trial]:
    yield from _affine(True, suspect)


def _other_norm(suspect: StructureSuspect) -> Iterator[Trial]:
    yield from _affine(False, suspect)


def _bias(suspect: StructureSuspect) -> Iterator[Trial]:
    kind = _same_kind(suspect)
    side, tree, extra = _extra(suspect)
    if (
        suspect.record == "parameter"
        and kind
        and "Norm" not in kind
        and [tree.local(slot) for slot in extra] == ["bias"]
    ):
        change = f"leaving out {extra[0].name} on the {side} side"
        yield from _without(suspect, change, side, tree.without(extra))


def _without(suspect: StructureSuspect, change: str, side: str, tree: Tree, certain: bool = True) -> Iterator[Trial]:
    reference, candidate = (tree, None) if side == "reference" else (None, tree)
    yield from suspect.trial(change, suspect.layer, reference, candidate, certain=certain)


def _bn_buffers(suspect: StructureSuspect) -> Iterator[Trial]:
    """The candidate has statistics under both names, or its layer is a class whose names no table knows."""
    table = TABLES[suspect.reference.framework]
    kinds = {table.get(slot.kind, Layer("")).kind for slot in suspect.reference.of(suspect.layer)}
    theirs = {slot.local: slot for slot in suspect.candidate.of(suspect.layer)}
    if suspect.record == "module" or kinds != {"BatchNorm"} or not {"_mean", "_variance"} <= set(theirs):
        return
    doubles = [theirs[local] for local in ("running_mean", "running_var") if local in theirs]
    tree = suspect.candidate.without(doubles)
    known = next(kind for kind, layer in TABLES[tree.framework].items() if layer.kind == "BatchNorm")
    for slot in tree.of(suspect.layer):
        tree = tree.changed(slot, replace(slot, kind=known))
    said = f", leaving out {' and '.join(slot.name for slot in doubles)}" if doubles else ""
    change = f"taking {suspect.layer}._mean and _variance for the running mean and variance{said}"
    yield from suspect.trial(change, suspect.layer, candidate=tree)


def _weight_norm(suspect: StructureSuspect) -> Iterator[Trial]:
    """The norms g of a weight-normed matrix v, one for each row or one for each column."""
    ours = {slot.local: slot for slot in suspect.reference.of(suspect.layer)}
    theirs = {slot.local: slot for slot in suspect.candidate.of(suspect.layer)}
    if not {"weight_g", "weight_v"} <= set(ours) & set(theirs) or suspect.record == "module":
        return
    g, v = theirs["weight_g"], theirs["weight_v"]
    wanted, found = (int(np.prod(slots["weight_g"].shape)) for slots in (ours, theirs))
    if wanted == found or len(v.shape) != 2 or not {wanted, found} <= set(v.shape):
        return
    more = [_rename(ours["weight_g"], g, "reshape")]
    if v.shape != ours["weight_v"].shape:
        more.append(_rename(ours["weight_v"], v, "transpose"))
    change = f"taking {g.name} along the other axis, [{wanted}] and not [{found}]"
    right = suspect.candidate.changed(g, replace(g, shape=(wanted,)))
    yield from suspect.trial(change, suspect.layer, candidate=right, more=more)


def _rename(source: Slot, target: Slot, operation: Operation) -> Rename:
    """The rule that this tensor becomes that one, by an operation."""
    return Rename(re.escape(source.name), target.name, operation)


def _not_transposed(suspect: StructureSuspect) -> Iterator[Trial]:
    """A matrix that is stored the other way round than its layer's kind says, or in a layer that no rule is for."""
    one, two = suspect.one, suspect.two
    if one is None or two is None or len(one.shape) != 2 or sorted(one.shape) != sorted(two.shape):
        return
    turned = one.shape != two.shape
    square = one.shape[0] == one.shape[1]
    more = (_rename(one, two, "transpose" if turned or square else "copy"),)
    what = f"{one.name}, {list(one.shape)} on the reference side and {list(two.shape)} on the candidate's"
    change = f"transposing {what}" if turned or square else f"copying {what}, as it is"
    # Of a square one the shape can't tell. Its layer may have other troubles: this cause is about one tensor.
    yield from suspect.trial(change, suspect.name, more=more, certain=not square)


def _packing(suspect: StructureSuspect) -> Iterator[Trial]:
    """One packed projection on one side, three projections on the other."""
    for side, packed, apart in (
        ("reference", suspect.reference, suspect.candidate),
        ("candidate", suspect.candidate, suspect.reference),
    ):
        for layer in dict.fromkeys((suspect.layer, _layer(suspect.layer))):
            trios = _trios(apart, layer)
            slots = [slot for slot in packed.of(layer) if slot.local.startswith("in_proj_")]
            tree = packed
            for slot in slots:
                local = slot.local.removeprefix("in_proj_")
                three = trios.get(local)
                if three is None or sum(_outputs(apart, s) for s in three) != slot.shape[0]:
                    break
                # As a Linear of its own framework stores it.
                shapes = [_turned(packed, (_outputs(apart, s), *slot.shape[1:])) for s in three]
                parts = (
                    replace(slot, name=s.name, local=local, shape=shape, kind="Linear")
                    for s, shape in zip(three, shapes, strict=True)
                )
                tree = tree.changed(slot, *parts)
            else:
                if slots and _concerns(suspect, slots, trios):
                    names = " and ".join(slot.name for slot in slots)
                    other = "candidate" if side == "reference" else "reference"
                    change = f"splitting {names} of the {side} into the three projections of the {other}"
                    yield from suspect.trial(
                        change,
                        layer,
                        tree if side == "reference" else None,
                        tree if side == "candidate" else None,
                    )


def _turned(tree: Tree, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a Linear's weight [out, in] as this framework stores it, and back."""
    return shape[::-1] if TABLES[tree.framework]["Linear"].operations.get("weight") == "transpose" else shape


def _outputs(tree: Tree, slot: Slot) -> int:
    return _turned(tree, slot.shape)[0]


def _trios(tree: Tree, layer: str) -> dict[str, tuple[Slot, Slot, Slot]]:
    """ "weight", "bias" -> the tensors of the three projections below a module."""
    slots = {slot.name: slot for slot in tree.slots}
    prefix = f"{layer}." if layer else ""
    found = {}
    for local in ("weight", "bias"):
        for three in PARTS:
            for pattern in ("{}", "{}_proj", "to_{}", "w_{}", "w{}", "{}_linear"):
                names = [f"{prefix}{pattern.format(part)}.{local}" for part in three]
                if all(name in slots for name in names):
                    found[local] = (slots[names[0]], slots[names[1]], slots[names[2]])
    return found


def _concerns(suspect: StructureSuspect, slots: Iterable[Slot], trios: Mapping[str, Iterable[Slot]]) -> bool:
    known = {slot.name for slot in slots} | {slot.name for three in trios.values() for slot in three}
    return suspect.name in known | {_layer(name) for name in known}


def _tie(suspect: StructureSuspect) -> str | None:
    """The candidate's name of the tensor that the reference ties this one to."""
    try:
        layout = plan(
            suspect.reference.slots,
            suspect.candidate.slots,
            suspect.reference.framework,
            suspect.candidate.framework,
            suspect.names,
        )
    except CheckpointError:
        return None
    partner = {move.source: move.target for move in layout.moves}
    return partner.get(suspect.one.tied_to) if suspect.one is not None and suspect.one.tied_to else None


def _tie_lost(suspect: StructureSuspect) -> Iterator[Trial]:
    one, two = suspect.one, suspect.two
    if one is None or two is None or two.tied_to is not None:
        return
    first = next((slot for slot in suspect.candidate.slots if slot.name == _tie(suspect)), None)
    if first is None:
        return
    turned = first.shape != two.shape
    fits = first.dtype == two.dtype and (first.shape[::-1] if turned else first.shape) == two.shape
    change = f"tying {two.name} to {first.name}{' transposed' if turned else ''}, by names whose ties differ"
    yield Trial(change, 1.0, 0.0 if fits else 1.0, fits, "differences")


def _tie_added(suspect: StructureSuspect) -> Iterator[Trial]:
    one, two = suspect.one, suspect.two
    if one is not None and two is not None and one.tied_to is None and two.tied_to is not None:
        change = f"giving {two.name} a tensor of its own and not that of {two.tied_to}, by names whose ties differ"
        yield Trial(change, 1.0, 0.0, True, "differences")


def _dropout(suspect: StructureSuspect) -> Iterator[Trial]:
    ours, theirs = suspect.reference.rates.get(suspect.name), suspect.candidate.rates.get(suspect.name)
    if suspect.record == "module" and ours is not None and theirs is not None and ours != theirs:
        change = f"setting the rate of {suspect.name} from {theirs} to {ours}, by dropouts whose rates differ"
        yield Trial(change, 1.0, 0.0, True, "differences")


_RECORDS = ("module", "parameter", "buffer")

CAUSES: tuple[Cause, ...] = (
    Cause(
        "dropout-rate",
        "dropout has another rate, which shows in training alone",
        "pass the reference's rate",
        _RECORDS,
        _dropout,
    ),
    Cause(
        "tie-lost",
        "two names share one tensor in the reference, and have one each in the candidate",
        "assign the parameter itself, not its value",
        _RECORDS,
        _tie_lost,
    ),
    Cause(
        "tie-added",
        "two names share one tensor in the candidate alone",
        "give each a parameter of its own",
        _RECORDS,
        _tie_added,
    ),
    Cause(
        "instance-norm-affine",
        "an InstanceNorm has scale and bias on one side only: Paddle's has them by default, torch's has none",
        "pass weight_attr=False, bias_attr=False",
        _RECORDS,
        _instance_norm,
    ),
    Cause(
        "norm-affine",
        "a norm has weight and bias on one side only",
        "pass weight_attr=False, bias_attr=False, or leave them out",
        _RECORDS,
        _other_norm,
    ),
    Cause(
        "layer-bias",
        "a layer has a bias on one side only",
        "pass bias_attr=False where the reference has bias=False, and only there",
        _RECORDS,
        _bias,
    ),
    Cause(
        "bn-buffers-lost",
        "the running statistics of a BatchNorm have other names",
        "derive from Paddle's BatchNorm and keep them as _mean and _variance",
        _RECORDS,
        _bn_buffers,
    ),
    Cause(
        "weight-norm-axis",
        "weight norm is taken along the other axis: Paddle's Linear stores [in, out], so its dim 0 is the inputs",
        "pass dim=1 to weight_norm",
        _RECORDS,
        _weight_norm,
    ),
    Cause(
        "mha-packing",
        "queries, keys and values are one projection on one side and three on the other",
        "split the packed projection in thirds, and transpose each",
        _RECORDS,
        _packing,
    ),
    Cause(
        "linear-not-transposed",
        "a matrix is stored the other way round",
        "store it in an nn.Linear, or give the name map the operation transpose",
        _RECORDS,
        _not_transposed,
    ),
)
