"""The stages' tensors as pairs of files of the `reprod_log` package, for the usual submission workflow of paper ports.

Each stage asked for writes ``STEM_FRAMEWORK.npy`` for both sides: structure (shapes), init (parameters after conversion),
forward (the logits and every module's output), loss (the loss and the metrics) and bp_align (gradients and one Adam step).
Keys are the reference's names and values are in its layout, float32, from the first batch and the first set of weights, so
that the package's own comparison finds equal keys and shapes on both sides.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignment.errors import AlignmentError
from alignment.experiment import Case, Experiment
from alignment.metrics import classification_metrics
from alignment.trace import Trace
from checkpoints import Move, split, undo

Tensors = dict[str, NDArray]


def write_reprod_logs(experiment: Experiment, folder: Path) -> list[Path]:
    """Write the pairs of the stages the experiment asks for; returns the files written.

    Raises:
        AlignmentError: the package is not installed, or the folder can't be written to.
    """
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            from reprod_log import ReprodLogger
        except ImportError as error:
            raise AlignmentError(
                f"--reprod-log needs the reprod_log package: {error}; pip install reprod_log"
            ) from error
    steps = experiment.options.steps
    case = next(experiment.cases(backward=5 in steps, progress=lambda: None)) if max(steps) > 2 else None
    written = []
    for step, stem in enumerate(("structure", "init", "forward", "loss", "bp_align"), start=1):
        if step not in steps:
            continue
        for side in ("reference", "candidate"):
            framework, _ = experiment.side(side)
            logger = ReprodLogger()
            for key, value in _tensors(experiment, case, step, side).items():
                logger.add(key, value)
            path = folder / f"{stem}_{framework.name}.npy"
            try:
                logger.save(str(path))
            except OSError as error:
                raise AlignmentError(f"{path}: can't write: {error.strerror}") from error
            written.append(path)
    return written


def _tensors(experiment: Experiment, case: Case | None, step: int, side: str) -> Tensors:
    if step <= 2:
        state = _parameters(experiment, side)
        return {name: np.array(value.shape) for name, value in state.items()} if step == 1 else state
    assert case is not None
    trace = case.reference32 if side == "reference" else case.candidate32
    if step == 3:
        return _records(trace, "logits") | _records(trace, "activation")
    if step == 4:
        logits, targets = trace.get("logits", "logits"), case.batch.targets
        assert logits is not None
        metrics = {} if targets is None else classification_metrics(logits, targets)
        return _records(trace, "loss") | {name: np.array(value) for name, value in metrics.items()}
    return _gradients(experiment, trace, side)


def _parameters(experiment: Experiment, side: str) -> Tensors:
    layout = experiment.layout
    assert layout is not None
    state = next(iter(experiment.weights.values()))
    if side == "reference":
        parts = split(state, layout)
        return {move.label: parts[move.label] for move in layout.moves}
    given = experiment.candidate_state(state)
    return {move.label: undo(given[move.target], move) for move in layout.moves}


def _records(trace: Trace, kind: str) -> Tensors:
    return {record.name: record.value for record in trace.records if record.kind == kind and record.value is not None}


def _gradients(experiment: Experiment, trace: Trace, side: str) -> Tensors:
    layout = experiment.layout
    assert layout is not None
    moves: dict[str, list[Move]] = {}
    for move in layout.moves if side == "candidate" else ():
        moves.setdefault(move.target, []).append(move)
    found: Tensors = {}
    for record in trace.records:
        if record.kind in ("gradient", "update") and record.value is not None:
            given = {move.label: undo(record.value, move) for move in moves.get(record.name, ())}
            for label, value in (given or {record.name: record.value}).items():
                found[f"{label}.{record.kind}"] = value.astype(np.float32)
    return found
