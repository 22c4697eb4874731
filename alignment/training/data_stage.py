"""The data side as a stage of its own: do two loaders give the same batches, and if not, what about them differs?

    from alignment import compare_feeds

    report = compare_feeds(torch_loader, paddle_loader, seed=0)
    assert report.verdict == "aligned"

Both loaders are read once, side by side, and of each no more than one batch is held. Four things are judged, each for itself, so
that one does not hide another: how the samples were cut into batches, the order of the samples, whether inputs and labels belong
to each other, and each input: its dtype, the shape of its rows, its values. Data are copied, not computed, so equal means equal
bits.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from math import inf, log
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from alignment.causes import InputSuspect, diagnose
from alignment.causes.data import CHANCE
from alignment.causes.suspect import Trial
from alignment.check import own_versions
from alignment.compare import Verdict
from alignment.errors import AlignmentError
from alignment.experiment import SIDES
from alignment.explain import finding_of
from alignment.report import NOTHING, Finding, Report, StageResult, TensorResult, TwinResult
from alignment.reported import BY_DEFINITION, explain_order, refuse_seed
from alignment.training.corrections import Correction, corrections, rows_equal
from alignment.training.samples import Kept, Known
from alignment.training.streams import (
    Entries,
    Loader,
    Names,
    Stream,
    array_hash,
    common_dtype,
    plain,
    row_names,
    rows_of,
)

STEP, NAME = 0, "data"
# Rows whose names are kept, eight bytes each for each input and side, to tell another order from other samples.
MOST_NAMED = 2_000_000
HASHED = "hashes: SHA-256 of each input of each batch (dtype, shape, little-endian bytes in C order)"

# Odd, and near 2**64 over the golden ratio: what two names are joined to one by.
MIXED = 0x9E3779B97F4A7C15

Progress = Callable[[int, int | None], None]


def compare_feeds(
    reference: Loader,
    candidate: Loader,
    *,
    dataset: Loader | None = None,
    seed: int | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compare what two loaders give in one pass.

    Args:
        reference, candidate: loaders (torch's, Paddle's, a `Feed`'s epoch, a list of batches), or functions that return one.
            A batch is an array or tensor, a `fake_data.Batch`, or tuples, lists and dicts of such, rows on the first axis.
            Functions are called one after the other, and each loader's first batch is read before the other is made: both
            may seed the same generator.
        dataset: batches of all samples as they are stored, by which a draw of NumPy's generator can be told; None: the
            loaders' own ``dataset``, read where the order differs.
        seed: what both sides were seeded with, where that is known: 0 to 2**32 - 1.
        limit: so many batches of each side are read; None: all.
        progress: told the batches done, and how many there will be where that is known.

    Returns:
        A report of one twin, "data", with one stage: a row for the batches, one for the order, one for each input. Diverged
        where anything differs; inconclusive where there is nothing to compare.

    Raises:
        AlignmentError: a loader fails, or what it gives is no batch; the message says whose, and which.
    """
    refuse_seed(seed)
    if limit is not None and limit < 1:
        raise AlignmentError(f"limit is {limit}: at least one batch of each side is needed")
    started = time.perf_counter()
    sides = Stream("reference", reference, limit), Stream("candidate", candidate, limit)
    comparison = _Comparison(*sides)
    comparison.run(progress)
    stage, findings = comparison.judge(dataset, seed)
    names = [f"{type(side.loader).__module__}.{type(side.loader).__qualname__}" for side in sides]
    versions = own_versions() | _frameworks()
    twin = TwinResult(
        twin=NAME,
        reference=names[0],
        candidate=names[1],
        stages=(stage,),
        settings={},
        weights=(),
        batches=(),
        data="given loaders",
        seed=seed or 0,
        notes=tuple(f"{side.side} {name}: {_told(side)}" for side, name in zip(sides, names, strict=True)),
        seconds=time.perf_counter() - started,
        findings=findings,
    )
    return Report((twin,), versions)


def _told(side: Stream) -> str:
    cut = ", of which no more were read" if side.limit is not None and len(side.sizes) == side.limit else ""
    return f"{_counted(side.sizes)}{cut}; all batches {side.digest[:16]}"


def _frameworks() -> dict[str, str]:
    """Versions of the frameworks that are there already: none is imported for this."""
    modules = {name: sys.modules.get(name) for name in ("torch", "paddle")}
    return {name: str(getattr(module, "__version__", "?")) for name, module in modules.items() if module is not None}


def _counted(sizes: list[int]) -> str:
    if not sizes:
        return "no batches"
    rows = f"{sum(sizes):,} rows"
    if len(sizes) == 1:
        return f"1 batch of {rows}"
    last = f", the last of {sizes[-1]}" if sizes[-1] != sizes[0] else ""
    return f"{len(sizes):,} batches of {sizes[0]}{last}, {rows}"


# ------------------------------------------------------------------------------------------------------------ one input


@dataclass
class _Taken:
    """The names of rows as they came. Of too many only their sum, in which the order does not matter."""

    parts: list[Names] | None = field(default_factory=list)
    count: int = 0
    total: int = 0

    def add(self, names: Names) -> None:
        """Those of a batch."""
        self.count += len(names)
        self.total = (self.total + int(names.sum(dtype=np.uint64))) % 2**64
        if self.parts is not None:
            self.parts.append(names)

    def all(self) -> Names:
        """One after the other."""
        return np.concatenate([np.zeros(0, dtype=np.uint64), *(self.parts or ())])


def _same_rows(ours: _Taken, theirs: _Taken) -> bool:
    """Are the rows of the side that has fewer all among the other's, each as often at least?"""
    if ours.parts is None or theirs.parts is None:
        return (ours.count, ours.total) == (theirs.count, theirs.total)
    short, long = sorted((ours.all(), theirs.all()), key=len)
    _, places = np.unique(np.concatenate([short, long]), return_inverse=True)
    size = int(places.max(initial=0)) + 1
    few, many = (np.bincount(part, minlength=size) for part in (places[: len(short)], places[len(short) :]))
    return bool((few <= many).all())


def _exchanged(ours: _Taken, theirs: _Taken) -> bool:
    """Is a row that is out of place found in another place where the other side's is out of place?"""
    count = min(ours.count, theirs.count)
    one, two = ours.all()[:count], theirs.all()[:count]
    differ = one != two
    return bool(np.isin(one[differ], two[differ]).any())


@dataclass(eq=False)
class _Input:
    """What was found of one input. names: each side's own. shape, dtype: the reference's rows, and how both are compared.

    wrong: rows that are not the candidate's in the same place. axes: shapes differ in axes of one element at most.
    left: corrections that held for all rows since the first of these. taken: the names of each side's rows; paired: those of
    the rows with the samples that they came with. alike, unlike: of samples that were found on both sides in other places.
    """

    names: tuple[str, str]
    shape: tuple[int, ...]
    dtype: np.dtype
    rows: int = 0
    chunks: int = 0
    wrong: int = 0
    max_abs: float = 0.0
    dtypes: str = ""
    shapes: str = ""
    axes: bool = True
    first: str = ""
    hashes: str = ""
    left: list[Correction] | None = None
    taken: tuple[_Taken, _Taken] = field(default_factory=lambda: (_Taken(), _Taken()))
    paired: tuple[_Taken, _Taken] = field(default_factory=lambda: (_Taken(), _Taken()))
    alike: int = 0
    unlike: int = 0

    def compare(self, ours: NDArray, theirs: NDArray, batch: int, row: int) -> None:
        """Rows [n, ...] of both sides that stand in the same places, from this row of the reference's batch on."""
        if ours.dtype != theirs.dtype and not self.dtypes:
            self.dtypes = f"dtype {theirs.dtype}, not {ours.dtype}, from batch {batch} on"
        if ours.shape[1:] != theirs.shape[1:] and not self.shapes:
            self.shapes = f"rows of shape {list(theirs.shape[1:])}, not {list(ours.shape[1:])}, from batch {batch} on"
        one, two = plain(ours, self.dtype), plain(theirs, self.dtype)
        self.axes = self.axes and one.shape == two.shape
        equal = rows_equal(one, two)
        if not equal.all():
            if self.left is None:
                self.left = list(corrections(one, two, self.rows > 0))
                place = int(equal.argmin())
                self.first = f"first in batch {batch}, row {row + place}{_element(one[place], two[place])}"
            if one.shape == two.shape:
                with np.errstate(all="ignore"):
                    apart = np.abs(two[~equal].astype(np.float64) - one[~equal].astype(np.float64))
                self.max_abs = max(self.max_abs, float(np.where(np.isnan(apart), inf, apart).max(initial=0.0)))
        self.left = self.left and [correction for correction in self.left if correction.holds(one, two)]
        self.wrong += int((~equal).sum())
        self.rows += len(one)
        self.chunks += 1

    def compare_found(self, pairs: list[tuple[NDArray, NDArray]]) -> None:
        """Of an input that is in no order, rows [n, ...] of samples found on both sides, those of one shape together."""
        plain_pairs = [(plain(one, self.dtype), plain(two, self.dtype)) for one, two in pairs]
        equal = [rows_equal(one, two) for one, two in plain_pairs]
        self.alike, self.unlike = (sum(int((same == wanted).sum()) for same in equal) for wanted in (True, False))
        self.axes = all(one.shape == two.shape for one, two in plain_pairs)
        first = next((pair for pair, same in zip(plain_pairs, equal, strict=True) if not same.all()), None)
        if first is not None:
            found = corrections(*first, self.alike > 0)
            self.left = [one for one in found if all(one.holds(*pair) for pair in plain_pairs)]

    @property
    def differs(self) -> bool:
        """Is anything of it another on the two sides?"""
        return bool(self.dtypes or self.shapes or self.wrong)

    @property
    def correction(self) -> Correction | None:
        """What brings every row of the candidate to the reference's; None where nothing does, or need be."""
        return self.left[0] if self.left else None

    @property
    def in_order(self) -> bool:
        """Does the same sample stand in every place, as far as this input tells?"""
        return not self.wrong or (self.correction is not None and not self.unlike)


def _element(ours: NDArray, theirs: NDArray) -> str:
    """Of two rows the first element that differs."""
    if ours.shape != theirs.shape or not ours.size:
        return ""
    place = np.unravel_index(int((ours != theirs).argmax()), ours.shape)
    at = f" at {[int(index) for index in place]}" if place else ""
    return f"{at}: the reference has {ours[place]}, the candidate {theirs[place]}"


# ----------------------------------------------------------------------------------------------------------- both sides


class _Comparison:
    """Both sides read side by side, row by row, however each cuts its batches."""

    def __init__(self, reference: Stream, candidate: Stream) -> None:
        self.streams = reference, candidate
        self.inputs: list[_Input] = []
        self.alone: list[tuple[str, str]] = []
        self.notes: list[str] = [HASHED]
        # A sample is known by the input that has most in a row.
        self.key: _Input | None = None
        self.known = Known()
        self.samples = _Taken(), _Taken()
        self.kept = Kept(), Kept()

    def run(self, progress: Progress | None = None) -> None:
        """Read both to the end."""
        lengths = [stream.limit or stream.length for stream in self.streams]
        total = None if None in lengths else max(length or 0 for length in lengths)
        held = [stream.next() for stream in self.streams]
        if held[0] is not None and held[1] is not None:
            self._pair_up(held[0], held[1])
        for stream, batch in zip(self.streams, held, strict=True):
            self._take_down(stream, batch)
        at, batches = [0, 0], [0, 0]
        while held[0] is not None or held[1] is not None:
            if progress is not None:
                progress(max(batches), total)
            count = min(rows_of(batch) - start if batch else 0 for batch, start in zip(held, at, strict=True))
            if held[0] is not None and held[1] is not None:
                self._compare(held[0], held[1], (at[0], at[1]), count, batches[0])
            alone = held[0] is None or held[1] is None
            for side, stream in enumerate(self.streams):
                batch = held[side]
                at[side] += count
                if batch is not None and (alone or at[side] == rows_of(batch)):
                    held[side], at[side] = stream.next(), 0
                    batches[side] += 1
                    self._take_down(stream, held[side])

    def _pair_up(self, ours: Entries, theirs: Entries) -> None:
        """Which input of one side is which of the other's: by name, or by position where no name is on both sides."""
        pairs = [(name, name) for name in ours if name in theirs]
        if not pairs and len(ours) == len(theirs):
            pairs = list(zip(ours, theirs, strict=True))
            self.notes.append(f"inputs paired by position: {', '.join(f'{one} and {two}' for one, two in pairs)}")
        self.alone = [(SIDES[0], name) for name in ours if name not in {one for one, _ in pairs}]
        self.alone += [(SIDES[1], name) for name in theirs if name not in {two for _, two in pairs}]
        for one, two in pairs:
            dtype = common_dtype(ours[one].dtype, theirs[two].dtype)
            self.inputs.append(_Input((one, two), ours[one].shape[1:], dtype))
        if self.inputs:
            self.key = max(self.inputs, key=lambda one: math.prod(one.shape))
            both = zip((ours, theirs), self.key.names, strict=True)
            self.known = Known.by(*(plain(batch[name], self.key.dtype) for batch, name in both))

    def _take_down(self, stream: Stream, batch: Entries | None) -> None:
        if batch is None or not self.inputs:
            return
        side = SIDES.index(stream.side)
        known = {one.names[side] for one in self.inputs} | {name for whose, name in self.alone if whose == stream.side}
        if set(batch) != known:
            raise AlignmentError(
                f"the {stream.side}'s batch {len(stream.sizes) - 1} holds {', '.join(batch)}, the ones before it "
                f"{', '.join(sorted(known))}"
            )
        if self.samples[side].parts is not None and sum(stream.sizes) > MOST_NAMED:
            self.notes.append(f"more than {MOST_NAMED:,} rows: which draw gives an order is not looked for")
            for taken in (self.samples, *(pair for one in self.inputs for pair in (one.taken, one.paired))):
                for each in taken:
                    each.parts = None
        names = self._names(batch, side)
        self.samples[side].add(names)
        self.kept[side].add(names, [batch[one.names[side]] for one in self.inputs])
        for one in self.inputs:
            whole_row = one is self.key and not self.known.padding
            rows = names if whole_row else row_names(plain(batch[one.names[side]], one.dtype))
            one.taken[side].add(rows)
            one.paired[side].add(names * np.uint64(MIXED) + rows)

    def _names(self, batch: Entries, side: int) -> Names:
        """Which samples the rows of a batch are."""
        assert self.key is not None
        return self.known.names(plain(batch[self.key.names[side]], self.key.dtype))

    def _compare(self, ours: Entries, theirs: Entries, at: tuple[int, int], count: int, batch: int) -> None:
        for one in self.inputs:
            mine, its = ours[one.names[0]], theirs[one.names[1]]
            one.compare(mine[at[0] : at[0] + count], its[at[1] : at[1] + count], batch, at[0])
            if one.differs and not one.hashes:
                one.hashes = f"hash {array_hash(its)[:12]}, not {array_hash(mine)[:12]}"

    # ------------------------------------------------------------------------------------------------------------ verdicts

    def judge(self, dataset: Loader | None, seed: int | None) -> tuple[StageResult, tuple[Finding, ...]]:
        """The rows of the stage, and what is behind those that diverge."""
        rows = [self._batches()]
        findings: list[Finding] = []
        if any(one.rows for one in self.inputs):
            same = self._same_order()
            found = same or _same_rows(*self.samples)
            whole = [one for one in self.inputs if not one.in_order and _same_rows(*one.taken)]
            parted = [one for one in whole if same or (found and not _same_rows(*one.paired))]
            for number, one in enumerate(self.inputs):
                if not same and not one.in_order and one not in whole:
                    one.compare_found(list(self.kept[0].pairs(self.kept[1], number)))
            rows.append(self._order(same, found))
            if self.samples[0].parts is not None:
                findings += self._explain_order(same, found, dataset, seed)
            if parted:
                row, finding = _pairing(parted)
                rows.append(row)
                findings.append(finding)
            for one in self.inputs:
                rows.append(_judged(one, same, one in whole))
                findings += _explained(one, same, one in whole)
        for side, name in self.alone:
            ours, theirs = (name, None) if side == SIDES[0] else (None, name)
            missing = f"missing on the {SIDES[1] if theirs is None else SIDES[0]} side"
            rows.append(TensorResult("input", ours, theirs, None, "diverged", missing, strain=inf, root=True))
        return StageResult(STEP, NAME, tuple(rows), tuple(self.notes)), tuple(findings)

    def _batches(self) -> TensorResult:
        ours, theirs = (stream.sizes for stream in self.streams)
        if not sum(ours) and not sum(theirs):
            nothing = "neither side gave a row: nothing was compared"
            return TensorResult("data", NOTHING, NOTHING, None, "inconclusive", nothing)
        if ours == theirs:
            return _row("batches", f"{_counted(ours)} on both sides", "aligned", len(ours))
        first = next(
            (n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
        )
        has = [f"{sizes[first]} rows" if first < len(sizes) else "no such batch" for sizes in (ours, theirs)]
        reason = (
            f"the reference gives {_counted(ours)}, the candidate {_counted(theirs)}; the first that differs is batch {first}: "
            f"{has[0]} on the reference side, {has[1]} on the candidate's"
        )
        return _row("batches", reason, "diverged", max(len(ours), len(theirs)))

    def _same_order(self) -> bool:
        """Do the same samples stand in the same places, whatever else differs?

        They do where an input says so that has so many different rows that no other order would leave it as it is; or where no
        row that is out of place is found in another place.
        """
        unsure = [self.samples if one is self.key else one.taken for one in self.inputs if not one.in_order]
        if not unsure or any(one.in_order and _tells(one.taken[0]) for one in self.inputs):
            return True
        return all(pair[0].parts is not None and not _exchanged(*pair) for pair in unsure)

    def _order(self, same: bool, found: bool) -> TensorResult:
        ours, theirs = self.samples
        as_far = "" if ours.count == theirs.count else ", as far as both go"
        if same:
            return _row(
                "order", f"the same samples in the same places{as_far}", "aligned", min(ours.count, theirs.count)
            )
        worst = max(self.inputs, key=lambda one: one.wrong)
        reason = f"{worst.wrong:,} of {worst.rows:,} places hold another sample, {worst.first}; "
        if found:
            reason += f"over the epoch they are the same samples{as_far}"
        else:
            reason += "the samples themselves differ, too" + (", in what was read" if self._cut() else "")
            if ours.parts is not None:
                reason += f": {int(np.isin(ours.all(), theirs.all()).sum()):,} of {ours.count:,} are on both sides"
        return _row("order", reason, "diverged", worst.rows)

    def _cut(self) -> bool:
        return any(len(stream.sizes) == stream.limit for stream in self.streams)

    def _explain_order(self, same: bool, found: bool, dataset: Loader | None, seed: int | None) -> Iterable[Finding]:
        """What `explain_order` says, samples being called by their places: in the data set, or in the reference's order."""
        ours, theirs = (stream.sizes for stream in self.streams)
        if same and ours == theirs:
            return ()
        names = [taken.all() for taken in self.samples]
        stored = self._stored(dataset, names[0]) if found and not same else None
        if same:  # only how they are cut is asked: what differs of a sample makes it no other one
            names[1] = np.concatenate([names[0][: len(names[1])], names[1][len(names[0]) :]])
        known = names[0] if stored is None else stored
        called = _numbered(np.concatenate([known, *names]))
        one, two = called[len(known) : len(known) + len(names[0])], called[len(known) + len(names[0]) :]
        if stored is None:
            # All samples: a side that has no more batches, but more rows, filled up its last one. In the order of their
            # hashes, which no side can have by design.
            whole = max((0, 1), key=lambda side: (len((ours, theirs)[side]), -len(names[side])))
            places = (one, two)[whole][np.argsort(names[whole], kind="stable")]
        else:
            places = called[: len(known)]
        return explain_order(_cut_up(one, ours), _cut_up(two, theirs), dataset=places, seed=seed)

    def _stored(self, dataset: Loader | None, ours: Names) -> Names | None:
        """The names of all samples as they are stored; None where nothing says it, or the loaders make them otherwise."""
        assert self.key is not None
        sources: list[Iterable[Entries]] = [stream.stored() or () for stream in self.streams]
        if dataset is not None:
            given = Stream("data set", dataset)
            sources = [iter(given.next, None)]
        for samples in sources:
            names = []
            for sample in samples:
                side = next((side for side, name in enumerate(self.key.names) if name in sample), None)
                if side is None:
                    break
                names.append(self._names(sample, side))
            stored = np.concatenate([np.zeros(0, dtype=np.uint64), *names])
            if len(stored) and np.isin(ours, stored).all():
                return stored
        if dataset is not None:
            self.notes.append(
                "the data set that was given does not hold the reference's samples: it tells nothing here"
            )
        return None


def _row(name: str, reason: str, verdict: Verdict, comparisons: int) -> TensorResult:
    diverged = verdict == "diverged"
    figures: dict[str, Any] = {"strain": inf if diverged else 0.0, "decided_by": "bitwise", "root": diverged}
    return TensorResult("data", name, name, None, verdict, reason, comparisons=max(comparisons, 1), **figures)


def _tells(taken: _Taken) -> bool:
    """Are the rows so many and so various that by chance no other order of them is the same? Of millions they are."""
    if taken.parts is None:
        return True
    counts = np.unique(taken.all(), return_counts=True)[1]
    return float(gammaln(counts.sum() + 1) - gammaln(counts + 1).sum()) > -log(CHANCE)


def _numbered(names: Names) -> NDArray[np.int64]:
    """Each name as the place where it is first met."""
    _, first, places = np.unique(names, return_index=True, return_inverse=True)
    return np.asarray(first[places], dtype=np.int64)


def _cut_up(rows: NDArray, sizes: list[int]) -> list[NDArray]:
    return np.split(rows, np.cumsum(sizes)[:-1]) if sizes else []


def _pairing(parted: list[_Input]) -> tuple[TensorResult, Finding]:
    worst = max(parted, key=lambda one: one.wrong)
    said = " and ".join(one.names[0] for one in parted)
    reason = (
        f"{said}: the same rows over the epoch, but with other rows of the other inputs; {worst.wrong:,} of {worst.rows:,} "
        f"places differ, {worst.first}"
    )
    trial = Trial("taking all inputs by one order of rows", float(worst.wrong), 0.0, True, "rows of other samples")
    suspect = InputSuspect("pairing", {"data-pairing": trial}, "data")
    finding = finding_of(diagnose(suspect), ("data pairing",), reason, SIDES[1], BY_DEFINITION)
    return _row("pairing", reason, "diverged", worst.rows), finding


def _judged(one: _Input, same: bool, whole: bool) -> TensorResult:
    """An input's row: what differs of it besides the order."""
    values = "" if whole else _values(one, same)
    wrong = "; ".join(text for text in (one.dtypes, one.shapes, values) if text)
    right = "equal bits"
    if whole:
        right = "the same rows over the epoch, in another order"
    elif one.wrong:
        right = f"equal bits in {one.alike} samples that were found on both sides"
    return TensorResult(
        "input",
        *one.names,
        (one.rows, *one.shape),
        "diverged" if wrong else "aligned",
        f"{wrong}; {one.hashes}" if wrong else right,
        max_abs=one.max_abs if values and same else None,
        seen=one.max_abs if values and same else None,
        allowed=0.0 if values and same else None,
        strain=inf if wrong else 0.0,
        dtype=str(one.dtype),
        decided_by="bitwise" if values or not wrong else "metadata",
        comparisons=one.chunks,
        root=bool(wrong) and (same or bool(one.dtypes or one.shapes or one.unlike)),
    )


def _values(one: _Input, same: bool) -> str:
    """How the values of an input differ, in words; empty where they do not."""
    if not one.wrong:
        return ""
    after = f", none after {one.correction.change}" if one.correction else ""
    if not same and one.alike and not one.unlike:
        return ""
    if one.unlike:
        return f"of {one.alike + one.unlike} samples that were found on both sides {one.unlike} differ in it{after}"
    if not same:
        return f"no sample of one side was found on the other, {one.first}"
    return f"{one.wrong:,} of {one.rows:,} rows differ{after or ', with other values'}; {one.first}"


def _explained(one: _Input, same: bool, whole: bool) -> Iterator[Finding]:
    """A finding for each thing that differs of an input, whatever its order."""
    roots, rows = (f"input {one.names[0]}",), float(one.rows)
    if one.dtypes:
        yield _found(one, one.dtypes, "data-dtype", Trial(f"reading it as {one.dtype}", rows, 0.0, True, "rows"))
    if one.shapes and one.axes:
        yield _found(one, one.shapes, "data-shape", Trial("leaving out axes of one element", rows, 0.0, True, "rows"))
    symptom, differ = _values(one, same), float(one.unlike or one.wrong)
    if not symptom or whole or not (same or one.unlike):
        return
    if one.correction is not None:
        yield _found(
            one, symptom, one.correction.cause, Trial(one.correction.change, differ, 0.0, True, "rows that differ")
        )
    else:
        finding = finding_of([], roots, symptom, SIDES[1], BY_DEFINITION)
        yield replace(
            finding, remedy="compare how each side makes this input: tokens, vocabulary, transforms, random choices"
        )


def _found(one: _Input, symptom: str, cause: str, trial: Trial) -> Finding:
    suspect = InputSuspect(one.names[0], {cause: trial})
    return finding_of(diagnose(suspect), (f"input {one.names[0]}",), symptom, SIDES[1], BY_DEFINITION)
