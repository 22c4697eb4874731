"""Two checkpoint files compared tensor by tensor, in blocks, whatever their size: neither is ever in memory as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import ml_dtypes
import numpy as np

from alignment.errors import AlignmentError
from alignment.statistics import Statistics, compare_arrays
from checkpoints import (
    RAW16,
    CheckpointError,
    Layout,
    OpenCheckpoint,
    Stored,
    aliases,
    backwards,
    holders,
    label_of,
    open_checkpoint,
    part_of,
    undo_view,
)

Verdict = Literal["equal", "within", "diverged"]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
ULP_DTYPES = frozenset({"float16", "bfloat16", "float32", "float64"})


@dataclass(frozen=True)
class TensorDiff:
    """One tensor on both sides.

    name, candidate_name: None on the side that lacks it.
    shape, candidate_shape, dtype, candidate_dtype: as each file stores them.
    statistics: None where nothing could be compared; `problem` then says why, and the verdict is diverged.
    """

    name: str | None
    candidate_name: str | None
    shape: tuple[int, ...] | None
    candidate_shape: tuple[int, ...] | None
    dtype: str | None
    candidate_dtype: str | None
    verdict: Verdict
    statistics: Statistics | None = None
    problem: str | None = None

    @property
    def label(self) -> str:
        return self.name or self.candidate_name or ""


@dataclass(frozen=True)
class CheckpointDiff:
    """All tensors of two files, in the reference's order; what only the candidate has comes last.

    verdict: equal where every bit is, within where all are at least within the tolerance asked for, else diverged.
    left_out: tensors that the layout drops or fills, which have no counterpart, and notes of the files.
    """

    reference: str
    candidate: str
    verdict: Verdict
    tensors: tuple[TensorDiff, ...]
    atol: float | None
    rtol: float | None
    left_out: tuple[str, ...] = ()


class Progress(Protocol):
    """Told what goes on, and how many bytes of all are done."""

    def __call__(self, what: str, done: int | None = None, total: int | None = None) -> None: ...


def compare_checkpoints(
    reference: str | Path,
    candidate: str | Path,
    layout: Layout | None = None,
    *,
    atol: float | None = None,
    rtol: float | None = None,
    ulps: bool = False,
    bfloat16: bool = False,
    entry: str | None = None,
    candidate_entry: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> CheckpointDiff:
    """Compare two checkpoint files of any formats.

    layout: how the candidate stores what the reference has, in either direction; None where both are of one framework.
        Names, shapes and figures are then those of the reference's layout.
    atol, rtol: a tensor is within where no element has ``|candidate - reference| > atol + rtol * |reference|``; without
        either only equal bits will do.
    ulps: also percentiles of the distance in ULP, for every tensor whose bits differ and whose dtype is a float's.
    bfloat16: sixteen raw bits (of a .pdparams or .npz) are bfloat16. Where the other side says bfloat16 they are anyway.

    Raises:
        CheckpointError: a file can't be read, or does not fit the layout.
        AlignmentError: there is nothing to compare, or sixteen raw bits differ and nobody says what they are.
    """
    ours, theirs = open_checkpoint(reference, entry), open_checkpoint(candidate, candidate_entry)
    pairs, left_out = _pairs(ours, theirs, layout)
    if not pairs:
        raise AlignmentError(f"{reference} and {candidate} hold no tensors to compare")
    total = sum(pair.nbytes for pair in pairs)
    done = 0
    tensors: list[TensorDiff] = []
    for pair in pairs:
        if progress is not None:
            progress(f"comparing {pair.label}", done, total)
        try:
            tensors.append(_compare(pair, atol, rtol, ulps, bfloat16, threads))
        except (AlignmentError, CheckpointError) as error:
            raise type(error)(f"{pair.label}: {error}") from error
        done += pair.nbytes
        ours.release()
        theirs.release()
    verdicts = {tensor.verdict for tensor in tensors}
    verdict: Verdict = "diverged" if "diverged" in verdicts else "within" if "within" in verdicts else "equal"
    notes = (*left_out, *ours.notes, *theirs.notes)
    return CheckpointDiff(str(reference), str(candidate), verdict, tuple(tensors), atol, rtol, notes)


@dataclass(frozen=True)
class _Pair:
    """What is compared: a tensor of each side (None: it is not there), and how each becomes what is compared."""

    name: str | None
    candidate_name: str | None
    reference: Stored | None
    candidate: Stored | None
    taken: Callable[[np.ndarray], np.ndarray] = lambda array: array
    back: Callable[[np.ndarray], np.ndarray] = lambda array: array
    candidate_as: tuple[int, ...] | None = None  # the shape `back` takes

    @property
    def label(self) -> str:
        return self.name or self.candidate_name or ""

    @property
    def nbytes(self) -> int:
        return sum(side.nbytes for side in (self.reference, self.candidate) if side is not None)


def _pairs(ours: OpenCheckpoint, theirs: OpenCheckpoint, layout: Layout | None) -> tuple[list[_Pair], list[str]]:
    if layout is None:
        names = dict.fromkeys([*ours.tensors, *theirs.tensors])
        plain = [
            _Pair(
                name if name in ours.tensors else None,
                name if name in theirs.tensors else None,
                ours.tensors.get(name),
                theirs.tensors.get(name),
            )
            for name in names
        ]
        return plain, []
    layout = _directed(layout, ours, theirs)
    back = backwards(layout)
    giving, taking = dict(holders(layout, ours.tensors)), dict(holders(back, theirs.tensors))
    pairs = []
    for move, undone in zip(layout.moves, back.moves, strict=True):
        name, other = giving.get(move), taking.get(undone)
        pairs.append(
            _Pair(
                move.label if name is not None else None,
                label_of(move.target, move.part_to) if other is not None else None,
                None if name is None else ours.tensors[name],
                None if other is None else theirs.tensors[other],
                partial(part_of, move=move),
                partial(undo_view, move=move),
                move.shape_to,
            )
        )
    known = {move.source for move in layout.moves} | {extra.name for extra in layout.dropped}
    known |= aliases(layout.source_ties, known).keys()
    pairs += [_Pair(name, None, held, None) for name, held in ours.tensors.items() if name not in known]
    known = {move.target for move in layout.moves} | {extra.name for extra in layout.filled}
    known |= aliases(layout.target_ties, known).keys()
    pairs += [_Pair(None, name, None, held) for name, held in theirs.tensors.items() if name not in known]
    return pairs, [f"{extra.name}: {extra.reason}" for extra in (*layout.dropped, *layout.filled)]


def _directed(layout: Layout, ours: OpenCheckpoint, theirs: OpenCheckpoint) -> Layout:
    """`layout` from the reference to the candidate: the way that more names fit."""

    def fits(way: Layout) -> int:
        sources = sum(
            move.source in ours.tensors and move.shape_from == ours.tensors[move.source].shape for move in way.moves
        )
        return sources + sum(
            move.target in theirs.tensors and move.shape_to == theirs.tensors[move.target].shape for move in way.moves
        )

    back = backwards(layout)
    return back if fits(back) > fits(layout) else layout


def _compare(
    pair: _Pair, atol: float | None, rtol: float | None, ulps: bool, bfloat16: bool, threads: int | None
) -> TensorDiff:
    ours, theirs = pair.reference, pair.candidate
    seen = TensorDiff(
        name=pair.name,
        candidate_name=pair.candidate_name,
        shape=None if ours is None else ours.shape,
        candidate_shape=None if theirs is None else theirs.shape,
        dtype=None if ours is None else ours.dtype.name,
        candidate_dtype=None if theirs is None else theirs.dtype.name,
        verdict="diverged",
    )
    if ours is None or theirs is None:
        return replace(seen, problem=f"only in the {'candidate' if ours is None else 'reference'}")
    if pair.candidate_as is not None and theirs.shape != pair.candidate_as:
        expected = list(pair.candidate_as)
        return replace(seen, problem=f"the candidate's shape is {list(theirs.shape)}, the layout expects {expected}")
    a, b = pair.taken(ours.read()), pair.back(theirs.read())
    if a.shape != b.shape:
        return replace(seen, problem=f"shapes {list(a.shape)} and {list(b.shape)}")
    if BFLOAT16 in (a.dtype, b.dtype) or bfloat16:
        a, b = (array.view(BFLOAT16) if array.dtype in RAW16 else array for array in (a, b))
    elif a.dtype in RAW16 and b.dtype in RAW16:  # their bits can be compared, whatever they are
        a, b = a.view(RAW16[0]), b.view(RAW16[0])
    raw = a.dtype in RAW16 and b.dtype in RAW16
    ulps = ulps and a.dtype == b.dtype and a.dtype.name in ULP_DTYPES
    found = compare_arrays(a, b, atol=atol, rtol=rtol, threads=threads)
    if found.equal_bits:
        return replace(seen, verdict="equal", statistics=found)
    if raw:
        raise AlignmentError("differs, and sixteen raw bits may be bfloat16 or integers: --bfloat16 says the former")
    if ulps:
        found = compare_arrays(a, b, atol=atol, rtol=rtol, ulps=True, threads=threads)
    return replace(seen, verdict="within" if found.beyond == 0 else "diverged", statistics=found)
