"""Suspects that are not found by running: weights that were converted wrongly."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from alignment.causes.suspect import AnySuspect, WeightSuspect
from alignment.experiment import Experiment
from checkpoints import undo


def other_suspects(experiment: Experiment, wanted: list[tuple[str, str]]) -> Iterable[AnySuspect]:
    """Suspects for roots (record, name) of the stages that do not run the models."""
    if experiment.layout is None:
        return
    slots = {slot.name: slot for slot in experiment.reference.slots(experiment.reference_model)}
    moves = {move.source: move for move in experiment.layout.moves}
    state = next(reversed(experiment.weights.values()))
    given = experiment.candidate_state(state)
    own = experiment.candidate.read_state(experiment.candidate_model)
    for record, full in wanted:
        if record not in ("parameter", "buffer") or full not in moves:
            continue
        move, slot = moves[full], slots[full]
        yield WeightSuspect(
            record,
            full,
            slot.kind,
            slot.local,
            np.asarray(state[full], dtype=np.float64),
            np.asarray(undo(given[move.target], move), dtype=np.float64),
            np.asarray(undo(own[move.target], move), dtype=np.float64),
            {other: np.asarray(value, dtype=np.float64) for other, value in state.items()},
        )
