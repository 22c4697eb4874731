"""Suspects for roots that are not found by running the models piece by piece: structure, weights, initialisers, steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from alignment.causes import (
    AnySuspect,
    CriterionSuspect,
    CutSuspect,
    StatisticSuspect,
    UpdateSuspect,
    WeightSuspect,
)
from alignment.causes.initialization import initializer_suspects
from alignment.causes.loss import Formula, Given
from alignment.causes.structure import structure_suspects
from alignment.experiment import LEARNING_RATE, SIDES, Experiment, State
from alignment.report import TensorResult
from alignment.stages import criterion, criterion_options, criterion_scale, fits
from checkpoints import split, undo
from fake_data import Batch

# How far a parameter is moved, relatively, to see the loss's derivative: so little that no ReLU turns, in float64.
SLOPE_STEP = 1e-4


def other_suspects(experiment: Experiment, rows: Sequence[tuple[int, TensorResult]]) -> Iterator[AnySuspect]:
    """A suspect for each root (step, row) of a stage that does not run the models, and for each wrong step, if it can be."""
    wanted = {(row.record, row.name): (step, row) for step, row in rows}
    if any(step == 1 for step, _ in wanted.values()):
        yield from (one for one in structure_suspects(experiment) if (one.record, one.name) in wanted)
    if experiment.layout is None:
        return
    if any(record == "initializer" for record, _ in wanted):
        yield from (one for one in initializer_suspects(experiment) if (one.record, one.name) in wanted)
    yield from _weights(experiment, [name for (_, name), (step, _) in wanted.items() if step == 2])
    yield from _updates(experiment, [row for (record, _), (_, row) in wanted.items() if record == "update"])
    yield from _cuts(experiment, [row for (record, _), (_, row) in wanted.items() if record == "gradient"])
    yield from _criteria(experiment, [row for (record, _), (_, row) in wanted.items() if record == "loss"])


def _weights(experiment: Experiment, names: list[str]) -> Iterator[WeightSuspect]:
    layout = experiment.layout
    assert layout is not None
    slots = {slot.name: slot for slot in experiment.slots}
    state = next(reversed(experiment.weights.values()))
    given = experiment.candidate_state(state)
    state = split(state, layout)
    own = experiment.candidate.read_state(experiment.candidate_model)
    for move in layout.moves:
        if move.label in names:
            slot = slots[move.label]
            yield WeightSuspect(
                slot.role,
                move.label,
                slot.kind,
                slot.local,
                _wide(state[move.label]),
                _wide(undo(given[move.target], move)),
                _wide(undo(own[move.target], move)),
                {other: _wide(value) for other, value in state.items()},
            )


def _updates(experiment: Experiment, rows: Iterable[TensorResult]) -> Iterator[AnySuspect]:
    """The steps of both sides in float64, where the row says they differ most."""
    layout = experiment.layout
    assert layout is not None
    moves = {move.label: move for move in layout.moves}
    slots = {slot.name: slot for slot in experiment.slots}
    batches = {batch.name: batch for batch in experiment.batches}
    for row in rows:
        if row.name not in moves or row.weights is None or row.batch not in batches:
            continue
        state, move = experiment.weights[row.weights], moves[row.name]
        values: dict[tuple[str, str], NDArray] = {}
        for side in SIDES:
            held = experiment.model(side, "float64")
            held.user, model = None, held.module
            experiment.side(side)[0].load_state(
                model, state if side == "reference" else experiment.candidate_state(state)
            )
            trace = experiment.run(side, model, batches[row.batch], backward=True, step=True)
            for kind in ("gradient", "update"):
                value = trace.get(kind, row.name if side == "reference" else move.target)
                if value is not None:
                    values[side, kind] = _wide(value if side == "reference" else undo(value, move))
        if not {("reference", "update"), ("candidate", "update")} <= set(values):
            continue
        slot, ours, theirs = slots[row.name], values["reference", "update"], values["candidate", "update"]
        if slot.role == "buffer":
            owner = row.name.rpartition(".")[0]
            momentum = experiment.reference.options(experiment.model("reference", "float64").module, owner).get(
                "momentum"
            )
            value = _wide(split(state, layout)[row.name])
            yield StatisticSuspect(row.name, slot.local, value, ours, theirs, momentum=momentum)
        elif {("reference", "gradient"), ("candidate", "gradient")} <= set(values):
            yield UpdateSuspect(
                row.name,
                _wide(split(state, layout)[row.name]),
                (values["reference", "gradient"],),
                (values["candidate", "gradient"],),
                (ours,),
                (theirs,),
                (LEARNING_RATE,),
            )


def _cuts(experiment: Experiment, rows: Iterable[TensorResult]) -> Iterator[CutSuspect]:
    """Gradients that agree where each piece is run by itself, and not in a whole run: a way back that one side cuts."""
    layout = experiment.layout
    assert layout is not None
    targets = {move.label: move for move in layout.moves}
    batches = {batch.name: batch for batch in experiment.batches}
    for row in rows:
        state = experiment.weights.get(row.weights or "", {})
        if row.name not in state or row.name not in targets or row.batch not in batches:
            continue
        move, batch, found = targets[row.name], batches[row.batch], {}
        for side in SIDES:
            held = experiment.model(side, "float64")
            held.user = None
            given = state if side == "reference" else experiment.candidate_state(state)
            experiment.side(side)[0].load_state(held.module, given)
            trace = experiment.run(side, held.module, batch, backward=True, brief=True)
            value = trace.get("gradient", row.name if side == "reference" else move.target)
            found[side] = None if value is None else _wide(value if side == "reference" else undo(value, move))
        if found["candidate"] is None or not found["candidate"].any():
            continue
        directions = _directions(found["candidate"])
        slopes = tuple(_slope(experiment, state, row.name, batch, way) for way in directions)
        yield CutSuspect("gradient", row.name, found["reference"], found["candidate"], directions, slopes)


def _directions(gradient: NDArray) -> tuple[NDArray, ...]:
    generator = np.random.default_rng(0)
    return gradient / np.linalg.norm(gradient), *(generator.standard_normal(gradient.shape) for _ in range(2))


def _slope(experiment: Experiment, state: State, name: str, batch: Batch, way: NDArray) -> float:
    """The derivative of the reference's loss along a direction of one parameter, under all its names, in float64."""
    tied = {slot.tied_to or slot.name for slot in experiment.slots if slot.name == name}
    names = [slot.name for slot in experiment.slots if (slot.tied_to or slot.name) in tied]
    held = experiment.model("reference", "float64")
    held.user = None
    step = SLOPE_STEP * max(1.0, float(np.linalg.norm(state[name]))) / float(np.linalg.norm(way))

    def loss(shift: float) -> float:
        moved = {**state, **{one: _wide(state[one]) + shift * way for one in names}}
        experiment.reference.load_state(held.module, moved)
        value = experiment.run("reference", held.module, batch, backward=False, brief=True).get("loss", "loss")
        return 0.0 if value is None else float(np.sum(value))

    wide, narrow = ((loss(h) - loss(-h)) / (2 * h) for h in (step, step / 2))
    return (4 * narrow - wide) / 3


def _criteria(experiment: Experiment, rows: Iterable[TensorResult]) -> Iterator[CriterionSuspect]:
    """Each framework's own cross entropy of the reference's logits."""
    batches = {batch.name: batch for batch in experiment.batches}
    for row in rows:
        batch = batches.get(row.batch or "")
        if batch is None or batch.targets is None or row.weights is None:
            continue
        trace = experiment.detailed(row.weights, batch.name)
        logits, options = trace.get("logits", "logits"), dict(criterion_options(batch.targets)).get(row.name)
        if logits is None or options is None or not fits(logits, batch.targets):
            continue
        scale = criterion_scale(logits)
        sides = (experiment.reference, experiment.candidate)
        ours, theirs = (criterion(side, trace, batch.targets, scale, options) for side in sides)
        assert ours is not None
        assert theirs is not None
        if options["reduction"] == "none" and ours.shape == theirs.shape:
            ours, theirs = ours.sum(), theirs.sum()
        given = Given(_wide(logits) * scale, batch.targets, {}, None)
        divisor = "kept" if options["reduction"] == "mean" else "one"
        right = Formula(ignored=options.get("ignore_index"), divisor=divisor)
        yield CriterionSuspect("loss", row.name, given, right, _wide(ours), _wide(theirs))


def _wide(value: NDArray) -> NDArray[np.float64]:
    return np.asarray(value, dtype=np.float64)
