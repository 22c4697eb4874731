"""Two captured runs side by side: compared record by record, and localised without running anything.

Where the models are at hand, each piece of the candidate is given the reference's own values (`alignment.localise`). Here
there is one free run of each side and no more. So a record that differs is a *root* where all that it was computed from
agrees, by the order in which the records came to be and by what is inside what; every other difference is inherited. A
fault behind another one is hidden until the first is mended.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from alignment.capture_file import SavedTrace
from alignment.causes import WeightSuspect
from alignment.compare import EPS64, Comparison, Pair, Tolerance, bitwise, measure
from alignment.correspondence import OF_MODULES, first_names, packed_tensors, parted, path_of, rename, renamed
from alignment.details import detail_of
from alignment.errors import AlignmentError
from alignment.experiment import SIDES, Experiment, Options
from alignment.frameworks import Framework
from alignment.localise import FLOWS, FORWARD, Root, Scene, first_is_root, row_of
from alignment.orders import arrange
from alignment.recorded import Recorded, settle_recorded
from alignment.report import NOTHING, StageResult, TensorResult
from alignment.stages import within
from alignment.trace import Kind, Trace, widest
from alignment.twins import Side, Twin
from checkpoints import undo
from fake_data import InputSpec

Key = tuple[Kind, str]

BACKWARD: tuple[Kind, ...] = ("gradient", "input gradient", "activation gradient")
STAGES: tuple[tuple[int, str, tuple[Kind, ...]], ...] = (
    (3, "forward", ("input", "activation", "logits")),
    (4, "loss", ("loss",)),
    (5, "backward", BACKWARD),
)


class SavedPair(Scene):
    """A scene of two captured runs: all that was recorded can be looked at, nothing can be run."""

    live = False

    def __init__(self, reference: SavedTrace, candidate: SavedTrace) -> None:
        self.sides = {"reference": reference, "candidate": candidate}
        super().__init__(_experiment(reference, candidate), reference.weights, reference.batch)
        packed = packed_tensors(self.experiment.layout)
        ours, theirs = (self._outside(saved.trace, number) for number, saved in enumerate((reference, candidate)))
        records = (part for record in ours.records for part in parted(record, packed))
        self.reference64 = replace(ours, records=tuple(records))
        theirs = renamed(theirs, self.experiment.called)
        self.candidate64 = arrange(theirs, self.experiment.learn(self.reference64, theirs))
        self.forced_run = self.candidate64
        self.candidate_state = candidate.state

    def model(self, side: str, dtype: str | None = None) -> Any:
        """No model: what is known of it is in the trace."""
        return None

    @property
    def criterion_faults(self) -> set[str]:
        """None that could be told: no criterion can be given other logits."""
        return set()

    def run(self, side: str, dtype: str | None = None, forced: Trace | None = None) -> Trace:
        """Nothing can be run.

        Raises:
            AlignmentError: always.
        """
        raise AlignmentError(f"the {side} of a saved pair can't be run: there is no model")

    def _outside(self, trace: Trace, side: int) -> Trace:
        """A side's run without what is inside a module that is compared at its boundary."""
        scope = self.experiment.scope
        kept = (record for record in trace.records if scope.is_outside(side, record.kind, record.name))
        return replace(trace, records=tuple(kept)) if scope.inside[side] else trace

    # ------------------------------------------------------------------------------------------------------- comparing

    def judge(self, kind: Kind, name: str, candidate: NDArray | None, tolerance: Tolerance | None = None) -> Comparison:
        """Compare a value with the reference's, in float64 alone: there is no float32 run to measure rounding by."""
        truth = self.reference64.get(kind, name)
        scale = self.gradient_scale if kind in BACKWARD else 0.0
        # A loss is a difference of logits, and has their rounding.
        scale = widest([self.reference64.get("logits", "logits")]) if kind == "loss" else scale
        tolerance = tolerance or self.experiment.scope.tolerance(name, self._called(name))
        comparison = measure(Pair(truth, truth, truth, candidate, scale=scale), tolerance)
        if comparison.decided_by == "bitwise" and comparison.verdict == "aligned":
            return replace(comparison, reason="equal bit for bit")
        if comparison.decided_by != "semantics":
            return comparison
        rule = f"float64 alone: {tolerance.semantics_margin:g} × {EPS64:.2g} × the tensor's size"
        if scale:
            of = "logit" if kind == "loss" else "gradient"
            rule += f", and {tolerance.floor_ulps:g} × {EPS64:.2g} × the largest {of}"
        if comparison.verdict == "aligned":
            reason = f"differs by {comparison.seen:.1g}, allowed {comparison.allowed:.1g}"
        else:
            reason = comparison.reason
        return replace(comparison, reason=f"{reason} ({rule})")

    @cached_property
    def comparisons(self) -> dict[Key, Comparison]:
        """Every record of both sides, by the reference's name, in the order of the reference's run."""
        found: dict[Key, Comparison] = {}
        for record in self.reference64.records:
            value = self.value(self.candidate64, record.kind, record.name)
            if record.value is None or value is None:
                comparison = self._absent(record.kind, record.name, record.value, value)
                if comparison is not None:
                    found[record.kind, record.name] = comparison
            else:
                found[record.kind, record.name] = self.judge(record.kind, record.name, value)
        known = {(record.kind, record.name) for record in self.reference64.records}
        for record in self.candidate64.records:
            if record.kind in ("activation", "logits", "loss") and (record.kind, record.name) not in known:
                found[record.kind, record.name] = bitwise(None, record.value)
        return found

    def _absent(self, kind: Kind, name: str, ours: NDArray | None, theirs: NDArray | None) -> Comparison | None:
        """A record that one side lacks: is that a difference? None where it is none, and nothing was compared either."""
        if kind == "gradient" and not any(value is not None and value.any() for value in (ours, theirs)):
            return Comparison("aligned", "metadata", "unused: no gradient, or zeros, on both sides")
        if ours is None:
            return bitwise(None, theirs) if theirs is not None and theirs.any() else None
        if kind == "input":
            return None  # an argument that the candidate hands over by its name is not recorded
        if kind in ("activation", "logits", "loss", "gradient") or self._due(self.candidate64, kind, name):
            return bitwise(ours, None)
        return None

    @cached_property
    def weight_comparisons(self) -> dict[str, Comparison]:
        """Reference's name of a weight -> its comparison: weights are copies, so their bits must be equal."""
        return {
            name: bitwise(self.state[name], undo(self.candidate_state[move.target], move))
            for name, move in self.moves.items()
        }

    @cached_property
    def wrong_weights(self) -> frozenset[str]:
        """Reference's names of the weights that are not the reference's."""
        return frozenset(name for name, found in self.weight_comparisons.items() if found.verdict != "aligned")

    @cached_property
    def ties(self) -> dict[str, str]:
        """Reference's name of a weight that is tied on one side only, or to another -> what is wrong, in words."""
        theirs = first_names(self.sides["candidate"].slots, {move.target for move in self.moves.values()})
        found = {}
        for name, tied in first_names(self.experiment.slots, self.moves).items():
            other = theirs[self.moves[name].target]
            if (self.moves[tied].target if tied else None) != other:
                one, two = tied or "nothing", other or "nothing"
                found[name] = f"tied to {one} on the reference side, to {two} on the candidate's"
        return found

    # ------------------------------------------------------------------------------------------------------ localising

    @cached_property
    def differing(self) -> frozenset[Key]:
        """Records that diverge, less what a module is given where all that is made of it agrees (a mask of −1e4 for −∞).

        What a mapping leaves out, or a tolerance of its own allows, is among them: what is made of it inherits.
        """
        failing = {key for key, found in self.comparisons.items() if found.verdict == "diverged"} | self._allowed
        return frozenset(key for key in failing if key[0] != "input" or self._calls.made_of(key[1]) & failing)

    @cached_property
    def _allowed(self) -> frozenset[Key]:
        """Records that differ by more than rounding, and are no divergence by a tolerance of their own."""
        own = (key for key in self.comparisons if self.experiment.scope.own(key[1], self._called(key[1])) is not None)
        found = ((key, self.value(self.candidate64, *key)) for key in own)
        usual = {key: self.judge(*key, value, Tolerance()).verdict for key, value in found if value is not None}
        return frozenset(
            key for key, one in usual.items() if one == "diverged" and self.comparisons[key].verdict != "diverged"
        )

    @cached_property
    def roots(self) -> tuple[Root, ...]:
        """Every divergence of which all that it was computed from agrees, forward ones first, in order of execution."""
        holders = {self._calls.holder(name.rpartition(".")[0]) for name in self.wrong_weights}
        failing = self.differing
        found = [
            key
            for key in self.comparisons
            if key in failing
            and key not in self._allowed
            and not self.experiment.scope.left_out(*key, self._called(key[1]))
            and self._calls.holder(self.owner(*key)) not in holders
            and key[1] not in self.wrong_weights
            and not any(before in failing for before in self._computed_from(*key))
        ]
        forward = [key for key in found if key[0] in FORWARD]
        forward += [key for key in found if key[0] in ("logits", "loss") and not forward]
        guilty = {self.owner(*key) for key in forward}
        backward = [key for key in found if key[0] in BACKWARD and self.owner(*key) not in guilty]
        flowing = {self.owner(*key) for key in backward if key[0] in FLOWS}
        backward = [key for key in backward if key[0] in FLOWS or self.owner(*key) not in flowing]
        if not any(record.kind == "activation gradient" for record in self.reference64.records):
            backward = []  # what flows backward was not recorded: any gradient may inherit from any other
        return tuple(
            Root(
                kind,
                name,
                self.owner(kind, name),
                self.comparisons[kind, name],
                self.reference64.get(kind, name),
                self.value(self.candidate64, kind, name),
            )
            for kind, name in (*forward, *backward)
            if self.reference64.get(kind, name) is not None
        )

    @cached_property
    def _calls(self) -> _Calls:
        return _Calls(self.reference64)

    def _computed_from(self, kind: Kind, name: str) -> Iterator[Key]:
        """The records that a record was computed from, as far as what is inside what and what came before tells."""
        calls = self._calls
        if kind in ("logits", "loss"):
            yield from (key for key in calls.order if key[0] in FORWARD or (kind == "loss" and key[0] == "logits"))
            if name != kind:
                yield kind, kind
            return
        if kind == "gradient" and name not in self.moves:
            yield from (key for key in calls.order if key != (kind, name))
            return
        if kind == "gradient":
            yield from self._gradient_from(name)
            return
        call = calls.by_label.get(_label(name))
        if call is None:
            return
        if kind == "activation" and call.inputs:
            yield from (*call.inputs, *calls.inside(call, FORWARD))
        elif kind in FORWARD:
            # The parent's code: its own inputs, and what its other children gave until now.
            yield from calls.given(call.parent)
            for sibling in calls.children(call.parent):
                yield from (key for key in sibling.outputs if calls.order[key] < calls.order[kind, name])
        elif kind == "input gradient":
            yield from (*call.inputs, *call.outputs, *call.output_gradients)
            yield from (*calls.inside(call, FORWARD), *calls.inside(call, BACKWARD))
        else:
            yield from calls.given(call.parent)
            if call.parent is None:
                yield ("loss", "loss")
            else:
                yield from calls.by_label[call.parent].output_gradients
            for sibling in calls.children(call.parent):
                yield from (*sibling.inputs, *sibling.outputs)
                if sibling.first > call.last:
                    yield from sibling.input_gradients

    def _gradient_from(self, name: str) -> Iterator[Key]:
        """What a parameter's gradient was computed from: every call of each module that holds it, under all of its names."""
        slots = {slot.name: slot.tied_to or slot.name for slot in self.experiment.slots}
        holders = {
            self._calls.holder(other.rpartition(".")[0]) for other, one in slots.items() if one == slots.get(name)
        }
        calls = [call for call in self._calls.by_label.values() if call.path in holders]
        if "" in holders or not calls:
            yield from (key for key in self._calls.order if key[0] in (*FLOWS, "loss"))
        for call in calls:
            yield from (*call.inputs, *call.outputs, *call.output_gradients)
            yield from (*self._calls.inside(call, FORWARD), *self._calls.inside(call, BACKWARD))


@dataclass
class _Call:
    """One call of a module in the reference's run. first, last: positions of its first and last forward record."""

    label: str
    parent: str | None
    first: int
    last: int
    inputs: list[Key] = field(default_factory=list)
    outputs: list[Key] = field(default_factory=list)
    input_gradients: list[Key] = field(default_factory=list)
    output_gradients: list[Key] = field(default_factory=list)

    @property
    def path(self) -> str:
        return path_of(self.label)

    @property
    def records(self) -> list[Key]:
        return [*self.inputs, *self.outputs, *self.input_gradients, *self.output_gradients]


class _Calls:
    """Who called whom in a run, read off the order of its records: a module's inputs come before all that is inside it."""

    def __init__(self, trace: Trace) -> None:
        self.order: dict[Key, int] = {
            (record.kind, record.name): position for position, record in enumerate(trace.records)
        }
        self.by_label: dict[str, _Call] = {}
        returning = {_label(name) for name in trace.names("activation")}
        open_calls: list[str] = []
        for (kind, name), position in self.order.items():
            if kind not in FLOWS:
                continue
            label = _label(name)
            if label not in self.by_label:
                parent = open_calls[-1] if open_calls else None
                self.by_label[label] = _Call(label, parent, position, position)
                if kind == "input" and label in returning:
                    open_calls.append(label)
            call = self.by_label[label]
            if kind in FORWARD:
                call.last = position
            if kind == "activation" and label in open_calls:
                del open_calls[open_calls.index(label) :]
            {
                "input": call.inputs,
                "activation": call.outputs,
                "input gradient": call.input_gradients,
                "activation gradient": call.output_gradients,
            }[kind].append((kind, name))
        self._paths = {call.path for call in self.by_label.values()}
        self._children: dict[str | None, list[_Call]] = {}
        for call in self.by_label.values():
            self._children.setdefault(call.parent, []).append(call)

    def children(self, parent: str | None) -> list[_Call]:
        """The calls made by a call's code; None: by the model itself."""
        return self._children.get(parent, [])

    def inside(self, call: _Call, kinds: Iterable[Kind]) -> Iterator[Key]:
        """Records of some kinds of all that was called within a call."""
        todo = [*self.children(call.label)]
        while todo:
            child = todo.pop()
            todo += self.children(child.label)
            yield from (key for key in child.records if key[0] in kinds)

    def given(self, label: str | None) -> list[Key]:
        """What a call was given. A call whose arguments were not recorded was given what its caller had."""
        while label is not None and not self.by_label[label].inputs:
            label = self.by_label[label].parent
        return [] if label is None else self.by_label[label].inputs

    def made_of(self, name: str) -> set[Key]:
        """All that was computed within the call that a record belongs to, its outputs included."""
        call = self.by_label.get(_label(name))
        return set() if call is None else {*call.outputs, *self.inside(call, ("activation",))}

    def holder(self, path: str) -> str:
        """The nearest module around a path (or there) that was called; "" is the model itself."""
        while path and path not in self._paths:
            path = path.rpartition(".")[0]
        return path


def _label(name: str) -> str:
    """The call that a record belongs to: without which of its tensors it is."""
    return name.partition("[")[0]


# -------------------------------------------------------------------------------------------------------------- pairing


def _experiment(reference: SavedTrace, candidate: SavedTrace) -> Experiment:
    """The two traces as the set-up of a check whose sides can't be run.

    Raises:
        AlignmentError: they are not of the same batch, or not of models whose weights correspond.
    """
    _same_question(reference, candidate)
    ours, theirs = (cast(Framework, Recorded(saved.about)) for saved in (reference, candidate))
    layout, mismatch, scope, paths = settle_recorded(reference.about, candidate.about)
    if layout is None:
        raise AlignmentError("the two traces are not of models whose weights correspond: " + "\n  ".join(mismatch))
    twin = Twin(
        reference.about.twin,
        "two captures",
        Side(reference.trace.framework, reference.about.target),
        Side(candidate.trace.framework, candidate.about.target),
        {},
        no_inputs,
        loss=reference.about.loss,
        padding=lambda _settings: reference.about.padding,
    )
    return Experiment(
        twin,
        Options(seed=reference.about.seed),
        {},
        ours,
        theirs,
        None,
        None,
        layout,
        (),
        paths,
        {reference.weights: reference.state},
        (reference.batch,),
        reference.about.data,
        (),
        (),
        1,
        scope=scope,
    )


def no_inputs(_settings: Mapping[str, Any]) -> InputSpec:
    """A capture has its batches, and makes no other."""
    raise AlignmentError("a capture has its batches, and makes no other")


def _same_question(reference: SavedTrace, candidate: SavedTrace) -> None:
    ours, theirs = (saved.batch for saved in (reference, candidate))
    wrong = []
    if reference.about.loss != candidate.about.loss:
        wrong.append(f"the loss ({reference.about.loss} and {candidate.about.loss})")
    if len(ours.inputs) != len(theirs.inputs):
        wrong.append(f"the number of inputs ({len(ours.inputs)} and {len(theirs.inputs)})")
    pairs = zip(ours.inputs.items(), theirs.inputs.values(), strict=False)
    wrong += [f"the input {name}" for (name, one), two in pairs if not _equal(one, two)]
    if not _equal(ours.targets, theirs.targets):
        wrong.append("the targets")
    if wrong:
        raise AlignmentError(
            f"the two traces are not of the same batch: they differ in {', '.join(wrong)}; "
            "explain captures that one run of `align explain --traces` wrote, or a candidate captured --from the reference"
        )


def _equal(one: NDArray | None, two: NDArray | None) -> bool:
    if one is None or two is None:
        return one is two
    return one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()


# ------------------------------------------------------------------------------------------------------------ reporting


def pair_stages(pair: SavedPair, details: bool = False) -> tuple[tuple[StageResult, ...], tuple[str, ...]]:
    """The stages that two traces can answer, their roots marked; and notes on what they can't. details: as in `Options`."""
    stages = [
        StageResult(
            2, "initialization", tuple(_weight_rows(pair)), ("the weights both ran with; initialisers are in no trace",)
        )
    ]
    notes = []
    roots = {row_of(root) for root in pair.roots}
    for step, name, kinds in STAGES:
        has = {side: any(kind in kinds for kind in _kinds(trace)) for side, trace in _traces(pair).items()}
        if not any(has.values()):
            notes.append(f"step {step} {name}: neither trace holds it")
        elif not all(has.values()):
            side = next(side for side in SIDES if not has[side])
            reason = f"the {side}'s trace holds none of it: nothing was compared"
            stages.append(
                StageResult(step, name, (TensorResult("module", NOTHING, NOTHING, None, "inconclusive", reason),))
            )
        else:
            rows = [
                _row(pair, key, roots, details) for key in pair.comparisons if key[0] in kinds and _listed(pair, key)
            ]
            stages.append(StageResult(step, name, tuple(rows)))
    found = tuple(within(pair.experiment.scope, stage) for stage in stages if stage.tensors or stage.step != 2)
    if any(tensor.root for stage in found for tensor in stage.tensors):
        return found, tuple(notes)
    return first_is_root(found), tuple(notes)


def _traces(pair: SavedPair) -> dict[str, Trace]:
    return {"reference": pair.reference64, "candidate": pair.candidate64}


def _kinds(trace: Trace) -> set[Kind]:
    return {record.kind for record in trace.records if record.value is not None}


def _listed(pair: SavedPair, key: Key) -> bool:
    """What the criterion gives is the loss, which is listed under that name."""
    criterion = key[0] == "activation" and path_of(key[1]) == "criterion"
    return not (criterion and ("loss", "loss") in pair.comparisons)


def _weight_rows(pair: SavedPair) -> Iterator[TensorResult]:
    roles = {slot.name: slot.role for slot in pair.experiment.slots}
    for name, comparison in pair.weight_comparisons.items():
        wrong = comparison.verdict == "diverged"
        if comparison.verdict == "aligned" and name in pair.ties:
            # Its gradient is the root, where there is one: equal weights compute the same.
            comparison = replace(comparison, verdict="diverged", decided_by="metadata", reason=pair.ties[name])
        row = _result(pair, roles[name], name, pair.moves[name].target, comparison)
        yield replace(row, root=wrong, batch=None, diverging=())


def _row(pair: SavedPair, key: Key, roots: set[tuple[str, str]], details: bool) -> TensorResult:
    comparison, (kind, name) = pair.comparisons[key], key
    if comparison.verdict == "diverged" and kind == "input" and key not in pair.differing:
        reason = f"no matter: all that {path_of(name)} makes of it agrees; {comparison.reason}"
        comparison = replace(comparison, verdict="aligned", reason=reason, strain=0.0)
    theirs = rename(name, pair.experiment.own_words) if kind in OF_MODULES else name
    if kind == "gradient" and name in pair.moves:
        theirs = pair.moves[name].target
    known = name in pair.reference64.names(kind)
    value = pair.value(pair.candidate64, kind, name)
    has = value is not None or kind == "gradient"
    row = _result(pair, kind, name if known else None, theirs if has else None, comparison)
    detail = detail_of(Pair(None, None, pair.reference64.get(kind, name), value), comparison) if details else None
    return replace(row, root=comparison.verdict == "diverged" and (kind, name) in roots, detail=detail)


def _result(pair: SavedPair, record: str, ours: str | None, theirs: str | None, comparison: Comparison) -> TensorResult:
    return TensorResult(
        record,
        ours,
        theirs,
        comparison.shape,
        comparison.verdict,
        comparison.reason,
        comparison.max_abs,
        comparison.rel_l2,
        None,
        comparison.worst_index,
        comparison.seen,
        comparison.allowed,
        comparison.strain,
        comparison.dtype,
        comparison.decided_by,
        pair.weights,
        pair.batch.name,
        diverging=(f"{pair.weights}/{pair.batch.name}",) if comparison.verdict == "diverged" else (),
    )


def weight_suspects(pair: SavedPair) -> Iterator[WeightSuspect]:
    """A suspect for each weight that is not the reference's. What the candidate's own initialiser gives it is not known."""
    others = {name: _wide(value) for name, value in pair.state.items()}
    for slot in pair.experiment.slots:
        if slot.name in pair.wrong_weights:
            move = pair.moves[slot.name]
            theirs = _wide(undo(pair.candidate_state[move.target], move))
            yield WeightSuspect(slot.role, slot.name, slot.kind, slot.local, others[slot.name], theirs, None, others)


def _wide(value: NDArray) -> NDArray[np.float64]:
    return np.asarray(value, dtype=np.float64)
