"""A further run in bfloat16 or float16: are the candidate's errors there as small as the reference's own?

Weights and inputs are rounded to the dtype first, on both sides; the truth is the reference's float64 result from these
rounded values. Then the question is that of `alignment.compare`'s precision, in another dtype. What the models return, the loss
and the gradients of parameters are judged, not what is between.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from alignment.compare import Comparison, Tolerance, overall, rms, sequential, settle
from alignment.errors import AlignmentError
from alignment.experiment import Experiment, State, is_floating, largest_gradient, moved_by_one_ulp
from alignment.report import StageResult, TensorResult
from alignment.stages import merge, result_of
from alignment.trace import Kind, Trace
from checkpoints import undo
from fake_data import Batch

DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
# Records that are judged, and the step they belong to.
_STEP: dict[Kind, int] = {"logits": 3, "output": 3, "loss": 4, "gradient": 5}


@dataclass(frozen=True)
class _Runs:
    """What became of one batch with one set of weights. noise: the reference's low run, and that with moved weights."""

    weights: str
    batch: Batch
    truth: Trace
    noise: tuple[Trace, Trace]
    candidate: Trace


@dataclass(frozen=True)
class _Judged:
    record: Kind
    reference_name: str
    candidate_name: str
    comparison: Comparison
    weights: str
    batch: str


def judge_precision(experiment: Experiment, stages: tuple[StageResult, ...]) -> tuple[StageResult, ...]:
    """The stages with a row for each tensor that was judged in the dtype asked for; what can't run is inconclusive.

    Where float64 differs there is nothing to ask: a note says so.
    """
    dtype = experiment.options.precision
    running = {step for step in _STEP.values() if step in experiment.options.steps}
    if not running or dtype not in DTYPES:
        return stages
    ran = [stage.verdict for stage in stages if stage.step in running]
    if overall(ran) == "diverged":
        note = f"{dtype} not judged: the sides differ without it"
        return (*stages[:-1], replace(stages[-1], notes=(*stages[-1].notes, note)))
    judged: list[_Judged] = []
    failed: dict[int, str] = {}
    try:
        for runs in _runs(experiment, dtype, 5 in running, failed):
            judged += _judge(experiment, runs, dtype)
    except AlignmentError as error:
        failed = dict.fromkeys(running, _brief(error))
    finally:
        for side in ("reference", "candidate"):
            experiment.models.pop((side, dtype), None)
    rows = merge(_settled(experiment, judged, dtype))
    return tuple(_with(stage, rows, failed, dtype) if stage.step in running else stage for stage in stages)


def _with(stage: StageResult, rows: Iterable[TensorResult], failed: dict[int, str], dtype: str) -> StageResult:
    own = [row for row in rows if any(row.record == kind and step == stage.step for kind, step in _STEP.items())]
    if stage.step in failed:
        reason = f"no {dtype} run: {failed[stage.step]}"
        own = [TensorResult("output", f"({dtype})", f"({dtype})", None, "inconclusive", reason, dtype=dtype)]
    return replace(stage, tensors=(*stage.tensors, *own))


# ---------------------------------------------------------------------------------------------------------------- runs


def _runs(experiment: Experiment, dtype: str, backward: bool, failed: dict[int, str]) -> Iterator[_Runs]:
    """Every batch with every set of weights. failed: gets the reason where a backward pass can't run; no more are tried."""
    keys = ("candidate", dtype), ("reference", dtype), ("reference", "float64")
    models = {key: _model(experiment, *key) for key in keys}
    for number, (name, state) in enumerate(experiment.weights.items()):
        low = _rounded(state, dtype)
        moved = _moved(low, dtype, experiment.options.seed + 1000 * number)
        for batch in experiment.batches:
            given = replace(batch, inputs=_rounded(batch.inputs, dtype))
            wanted = backward and experiment.has_loss(batch)
            try:
                yield _one(experiment, models, name, low, moved, given, wanted and 5 not in failed)
            except AlignmentError as error:
                if not wanted or 5 in failed:
                    raise
                failed[5] = _brief(error)
                yield _one(experiment, models, name, low, moved, given, False)


def _one(
    experiment: Experiment,
    models: dict[tuple[str, str], object],
    name: str,
    low: State,
    moved: State,
    batch: Batch,
    backward: bool,
) -> _Runs:
    def run(side: str, dtype: str, state: State) -> Trace:
        given = state if side == "reference" else experiment.candidate_state(state)
        experiment.side(side)[0].load_state(models[side, dtype], given)
        return experiment.run(side, models[side, dtype], batch, backward, brief=True)

    (_, dtype), *_ = models  # the candidate's comes first, for it is the one that most often can't run
    candidate = run("candidate", dtype, low)
    noise = run("reference", dtype, low), run("reference", dtype, moved)
    return _Runs(name, batch, run("reference", "float64", low), noise, candidate)


def _model(experiment: Experiment, side: str, dtype: str) -> object:
    try:
        held = experiment.model(side, dtype)
    except AlignmentError:
        raise
    except Exception as error:  # whatever a framework says of a dtype that it has no kernels for
        raise AlignmentError(f"the {side} can't be made {dtype}: {error}") from error
    held.user = None
    return held.module


def _rounded(values: State, dtype: str) -> State:
    """The values that the dtype has, in the dtype they were of."""
    return {
        name: value.astype(DTYPES[dtype]).astype(value.dtype) if is_floating(value.dtype) else value
        for name, value in values.items()
    }


def _moved(low: State, dtype: str, seed: int) -> State:
    narrow = {name: value.astype(DTYPES[dtype]) if is_floating(value.dtype) else value for name, value in low.items()}
    moved = moved_by_one_ulp(narrow, seed, widen=False)
    return {name: value.astype(low[name].dtype) for name, value in moved.items()}


def _brief(error: Exception) -> str:
    """The sentence of an error that matters; of Paddle's on a missing kernel, the one that names it."""
    text = " ".join(str(error).split())
    kernel = re.search(r"^(.*? fails on batch '[^']*').*?(The kernel with key .*? is not registered)", text)
    return f"{kernel[1]}: {kernel[2]}" if kernel else text[:400]


# ------------------------------------------------------------------------------------------------------------- judging


def _judge(experiment: Experiment, runs: _Runs, dtype: str) -> Iterator[_Judged]:
    layout = experiment.layout
    assert layout is not None
    moves = {move.label: move for move in layout.moves}
    first = next(iter(runs.batch.inputs.values()))
    scale = largest_gradient(runs.truth)
    for record in runs.truth.records:
        if record.kind not in _STEP or record.value is None or record.value.dtype.kind != "f":
            continue  # integers may well change when what they are made of is rounded
        move = moves.get(record.name) if record.kind == "gradient" else None
        called = move.target if move else record.name
        theirs = runs.candidate.get(record.kind, called)
        if move is not None and theirs is not None and theirs.shape == move.shape_to:
            theirs = undo(theirs, move)
        gradient = record.kind == "gradient"
        own = [trace.get(record.kind, record.name) for trace in runs.noise]
        comparison = _measure(
            record.value, own, theirs, dtype, scale if gradient else 0.0, first.size if move is not None else 1
        )
        yield _Judged(record.kind, record.name, called, comparison, runs.weights, runs.batch.name)


def _measure(
    truth: NDArray, own: list[NDArray | None], theirs: NDArray | None, dtype: str, scale: float, summands: int
) -> Comparison:
    """The errors of both sides against the truth, for `settle` to judge over all batches."""
    shape = truth.shape
    if own[0] is None or theirs is None or not truth.size:
        same = own[0] is None and theirs is None
        reason = "nothing was compared" if same or not truth.size else f"missing in one side's {dtype} run"
        return Comparison("inconclusive" if same or not truth.size else "diverged", "metadata", reason, shape, dtype)
    if theirs.shape != shape or own[0].shape != shape:
        return Comparison("diverged", "metadata", f"another shape in {dtype}: {list(theirs.shape)}", shape, dtype)
    if not (np.isfinite(truth).all() and np.isfinite(own[0]).all()):
        reason = f"the reference itself is NaN or infinite in {dtype}: nothing to measure by"
        return Comparison("inconclusive", "metadata", reason, shape, dtype)
    if not np.isfinite(theirs).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(theirs))[0])
        reason = f"NaN or infinite in {dtype} at {list(where)}, where the reference is not"
        return Comparison("diverged", "metadata", reason, shape, dtype, worst_index=where, strain=np.inf)
    errors = [np.abs(run.astype(np.float64) - truth) for run in own if run is not None and np.isfinite(run).all()]
    error = np.abs(theirs.astype(np.float64) - truth)
    eps, floor = float(ml_dtypes.finfo(DTYPES[dtype]).eps), Tolerance().floor_ulps
    largest = max(float(one.max()) for one in errors)
    worst = tuple(int(i) for i in np.unravel_index(int(error.argmax()), shape))
    return Comparison(
        "aligned",
        "precision",
        "from rounded weights and inputs",
        shape,
        dtype,
        float(error.max()),
        error32=rms(error),
        noise32=max(rms(one) for one in errors),
        floor32=eps * (2.0 * rms(truth) + floor * eps * scale),
        sequential=sequential(summands),
        worst_index32=worst,
        largest32=(float(error.max()), largest, eps * (2.0 * float(np.abs(truth).max()) + floor * eps * scale)),
    )


def _settled(experiment: Experiment, judged: list[_Judged], dtype: str) -> Iterator[TensorResult]:
    groups: dict[tuple[str, str, str], list[_Judged]] = {}
    for one in judged:
        groups.setdefault((one.record, one.reference_name, one.weights), []).append(one)
    for group in groups.values():
        tolerance = experiment.scope.tolerance(group[0].reference_name, group[0].candidate_name)
        settled = settle([one.comparison for one in group], tolerance, dtype)
        for one, comparison in zip(group, settled, strict=True):
            ours, theirs = (f"{name} ({dtype})" for name in (one.reference_name, one.candidate_name))
            yield result_of(one.record, ours, theirs, comparison, one.weights, one.batch)
