"""Suspects for roots that are not found by running the models piece by piece: structure, weights, initialisers, steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from alignment.causes import AnySuspect, StatisticSuspect, UpdateSuspect, WeightSuspect
from alignment.causes.initialization import initializer_suspects
from alignment.causes.structure import structure_suspects
from alignment.experiment import LEARNING_RATE, SIDES, Experiment
from alignment.report import TensorResult
from checkpoints import split, undo


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


def _wide(value: NDArray) -> NDArray[np.float64]:
    return np.asarray(value, dtype=np.float64)
