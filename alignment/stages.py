"""The five stages. Each is data: its number, its name, and the records it judges or the function that gives its tensors.

Structure and initialization look at the live sides; forward, loss and backward pick their records from one pass over all
cases (`judge_cases`), which compares every record as it comes and keeps no arrays.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.compare import EPS32, Comparison, Pair, Tolerance, bitwise, measure, overall, settle
from alignment.correspondence import first_names, holder, rename
from alignment.details import MOST_WHOLE, Detail, detail_of
from alignment.errors import AlignmentError
from alignment.experiment import LEARNING_RATE, Case, Experiment
from alignment.frameworks import Framework, ModuleInfo, own_loss
from alignment.fullsize import FULL_SIZE, Shares, judge_full_size
from alignment.initializers import FALSE_ALARM_RATE, compare_initializers
from alignment.metrics import classification_metrics
from alignment.orders import note
from alignment.report import NOTHING, StageResult, TensorResult
from alignment.scope import Scope, listed, with_reason
from alignment.trace import Kind, Record, Terms, Trace, widest
from checkpoints import CheckpointError, Move, Slot, split, split_slots, undo

Progress = Callable[[], None]

# The default of both frameworks' Adam, which the formula of its first step needs.
ADAM_EPSILON = 1e-8
# Logits further apart than this are scaled down for the criterion's options: half of where Paddle's cross entropy clips.
CRITERION_RANGE = 32.0
# Gradients of these are of what the model returns, not of a parameter.
OUTPUTS = ("logits", "output")
# Units in the last place that the float32 error of a gradient may have: of the summed sizes of its terms, if all have one
# error; and of their root sum square, as they have errors of their own. Half precision makes errors of 2,300 of the latter.
SUMMED_ULPS = 64.0
SQUARED_ULPS = 512.0
# Rules of a comparison that a tolerance has a say in.
OWN = ("semantics", "precision")
# How the reason of a parameter without a gradient begins.
UNUSED = "unused"
# And that of one that the reference alone gives none.
CUT = "no gradient on the reference side"
# How that of a running variance begins which is estimated without bias on one side only.
BIASED = "biased variance"


@dataclass(frozen=True)
class Stage:
    """One stage. records: the kinds of records it judges, empty where it looks at the live sides (`inspect`)."""

    step: int
    name: str
    records: tuple[str, ...] = ()
    inspect: Callable[[Experiment], StageResult] | None = None


def run_stages(experiment: Experiment, progress: Progress, probe: Experiment | None = None) -> tuple[StageResult, ...]:
    """The stages asked for, in order. probe: where the models are run in float64, if not as `experiment` says."""
    wanted = [stage for stage in STAGES if stage.step in experiment.options.steps]
    results = [stage.inspect(experiment) for stage in wanted if stage.inspect is not None]
    running = [stage for stage in wanted if stage.records]
    if running:
        try:
            judged, reason = _judged(experiment, probe or experiment, running, progress), ""
        except (AlignmentError, CheckpointError) as error:
            # What was found before stands; without such a finding the error is the result.
            if overall(result.verdict for result in results) != "diverged":
                raise
            judged, reason = [], str(error)
        results += [stage_of(stage, judged, reason) for stage in running]
    said = note(experiment.orders)
    if said:
        results = [replace(one, notes=(*one.notes, said)) if one.name == "forward" else one for one in results]
    return tuple(within(experiment.scope, result) for result in results)


def within(scope: Scope, stage: StageResult) -> StageResult:
    """The stage without what the mapping leaves out of the comparison, and with notes on that and on own tolerances."""
    left_out: dict[str, list[str]] = {}
    own: dict[str, list[str]] = {}
    kept = []
    for row in stage.tensors:
        reason = scope.left_out(row.record, row.reference_name, row.candidate_name)
        left_out.setdefault(reason, []).append(row.name)
        if not reason:
            kept.append(row)
        tolerance = scope.own(row.reference_name, row.candidate_name) if row.decided_by in OWN else None
        if tolerance is not None and not reason:
            own.setdefault(tolerance.reason, []).append(row.name)
    said = {"ignored": "ignored by the mapping", "inside": "inside a boundary", "wrapper": "only wrapping another"}
    notes = [
        f"not compared, {words}: {len(left_out[why])} of {len(stage.tensors)} tensors ({listed(left_out[why])})"
        for why, words in said.items()
        if why in left_out
    ]
    notes += [f"a tolerance of their own ({why}): {listed(names)}" for why, names in own.items()]
    if not notes:
        return stage
    rows = tuple(kept) or (_not_run("nothing was compared: the mapping leaves out all there is"),)
    return replace(stage, tensors=rows, notes=(*stage.notes, *notes))


def stage_of(stage: Stage, judged: Iterable[TensorResult], reason: str = "") -> StageResult:
    """A stage's share of what was judged. reason: why nothing was, if that is so."""
    tensors = tuple(tensor for tensor in judged if tensor.record in stage.records)
    if "gradient" in stage.records and all(tensor.reason.startswith(UNUSED) for tensor in tensors):
        reason = reason or "no parameter has a gradient on either side: nothing was compared"
        tensors = (*tensors, _not_run(reason))
    return StageResult(stage.step, stage.name, tensors or (_not_run(reason),), _notes(tensors))


def _judged(experiment: Experiment, probe: Experiment, stages: list[Stage], progress: Progress) -> list[TensorResult]:
    if experiment.layout is None:
        raise AlignmentError(no_weights(experiment).reason)
    backward = any("gradient" in stage.records for stage in stages)
    if probe is experiment:
        return judge_cases(experiment, backward, progress)
    shares = Shares()
    probe.use_threads()
    judged = judge_cases(probe, backward, progress, shares.observe)
    name = next(iter(experiment.weights))
    experiment.use_threads()
    full = [result_of(*found, name, FULL_SIZE) for found in judge_full_size(experiment, shares, backward)]
    probe.use_threads()
    progress()
    return merge([*judged, *full])


def _notes(tensors: tuple[TensorResult, ...]) -> tuple[str, ...]:
    """What is aligned, but not as a matter of course."""
    unused = [tensor.name for tensor in tensors if tensor.record == "gradient" and tensor.reason.startswith(UNUSED)]
    biased = [tensor.name for tensor in tensors if tensor.record == "update" and tensor.reason.startswith(BIASED)]
    notes = [f"{UNUSED}, by no path from the loss: {', '.join(unused)}"] if unused else []
    if biased:
        notes.append(f"{BIASED}, as the frameworks define it: {', '.join(biased)} (a strict check calls that diverged)")
    return tuple(notes)


def _not_run(reason: str) -> TensorResult:
    return TensorResult("module", NOTHING, NOTHING, None, "inconclusive", reason or "nothing was compared")


def no_weights(experiment: Experiment) -> TensorResult:
    return TensorResult(
        "module",
        NOTHING,
        NOTHING,
        None,
        "inconclusive",
        f"the candidate can't be given the reference's weights: {experiment.mismatch[0]}",
    )


# ---------------------------------------------------------------------------------------------------------- 1 structure


def structure(experiment: Experiment) -> StageResult:
    """Module trees, parameters and buffers by name, shape, dtype and role, tied names, counts."""
    sides = (
        (experiment.reference, experiment.reference_model),
        (experiment.candidate, experiment.candidate_model),
    )
    kinds = [{module.path: module for module in framework.modules(model)} for framework, model in sides]
    slots = [framework.slots(model) for framework, model in sides]
    notes = [
        f"{side}: {len(kind)} modules, {_count(slot, 'parameter')}, {_count(slot, 'buffer')}"
        for side, kind, slot in zip(("reference", "candidate"), kinds, slots, strict=True)
    ]
    rates = [framework.get_option(model, "Dropout", "p") for framework, model in sides]
    called, notes = experiment.called, [*notes, *experiment.scope.notes]
    kinds[1] = {called.get(path, path): module for path, module in kinds[1].items()}
    rates[1] = {called.get(path, path): rate for path, rate in rates[1].items()}
    tensors = (*_modules(kinds[0], kinds[1], rates[0], rates[1]), *_slots(experiment, slots[0], slots[1]))
    return StageResult(1, "structure", tensors, tuple(notes))


def _count(slots: tuple[Slot, ...], role: str) -> str:
    own = [slot for slot in slots if slot.role == role and slot.tied_to is None]
    tied = sum(slot.role == role and slot.tied_to is not None for slot in slots)
    elements = sum(math.prod(slot.shape) for slot in own)
    return f"{len(own)} {role}s of {elements:,} elements" + (f" and {tied} tied names" if tied else "")


def _modules(
    reference: dict[str, ModuleInfo],
    candidate: dict[str, ModuleInfo],
    reference_rates: dict[str, float],
    candidate_rates: dict[str, float],
) -> Iterable[TensorResult]:
    """Modules by path and kind. Dropout's rate is compared here, because no stage that runs in evaluation mode sees it."""
    for path in dict.fromkeys((*reference, *candidate)):
        label = path or "(root)"
        one, two = reference.get(path), candidate.get(path)
        problem = None
        if one is None or two is None:
            present, side = (two, "reference") if one is None else (one, "candidate")
            assert present is not None
            problem = f"missing on the {side} side: a {present.kind}"
            reason = problem
        elif reference_rates.get(path) != candidate_rates.get(path):
            reason = f"dropout {reference_rates.get(path)} on the reference side, {candidate_rates.get(path)} on the candidate's"
            problem = reason
        elif one.kind.lower() == two.kind.lower().removeprefix("compat."):
            reason = f"{one.kind} on both sides"
        else:
            reason = f"{one.kind} on the reference side, {two.kind} on the candidate's"
            # A class of the user's own is known by name alone, and a name computes nothing.
            problem = None if one.own or two.own else reason
        yield TensorResult(
            "module",
            label if one else None,
            two.path or "(root)" if two else None,
            None,
            "diverged" if problem else "aligned",
            reason,
            strain=math.inf if problem else 0.0,
        )


def _slots(experiment: Experiment, reference: tuple[Slot, ...], candidate: tuple[Slot, ...]) -> Iterable[TensorResult]:
    theirs = {slot.name: slot for slot in candidate}
    if experiment.layout is None:
        yield from _unmatched(reference, theirs, experiment.mismatch)
        return
    moves = {move.label: move for move in experiment.layout.moves}
    dropped = {extra.name: extra for extra in experiment.layout.dropped}
    parts = split_slots(reference, experiment.layout)
    our_ties = first_names(parts, moves)
    their_ties = first_names(candidate, {move.target for move in moves.values()})
    for slot in parts:
        if slot.name in dropped:
            reason = f"no counterpart: {dropped[slot.name].reason}"
            yield TensorResult(slot.role, slot.name, None, slot.shape, "aligned", reason)
            continue
        if slot.name not in moves:
            reason = f"one more name of {slot.tied_to or 'its tensor'}, and of no other tensor"
            yield TensorResult(slot.role, slot.name, None, slot.shape, "aligned", reason)
            continue
        move, tied = moves[slot.name], our_ties[slot.name]
        other, tied_there = theirs[move.target], their_ties[move.target]
        problems = []
        if slot.role != other.role:
            problems.append(f"a {slot.role} on the reference side, a {other.role} on the candidate's")
        if (moves[tied].target if tied else None) != tied_there:
            problems.append(
                f"tied to {tied or 'nothing'} on the reference side, to {tied_there or 'nothing'} on the candidate's"
            )
        reason = "; ".join(problems) or f"{slot.kind}.{slot.local} {slot.dtype}, {move.operation}" + (
            f", tied to {tied}" if tied else ""
        )
        yield TensorResult(
            slot.role,
            slot.name,
            other.name,
            slot.shape,
            "diverged" if problems else "aligned",
            reason,
            strain=math.inf if problems else 0.0,
        )
    for name in sorted(experiment.scope.kept):
        slot = theirs[name]
        yield TensorResult(slot.role, None, name, slot.shape, "aligned", "no counterpart: it keeps its own values")
    for extra in experiment.layout.filled:
        yield TensorResult(
            theirs[extra.name].role, None, extra.name, extra.shape, "aligned", f"no counterpart: {extra.reason}"
        )


def _unmatched(
    reference: tuple[Slot, ...], theirs: dict[str, Slot], mismatch: tuple[str, ...]
) -> Iterable[TensorResult]:
    """The tensors that keep the candidate from taking the reference's weights, each with what the converter said of it."""
    said = {line.partition(":")[0].partition(" → ")[0]: line.partition(":")[2].strip() for line in mismatch[1:]}
    of = {re.sub(r"\[\w+\]$", "", name): name for name in said}  # a part is a problem of its whole
    for slot in reference:
        other = theirs.pop(slot.name, None)
        problem = said.pop(of.get(slot.name, slot.name), None)
        problem = problem if other or not problem else "missing on the candidate side"
        yield TensorResult(
            slot.role,
            slot.name,
            slot.name if other else None,
            slot.shape,
            "diverged" if problem else "aligned",
            problem or "on both sides",
            strain=math.inf if problem else 0.0,
        )
    for name, slot in theirs.items():
        if said.pop(of.get(name, name), None):
            reason = "missing on the reference side"
            yield TensorResult(slot.role, None, name, slot.shape, "diverged", reason, strain=math.inf)
    listed = {slot.name for slot in reference} | set(theirs)
    for name, reason in said.items():
        if name not in listed:
            yield TensorResult("parameter", name, name, None, "diverged", reason, strain=math.inf)


# ----------------------------------------------------------------------------------------------------- 2 initialization


def initialization(experiment: Experiment) -> StageResult:
    """(a) After conversion every tensor is equal bit for bit; (b) both initialisers draw from the same distributions."""
    if experiment.layout is None:
        return StageResult(2, "initialization", (no_weights(experiment),))
    converted, seeds = _after_conversion(experiment), initializer_seeds(experiment)
    if not (experiment.twin.reference.built and experiment.twin.candidate.built):
        note = "initializers not compared: a model given ready-made can't be drawn again; give the class or a function"
        return StageResult(2, "initialization", tuple(converted), (note,))
    drawn = compare_drawn(experiment, seeds)
    return StageResult(2, "initialization", (*converted, *drawn), (drawn_note(seeds),))


def drawn_note(seeds: int) -> str:
    return f"{seeds} seeds a side; false-alarm rate {FALSE_ALARM_RATE:g} for all initializer tests together"


def _after_conversion(experiment: Experiment) -> list[TensorResult]:
    layout = experiment.layout
    assert layout is not None
    found: list[TensorResult] = []
    slots = {slot.name: slot for slot in experiment.slots}
    for name, state in experiment.weights.items():
        reference, candidate = experiment.build("reference"), experiment.build("candidate")
        experiment.reference.load_state(reference, state)
        experiment.candidate.load_state(candidate, experiment.candidate_state(state))
        ours, theirs = experiment.reference.read_state(reference), experiment.candidate.read_state(candidate)
        ours = split(ours, layout)
        found += [copy_result(experiment, slots[move.label].role, move, ours, theirs, name) for move in layout.moves]
    return merge(found)


def copy_result(
    experiment: Experiment,
    role: str,
    move: Move,
    ours: Mapping[str, NDArray],
    theirs: Mapping[str, NDArray],
    weights: str,
) -> TensorResult:
    """One tensor that the candidate was given: a copy, so its bits must be the reference's."""
    one, two = ours[move.label], undo(theirs[move.target], move)
    comparison = bitwise(one, two)
    row = result_of(role, move.label, move.target, comparison, weights)
    if not experiment.options.details or comparison.verdict == "aligned":
        return row
    return replace(row, detail=detail_of(Pair(None, None, one, two), comparison))


def initializer_seeds(experiment: Experiment) -> int:
    """As many as 40 million values allow, within 8 and 32."""
    slots = experiment.reference.slots(experiment.reference_model)
    return int(np.clip(40_000_000 // max(1, sum(math.prod(slot.shape) for slot in slots)), 8, 32))


def drawn_initializers(experiment: Experiment, seeds: int) -> dict[str, tuple[NDArray, NDArray]]:
    """Reference's name -> what the two initialisers give the tensor under each seed, in the reference's layout."""
    layout = experiment.layout
    assert layout is not None
    ties = first_names(experiment.slots, {move.label for move in layout.moves})
    moves = [move for move in layout.moves if ties[move.label] is None]
    drawn: dict[str, dict[str, list[NDArray]]] = {"reference": {}, "candidate": {}}
    for side in drawn:
        for seed in range(seeds):
            state = experiment.initial(side, 1 + seed)
            state = split(state, layout) if side == "reference" else state
            for move in moves:
                value = state[move.label] if side == "reference" else undo(state[move.target], move)
                drawn[side].setdefault(move.label, []).append(value)
    ours, theirs = drawn["reference"], drawn["candidate"]
    return {move.label: (np.stack(ours.pop(move.label)), np.stack(theirs.pop(move.label))) for move in moves}


def compare_drawn(experiment: Experiment, seeds: int) -> list[TensorResult]:
    """A row for each tensor: do the two initialisers draw it from the same distribution?"""
    assert experiment.layout is not None
    targets = {move.label: move.target for move in experiment.layout.moves}
    drawn = drawn_initializers(experiment, seeds)
    found = []
    for name, (ours, theirs) in drawn.items():
        comparison = compare_initializers(ours, theirs, tests=len(drawn))
        found.append(result_of("initializer", name, targets[name], comparison, "own initializers"))
    return found


# --------------------------------------------------------------------------------------- 3 forward, 4 loss, 5 backward


@dataclass(frozen=True)
class _Measured:
    """One comparison of one record in one case, its precision not yet judged.

    usual: the same by the usual tolerance, where the record has one of its own. detail: where these were asked for.
    """

    record: str
    reference_name: str | None
    candidate_name: str | None
    comparison: Comparison
    weights: str
    batch: str
    usual: Comparison | None = None
    detail: Detail | None = None


def judge_cases(
    experiment: Experiment, backward: bool, progress: Progress, observe: Callable[[Case], None] = lambda _case: None
) -> list[TensorResult]:
    """Compare every record of every case; one result a tensor, its worst, in order of dependency."""
    groups: dict[tuple[str, str | None, str | None, str], list[_Measured]] = {}
    metrics: list[TensorResult] = []
    for case in experiment.cases(backward, progress):
        observe(case)
        found = [*_judge_activations(experiment, case), *_judge_loss(experiment, case)]
        if backward:
            found += _judge_gradients(experiment, case)
        for one in found:
            groups.setdefault((one.record, one.reference_name, one.candidate_name, one.weights), []).append(one)
        if own_loss(experiment.twin.loss):
            metrics += _judge_metrics(case)
    results = []
    summands = Summands(experiment)
    for group in groups.values():
        own = experiment.scope.own(group[0].reference_name, group[0].candidate_name)
        settled = _settled(group, summands, own.tolerance if own else None)
        if own is not None:
            usual = _settled([replace(one, comparison=one.usual or one.comparison) for one in group], summands)
            settled = [with_reason(*pair, own) for pair in zip(settled, usual, strict=True)]
        for one, comparison in zip(group, settled, strict=True):
            row = result_of(one.record, one.reference_name, one.candidate_name, comparison, one.weights, one.batch)
            results.append(row if one.detail is None else replace(row, detail=one.detail))
    return merge([*results, *metrics])


def bounded(stages: tuple[StageResult, ...]) -> tuple[StageResult, ...]:
    """The stages with as many whole details as a report may have: of the roots, then of the first that diverge."""
    rows = [row for stage in stages for row in stage.tensors if row.detail is not None and row.verdict != "aligned"]
    kept = {id(row) for row in sorted(rows, key=lambda row: not row.root)[:MOST_WHOLE]}

    def within_bounds(row: TensorResult) -> TensorResult:
        return row if row.detail is None or id(row) in kept else replace(row, detail=row.detail.brief)

    return tuple(replace(stage, tensors=tuple(map(within_bounds, stage.tensors))) for stage in stages)


def _settled(group: list[_Measured], summands: Summands, tolerance: Tolerance | None = None) -> list[Comparison]:
    """The comparisons of one record in all cases, their precision judged."""
    settled = settle([one.comparison for one in group], tolerance)
    if any(comparison.decided_by == "precision" for comparison in settled) and group[0].record == "gradient":
        settled = settle([summands.allow(one) for one in group], tolerance)
    return settled


class Summands:
    """How large the terms are that a parameter's gradient sums: a second look at what seems imprecise.

    A gradient whose terms cancel is small beside them, and so may one side's error be by luck or by a wider accumulator;
    the error of a right float32 sum goes by its terms. Measured in units of ε·Σ|term|: 0.4 for Paddle's sequential sum of
    256 normal terms, 0.05 for torch's; but 30 where the terms come out of Paddle's group norm, whose own sums put one
    error into all of them. Terms rounded to float16 have 2,300 ε·√Σ|term|² (2⁻¹¹/√3), and to bfloat16 eight times that,
    however many they are. Allowed is the smaller of `SUMMED_ULPS` of the one and `SQUARED_ULPS` of the other.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._known: dict[tuple[str, str], Mapping[str, Terms]] = {}
        self._kinds = {slot.name: slot.kind for slot in experiment.slots}

    def allow(self, one: _Measured) -> Comparison:
        """The comparison, its allowance raised by what summing up the terms may cost."""
        comparison = one.comparison
        if comparison.error32 is None or comparison.shape is None or one.reference_name is None:
            return comparison
        extra = self.rounding(one.weights, one.batch, one.reference_name, comparison.shape)
        error, noise, floor = comparison.largest32
        return replace(comparison, floor32=comparison.floor32 + extra, largest32=(error, noise, floor + 4 * extra))

    def rounding(self, weights: str, batch: str, name: str, shape: tuple[int, ...]) -> float:
        """How far float32 rounding may put an element of a gradient.

        Its terms are an output's gradient each, times an input where it is a matrix's.
        """
        if (weights, batch) not in self._known:
            self._known[weights, batch] = self._experiment.summands(weights, batch)
        known = self._known[weights, batch]
        terms = known.get(holder(name, known), Terms(0.0, 0.0, 0.0))
        kind = self._kinds.get(name, "")
        if len(shape) < 2 or not terms.inputs:
            factor = 1.0
        else:  # what a recurrent layer multiplies besides its input is about 1
            factor = terms.inputs if kind == "Linear" or kind.startswith("Conv") else max(1.0, terms.inputs)
        # A table's row sums what it was looked up for; a matrix's, or a vector's element, all there is.
        outputs = math.prod(shape) if kind == "Embedding" else max(1, shape[0] if shape else 1)
        allowed = min(SUMMED_ULPS * terms.summed / outputs, SQUARED_ULPS * math.sqrt(terms.squared / outputs))
        return EPS32 * factor * allowed


def _judge_activations(experiment: Experiment, case: Case) -> Iterable[_Measured]:
    kinds: tuple[Kind, ...] = ("activation", "logits", "output")
    for kind in kinds:
        # Names of both runs: what exists in one precision only must not slip through.
        reference = dict.fromkeys((*case.reference64.names(kind), *case.reference32.names(kind)))
        candidate = dict.fromkeys((*case.candidate64.names(kind), *case.candidate32.names(kind)))
        for name in dict.fromkeys((*reference, *candidate)):
            pair = _pair(case, kind, name)
            theirs = rename(name, experiment.own_words) if kind == "activation" else name
            yield _measured(
                case, kind, name if name in reference else None, theirs if name in candidate else None, pair
            )


def _judge_loss(experiment: Experiment, case: Case) -> Iterable[_Measured]:
    pair = _pair(case, "loss", "loss")
    if experiment.twin.loss == "outputs" and pair.reference64 is not None:
        pair = replace(pair, noise=(*pair.noise, pair.reference64 + _error_of_sum(case)))
    yield _measured(case, "loss", "loss", "loss", pair)
    yield from _judge_criterion(experiment, case)


def _error_of_sum(case: Case) -> float:
    """How far float32 moves the sum that stands for a loss, of all outputs times numbers of size 1/√n (`directions`).

    The error of the reference's own sum may be tiny by luck, as may those of a few moved runs. This is what the errors of
    its outputs make, were they independent, and the rounding of the products.
    """
    square = 0.0
    for record in case.reference64.records:
        rounded = case.reference32.get(record.kind, record.name)
        if record.kind != "output" or record.value is None or rounded is None or record.value.dtype.kind != "f":
            continue
        both = (np.square(rounded.astype(np.float64) - record.value), np.square(EPS32 * record.value))
        square += sum(float(each.mean()) for each in both if each.size and np.isfinite(each).all())
    return math.sqrt(square)


def _judge_criterion(experiment: Experiment, case: Case) -> Iterable[_Measured]:
    """Each framework's cross entropy of its side's logits, by every option."""
    targets = case.batch.targets
    if targets is None or not own_loss(experiment.twin.loss):
        return
    logits = [trace.get("logits", "logits") for trace in _four(case)]
    fit = all(fits(value, targets) for value in logits)
    scale = criterion_scale(logits[2]) if fit else 1.0
    for label, options in criterion_options(targets):
        if any(trace.get("loss", label) is not None for trace in _four(case)):
            yield _measured(case, "loss", label, label, _pair(case, "loss", label))  # recorded with the trace
            continue
        if not fit:
            unfit = Comparison(
                "inconclusive", "metadata", "no criterion: the logits of one side do not fit the targets"
            )
            yield _Measured("loss", label, label, unfit, case.weights, case.batch.name)
            continue
        sides = (experiment.reference, experiment.candidate) * 2
        four = zip(sides, _four(case), strict=True)
        one, two, three, four_ = (criterion(side, trace, targets, scale, options) for side, trace in four)
        noise = (criterion(experiment.reference, trace, targets, scale, options) for trace in case.noise)
        pair = Pair(one, two, three, four_, tuple(value for value in noise if value is not None))
        yield _measured(case, "loss", label, label, pair)


def criterion_faults(experiment: Experiment, case: Case) -> set[str]:
    """Options by which the two frameworks' cross entropies differ though both are given the reference's logits."""

    def given(trace: Trace) -> Trace:
        return Trace(
            experiment.candidate.name, trace.dtype, (Record("logits", "logits", trace.get("logits", "logits")),)
        )

    alike = replace(case, candidate32=given(case.reference32), candidate64=given(case.reference64))
    found = list(_judge_criterion(experiment, alike))
    judged = settle([one.comparison for one in found])
    return {one.reference_name or "" for one, it in zip(found, judged, strict=True) if it.verdict == "diverged"}


def fits(logits: NDArray | None, targets: NDArray) -> bool:
    """Are these logits [..., C] of targets [...], and not empty?"""
    return logits is not None and logits.shape[:-1] == targets.shape and logits.size > 0


def criterion_options(targets: NDArray) -> Iterable[tuple[str, dict[str, Any]]]:
    """Every reduction, and the most frequent class ignored; where no target would be left, nothing is ignored."""
    ignored = int(np.bincount(targets.ravel()).argmax())
    for reduction in ("mean", "sum", "none"):
        yield f"cross_entropy[{reduction}]", {"reduction": reduction}
    if (targets != ignored).any():
        for reduction in ("mean", "sum", "none"):
            yield f"cross_entropy[{reduction}, ignore_index]", {"reduction": reduction, "ignore_index": ignored}


def criterion(
    framework: Framework, trace: Trace, targets: NDArray, scale: float, options: dict[str, Any]
) -> NDArray | None:
    """A framework's own cross entropy of a run's logits, these multiplied by `scale`."""
    logits = trace.get("logits", "logits")
    if logits is None:
        return None
    return framework.cross_entropy((logits * scale).astype(logits.dtype), targets, **options)


def criterion_scale(logits: NDArray | None) -> float:
    """Brings logits into the range in which every framework's criterion is itself; a power of two, so that it is exact.

    Paddle's cross entropy on a CPU takes no probability to be below exp(-64). The twin's own loss is compared as it is;
    here the question is what the options mean.
    """
    if logits is None or not logits.size or not np.isfinite(logits).all():
        return 1.0
    spread = float(np.ptp(logits.astype(np.float64)))
    return 2.0 ** -math.ceil(math.log2(spread / CRITERION_RANGE)) if CRITERION_RANGE < spread < math.inf else 1.0


def _judge_metrics(case: Case) -> Iterable[TensorResult]:
    """Metrics are steps of the logits: they must be equal, unless a tie within rounding makes a prediction flip."""
    targets = case.batch.targets
    if targets is None:
        return
    logits = [trace.get("logits", "logits") for trace in _four(case)]
    if any(values is None or not np.isfinite(values).all() or values.shape != logits[0].shape for values in logits):  # type: ignore[union-attr]
        reason = "the logits are missing, of another shape or not finite on one side"
        yield TensorResult(
            "metric", "accuracy", "accuracy", (), "inconclusive", reason, weights=case.weights, batch=case.batch.name
        )
        return
    reference32, candidate32, reference64, candidate64 = (values for values in logits if values is not None)
    ours, theirs = classification_metrics(reference64, targets), classification_metrics(candidate64, targets)
    ours32, theirs32 = classification_metrics(reference32, targets), classification_metrics(candidate32, targets)
    flips = np.argmax(reference32, -1) != np.argmax(candidate32, -1)
    tied = _margins(reference64) <= 20.0 * np.abs(reference32.astype(np.float64) - reference64).max()
    tied64 = _margins(reference64) <= 1e-12 * np.abs(reference64).max()
    flips64 = (np.argmax(reference64, -1) != np.argmax(candidate64, -1)) & ~tied64
    unexplained = int((flips & ~tied).sum()) + int(flips64.sum())
    for name in ours:
        gap = max(abs(ours[name] - theirs[name]), abs(ours32[name] - theirs32[name]))
        reason = (
            f"{ours[name]:.4f} and {theirs[name]:.4f}; {int(flips.sum())} of {flips.size} predictions differ in float32"
        )
        aligned = gap == 0.0 or unexplained == 0
        if gap and aligned:
            reason += ", each a tie within rounding"
        yield TensorResult(
            "metric",
            name,
            name,
            (),
            "aligned" if aligned else "diverged",
            reason,
            gap,
            seen=gap,
            allowed=0.0,
            strain=0.0 if aligned else math.inf,
            dtype="float64",
            decided_by="bitwise",
            weights=case.weights,
            batch=case.batch.name,
        )


def _margins(logits: NDArray) -> NDArray[np.float64]:
    """Gap between the largest and the second logit."""
    top = np.sort(logits.astype(np.float64), axis=-1)
    return np.asarray(top[..., -1] - top[..., -2]) if top.shape[-1] > 1 else np.full(top.shape[:-1], math.inf)


def _judge_gradients(experiment: Experiment, case: Case) -> Iterable[_Measured]:
    layout = experiment.layout
    assert layout is not None
    own = {slot.name: slot for slot in experiment.slots}
    ties = first_names(own.values(), {move.label for move in layout.moves})
    moves = [move for move in layout.moves if own[move.label].role == "parameter" and ties[move.label] is None]
    scale = case.gradient_scale
    # Equal terms round alike, so that their roundings add up where those of different ones cancel.
    first = next(iter(case.batch.inputs.values()))
    rows = first.size**2 // np.unique(first).size
    for name in dict.fromkeys(name for trace in _four(case) for name in trace.names("gradient")):
        if name in OUTPUTS or name.startswith("output["):
            yield _measured(case, "gradient", name, name, _pair(case, "gradient", name, scale))
    order = _backward_order(case.reference64)
    weights = split(experiment.weights[case.weights], layout)
    stepped = not {move.label for move in moves}.isdisjoint(case.reference64.names("update"))
    for move in sorted(moves, key=lambda move: order.get(holder(move.source, order), -1)):
        yield _judge_gradient(move, case, scale, rows)
        if stepped:
            yield _judge_update(move, case, max(LEARNING_RATE, widest([weights[move.label]])))
    for move in layout.moves:
        if own[move.label].role == "buffer" and case.reference64.get("update", move.label) is not None:
            yield _judge_statistic(experiment, move, case)


def _judge_gradient(move: Move, case: Case, scale: float, rows: int) -> _Measured:
    ours, theirs = _both("gradient", move, case)
    unused = _unused(ours, theirs)
    if unused is not None:
        return _Measured("gradient", move.label, move.target, unused, case.weights, case.batch.name)
    pair = Pair(
        ours[0],
        theirs[0],
        ours[1],
        theirs[1],
        _noise(case, "gradient", move.label),
        scale=scale,
        scale32=EPS32 * scale,
        summands=rows,
    )
    return _measured(case, "gradient", move.label, move.target, pair)


def _both(kind: Kind, move: Move, case: Case) -> tuple[list[NDArray | None], list[NDArray | None]]:
    """Float32 and float64 values of the reference, and of the candidate in the reference's layout."""
    ours = [trace.get(kind, move.label) for trace in (case.reference32, case.reference64)]
    theirs = [trace.get(kind, move.target) for trace in (case.candidate32, case.candidate64)]
    return ours, [value if value is None or value.shape != move.shape_to else undo(value, move) for value in theirs]


def _judge_update(move: Move, case: Case, scale: float) -> _Measured:
    """Judge one Adam step, given each side's own gradient.

    Where a gradient is rounding noise its sign is random, and so is the step, by up to twice the learning rate, in two
    sides that are both right; and a difference in the gradient has been judged as such. So what the difference of the
    gradients explains is taken out of the candidate's step before the two are compared.
    """
    ours, theirs = _both("update", move, case)
    gradients = _both("gradient", move, case)
    ideal = [[None if g is None else adam_first_step(g, LEARNING_RATE) for g in side] for side in gradients]
    unexplained = [
        step if step is None or one is None or two is None or one.shape != two.shape else step - (two - one)
        for step, one, two in zip(theirs, *ideal, strict=True)
    ]
    pair = Pair(
        ours[0],
        unexplained[0],
        ours[1],
        unexplained[1],
        truth32=ideal[0][0],
        reference_truth32=ideal[0][0],
        scale=scale,
        scale32=scale,
    )
    return _measured(case, "update", move.label, move.target, pair)


def _judge_statistic(experiment: Experiment, move: Move, case: Case) -> _Measured:
    """Judge the change of a running statistic by one forward pass in training mode.

    The frameworks' own batch norms differ in how they estimate the variance, and no port that uses them can help it: one
    divides by N, the other by N − 1. Unless the check is strict, exactly that is let pass, and said.
    """
    ours, theirs = _both("update", move, case)
    pair = Pair(ours[0], theirs[0], ours[1], theirs[1], _noise(case, "update", move.source))
    plain = _measured(case, "update", move.source, move.target, pair)
    owner, _, local = move.source.rpartition(".")
    output = case.reference64.get("activation", owner)
    if plain.comparison.verdict != "diverged" or experiment.options.strict or local != "running_var" or output is None:
        return plain
    momentum = experiment.reference.options(experiment.model("reference", "float64").module, owner).get("momentum")
    kept, count = (
        experiment.weights[case.weights][move.source],
        output.size // max(1, ours[1].size if ours[1] is not None else 1),
    )
    if momentum is None or case.reference64.get("activation", f"{owner}#2") is not None:
        return plain

    def biased(change: NDArray | None) -> NDArray | None:
        # The change is momentum × (variance − kept).
        return None if change is None else np.asarray(change - (change + momentum * kept.astype(np.float64)) / count)

    noise = tuple(value for run in pair.noise if (value := biased(run)) is not None)
    pair = replace(pair, reference32=biased(ours[0]), reference64=biased(ours[1]), noise=noise)
    judged = _measured(case, "update", move.source, move.target, pair)
    if judged.comparison.verdict != "aligned":
        return plain
    reason = f"{BIASED}: divided by N = {count} on one side, by N − 1 on the other; {judged.comparison.reason}"
    return replace(judged, comparison=replace(judged.comparison, reason=reason))


def adam_first_step(gradient: NDArray, learning_rate: float) -> NDArray:
    """Change of a parameter in Adam's first step, float64: −lr·g / (|g| + ε) (Kingma and Ba, arXiv 1412.6980, t = 1)."""
    wide = gradient.astype(np.float64)
    return np.asarray(-learning_rate * wide / (np.abs(wide) + ADAM_EPSILON))


def _unused(ours: list[NDArray | None], theirs: list[NDArray | None]) -> Comparison | None:
    """A parameter that no path from the loss reaches: no gradient on a side, zeros perhaps on the other."""
    if all(value is not None for value in (*ours, *theirs)):
        return None
    if all(value is None for value in (*ours, *theirs)):
        return Comparison("aligned", "metadata", f"{UNUSED} on both sides: neither gives it a gradient")
    given = [value for value in (*ours, *theirs) if value is not None]
    side = "reference" if ours[0] is None else "candidate"
    if all(not value.any() for value in given):
        reason = (
            f"{UNUSED}: no gradient on the {side} side, zeros on the other; an optimizer with momentum or weight decay "
            "treats the two differently"
        )
        return Comparison("aligned", "metadata", reason, given[0].shape)
    said = CUT if side == "reference" else "no gradient on the candidate side"
    reason = f"{said}, where the other has one: the graph is cut"
    return Comparison("diverged", "metadata", reason, given[0].shape, strain=math.inf)


def _backward_order(trace: Trace) -> dict[str, int]:
    """Module path -> position in the backward pass: the reverse of the last call in the forward pass."""
    names = [name.split("#")[0].split("[")[0] for name in trace.names("activation")]
    last = {name: position for position, name in enumerate(names)}
    return {name: len(names) - position for name, position in last.items()}


# ---------------------------------------------------------------------------------------------------------------- tools


def _measured(case: Case, record: str, reference: str | None, candidate: str | None, pair: Pair) -> _Measured:
    own = case.scope.own(reference, candidate)
    usual = measure(pair, Tolerance())
    comparison = measure(pair, own.tolerance) if own else usual
    detail = detail_of(pair, comparison, own.tolerance if own else None) if case.details else None
    return _Measured(
        record, reference, candidate, comparison, case.weights, case.batch.name, usual if own else None, detail
    )


def merge(results: Iterable[TensorResult]) -> list[TensorResult]:
    """One result for each tensor: its worst, with how many there were; in order of first appearance."""
    merged: dict[tuple[str, str | None, str | None], TensorResult] = {}
    for result in results:
        key = (result.record, result.reference_name, result.candidate_name)
        known = merged.get(key)
        if known is None:
            merged[key] = result
            continue
        worse = result if _badness(result) > _badness(known) else known
        merged[key] = replace(
            worse,
            comparisons=known.comparisons + result.comparisons,
            diverging=known.diverging + result.diverging,
        )
    return list(merged.values())


def _badness(result: TensorResult) -> tuple[int, float]:
    return {"aligned": 0, "inconclusive": 1, "diverged": 2}[result.verdict], result.strain


def result_of(
    record: str,
    reference_name: str | None,
    candidate_name: str | None,
    comparison: Comparison,
    weights: str,
    batch: str | None = None,
) -> TensorResult:
    return TensorResult(
        record,
        reference_name,
        candidate_name,
        comparison.shape,
        comparison.verdict,
        comparison.reason,
        comparison.max_abs,
        comparison.rel_l2,
        comparison.error_ratio,
        comparison.worst_index,
        comparison.seen,
        comparison.allowed,
        comparison.strain,
        comparison.dtype,
        comparison.decided_by,
        weights,
        batch,
        diverging=(f"{weights}/{batch}",) if batch and comparison.verdict == "diverged" else (),
    )


def _four(case: Case) -> tuple[Trace, Trace, Trace, Trace]:
    """The traces in the order of Pair's fields."""
    return case.reference32, case.candidate32, case.reference64, case.candidate64


def _pair(case: Case, kind: Kind, name: str, scale: float = 0.0) -> Pair:
    one, two, three, four = (trace.get(kind, name) for trace in _four(case))
    return Pair(one, two, three, four, _noise(case, kind, name), scale=scale, scale32=EPS32 * scale)


def _noise(case: Case, kind: Kind, name: str) -> tuple[NDArray, ...]:
    return tuple(value for trace in case.noise if (value := trace.get(kind, name)) is not None)


STAGES = (
    Stage(1, "structure", inspect=structure),
    Stage(2, "initialization", inspect=initialization),
    Stage(3, "forward", ("activation", "logits", "output")),
    Stage(4, "loss", ("loss", "metric")),
    Stage(5, "backward", ("gradient", "update")),
)
