"""A capture in a file: what one side did, run by run, and what must be known of its model to make sense of that.

One safetensors file; docs/capture-format.md describes it. Its tensors are the records, the weights and the batches; a JSON
header in its metadata says in which order the records came to be, what was left out, and what the model is made of. It is
written as the runs are made. Nothing in it is executed, and nothing is believed unchecked.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
import orjson
from numpy.typing import NDArray

import checkpoints
from alignment.errors import AlignmentError
from alignment.figures import Figures
from alignment.frameworks import ModuleInfo
from alignment.mapping import FIGURES, ModelMapping, OwnTolerance
from alignment.scope import Said, any_of
from alignment.structures import restore
from alignment.trace import Kind, Record, Terms, Trace
from checkpoints import CheckpointError, Slot
from checkpoints.layouts import OPERATIONS
from checkpoints.names import Renamed
from fake_data import Batch

SCHEMA_VERSION = 3
SUFFIX = ".safetensors"
# The key of the header in the file's metadata.
HEADER = "alignment_capture"
# Characters; a capture of ten thousand modules and a hundred runs needs a tenth of it.
MOST_HEADER = 80_000_000
# Entries of a shape, and runs of a file, beyond which a header is made to cost time.
MOST_AXES, MOST_RUNS = 64, 10_000
# Names that stand for what a mapping's patterns match: they are compiled to a pattern again.
MOST_NAMES = 10_000
# Sets of initial values, one for each seed.
MOST_SEEDS = 1_000

# dtype -> safetensors' word for it.
RECORD_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
WEIGHT_DTYPES = RECORD_DTYPES | {"bfloat16": "BF16"}

Loss = Literal["model", "criterion", "outputs", "function"]
Mode = Literal["eval", "train"]
Dropout = Literal["frozen", "seeded"]
Side = Literal["reference", "candidate"]
Level = Literal["all", "boundaries", "statistics"]
Purpose = Literal["case", "detail", "train"]
Why = Literal["level", "only", "budget"]
Options = Mapping[str, Mapping[str, Any]]
State = dict[str, NDArray]
Key = tuple[Kind, str]


@dataclass(frozen=True)
class About:
    """What a capture knows of its side.

    side, framework, device, versions: what ran, and where. twin, address, target: of what; address is how the twin was asked
    for. settings: constructor keywords as used. options: of the check, as in a report.
    loss, mode, dropout, padding: as in `alignment.Twin`; padding is the id itself. data, notes, faults: for the report. seed: of
    weights and batches. strict: as in `alignment.Options`. learning_rate: of Adam's steps. threads: of the runs. initializers:
    how many times the side's own initialiser was drawn from.
    mismatch: why the candidate could not be given the reference's weights; nothing was run then.
    level, only, budget: what was to be kept. of: identity of the reference's capture that a candidate's was made from.
    slots: the state dict's entries, in order. modules: the module tree. layers: module path -> option by torch's name ->
    value, where known. counterparts: what becomes of the reference's weights, where that is not told by their names; None:
    dropped. A reference's capture has what the twin's name map says; a candidate's all that it was given weights by.
    said: what a candidate's mapping says besides.
    """

    side: Side
    framework: str
    target: str
    slots: tuple[Slot, ...]
    modules: tuple[ModuleInfo, ...]
    layers: Options
    loss: Loss
    mode: Mode = "eval"
    dropout: Dropout = "frozen"
    padding: int = 0
    device: str = "cpu"
    versions: Mapping[str, str] = field(default_factory=dict)
    twin: str = ""
    address: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""
    notes: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    seed: int = 0
    strict: bool = False
    learning_rate: float = 0.0
    threads: int = 1
    train_steps: int = 0
    initializers: int = 0
    mismatch: tuple[str, ...] = ()
    level: Level = "all"
    only: tuple[str, ...] = ()
    budget: int | None = None
    of: str = ""
    counterparts: Mapping[str, Renamed | None] = field(default_factory=dict)
    said: Said = field(default_factory=Said)


@dataclass(frozen=True)
class Run:
    """One run of a capture, in the side's own names and layout.

    purpose: ``"case"``, one of a check's; ``"detail"``, a float64 run that `align explain` looks into; ``"train"``, several
    steps of training. weights, batch: their names. noise: 0, or the number of a run of the reference whose weights were
    moved by one unit in the last place.
    trace: the records whose values are kept. figures: those of which figures are (of gradients and updates in the
    reference's layout). left_out: those of which nothing is, and why. order: all of them as they came to be.
    criterion_scale: what the logits were multiplied by for the criterion's options. largest_gradient: of all that the run
    computed. summands: of the reference's float64 run, as `alignment.experiment.summands_of` has them.
    """

    purpose: Purpose
    weights: str
    batch: str
    noise: int
    trace: Trace
    figures: Mapping[Key, Figures] = field(default_factory=dict)
    left_out: Mapping[Key, Why] = field(default_factory=dict)
    order: tuple[Key, ...] = ()
    criterion_scale: float = 1.0
    largest_gradient: float = 0.0
    summands: Mapping[str, Terms] = field(default_factory=dict)


@dataclass(frozen=True)
class SavedTrace:
    """One detailed float64 run of a capture, with all that explains it.

    trace: in the side's own names and layout. state: the weights it ran with. batch: what it was given. weights: what the
    set of weights is called.
    """

    about: About
    trace: Trace
    state: State
    batch: Batch
    weights: str

    @property
    def slots(self) -> tuple[Slot, ...]:
        """What the weights are, in order."""
        return self.about.slots


@dataclass(frozen=True)
class Capture:
    """What a file holds.

    identity: hash of its weights and batches. weights: name of the set -> the side's state dict. left_out: reason -> number of
    records that are not there, those of a detailed run for which there was no room included. initial: what the side's own
    initialiser gives under each seed.
    """

    about: About
    identity: str
    weights: dict[str, State]
    batches: tuple[Batch, ...]
    runs: tuple[Run, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    initial: tuple[State, ...] = ()

    @cached_property
    def _index(self) -> dict[tuple[Purpose, str, str, str, int], Run]:
        return {(run.purpose, run.weights, run.batch, run.trace.dtype, run.noise): run for run in self.runs}

    def run(self, weights: str, batch: str, dtype: str, noise: int = 0, purpose: Purpose = "case") -> Run | None:
        """One run, or None where there is none of the kind."""
        return self._index.get((purpose, weights, batch, dtype, noise))

    def noise(self, weights: str, batch: str, purpose: Purpose = "case") -> list[Run]:
        """The runs with weights moved by one unit in the last place."""
        runs = (run for run in self.runs if run.purpose == purpose and run.noise)
        return [run for run in runs if (run.weights, run.batch) == (weights, batch)]

    def batch(self, name: str) -> Batch:
        """The batch of a name."""
        return next(batch for batch in self.batches if batch.name == name)

    def saved(self, run: Run) -> SavedTrace:
        """One run by itself, as what explains a trace takes it."""
        return SavedTrace(self.about, run.trace, self.weights[run.weights], self.batch(run.batch), run.weights)


# -------------------------------------------------------------------------------------------------------------- writing


class CaptureWriter:
    """Writes a capture as its runs are made; `finish` puts the header in front. Use with `checkpoints.write_aside`.

    Args:
        file: an empty file that can be read and sought, too.
        cases: how many runs of cases are to come, for which the budget keeps room to list them.
        reserve: bytes to keep for the list of the training runs' records.
        initial: what the side's own initialiser gives under each seed.

    Raises:
        AlignmentError: the budget does not hold the weights, the batches and the header.
    """

    def __init__(
        self,
        file: BinaryIO,
        about: About,
        weights: Mapping[str, State],
        batches: Sequence[Batch],
        cases: int = 0,
        reserve: int = 0,
        initial: Iterable[State] = (),
    ) -> None:
        self._file, self._about, self._weights, self._batches = file, about, list(weights), batches
        self._to_come, self._reserve, self._longest = cases, reserve, 0
        self._entries: dict[str, dict[str, Any]] = {}
        self._runs: list[dict[str, Any]] = []
        self._end = 0
        self.left_out: dict[Why, int] = {}
        self.written = 0
        digest = hashlib.blake2b(digest_size=16)
        for number, state in enumerate(weights.values()):
            for name, value in state.items():
                self._put(f"weight/{number}/{name}", value, digest.update)
        for number, batch in enumerate(batches):
            for name, value in batch.inputs.items():
                self._put(f"batch/{number}/{name}", value, digest.update)
            if batch.targets is not None:
                self._put(f"targets/{number}", batch.targets, digest.update)
        self.identity = digest.hexdigest()
        own = [slot.name for slot in about.slots if slot.tied_to is None]
        for number, state in enumerate(initial):
            for name in own:
                self._put(f"initial/{number}/{name}", state[name])
        # What the file has without a single record; kept as it grows, for the budget.
        self._listed = len(self._header_text()) + 100  # for the counts of what is left out
        if about.budget is not None and self._listed + self._end > about.budget:
            raise AlignmentError(
                f"a budget of {size_in_words(about.budget)} is too small: the weights, the batches and the model's "
                f"description take {size_in_words(self._listed + self._end)}"
            )

    def add(self, run: Run, wanted: Callable[[Key], Why | None] = lambda _key: None) -> None:
        """Write a run: its records, or those `wanted` gives no reason to leave out, as far as the budget goes.

        A detailed run is written whole or not at all.

        Raises:
            AlignmentError: a record is of a dtype that is not kept, or what is left out does not fit into the budget.
        """
        number = len(self._runs)
        # A name that stands twice means its last value, as it does in a trace.
        values = {(record.kind, record.name): record.value for record in run.trace.records}
        order = list(dict.fromkeys((*run.order, *values, *run.figures, *run.left_out)))
        listing = listing_cost(order) + _cost(_listed(run.summands))
        if run.purpose == "detail" and self._about.budget is not None:
            data = sum(value.nbytes + len(name) + 300 for (_, name), value in values.items() if value is not None)
            if self._size + listing + data + _cost(run.trace.sites) + self._reserve > self._about.budget:
                self.left_out["budget"] = self.left_out.get("budget", 0) + len(order)
                return
        if run.purpose == "case":
            self._to_come -= 1
        elif run.purpose == "train":
            self._reserve -= listing
        self._longest = max(self._longest, listing)
        reserve = listing + self._longest * self._to_come + self._reserve
        if not self._runs and self._about.budget is not None and self._size + reserve > self._about.budget:
            raise self._too_small(self._size + reserve)
        records = []
        for key in order:
            kind, name = key
            value, figures = values.get(key), run.figures.get(key)
            entry: dict[str, Any] = {"kind": kind, "name": name}
            why = wanted(key)
            label = f"{number}/{kind}/{name}"
            if why is None and figures is not None:
                entry["figures"] = asdict(figures)
            elif why is None:
                dtype = None if value is None else str(value.dtype)
                if dtype is not None and dtype not in RECORD_DTYPES:
                    raise AlignmentError(f"the {kind} {name} is {dtype}, which a capture can't hold")
                entry["dtype"] = dtype
            if why is None:
                data = value.nbytes if "dtype" in entry and value is not None else 0
                listed = _cost(entry) + (len(label) + 120 if data else 0)
                reserve -= _cost({"kind": kind, "name": name, "left_out": "budget"})
                if self._about.budget is not None and self._size + listed + data + reserve > self._about.budget:
                    why = "budget"
            if why is not None:
                entry = {"kind": kind, "name": name, "left_out": why}
                self.left_out[why] = self.left_out.get(why, 0) + 1
            elif "dtype" in entry and value is not None:
                self._put(label, value)
                self._listed += len(label) + 120
            self._listed += _cost(entry)
            records.append(entry)
        self._runs.append(
            {
                "purpose": run.purpose,
                "weights": run.weights,
                "batch": run.batch,
                "dtype": run.trace.dtype,
                "noise": run.noise,
                "criterion_scale": run.criterion_scale,
                "largest_gradient": run.largest_gradient,
                "summands": _listed(run.summands),
                "sites": dict(run.trace.sites),
                "records": records,
            }
        )
        self._listed += _cost(self._runs[-1] | {"records": []})

    def finish(self) -> None:
        """Put the header in front of the tensors, in place.

        Raises:
            AlignmentError: the budget is too small even for the list of what was left out, or the header is too large.
        """
        head = self._header_text()
        head = struct.pack("<Q", len(head)) + head
        self.written = len(head) + self._end
        if self._about.budget is not None and self.written > self._about.budget:
            raise self._too_small(self.written)
        _shift(self._file, self._end, len(head))
        self._file.seek(0)
        self._file.write(head)
        self._file.seek(0, os.SEEK_END)

    def _too_small(self, needed: int) -> AlignmentError:
        return AlignmentError(
            f"a budget of {size_in_words(self._about.budget or 0)} is too small: weights, batches and the list of what was left "
            f"out alone need {size_in_words(needed)}; give more, or capture fewer or smaller batches"
        )

    @property
    def _size(self) -> int:
        return self._listed + self._end

    def _put(self, name: str, value: NDArray, update: Callable[[memoryview], None] | None = None) -> None:
        dtype = str(value.dtype)
        if dtype not in WEIGHT_DTYPES:
            raise AlignmentError(f"{name} is {dtype}, which a capture can't hold")
        packed = np.ascontiguousarray(value)
        raw = packed.reshape(-1).view(np.uint8).data if packed.size else memoryview(b"")
        if update is not None:
            update(raw)
        self._file.write(raw)
        self._entries[name] = {
            "dtype": WEIGHT_DTYPES[dtype],
            "shape": list(value.shape),
            "data_offsets": [self._end, self._end + value.nbytes],
        }
        self._end += value.nbytes

    def _header_text(self) -> bytes:
        header = {
            "schema_version": SCHEMA_VERSION,
            "identity": self.identity,
            **_about_as_json(self._about),
            "weights": self._weights,
            "batches": [
                {
                    "name": batch.name,
                    "inputs": list(batch.inputs),
                    "targets": batch.targets is not None,
                    "structure": _as_json(batch.structure, "structure of the inputs"),
                }
                for batch in self._batches
            ],
            "left_out": dict(self.left_out),
            "runs": self._runs,
        }
        told = orjson.dumps(header).decode()
        if len(told) > MOST_HEADER:
            raise AlignmentError(
                f"the capture's header has {len(told):,} characters, and {MOST_HEADER:,} may be read: keep less with --only"
            )
        text = json.dumps({"__metadata__": {HEADER: told}, **self._entries}, ensure_ascii=False, separators=(",", ":"))
        packed = text.encode()
        return packed + b" " * (-len(packed) % 8)


def write_capture(
    path: str | Path,
    about: About,
    weights: Mapping[str, State],
    batches: Sequence[Batch],
    runs: Sequence[Run],
    initial: Sequence[State] = (),
) -> None:
    """Write a capture whose runs are there already; the file is there whole or not at all.

    Raises:
        AlignmentError: no .safetensors, or a record of a dtype that is not kept. CheckpointError: it can't be written.
    """
    path = Path(path)
    refuse_suffix(path)
    checkpoints.check_destination(path)
    with checkpoints.write_aside(path) as file:
        writer = CaptureWriter(file, about, weights, batches, initial=initial)
        for run in runs:
            writer.add(run, lambda key, run=run: run.left_out.get(key))  # type: ignore[misc]
        writer.finish()


def refuse_suffix(path: Path) -> None:
    """AlignmentError unless this is the name of a capture."""
    if path.suffix != SUFFIX:
        raise AlignmentError(f"{path}: a capture is a {SUFFIX} file")


def _about_as_json(about: About) -> dict[str, Any]:
    told = {name: getattr(about, name) for name in about.__dataclass_fields__}
    told["modules"] = [
        {
            **asdict(module),
            "options": {name: value for name, value in about.layers.get(module.path, {}).items() if _is_plain(value)},
        }
        for module in about.modules
    ]
    del told["layers"]
    told["slots"] = [asdict(slot) for slot in about.slots]
    told["counterparts"] = {
        name: None if renamed is None else {"name": renamed.name, "operation": renamed.operation}
        for name, renamed in about.counterparts.items()
    }
    said = about.said
    spoken = [*said.ignore, *said.boundary, *(name for names, _ in said.tolerances for name in names)]
    if len(spoken) > MOST_NAMES:
        raise AlignmentError(
            f"the mapping's patterns match {len(spoken)} modules and tensors one by one, and a capture holds {MOST_NAMES}: "
            "name the modules that hold them"
        )
    told["said"] = {name: getattr(said, name) for name in said.__dataclass_fields__} | {
        "tolerances": [
            {"names": names, "reason": own.reason} | {figure: getattr(own, figure) for figure in FIGURES}
            for names, own in said.tolerances
        ]
    }
    for name in ("settings", "options"):
        told[name] = _as_json(dict(told[name]), name)
    return told


def _as_json(value: Any, what: str) -> Any:
    try:
        return orjson.loads(orjson.dumps(value))
    except TypeError as error:
        raise AlignmentError(f"the {what} can't be written into a capture: {error}") from error


def _is_plain(value: object) -> bool:
    return isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))


def _cost(entry: Mapping[str, Any]) -> int:
    """Bytes of an entry in the header: JSON within a JSON text, so that its quotation marks count twice."""
    text = orjson.dumps(entry)
    return len(text) + text.count(b'"') + text.count(b"\\") + 1


def listing_cost(keys: Iterable[tuple[str, str]]) -> int:
    """Bytes of a run in the header, of which nothing is kept but the list of what was left out."""
    return 600 + sum(_cost({"kind": kind, "name": name, "left_out": "budget"}) for kind, name in keys)


def _shift(file: BinaryIO, size: int, by: int, block: int = 8 << 20) -> None:
    """Move all of a file towards its end, from the end on, so that nothing is held twice."""
    for start in reversed(range(0, size, block)):
        file.seek(start)
        data = file.read(min(block, size - start))
        file.seek(start + by)
        file.write(data)


def size_in_words(count: int) -> str:
    """``"12.5 MB"``."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


# -------------------------------------------------------------------------------------------------------------- reading


class _HeaderError(Exception):
    """What is wrong with a header; `read_capture` says in which file."""


def read_capture(path: str | Path) -> Capture:
    """Read a capture. Its tensors stay in the file until they are looked at.

    Raises:
        AlignmentError: no such file, no safetensors, no capture, of another schema version, damaged, or it contradicts
            itself; the message names the file and what is wrong.
    """
    path = Path(path)
    refuse_suffix(path)
    try:
        file = checkpoints.map_checkpoint(path)
    except CheckpointError as error:
        raise AlignmentError(str(error)) from error
    try:
        return _capture(_header(file.metadata), file.tensors)
    except _HeaderError as error:
        raise AlignmentError(f"{path}: {error}") from error


def read_detailed(path: str | Path) -> SavedTrace:
    """The detailed run of a capture, for `align explain`.

    Raises:
        AlignmentError: as `read_capture`; or it has no detailed run.
    """
    capture = read_capture(path)
    run = next((run for run in capture.runs if run.purpose == "detail"), None)
    if run is None:
        why = (
            "its candidate could not be given the reference's weights"
            if capture.about.mismatch
            else "one is made at --level all, without --only, and where the budget has room for the whole of it"
        )
        raise AlignmentError(
            f"{path}: has no detailed run, which is what is explained: {why}; `align compare` compares it"
        )
    if run.left_out:
        kind, name = next(iter(run.left_out))
        raise AlignmentError(
            f"{path}: its detailed run is not whole ({kind} {name} and {len(run.left_out) - 1} more were left out to stay "
            "within the budget): capture it with a larger --budget to have it explained"
        )
    return capture.saved(run)


def _header(metadata: Mapping[str, str]) -> dict[str, Any]:
    text = metadata.get(HEADER)
    if text is None:
        raise _HeaderError("is no capture: it has tensors, but not the header that `align capture` writes")
    if len(text) > MOST_HEADER:
        raise _HeaderError(f"its header has {len(text):,} characters; at most {MOST_HEADER:,} are read")
    try:
        header = orjson.loads(text)
    except ValueError as error:
        raise _HeaderError(f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise _HeaderError("its header is no JSON object")
    version = header.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:
        raise _HeaderError(f"schema version {str(version)[:20]} is not known here; {SCHEMA_VERSION} is")
    return header


class _Tensors:
    """The file's tensors, each taken once."""

    def __init__(self, tensors: Mapping[str, NDArray]) -> None:
        self.left = dict(tensors)

    def take(self, key: str, dtype: str | None = None, shape: tuple[int, ...] | None = None) -> NDArray:
        if key not in self.left:
            raise _HeaderError(f"the tensor {key!r} that its header lists is missing")
        value = self.left.pop(key)
        if dtype is not None and str(value.dtype) != dtype:
            raise _HeaderError(f"the tensor {key!r} is {value.dtype}, where its header says {dtype}")
        if shape is not None and value.shape != shape:
            raise _HeaderError(f"the tensor {key!r} has shape {list(value.shape)}, where its header says {list(shape)}")
        return value


def _capture(header: dict[str, Any], tensors: dict[str, NDArray]) -> Capture:
    taken = _Tensors(tensors)
    about = _about(header)
    names = _names(header, "weights")
    if len(set(names)) != len(names):
        raise _HeaderError("two sets of weights have one name")
    weights = {
        name: {slot.name: taken.take(f"weight/{number}/{slot.name}", slot.dtype, slot.shape) for slot in about.slots}
        for number, name in enumerate(names)
    }
    batches = tuple(_batch(number, entry, taken) for number, entry in enumerate(_get(header, "batches", list)))
    known = [batch.name for batch in batches]
    if len(set(known)) != len(known):
        raise _HeaderError("two batches have one name")
    entries = _get(header, "runs", list)
    if len(entries) > MOST_RUNS:
        raise _HeaderError(f"it lists {len(entries)} runs; at most {MOST_RUNS} are read")
    runs = tuple(_run(number, entry, about.framework, taken) for number, entry in enumerate(entries))
    if about.initializers > MOST_SEEDS:
        raise _HeaderError(f"it lists {about.initializers} draws of its initialisers; at most {MOST_SEEDS} are read")
    initial = tuple(_initial(number, about, taken) for number in range(about.initializers))
    if not runs and not about.mismatch:
        raise _HeaderError("it has no runs")
    keys = [(run.purpose, run.weights, run.batch, run.trace.dtype, run.noise) for run in runs]
    if len(set(keys)) != len(keys):
        raise _HeaderError("a run is listed twice")
    for run in runs:
        if run.weights not in weights or run.batch not in known:
            raise _HeaderError(f"a run is of weights {run.weights!r} and batch {run.batch!r}, which it does not hold")
    if taken.left:
        raise _HeaderError(f"the tensor {next(iter(taken.left))!r} is not in its header")
    counts = _get(header, "left_out", dict)
    left_out = {_printable(why): _count(counts, why) for why in counts}
    return Capture(about, _text(header, "identity"), weights, batches, runs, left_out, initial)


def _initial(number: int, about: About, taken: _Tensors) -> State:
    """What the initialiser gave once, every name of the state dict."""
    found: State = {}
    for slot in about.slots:
        own = slot.tied_to is None
        key = f"initial/{number}/{slot.name}"
        found[slot.name] = taken.take(key, slot.dtype, slot.shape) if own else found[slot.tied_to or ""]
    return found


def _about(header: dict[str, Any]) -> About:
    side, loss, level, mode, dropout = (_text(header, name) for name in ("side", "loss", "level", "mode", "dropout"))
    told = (("side", side, Side), ("loss", loss, Loss), ("level", level, Level), ("mode", mode, Mode))
    for what, value, known in (*told, ("dropout", dropout, Dropout)):
        if value not in get_args(known):
            raise _HeaderError(f"{what} {value!r} is none of {', '.join(get_args(known))}")
    modules = _get(header, "modules", list)
    found = _modules(modules)
    return About(
        side=side,  # type: ignore[arg-type]
        framework=_text(header, "framework"),
        target=_text(header, "target"),
        slots=_slots(header),
        modules=found,
        layers={module["path"]: _options(module) for module in modules},
        loss=loss,  # type: ignore[arg-type]
        mode=mode,  # type: ignore[arg-type]
        dropout=dropout,  # type: ignore[arg-type]
        padding=_get(header, "padding", int),
        device=_text(header, "device"),
        versions=_texts(header, "versions"),
        twin=_text(header, "twin"),
        address=_text(header, "address"),
        settings=_get(header, "settings", dict),
        options=_get(header, "options", dict),
        data=_text(header, "data"),
        notes=_names(header, "notes"),
        faults=_names(header, "faults"),
        seed=_count(header, "seed"),
        strict=_get(header, "strict", bool),
        learning_rate=_number(header, "learning_rate"),
        threads=_count(header, "threads"),
        train_steps=_count(header, "train_steps"),
        initializers=_count(header, "initializers"),
        mismatch=_names(header, "mismatch"),
        level=level,  # type: ignore[arg-type]
        only=_names(header, "only"),
        budget=None if _get(header, "budget", (int, type(None))) is None else _count(header, "budget"),
        of=_text(header, "of"),
        counterparts={_printable(n): _counterpart(entry) for n, entry in _get(header, "counterparts", dict).items()},
        said=_said(_get(header, "said", dict)),
    )


def _said(entry: Any) -> Said:
    """What a mapping says, by name. Its patterns are in no file: one can be made to take for ever."""
    ignore, boundary = _names(entry, "ignore"), _names(entry, "boundary")
    tolerances = []
    for one in _get(entry, "tolerances", list):
        figures = {name: _get(one, name, (float, int, type(None))) for name in FIGURES}
        names, reason = _names(one, "names"), _text(one, "reason")
        try:
            own = OwnTolerance(any_of(names), reason, **figures)
            ModelMapping(tolerances=(own,))
        except (AlignmentError, OverflowError, ValueError) as error:
            raise _HeaderError(f"a tolerance of its own is none: {error}") from error
        tolerances.append((names, own))
    if len(ignore) + len(boundary) + sum(len(names) for names, _ in tolerances) > MOST_NAMES:
        raise _HeaderError(f"its mapping names more than {MOST_NAMES} modules and tensors")
    modules = _texts(entry, "modules")
    return Said(_names(entry, "kept"), modules, ignore, boundary, tuple(tolerances), _names(entry, "notes"))


def _batch(number: int, entry: Any, taken: _Tensors) -> Batch:
    names = [_printable(name) for name in _get(entry, "inputs", list)]
    inputs = {name: taken.take(f"batch/{number}/{name}") for name in dict.fromkeys(names)}
    if not inputs or len(inputs) != len(names):
        raise _HeaderError("a batch needs at least one input, each with a name of its own")
    targets = taken.take(f"targets/{number}") if _get(entry, "targets", bool) else None
    structure = _get(entry, "structure", (dict, type(None)))
    if structure is not None:
        try:
            restore(structure, inputs)
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise _HeaderError(f"the structure of a batch's inputs describes no call: {error}") from error
    return Batch(_text(entry, "name"), inputs, targets, structure)


def _run(number: int, entry: Any, framework: str, taken: _Tensors) -> Run:
    purpose, dtype = _text(entry, "purpose"), _text(entry, "dtype")
    if purpose not in get_args(Purpose):
        raise _HeaderError(f"purpose {purpose!r} is none of {', '.join(get_args(Purpose))}")
    if dtype not in ("float32", "float64") or (purpose == "detail" and dtype != "float64"):
        raise _HeaderError(f"a {purpose} run in {dtype} is none that is known here")
    records: list[Record] = []
    figures: dict[Key, Figures] = {}
    left_out: dict[Key, Why] = {}
    order: dict[Key, None] = {}
    for listed in _get(entry, "records", list):
        kind, name = _text(listed, "kind"), _text(listed, "name")
        if kind not in get_args(Kind):
            raise _HeaderError(f"{name}: {kind!r} is no kind of record")
        key: Key = (kind, name)  # type: ignore[assignment]
        if key in order:
            raise _HeaderError(f"the {kind} {name} is listed twice")
        order[key] = None
        if "left_out" in listed:
            why = _text(listed, "left_out")
            if why not in get_args(Why):
                raise _HeaderError(f"the {kind} {name} is left out for {why!r}, which is no known reason")
            left_out[key] = why  # type: ignore[assignment]
        elif "figures" in listed:
            figures[key] = _figures(_get(listed, "figures", dict), f"{kind} {name}")
        else:
            stored = None if _get(listed, "dtype", (str, type(None))) is None else _text(listed, "dtype")
            if stored is not None and stored not in RECORD_DTYPES:
                raise _HeaderError(f"the {kind} {name} is {stored}, which no record is")
            records.append(
                Record(key[0], name, None if stored is None else taken.take(f"{number}/{kind}/{name}", stored))
            )
    if not order:
        raise _HeaderError("a run has no records")
    return Run(
        purpose,  # type: ignore[arg-type]
        _text(entry, "weights"),
        _text(entry, "batch"),
        _count(entry, "noise"),
        Trace(framework, dtype, tuple(records), _texts(entry, "sites")),
        figures,
        left_out,
        tuple(order),
        _number(entry, "criterion_scale"),
        _number(entry, "largest_gradient"),
        {_printable(path): _sizes(sizes) for path, sizes in _get(entry, "summands", dict).items()},
    )


def _listed(summands: Mapping[str, Terms]) -> dict[str, list[float]]:
    return {path: list(terms) for path, terms in summands.items()}


def _sizes(value: Any) -> Terms:
    if not isinstance(value, list) or len(value) != 3 or not all(_is_figure(size) and size >= 0 for size in value):
        raise _HeaderError("the sizes of what a module's gradients sum up are no three figures")
    return Terms(*map(float, value))


def _figures(entry: dict[str, Any], what: str) -> Figures:
    dtype, bits = _text(entry, "dtype"), _text(entry, "bits")
    if dtype not in RECORD_DTYPES or len(bits) != 32:
        raise _HeaderError(f"the figures of {what} have no dtype, or no hash, of the right form")
    total, absolute, norm, smallest, largest = (
        _figure(entry, name, what) for name in ("total", "absolute", "norm", "smallest", "largest")
    )
    nan, above, below = (_count(entry, name) for name in ("nan", "above", "below"))
    error = _get(entry, "error", (list, type(None)))
    if error is not None and (len(error) != 2 or not all(_is_figure(part) and part >= 0 for part in error)):
        raise _HeaderError(f"the float32 error of {what} is no pair of figures")
    shape = _shape(entry)
    size, special = math.prod(shape), nan + above + below
    if special > size or any((extreme is None) != (special == size) for extreme in (smallest, largest)):
        raise _HeaderError(f"the figures of {what} contradict its shape")
    if any(sign is not None and sign < 0 for sign in (absolute, norm)) or (smallest or 0.0) > (largest or 0.0):
        raise _HeaderError(f"the figures of {what} contradict each other")
    known = None if error is None else (float(error[0]), float(error[1]))
    return Figures(shape, dtype, bits, nan, above, below, total, absolute, norm, smallest, largest, known)


def _figure(entry: dict[str, Any], name: str, what: str) -> float | None:
    value = entry.get(name, math.nan)
    if value is not None and not _is_figure(value):
        raise _HeaderError(f"the figures of {what} lack a finite {name!r}")
    return None if value is None else float(value)


def _is_figure(value: object) -> bool:
    # A whole number of any length is JSON; one beyond a float64's range is no figure.
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < 2**1000)


def _slots(header: Mapping[str, Any]) -> tuple[Slot, ...]:
    found: dict[str, Slot] = {}
    for entry in _get(header, "slots", list):
        shape = _shape(entry)
        role = _text(entry, "role")
        if role not in ("parameter", "buffer"):
            raise _HeaderError(f"{role!r} is neither a parameter nor a buffer")
        tied = None if _get(entry, "tied_to", (str, type(None))) is None else _text(entry, "tied_to")
        name = _text(entry, "name")
        if name in found or (tied is not None and tied not in found):
            raise _HeaderError(f"the weight {name} is listed twice, or tied to one that is not listed before it")
        found[name] = Slot(
            name,
            _text(entry, "kind"),
            _text(entry, "local"),
            shape,
            _text(entry, "dtype"),
            role,  # type: ignore[arg-type]
            tied,
            _within(entry),
        )
    return tuple(found.values())


def _within(entry: Any) -> tuple[tuple[str, str], ...]:
    found = _get(entry, "within", list)
    if len(found) > MOST_AXES or not all(isinstance(pair, list) and len(pair) == 2 for pair in found):
        raise _HeaderError("the layers around a weight are no list of pairs")
    return tuple((_printable(kind), _printable(inside)) for kind, inside in found)


def _shape(entry: Any) -> tuple[int, ...]:
    shape = _get(entry, "shape", list)
    if len(shape) > MOST_AXES or not all(type(size) is int and 0 <= size < 2**63 for size in shape):
        raise _HeaderError("a shape in its header is no list of sizes")
    return tuple(shape)


def _counterpart(entry: Any) -> Renamed | None:
    if entry is None:
        return None
    operation = None if _get(entry, "operation", (str, type(None))) is None else _text(entry, "operation")
    if operation is not None and operation not in OPERATIONS:
        raise _HeaderError(f"operation {operation!r} is none of {', '.join(OPERATIONS)}")
    return Renamed(_text(entry, "name"), operation, changed=True)


def _modules(entries: Sequence[Any]) -> tuple[ModuleInfo, ...]:
    found = tuple(ModuleInfo(_text(e, "path"), _text(e, "kind"), _get(e, "own", bool)) for e in entries)
    paths = [module.path for module in found]
    if len(set(paths)) != len(paths) or paths[:1] != [""]:
        raise _HeaderError("its modules must begin with the model itself, and each stand once")
    return found


def _options(entry: Mapping[str, Any]) -> dict[str, Any]:
    options = _get(entry, "options", dict)
    if not all(isinstance(value, (bool, int, float, str)) for value in options.values()):
        raise _HeaderError(f"an option of {entry['path']!r} is neither a number nor a text")
    return {_printable(name): value for name, value in options.items()}


def _get(entry: Any, key: str, kind: type | tuple[type, ...]) -> Any:
    value = entry.get(key) if isinstance(entry, dict) else None
    listed = isinstance(entry, dict) and key in entry
    if not listed or type(value) not in (kind if isinstance(kind, tuple) else (kind,)):
        raise _HeaderError(f"its header lacks a {key!r} of the right kind")
    return value


def _count(entry: Any, key: str) -> int:
    value = _get(entry, key, int)
    if not 0 <= value < 2**63:
        raise _HeaderError(f"{key} {str(value)[:20]} in its header is no count")
    return int(value)


def _number(entry: Any, key: str) -> float:
    value = _get(entry, key, (float, int))
    if not _is_figure(value) or value < 0:
        raise _HeaderError(f"{key} in its header is no finite number from 0 on")
    return float(value)


def _text(entry: Any, key: str) -> str:
    return _printable(_get(entry, key, str))


def _texts(entry: Any, key: str) -> dict[str, str]:
    return {_printable(name): _printable(value) for name, value in _get(entry, key, dict).items()}


def _names(entry: Any, key: str) -> tuple[str, ...]:
    return tuple(_printable(name) for name in _get(entry, key, list))


def _printable(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise _HeaderError(f"a name in its header can't be printed: {str(value)[:40]!r}")
    return value
