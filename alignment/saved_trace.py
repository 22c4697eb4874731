"""A trace in a file: what one side did with one batch, and what must be known of its model to make sense of that.

One safetensors file. Its tensors are the records, the weights and the batch; a JSON header in its metadata says in which
order the records came to be, and what the model is made of. Nothing in it is executed, and nothing is believed unchecked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import orjson
from numpy.typing import NDArray

import checkpoints
from alignment.check import Checked
from alignment.correspondence import renamed
from alignment.errors import AlignmentError
from alignment.experiment import SIDES, State
from alignment.frameworks import ModuleInfo
from alignment.localise import Scene
from alignment.trace import Kind, Record, Trace
from checkpoints import CheckpointError, Slot
from checkpoints.layouts import OPERATIONS
from checkpoints.names import Renamed
from fake_data import Batch

SCHEMA_VERSION = 1
SUFFIX = ".safetensors"
# The key of the header in the file's metadata.
HEADER = "alignment_trace"
# Characters; a model of ten thousand modules needs a tenth of it.
MOST_HEADER = 50_000_000
RECORD_DTYPES = frozenset(
    ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"),
)

Loss = Literal["model", "criterion", "outputs", "function"]
Options = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class SavedTrace:
    """What a file holds.

    trace:    one detailed float64 run, in the side's own names and layout.
    state:    the weights it ran with. slots: what they are, in order.
    modules:  the module tree. options: module path -> option by torch's name -> value, where known.
    batch:    what it was given. weights: what the set of weights is called.
    loss, padding: as in `alignment.Twin`; padding is the id itself.
    twin, target, versions, data, seed: where it comes from, for the report.
    counterparts: what the twin's name map makes of the reference's weights that it changes; None: dropped.
    """

    trace: Trace
    state: State
    slots: tuple[Slot, ...]
    modules: tuple[ModuleInfo, ...]
    options: Options
    batch: Batch
    weights: str
    loss: Loss
    padding: int
    twin: str
    target: str
    versions: Mapping[str, str]
    data: str
    seed: int
    counterparts: Mapping[str, Renamed | None] = field(default_factory=dict)


# -------------------------------------------------------------------------------------------------------------- writing


def write_trace(
    path: str | Path,
    trace: Trace,
    *,
    state: State,
    slots: Sequence[Slot],
    modules: Sequence[ModuleInfo],
    options: Options,
    batch: Batch,
    weights: str,
    loss: Loss,
    padding: int = 0,
    twin: str = "",
    target: str = "",
    versions: Mapping[str, str] | None = None,
    data: str = "",
    seed: int = 0,
    counterparts: Mapping[str, Renamed | None] | None = None,
) -> None:
    """Write one side's run; the arguments are the fields of `SavedTrace`. The file is there whole or not at all.

    Raises:
        AlignmentError: no .safetensors, or a record of a dtype that is not saved.
        CheckpointError: the file can't be written.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise AlignmentError(f"{path}: a trace is saved as a {SUFFIX} file")
    # A name that stands twice means its last value, as it does in a trace.
    records = {(record.kind, record.name): record.value for record in trace.records}
    for (kind, name), value in records.items():
        if value is not None and str(value.dtype) not in RECORD_DTYPES:
            raise AlignmentError(f"{path}: the {kind} {name} is {value.dtype}, which a saved trace can't hold")
    tensors = {f"{kind}/{name}": value for (kind, name), value in records.items() if value is not None}
    tensors |= {f"weight/{name}": value for name, value in state.items()}
    tensors |= {f"batch/{name}": value for name, value in batch.inputs.items()}
    if batch.targets is not None:
        tensors["targets"] = batch.targets
    header = {
        "schema_version": SCHEMA_VERSION,
        "framework": trace.framework,
        "dtype": trace.dtype,
        "versions": dict(versions or {}),
        "twin": twin,
        "target": target,
        "data": data,
        "seed": seed,
        "weights": weights,
        "loss": loss,
        "padding": padding,
        "batch": {"name": batch.name, "inputs": list(batch.inputs), "targets": batch.targets is not None},
        "records": [
            {"kind": kind, "name": name, "dtype": None if value is None else str(value.dtype)}
            for (kind, name), value in records.items()
        ],
        "sites": dict(trace.sites),
        "modules": [
            {
                **asdict(module),
                "options": {name: value for name, value in options.get(module.path, {}).items() if _is_plain(value)},
            }
            for module in modules
        ],
        "slots": [asdict(slot) for slot in slots],
        "counterparts": {
            name: None if renamed is None else {"name": renamed.name, "operation": renamed.operation}
            for name, renamed in (counterparts or {}).items()
        },
    }
    checkpoints.write(path, tensors, {HEADER: orjson.dumps(header).decode()})


def _is_plain(value: object) -> bool:
    return isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))


def save_traces(checked: Checked, folder: str | Path) -> tuple[Path, Path]:
    """Write ``reference.safetensors`` and ``candidate.safetensors`` of a check into a folder.

    They are of the first scene in which roots were found; where there is none, of the first batch with random weights.

    Raises:
        AlignmentError: the candidate can't be given the reference's weights, or fails. CheckpointError: can't be written.
    """
    experiment = checked.experiment
    if experiment.layout is None:
        raise AlignmentError(
            f"no traces: the candidate can't be given the reference's weights: {experiment.mismatch[0]}"
        )
    scene = checked.scenes[0] if checked.scenes else Scene(experiment, "random", experiment.batches[0])
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AlignmentError(f"{folder}: can't make this folder: {error.strerror or error}") from error
    written = []
    for side in SIDES:
        framework, target = experiment.side(side)
        model = scene.model(side, "float64")
        modules = framework.modules(model)
        ours = side == "reference"
        slots = framework.slots(experiment.reference_model if ours else experiment.candidate_model)
        state = experiment.weights[scene.weights] if ours else scene.candidate_state
        if not ours:  # what keeps its own values corresponds to nothing
            slots = tuple(slot for slot in slots if slot.name not in experiment.scope.kept)
            state = {slot.name: state[slot.name] for slot in slots}
        names = {slot.name: experiment.scope.names.rename(slot.name) for slot in slots if ours}
        written.append(folder / f"{side}{SUFFIX}")
        write_trace(
            written[-1],
            scene.reference64 if ours else renamed(scene.candidate64, experiment.own_words),
            state=state,
            slots=slots,
            modules=modules,
            options={module.path: framework.options(model, module.path) for module in modules},
            batch=scene.batch,
            weights=scene.weights,
            loss=experiment.twin.loss,
            padding=experiment.twin.padding(experiment.settings),
            twin=experiment.twin.name,
            target=target,
            versions=framework.versions(),
            data=experiment.data,
            seed=experiment.options.seed,
            counterparts={name: renamed for name, renamed in names.items() if renamed is None or renamed.changed},
        )
    return written[0], written[1]


# -------------------------------------------------------------------------------------------------------------- reading


class _HeaderError(Exception):
    """What is wrong with a header; `read_trace` says in which file."""


def read_trace(path: str | Path) -> SavedTrace:
    """Read what `write_trace` wrote.

    Raises:
        AlignmentError: no such file, no safetensors, no trace, of another schema version, damaged, or it contradicts
            itself; the message names the file and what is wrong.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise AlignmentError(f"{path}: a saved trace is a {SUFFIX} file, as `align explain --traces` writes it")
    try:
        file = checkpoints.read_checkpoint(path)
    except CheckpointError as error:
        raise AlignmentError(str(error)) from error
    try:
        return _saved(_header(file.metadata), file.tensors)
    except _HeaderError as error:
        raise AlignmentError(f"{path}: {error}") from error


def _header(metadata: Mapping[str, str]) -> dict[str, Any]:
    text = metadata.get(HEADER)
    if text is None:
        raise _HeaderError("is no saved trace: it has tensors, but not the header that `align explain --traces` writes")
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


def _saved(header: dict[str, Any], tensors: dict[str, NDArray]) -> SavedTrace:
    left = dict(tensors)

    def take(key: str, dtype: str | None = None, shape: tuple[int, ...] | None = None) -> NDArray:
        if key not in left:
            raise _HeaderError(f"the tensor {key!r} that its header lists is missing")
        value = left.pop(key)
        if dtype is not None and str(value.dtype) != dtype:
            raise _HeaderError(f"the tensor {key!r} is {value.dtype}, where its header says {dtype}")
        if shape is not None and value.shape != shape:
            raise _HeaderError(f"the tensor {key!r} has shape {list(value.shape)}, where its header says {list(shape)}")
        return value

    dtype = _text(header, "dtype")
    if dtype != "float64":
        raise _HeaderError(f"its run is in {dtype}; only float64 can be explained without the models")
    records = tuple(
        Record(kind, name, None if stored is None else take(f"{kind}/{name}", stored))
        for kind, name, stored in _records(header)
    )
    slots = _slots(header)
    state = {slot.name: take(f"weight/{slot.name}", slot.dtype, slot.shape) for slot in slots}
    given = _get(header, "batch", dict)
    names = [_printable(name) for name in _get(given, "inputs", list)]
    inputs = {name: take(f"batch/{name}") for name in names}
    if not inputs or len(inputs) != len(names):
        raise _HeaderError("its batch needs at least one input, each with a name of its own")
    targets = take("targets") if _get(given, "targets", bool) else None
    if left:
        raise _HeaderError(f"the tensor {next(iter(left))!r} is not in its header")
    modules = _get(header, "modules", list)
    loss = _text(header, "loss")
    if loss not in get_args(Loss):
        raise _HeaderError(f"loss {loss!r} is neither of {', '.join(get_args(Loss))}")
    return SavedTrace(
        Trace(_text(header, "framework"), dtype, records, _texts(header, "sites")),
        state,
        slots,
        _modules(modules),
        {module["path"]: _options(module) for module in modules},
        Batch(_text(given, "name"), inputs, targets),
        _text(header, "weights"),
        loss,  # type: ignore[arg-type]
        _get(header, "padding", int),
        _text(header, "twin"),
        _text(header, "target"),
        _texts(header, "versions"),
        _text(header, "data"),
        _get(header, "seed", int),
        {_printable(name): _counterpart(entry) for name, entry in _get(header, "counterparts", dict).items()},
    )


def _records(header: Mapping[str, Any]) -> list[tuple[Kind, str, str | None]]:
    found: dict[tuple[Kind, str], str | None] = {}
    for entry in _get(header, "records", list):
        kind, name = _text(entry, "kind"), _text(entry, "name")
        dtype = None if _get(entry, "dtype", (str, type(None))) is None else _text(entry, "dtype")
        if kind not in get_args(Kind):
            raise _HeaderError(f"{name}: {kind!r} is no kind of record")
        if dtype is not None and dtype not in RECORD_DTYPES:
            raise _HeaderError(f"the {kind} {name} is {dtype}, which no record is")
        key: tuple[Kind, str] = (kind, name)  # type: ignore[assignment]
        if key in found:
            raise _HeaderError(f"the {kind} {name} is listed twice")
        found[key] = dtype
    if not found:
        raise _HeaderError("it has no records")
    return [(kind, name, dtype) for (kind, name), dtype in found.items()]


def _slots(header: Mapping[str, Any]) -> tuple[Slot, ...]:
    found: dict[str, Slot] = {}
    for entry in _get(header, "slots", list):
        shape = _get(entry, "shape", list)
        if not all(type(size) is int and size >= 0 for size in shape):
            raise _HeaderError("the shape of a weight is no list of sizes")
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
            tuple(shape),
            _text(entry, "dtype"),
            role,  # type: ignore[arg-type]
            tied,
            _within(entry),
        )
    return tuple(found.values())


def _within(entry: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Absent from a trace written before layers inside layers were told."""
    found = _get(entry, "within", list) if "within" in entry else []
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in found):
        raise _HeaderError("the layers around a weight are no list of pairs")
    return tuple((_printable(kind), _printable(inside)) for kind, inside in found)


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


def _text(entry: Any, key: str) -> str:
    return _printable(_get(entry, key, str))


def _texts(entry: Any, key: str) -> dict[str, str]:
    return {_printable(name): _printable(value) for name, value in _get(entry, key, dict).items()}


def _printable(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise _HeaderError(f"a name in its header can't be printed: {str(value)[:40]!r}")
    return value
