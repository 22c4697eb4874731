"""Compare two captures: the sides ran apart, and neither framework is needed.

The captures' runs take the place of live ones (`RecordedExperiment.cases`), so that the same code judges them as in a check.
Of what is not kept nothing is believed: a tensor that was left out is a note where that was asked for, and inconclusive where
there was no room; one of which there are figures alone is judged by `alignment.figures`.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from alignment.capture_file import Capture, Key, Run, SavedTrace, Why, read_capture
from alignment.check import Progress, report_of
from alignment.compare import EPS32, Comparison, Tolerance, bitwise, rms
from alignment.correspondence import OF_MODULES, packed_tensors, parted, rename
from alignment.errors import AlignmentError
from alignment.experiment import Case, Experiment, Model, Options, State
from alignment.figures import Figures, compare_figures, figures_of, float32_error, value_of
from alignment.frameworks import Framework
from alignment.localise import Scene, first_is_root, localise
from alignment.mapping import ModelMapping
from alignment.orders import arrange
from alignment.recorded import Recorded, settle_recorded
from alignment.report import Report, StageResult, TensorResult
from alignment.saved_pair import SavedPair, no_inputs
from alignment.scope import listed, with_reason
from alignment.stages import (
    STAGES,
    Summands,
    compare_drawn,
    copy_result,
    drawn_note,
    judge_cases,
    merge,
    no_weights,
    result_of,
    stage_of,
    structure,
    within,
)
from alignment.trace import Kind, Record, Terms, Trace, widest
from alignment.twins import Side, Twin
from checkpoints import split, undo
from fake_data import Batch

# A training run is judged by how far rounding moves the reference's own: at most so many times as far.
SPREAD = 10.0
# The share of the learning rate beyond which a parameter's step went another way, as Adam's does where a gradient is rounding
# noise; and the share of a parameter's elements that may do so where the reference's own runs show none.
FLIP, FLIPPED = 0.1, 0.01
# The default of both frameworks' Adam.
ADAM_BETA2 = 0.999
# How the name of a row about training ends.
TRAINING = " (training)"


def compare_captures(
    reference: str | Path,
    candidate: str | Path,
    steps: Sequence[int] = (1, 2, 3, 4, 5),
    progress: Progress | None = None,
    *,
    mapping: ModelMapping | str | None = None,
    strict: bool = False,
    details: bool = False,
) -> Report:
    """Judge a candidate's capture by the reference's, as `alignment.check` judges two live sides.

    Args:
        reference, candidate: files of `capture_reference` and `capture_candidate`.
        steps: which stages, by number.
        progress: called with (done, total) after every batch.
        mapping: what is compared, and how strictly, a value or a file; None: what the candidate was captured with. Weights
            stay where that mapping put them.
        strict: as in `alignment.Options`, of the running variances alone; a reference that was captured so needs no saying.
        details: keep of each tensor where its differences sit, as `Options` has it.

    Raises:
        AlignmentError: one is no capture, the candidate's was not made from this reference's, or the mapping does not fit.
    """
    start = time.perf_counter()
    ours, theirs = read_capture(reference), read_capture(candidate)
    files = f"{reference} and {candidate}"
    _refuse_strangers(ours, theirs, files)
    chosen = ModelMapping.read(mapping) if isinstance(mapping, str) else mapping
    try:
        experiment = _experiment(ours, theirs, tuple(steps), chosen, strict, details)
        stages, notes = _stages(experiment, progress)
    except AlignmentError as error:
        raise AlignmentError(f"{files}: {error}") from error
    except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
        # Files may say anything, shapes that no layer has among it.
        what = f"{type(error).__name__}: {error}"
        raise AlignmentError(f"{files}: what they hold does not fit together: {what}") from error
    seconds = time.perf_counter() - start
    said = (*_short(ours, theirs), *_devices(ours, theirs), *_half_strict(ours, strict), *ours.about.notes)
    notes = (f"captured apart: {files}", *said, *notes)
    report = report_of(experiment, experiment, stages, seconds, notes)
    # No options: there is no twin to be run again.
    result = replace(report.twins[0], faults=theirs.about.faults, options={})
    return replace(report, twins=(result,))


def _refuse_strangers(ours: Capture, theirs: Capture, files: str) -> None:
    sides = (ours.about.side, theirs.about.side)
    if sides != ("reference", "candidate"):
        raise AlignmentError(
            f"{files}: are of the {sides[0]} and the {sides[1]}; name the reference's capture, then the candidate's"
        )
    if theirs.about.of != ours.identity:
        raise AlignmentError(
            f"{files}: the candidate was not captured from this reference's capture, so that weights and batches may be "
            "others: capture it again with --from"
        )


def _short(ours: Capture, theirs: Capture) -> list[str]:
    counts = {capture.about.side: capture.left_out.get("budget", 0) for capture in (ours, theirs)}
    return [
        f"the {side}'s capture left out {count} records for want of room" for side, count in counts.items() if count
    ]


def _half_strict(ours: Capture, strict: bool) -> list[str]:
    half = strict and not ours.about.strict and any(slot.kind == "Embedding" for slot in ours.about.slots)
    said = (
        "strict of running variances alone: embeddings' rows of zeros stayed zero; capture the reference with --strict"
    )
    return [said] if half else []


def _devices(ours: Capture, theirs: Capture) -> list[str]:
    devices = [about.device for about in (ours.about, theirs.about)]
    return [f"the reference ran on {devices[0]}, the candidate on {devices[1]}"] if set(devices) != {"cpu"} else []


# ---------------------------------------------------------------------------------------------------------- experiment


@dataclass(frozen=True, kw_only=True)
class RecordedExperiment(Experiment):
    """A set-up whose sides were captured: its cases come from two files."""

    ours: Capture
    theirs: Capture

    def cases(self, backward: bool, progress: Callable[[], None]) -> Iterator[Case]:
        """Every case of the captures, with the records of which every run holds the value."""
        for weights in self.weights:
            for batch in self.batches:
                runs = self.runs(weights, batch)
                open_ = {key for key, state in runs.states.items() if state != "value"}
                one, two, three, four, *noise = [self._trace(run, open_) for run in runs.all]
                self.learn(three, four)
                two, four = (arrange(trace, self.orders) for trace in (two, four))
                largest = runs.reference64.largest_gradient
                details = self.options.details
                yield Case(weights, batch, one, three, two, four, tuple(noise), self.scope, largest, details)
                progress()

    def model(self, side: str, dtype: str) -> Model:
        """No model: what is known of it is in the capture."""
        return Model(None)

    def summands(self, weights: str, batch: str) -> Mapping[str, Terms]:
        """What was captured of them."""
        run = self.ours.run(weights, batch, "float64")
        return {} if run is None else run.summands

    def initial(self, side: str, seed: int) -> State:
        """What was captured of the draws, the first of seed 1."""
        return (self.ours if side == "reference" else self.theirs).initial[seed - 1]

    def runs(self, weights: str, batch: Batch) -> _Runs:
        """The runs of one case.

        Raises:
            AlignmentError: one side lacks one.
        """
        found: list[Run] = []
        for dtype in ("float32", "float64"):
            for side, capture in (("reference", self.ours), ("candidate", self.theirs)):
                run = capture.run(weights, batch.name, dtype)
                if run is None:
                    raise AlignmentError(
                        f"the {side}'s capture has no {dtype} run of {weights} weights on batch {batch.name}"
                    )
                found.append(self._called(run) if side == "candidate" else self.parted(self._outside(run, 0)))
        one, two, three, four = found
        noise = tuple(self.parted(self._outside(run, 0)) for run in self.ours.noise(weights, batch.name))
        return _Runs(one, two, three, four, noise, self)

    def _outside(self, run: Run, side: int) -> Run:
        """A run without the modules that are inside one that is compared at its boundary; by the side's own names."""
        if not self.scope.inside[side]:
            return run

        def holds(key: Key) -> bool:
            return self.scope.is_outside(side, *key)

        records = tuple(record for record in run.trace.records if holds((record.kind, record.name)))
        return replace(
            run,
            trace=replace(run.trace, records=records),
            figures={key: figures for key, figures in run.figures.items() if holds(key)},
            left_out={key: why for key, why in run.left_out.items() if holds(key)},
            order=tuple(key for key in run.order if holds(key)),
        )

    def parted(self, run: Run) -> Run:
        """A run of the reference with the parts of a tensor in its place, where these have counterparts of their own.

        The figures of the whole say nothing of its parts, which are then left out as by the level.
        """
        packed = packed_tensors(self.layout)
        if not packed:
            return run

        def parts(record: Record) -> list[Record]:
            # The records of training are named after their step, too.
            step, slash, own = record.name.partition("/") if run.purpose == "train" else ("", "", record.name)
            return [replace(part, name=step + slash + part.name) for part in parted(replace(record, name=own), packed)]

        names = {key: [(key[0], part.name) for part in parts(Record(*key, None))] for key in run.order}
        lost: dict[Key, Why] = {name: "level" for key in run.figures for name in names[key] if names[key] != [key]}
        return replace(
            run,
            trace=replace(run.trace, records=tuple(part for record in run.trace.records for part in parts(record))),
            figures={key: figures for key, figures in run.figures.items() if names[key] == [key]},
            left_out=lost | {name: why for key, why in run.left_out.items() for name in names[key]},
            order=tuple(name for key in run.order for name in names[key]),
        )

    @cached_property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """The candidate's name of a parameter -> what of the reference's is moved there, by `Move.label`."""
        assert self.layout is not None
        found: dict[str, tuple[str, ...]] = {}
        for move in self.layout.moves:
            found[move.target] = (*found.get(move.target, ()), move.label)
        return found

    def candidate_name(self, key: Key) -> str:
        """The candidate's name of a record, by the reference's."""
        kind, name = key
        if kind in OF_MODULES:
            return rename(name, self.own_words)
        return self._targets.get(name, name) if kind in ("gradient", "update") else name

    @cached_property
    def _targets(self) -> dict[str, str]:
        return {label: target for target, labels in self.labels.items() for label in labels}

    def _called(self, run: Run) -> Run:
        """The candidate's run, its modules called by the reference's names."""
        run = self._outside(run, 1)

        def to(key: Key) -> Key:
            return (key[0], rename(key[1], self.called)) if key[0] in OF_MODULES else key

        records = tuple(Record(*to((record.kind, record.name)), record.value) for record in run.trace.records)
        return replace(
            run,
            trace=replace(run.trace, records=records),
            figures={to(key): figures for key, figures in run.figures.items()},
            left_out={to(key): why for key, why in run.left_out.items()},
            order=tuple(to(key) for key in run.order),
        )

    def named(self, key: Key, candidate: bool) -> Key:
        """What a record is called in a run of a side whose modules have the reference's names."""
        return (key[0], self.candidate_name(key)) if candidate and key[0] in ("gradient", "update") else key

    def common(self, key: Key, candidate: bool) -> tuple[Key, ...]:
        """The other way round: one record of the candidate may hold several of the reference's parts."""
        if candidate and key[0] in ("gradient", "update"):
            return tuple((key[0], label) for label in self.labels.get(key[1], (key[1],)))
        return (key,)

    def _trace(self, run: tuple[Run, bool], open_: set[Key]) -> Trace:
        """A run's records, less those that are open; figures of one element are the value."""
        found, candidate = run
        kept = []
        for key in found.order:
            if not open_.isdisjoint(self.common(key, candidate)):
                continue
            figures = found.figures.get(key)
            value = value_of(figures) if figures is not None else found.trace.get(*key)
            if figures is not None and candidate and value is not None:
                value = self._as_stored(key, value)
            kept.append(Record(*key, value))
        return replace(found.trace, records=tuple(kept))

    def _as_stored(self, key: Key, value: NDArray) -> NDArray:
        """A value in the reference's layout as the candidate holds it: of one element, so that the shape says all."""
        assert self.layout is not None
        shapes = {move.target: move.shape_to for move in self.layout.moves}
        return value.reshape(shapes[key[1]]) if key[0] in ("gradient", "update") and key[1] in shapes else value


@dataclass(frozen=True)
class _Runs:
    """The runs of one case, the candidate's modules by the reference's names."""

    reference32: Run
    candidate32: Run
    reference64: Run
    candidate64: Run
    noise: tuple[Run, ...]
    experiment: RecordedExperiment

    @property
    def all(self) -> list[tuple[Run, bool]]:
        """(run, is it the candidate's) in the order of the fields."""
        four = (self.reference32, self.candidate32, self.reference64, self.candidate64)
        return [(run, number % 2 == 1) for number, run in enumerate(four)] + [(run, False) for run in self.noise]

    @cached_property
    def states(self) -> dict[Key, str]:
        """Record by the reference's name -> "value", "figures", or why it was left out: the worst over all runs."""
        found: dict[Key, str] = {}
        for run, candidate in self.all:
            for key in run.order:
                state: str = run.left_out.get(key) or "value"
                if key in run.figures and value_of(run.figures[key]) is None:
                    state = "figures"
                for common in self.experiment.common(key, candidate):
                    found[common] = max(found.get(common, "value"), state, key=_WORSE.index)
        kinds: tuple[Kind, ...] = ("gradient", "update")
        for kind, labels in ((kind, labels) for labels in self.experiment.labels.values() for kind in kinds):
            # What one record of the candidate holds is there for all its parts, or for none.
            keys = [key for label in labels if (key := (kind, label)) in found]
            if len(labels) > 1 and keys:
                found |= dict.fromkeys(keys, max((found[key] for key in keys), key=_WORSE.index))
        for kind, name in list(found):
            # A step is judged given the gradient that it is made of.
            if kind == "update" and found.get(("gradient", name), "value") != "value":
                found[kind, name] = max(found[kind, name], found["gradient", name], key=_WORSE.index)
            # And a running variance by how many values its layer gave.
            owner, _, local = name.rpartition(".")
            given = found.get(("activation", owner), "value")
            if kind == "update" and local == "running_var" and given != "value":
                found[kind, name] = max(found[kind, name], given, key=_WORSE.index)
        return found

    def four(self, key: Key) -> list[Figures | None]:
        """A record's figures in the order of the fields, made of the values where one side kept these."""
        return [self._figures(run, key, candidate) for run, candidate in self.all[:4]]

    def _figures(self, run: Run, key: Key, candidate: bool) -> Figures | None:
        own = self.experiment.named(key, candidate)
        if own in run.figures:
            return run.figures[own]
        value = run.trace.get(*own)
        if value is None:
            return None
        layout = self.experiment.layout
        assert layout is not None
        move = next((m for m in layout.moves if key[0] in ("gradient", "update") and m.label == key[1]), None)
        if candidate and move is not None and value.shape == move.shape_to:
            value = undo(value, move)
        error = None
        if run is self.reference64:
            error = float32_error(value, [r.trace.get(*key) for r in (self.reference32, *self.noise)])
        return figures_of(value, error)


_WORSE = ("value", "figures", "only", "level", "budget")


def _experiment(
    ours: Capture, theirs: Capture, steps: tuple[int, ...], mapping: ModelMapping | None, strict: bool, details: bool
) -> RecordedExperiment:
    one, two = ours.about, theirs.about
    twin = Twin(
        one.twin,
        "two captures",
        Side(one.framework, one.target),
        Side(two.framework, two.target),
        {},
        no_inputs,
        loss=one.loss,
        padding=lambda _settings: one.padding,
    )
    layout, mismatch, scope, paths = settle_recorded(one, two, mapping)
    if layout is None and not two.mismatch:
        raise AlignmentError("they are not of models whose weights correspond: " + "\n  ".join(mismatch))
    batches = [[batch.name for batch in capture.batches] for capture in (ours, theirs)]
    if layout is not None and (list(ours.weights) != list(theirs.weights) or batches[0] != batches[1]):
        raise AlignmentError("they hold other sets of weights, or other batches")
    return RecordedExperiment(
        twin,
        Options(steps=steps, seed=one.seed, strict=strict or one.strict, details=details),
        dict(one.settings),
        cast(Framework, Recorded(one)),
        cast(Framework, Recorded(two)),
        None,
        None,
        layout,
        mismatch,
        paths,
        dict(ours.weights),
        ours.batches,
        one.data,
        (),
        (),
        one.threads,
        scope=scope,
        ours=ours,
        theirs=theirs,
    )


# -------------------------------------------------------------------------------------------------------------- stages


def _stages(
    experiment: RecordedExperiment, progress: Progress | None
) -> tuple[tuple[StageResult, ...], tuple[str, ...]]:
    """The stages asked for, their roots marked; and notes."""
    steps = experiment.options.steps
    notes = [] if 1 in steps else [*experiment.scope.notes]  # which the structure has, where it is asked for
    stages = [structure(experiment)] if 1 in steps else []
    running = [stage for stage in STAGES if stage.records and stage.step in steps]
    if experiment.layout is None:
        open_ = [(stage.step, stage.name) for stage in STAGES if stage.step in steps and stage.step > 1]
        stages += [StageResult(step, name, (no_weights(experiment),)) for step, name in open_]
    elif 2 in steps:
        stages.append(_weights(experiment))
    if running and experiment.layout is not None:
        rows, said = _judged(experiment, progress)
        trained, rounding = _training(experiment)
        notes += [*said, *rounding]
        rows += trained
        for stage in running:
            if any(row.record in stage.records for row in rows):
                stages.append(stage_of(stage, rows))
            else:
                notes.append(f"step {stage.step} {stage.name}: not captured, and so not compared")
    if not stages:
        raise AlignmentError("nothing that was captured belongs to the stages asked for")
    marked, _ = localise(experiment, tuple(within(experiment.scope, stage) for stage in stages), _scenes)
    # A scene is judged in float64 alone, by a rule of its own: what the stages found to agree is no root. Training comes last.
    marked = tuple(
        replace(stage, tensors=tuple(replace(t, root=t.root and _may_be_root(t)) for t in stage.tensors))
        for stage in marked
    )
    rooted = any(tensor.root for stage in marked for tensor in stage.tensors)
    return (marked if rooted else first_is_root(marked)), tuple(notes)


def _may_be_root(row: TensorResult) -> bool:
    return row.verdict == "diverged" and not row.name.endswith(TRAINING)


def _weights(experiment: RecordedExperiment) -> StageResult:
    """What both sides held once they were given the weights: copies, so their bits must be equal."""
    layout = experiment.layout
    assert layout is not None
    roles = {slot.name: slot.role for slot in experiment.slots}
    rows = []
    for name, state in experiment.weights.items():
        ours, theirs = split(state, layout), experiment.theirs.weights[name]
        rows += [copy_result(experiment, roles[move.label], move, ours, theirs, name) for move in layout.moves]
    seeds = min(experiment.ours.about.initializers, experiment.theirs.about.initializers)
    if seeds:
        drawn, note = compare_drawn(experiment, seeds), drawn_note(seeds)
    else:
        lacking = next(one.about for one in (experiment.ours, experiment.theirs) if not one.about.initializers)
        why = "--initializers keeps them" if lacking.side == "reference" else "its model was given ready-made"
        drawn, note = [], f"initializers not compared: the {lacking.side}'s capture has none ({why})"
    return StageResult(2, "initialization", (*merge(rows), *drawn), (note,))


def _judged(experiment: RecordedExperiment, progress: Progress | None) -> tuple[list[TensorResult], list[str]]:
    """Every record of every case, and notes on what was left out because that was asked for."""
    cases = [(weights, batch) for weights in experiment.weights for batch in experiment.batches]
    total, done = 2 * len(cases), 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    rows = judge_cases(experiment, 5 in experiment.options.steps, advance)
    figures: list[TensorResult] = []
    open_: dict[Key, Counter[str]] = {}
    for weights, batch in cases:
        runs = experiment.runs(weights, batch)
        for key, state in runs.states.items():
            if state != "value":
                open_.setdefault(key, Counter())[state] += 1
            if state == "figures":
                figures.append(_by_figures(experiment, runs, key, weights, batch))
        advance()
    kept = [row for row in rows if not _is_open(experiment, row, open_)]
    found = [row for row in rows if _is_open(experiment, row, open_) and row.verdict == "diverged"]
    short = [_no_room(experiment, key, states, len(cases)) for key, states in open_.items() if states["budget"]]
    asked = Counter(
        why for states in open_.values() for why in ("level", "only") if states[why] and not states["budget"]
    )
    words = {
        "level": f"--level {experiment.ours.about.level}",
        "only": f"--only {' '.join(experiment.ours.about.only)}",
    }
    notes = [
        f"{count} records were not captured ({words[why]}): nothing is said of them" for why, count in asked.items()
    ]
    if figures:
        notes.append(
            "compared by figures alone (--level statistics): equal bits are aligned, other bits at most not refuted"
        )
    order = {row_key(row): number for number, row in enumerate(rows)}
    every = merge([*kept, *found, *merge(figures), *short])
    return sorted(every, key=lambda row: order.get(row_key(row), len(order))), notes


def row_key(row: TensorResult) -> tuple[str, str]:
    """Record and name of a row."""
    return row.record, row.name


def _is_open(experiment: RecordedExperiment, row: TensorResult, open_: Mapping[Key, Any]) -> bool:
    """Does a row rest on records that are not all there?"""
    if row.record == "metric":
        return ("logits", "logits") in open_ and not open_["logits", "logits"]["budget"]
    known = cast(Kind, row.record)
    return (known, row.name) in open_ or (known == "loss" and row.name != "loss" and (known, row.name) in open_)


def _by_figures(experiment: RecordedExperiment, runs: _Runs, key: Key, weights: str, batch: Batch) -> TensorResult:
    one, two, three, four = runs.four(key)
    scale = runs.reference64.largest_gradient if key[0] == "gradient" else 0.0
    if key[0] == "gradient" and one is None and two is None and three is None and four is None:
        comparison = Comparison("aligned", "metadata", "unused on both sides: neither gives it a gradient")
    else:
        own = experiment.scope.own(key[1], experiment.candidate_name(key))
        comparison = usual = compare_figures(one, two, three, four, scale)
        if own is not None:
            comparison = with_reason(compare_figures(one, two, three, four, scale, own.tolerance), usual, own)
    return result_of(key[0], key[1], experiment.candidate_name(key), comparison, weights, batch.name)


def _no_room(experiment: RecordedExperiment, key: Key, states: Counter[str], cases: int) -> TensorResult:
    reason = f"left out of {states['budget']} of {cases} cases to stay within the budget: not compared there"
    return TensorResult(key[0], key[1], experiment.candidate_name(key), None, "inconclusive", reason)


# --------------------------------------------------------------------------------------------------------------- scenes


def _scenes(experiment: Experiment, stages: tuple[StageResult, ...]) -> Iterator[Scene]:
    """The case that was run in detail, where anything diverges in it; else the one in which most does, as it was recorded."""
    assert isinstance(experiment, RecordedExperiment)
    cases = Counter(case for stage in stages for t in stage.tensors if t.batch and not t.root for case in t.diverging)
    known = [
        (f"{weights}/{batch.name}", weights, batch) for weights in experiment.weights for batch in experiment.batches
    ]
    found = [case for case in known if cases[case[0]]]
    if not found:
        return
    captures = (experiment.ours, experiment.theirs)
    detailed = [case for case in found if all(_detailed(capture, case[1], case[2]) is not None for capture in captures)]
    _, weights, batch = detailed[0] if detailed else max(found, key=lambda case: cases[case[0]])
    yield SavedPair(*(_saved(capture, weights, batch) for capture in captures))


def _detailed(capture: Capture, weights: str, batch: Batch) -> Run | None:
    run = capture.run(weights, batch.name, "float64", purpose="detail")
    return None if run is None or run.left_out else run


def _saved(capture: Capture, weights: str, batch: Batch) -> SavedTrace:
    detailed = _detailed(capture, weights, batch)
    if detailed is not None:
        return capture.saved(detailed)
    run = capture.run(weights, batch.name, "float64")
    assert run is not None
    kinds: tuple[Kind, ...] = ("activation", "logits", "output", "loss", "gradient")
    records = tuple(r for r in run.trace.records if r.kind in kinds and not r.name.startswith("cross_entropy["))
    return capture.saved(replace(run, trace=replace(run.trace, records=records)))


# ------------------------------------------------------------------------------------------------------------- training


def _training(experiment: RecordedExperiment) -> tuple[list[TensorResult], list[str]]:
    """A row for the loss and for each parameter's change, over all training steps: its worst; and notes.

    A parameter whose gradient is zero but for rounding (a bias that a batch norm takes away again) has no row: Adam's steps
    are as large as any, and go wherever rounding goes, which is another matter in every framework.
    """
    name, batch = next(iter(experiment.weights)), experiment.batches[0].name
    steps = experiment.ours.about.train_steps
    if not steps or experiment.layout is None:
        return [], []
    ours = experiment.ours.run(name, batch, "float32", purpose="train")
    theirs = experiment.theirs.run(name, batch, "float32", purpose="train")
    if ours is None or theirs is None:
        raise AlignmentError("the training steps are in one of the captures only")
    ours = experiment.parted(ours)
    noise = [experiment.parted(run) for run in experiment.ours.noise(name, batch, "train")]
    weights = split(experiment.weights[name], experiment.layout)
    moves = {move.label: move for move in experiment.layout.moves}
    rows, summands = [], Summands(experiment)
    rounding: dict[str, None] = {}
    for key in (key for key in ours.order if key[0] != "gradient"):
        kind, label = key
        step, _, own = label.partition("/")
        move, truth = moves.get(own), ours.trace.get("gradient", f"1/{own}")
        if truth is not None and truth.size and rms(truth) <= summands.rounding(name, batch, own, truth.shape):
            rounding[own] = None
            continue
        if experiment.scope.left_out(kind, own, own if move is None else move.target):
            continue
        target = (kind, f"{step}/{move.target}") if kind == "update" and move is not None else key
        if any(k in run.left_out for run, k in ((ours, key), (theirs, target), *((run, key) for run in noise))):
            comparison = Comparison("inconclusive", "metadata", f"step {step} was left out to stay within the budget")
        else:
            value = theirs.trace.get(*target)
            if value is not None and move is not None and kind == "update" and value.shape == move.shape_to:
                value = undo(value, move)
            moved = [near for run in noise if (near := run.trace.get(*key)) is not None]
            size = widest([weights[own]]) if kind == "update" and own in weights else 0.0
            allow = experiment.scope.tolerance(own, own if move is None else move.target).precision_ratio
            comparison = judge_step(
                kind,
                ours.trace.get(*key),
                value,
                moved,
                size,
                experiment.ours.about.learning_rate,
                int(step),
                SPREAD * allow / Tolerance().precision_ratio,
            )
        what, candidate = own + TRAINING, (own if move is None else move.target) + TRAINING
        rows.append(result_of(kind, what, candidate, comparison, name, f"step {step}"))
    notes = [f"not compared in training, as their gradients are rounding alone: {listed(list(rounding))}"]
    return merge(rows), notes if rounding else []


def judge_step(
    kind: Kind,
    reference: NDArray | None,
    candidate: NDArray | None,
    moved: Sequence[NDArray],
    size: float,
    learning_rate: float,
    step: int,
    spread_ratio: float = SPREAD,
) -> Comparison:
    """Judge one step of training in float32 by how far rounding moves the reference's own.

    The yardstick are runs of the reference whose weights were moved by one unit in the last place. A loss may differ by ten
    times their spread. Of a parameter's change the RMS may, over the elements that went the same way; and as many as ten
    times the elements may go another way (by more than a tenth of the learning rate), or a hundredth of all: where a gradient
    is rounding noise, the direction of Adam's step is that of the noise.

    Args:
        moved: the same value of the runs with moved weights. size: the largest weight. step: its number, from 1.
        spread_ratio: how many times as far as rounding moves it.
    """
    if reference is None or candidate is None or reference.shape != candidate.shape or not reference.size:
        return bitwise(reference, candidate)
    if not moved or any(run.shape != reference.shape for run in moved):
        return Comparison("inconclusive", "metadata", "no runs with moved weights: there is nothing to judge it by")
    gap, spread = np.abs(candidate - reference), [np.abs(run - reference) for run in moved]
    if not all(np.isfinite(values).all() for values in (gap, *spread)):
        return Comparison("inconclusive", "metadata", f"step {step} is not finite", reference.shape)
    if kind == "loss":
        allowed = spread_ratio * max(float(np.max(spread)), 2 * EPS32 * float(np.abs(reference).max()))
        return _step_result(float(gap.max()), allowed, reference, step, "the loss differs")
    flipped = gap > FLIP * learning_rate
    flips = int(flipped.sum())
    most = spread_ratio * max(int((run > FLIP * learning_rate).sum()) for run in spread)
    flips_allowed = max(most, FLIPPED * gap.size, 1.0 if gap.size > 1 else 0.0)
    if flips > flips_allowed:
        what = f"elements, of {gap.size}, go another way"
        return _step_result(float(flips), flips_allowed, reference, step, what, float(gap.max()))
    # Rounding of the parameter itself, whose difference the change is; and of Adam's 1 − β₂ᵗ, where βᵗ is kept in float32.
    floor = EPS32 * (4 * (size + step * learning_rate) + learning_rate / (1 - ADAM_BETA2**step))
    own = max(rms(np.where(run > FLIP * learning_rate, 0.0, run)) for run in spread)
    return _step_result(
        rms(np.where(flipped, 0.0, gap)), spread_ratio * own + floor, reference, step, "RMS difference of the change"
    )


def _step_result(
    seen: float, allowed: float, reference: NDArray, step: int, what: str, largest: float | None = None
) -> Comparison:
    verdict = "aligned" if seen <= allowed else "diverged"
    return Comparison(
        "aligned" if seen <= allowed else "diverged",
        "precision",
        f"step {step}: {what}: {seen:.2g}, rounding explains {allowed:.2g}",
        reference.shape,
        "float32",
        seen if largest is None else largest,
        seen=seen,
        allowed=allowed,
        strain=seen / allowed if allowed else (0.0 if verdict == "aligned" else math.inf),
    )
