"""What a foreign dump holds, and how two of them are judged."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import checkpoints
from alignment.check import own_versions
from alignment.compare import EPS32, Comparison, Pair, bitwise
from alignment.details import detail_of
from alignment.errors import AlignmentError
from alignment.localise import first_is_root
from alignment.report import Report, StageResult, TensorResult, TwinResult
from alignment.stages import STAGES, bounded, result_of
from checkpoints import CheckpointError, Move, Slot, undo

# What float32 rounding may do at most to the largest element of a tensor, as a multiple of eps(float32): 1.2e-3 of it. Right
# ports of the models here were measured up to 2e-5.
ROUNDING = 1e4
# Units in the last place of the largest tensor of a kind: what is smaller than that is zero but for rounding.
ZERO_ULPS = 16.0
# How the name of a weight ends that was kept before the first call.
INITIAL = " (initial)"


class DumpKey(NamedTuple):
    """Stage, kind of record and name of a tensor in a dump."""

    step: int
    record: str
    name: str


@dataclass(frozen=True)
class Dump:
    """One side's tensors, in order. None: the tool says that there was none.

    slots: what is known of the parameters' layers, for their layout; empty where nothing is.
    """

    tool: str
    path: Path
    tensors: Mapping[DumpKey, NDArray | None]
    framework: str = ""
    model: str = ""
    slots: tuple[Slot, ...] = ()
    notes: tuple[str, ...] = field(default_factory=tuple)


def compare_dumps(
    reference: str | Path, candidate: str | Path, tolerance: float | None = None, details: bool = False
) -> Report:
    """Compare two .npy files of reprod_log, or two dump folders of PaDiff.

    tolerance: the share of a tensor's largest element up to which a difference counts as none; None: only equal bits are
    aligned.

    Raises:
        AlignmentError: one is no dump that is known, is damaged, or the two are of different tools.
    """
    start = time.perf_counter()
    ours, theirs = _read(Path(reference)), _read(Path(candidate))
    if ours.tool != theirs.tool:
        raise AlignmentError(f"{reference} is of {ours.tool}, {candidate} of {theirs.tool}: compare dumps of one tool")
    moves, notes = _moves(ours, theirs)
    rows = _rows(ours, theirs, moves, tolerance, details)
    names = {stage.step: stage.name for stage in STAGES}
    stages = [
        StageResult(step, names[step], tuple(row for number, row in rows if number == step))
        for step in sorted({number for number, _ in rows})
    ]
    asked = "none is stated" if tolerance is None else f"{tolerance:g} of a tensor's largest element"
    result = TwinResult(
        twin=ours.model or Path(reference).name,
        reference=f"{ours.framework or ours.tool} {reference}",
        candidate=f"{theirs.framework or theirs.tool} {candidate}",
        stages=bounded(first_is_root(tuple(stages))),
        settings={},
        weights=("unknown",),
        batches=("unknown",),
        data=f"{ours.tool} dumps",
        seed=0,
        notes=(
            f"one precision: nothing tells rounding from a mistake; tolerance: {asked}",
            *dict.fromkeys((*ours.notes, *theirs.notes, *notes)),
        ),
        seconds=time.perf_counter() - start,
    )
    return Report((result,), own_versions())


def _read(path: Path) -> Dump:
    from alignment.foreign.padiff import read_padiff
    from alignment.foreign.reprod_log import read_reprod_log

    try:
        if path.is_dir():
            return read_padiff(path)
        if path.suffix == ".npy":
            return read_reprod_log(path)
    except CheckpointError as error:
        raise AlignmentError(str(error)) from error
    what = "there is no such file" if not path.exists() else "is none of them"
    raise AlignmentError(
        f"{path}: {what}; two captures (.safetensors), two .npy files of reprod_log or two dump folders of PaDiff are compared"
    )


def _moves(ours: Dump, theirs: Dump) -> tuple[dict[str, Move], list[str]]:
    """Reference's name of a parameter -> how the candidate's becomes it; empty where layers are not known."""
    if not ours.slots or not theirs.slots:
        return {}, []
    try:
        layout = checkpoints.plan(ours.slots, theirs.slots, ours.framework, theirs.framework)
    except (CheckpointError, KeyError) as error:
        return {}, [f"parameters are compared by name and as they are stored: {str(error).splitlines()[0]}"]
    return {move.source: move for move in layout.moves}, []


def _rows(
    ours: Dump, theirs: Dump, moves: Mapping[str, Move], tolerance: float | None, details: bool
) -> list[tuple[int, TensorResult]]:
    largest: dict[str, float] = {}
    for key, value in ours.tensors.items():
        if value is not None and value.dtype.kind == "f" and value.size:
            size = float(np.abs(np.where(np.isfinite(value), value, 0)).max())
            largest[key.record] = max(size, largest.get(key.record, 0.0))
    targets = {move.target + end: move.source + end for move in moves.values() for end in ("", INITIAL)}
    left = {
        key._replace(name=targets.get(key.name, key.name)) if _is_parameters(key) else key: (key.name, value)
        for key, value in theirs.tensors.items()
    }
    rows = []
    for key, value in ours.tensors.items():
        has = key in left
        name, other = left.pop(key, (None, None))
        move = moves.get(key.name.removesuffix(INITIAL)) if _is_parameters(key) else None
        if move is not None and other is not None and other.shape == move.shape_to:
            other = undo(other.astype(move.dtype, copy=False), move)
        if has and value is None and other is None:
            comparison = Comparison("aligned", "metadata", "none on both sides: neither gives it a gradient")
        elif key.record == "input":
            comparison = bitwise(_as_given(value), _as_given(other))
        elif key.step == 1 or (value is None) != (other is None):
            comparison = bitwise(value, other)
        else:
            comparison = judge32(value, other, largest.get(key.record, 0.0), tolerance, key.record == "update")
        row = replace(result_of(key.record, key.name, name, comparison, "unknown"), weights=None)
        detail = detail_of(Pair(None, None, value, other), comparison) if details and key.step > 1 else None
        rows.append((key.step, replace(row, detail=detail)))
    for key, (name, other) in left.items():
        row = result_of(key.record, None, name, bitwise(None, np.zeros(0) if other is None else other), "unknown")
        rows.append((key.step, replace(row, weights=None)))
    return rows


def _as_given(value: NDArray | None) -> NDArray | None:
    """An input to be compared bit for bit; of whole numbers, the frameworks may be given other widths."""
    return value if value is None or value.dtype.kind not in "iu" else value.astype(np.int64)


def _is_parameters(key: DumpKey) -> bool:
    return key.record in ("parameter", "gradient")


def judge32(
    reference: NDArray | None,
    candidate: NDArray | None,
    largest: float,
    tolerance: float | None,
    stepped: bool = False,
) -> Comparison:
    """Judge two tensors of which one float32 value each is known.

    Equal bits are aligned. Diverged is what differs by more than 1e4 × eps(float32) × the tensor's largest element, plus 16 ×
    eps(float32) × `largest`, the largest element of all tensors of its kind. What lies between is inconclusive, unless it is
    within the tolerance: a share of the tensor's largest element; where that element is itself below 16 × eps(float32) ×
    `largest`, and so zero but for rounding, that much. stepped: it is an optimizer's step, which may go the other way where
    its gradient is rounding: then no difference is larger than rounding explains.
    """
    if reference is None or candidate is None or reference.shape != candidate.shape or not reference.size:
        return bitwise(reference, candidate)
    if reference.dtype != candidate.dtype or reference.dtype.kind != "f" or np.array_equal(reference, candidate):
        return bitwise(reference, candidate)
    finite = np.isfinite(reference) & np.isfinite(candidate)
    with np.errstate(invalid="ignore"):
        alike = finite | (np.isnan(reference) & np.isnan(candidate)) | (reference == candidate)
    if not alike.all():
        where = tuple(int(i) for i in np.argwhere(~alike)[0])
        reason = f"NaN or infinity on one side only, first at {list(where)}"
        return Comparison(
            "diverged", "metadata", reason, reference.shape, str(reference.dtype), worst_index=where, strain=math.inf
        )
    if not finite.all():
        reason = "both sides are NaN or infinite at the same positions: no evidence there"
        return Comparison("inconclusive", "metadata", reason, reference.shape, str(reference.dtype))
    difference = np.abs(candidate.astype(np.float64) - reference)
    where = tuple(int(i) for i in np.unravel_index(int(difference.argmax()), difference.shape))
    seen, size = float(difference.max()), float(np.abs(reference).max())
    norm = math.sqrt(float(np.sum(np.square(reference, dtype=np.float64))))
    rel = math.sqrt(float(np.sum(np.square(difference)))) / norm if norm else math.inf
    zero = ZERO_ULPS * EPS32 * largest
    bound = math.inf if stepped else ROUNDING * EPS32 * size + zero
    within = 0.0 if tolerance is None else zero if size <= zero else tolerance * size
    if tolerance is not None and seen <= within:
        verdict, allowed = "aligned", within
        reason = f"differs by {seen:.2g}, within the stated tolerance ({within:.2g})"
    elif seen > bound:
        verdict, allowed = "diverged", max(bound, within)
        reason = (
            f"differs by {seen:.3g} (relative L2 {rel:.2g}), float32 rounding explains at most {bound:.2g}; at {list(where)} "
            f"the reference has {float(reference[where]):.6g}, the candidate {float(candidate[where]):.6g}"
        )
    else:
        verdict, allowed = "inconclusive", bound
        reason = (
            f"differs by {seen:.2g}: float32 rounding may explain that, or may not; there is no float64 run to tell"
        )
    return Comparison(
        verdict,  # type: ignore[arg-type]
        "precision",
        reason,
        reference.shape,
        str(reference.dtype),
        seen,
        rel,
        None,
        where,
        seen,
        allowed,
        seen / allowed if allowed else math.inf,
    )
