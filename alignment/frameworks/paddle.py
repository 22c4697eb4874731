"""The Paddle adapter: the toolkit's only door to paddle."""

from __future__ import annotations

import contextlib
import importlib
import io
import operator
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
    # Importing paddle warns that ccache is missing and that more than one OpenMP thread is asked for: neither concerns us.
    warnings.simplefilter("ignore")
    import paddle

    # Its handlers print a C++ stack for signals that Python and the command line deal with themselves.
    paddle.disable_signal_handler()

from alignment.errors import AlignmentError
from alignment.frameworks import Meaning, ModuleInfo, call_site
from alignment.trace import GRADIENT_OF, Kind, Record, Trace
from checkpoints.layouts import KINDS
from checkpoints.structure import Slot

nn = paddle.nn
name = "paddle"
LIBRARY = str(Path(paddle.__file__).parent)

# (layer kind, option by torch's name) -> (attribute here, torch's value -> ours, ours -> torch's).
OPTIONS: dict[tuple[str, str], tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    ("LayerNorm", "eps"): ("_epsilon", float, float),
    ("GroupNorm", "eps"): ("_epsilon", float, float),
    ("BatchNorm1D", "eps"): ("_epsilon", float, float),
    ("BatchNorm1D", "momentum"): ("_momentum", lambda m: 1 - m, lambda m: 1 - m),
    ("BatchNorm2D", "eps"): ("_epsilon", float, float),
    ("BatchNorm2D", "momentum"): ("_momentum", lambda m: 1 - m, lambda m: 1 - m),
    ("GELU", "approximate"): ("_approximate", lambda value: value == "tanh", lambda on: "tanh" if on else "none"),
    ("LeakyReLU", "negative_slope"): ("_negative_slope", float, float),
    ("Softmax", "dim"): ("_axis", lambda axis: -1 if axis is None else axis, int),
    ("Dropout", "p"): ("p", float, float),
    ("Dropout", "training"): ("training", bool, bool),
    ("Dropout", "mode"): ("mode", str, str),
    ("AvgPool2D", "count_include_pad"): ("exclusive", operator.not_, operator.not_),
    ("Upsample", "align_corners"): ("align_corners", bool, bool),
    ("CrossEntropyLoss", "reduction"): ("reduction", str, str),
    ("CrossEntropyLoss", "ignore_index"): ("ignore_index", int, int),
    ("CrossEntropyLoss", "label_smoothing"): ("label_smoothing", float, float),
    ("LSTM", "batch_first"): ("time_major", operator.not_, operator.not_),
}


def _with_option(key: str, value: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The same function with one option set, whatever it is given."""
    return lambda function: lambda *arguments, **options: function(*arguments, **{**options, key: value})


def _split_by_size(function: Callable[..., Any]) -> Callable[..., Any]:
    def split(x: Any, num_or_sections: Any, axis: int = 0, **options: Any) -> Any:
        sections = num_or_sections
        if isinstance(sections, int) and x.shape[axis] % sections == 0:
            sections = x.shape[axis] // sections
        return function(x, sections, axis, **options)

    return split


def _lower_median(function: Callable[..., Any]) -> Callable[..., Any]:
    def median(x: Any, axis: Any = None, keepdim: bool = False, **options: Any) -> Any:
        if options or axis is None:
            return function(x, axis, keepdim, **options)
        return function(x, axis, keepdim, mode="min")[0]

    return median


def _scatter_by_adding(function: Callable[..., Any]) -> Callable[..., Any]:
    def scatter(x: Any, index: Any, updates: Any, overwrite: bool = True, **options: Any) -> Any:
        if overwrite:
            return function(x, index, updates, overwrite, **options)
        return paddle.index_add(x, index, 0, updates)

    return scatter


def _plain_lookup(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, weight, *_arguments, **_options: function(x, weight)


_F, _T = nn.functional, paddle.Tensor
meanings: tuple[Meaning, ...] = (
    Meaning(
        "split-meaning",
        "splitting into parts of a size, not into a number of parts",
        ((paddle, "split"), (_T, "split")),
        _split_by_size,
    ),
    Meaning(
        "median-even",
        "taking the lower of the two middle values for the median",
        ((paddle, "median"), (_T, "median")),
        _lower_median,
    ),
    Meaning(
        "scatter-overwrite",
        "adding to the rows without zeroing them first",
        ((paddle, "scatter"), (_T, "scatter")),
        _scatter_by_adding,
    ),
    Meaning("padding-row", "looking up the padding row like any other", ((_F, "embedding"),), _plain_lookup),
    Meaning("dropout-on", "switching the functional dropout off", ((_F, "dropout"),), _with_option("training", False)),
    *(
        Meaning("gelu-form", f"computing GELU by {form}", ((_F, "gelu"),), _with_option("approximate", form == "tanh"))
        for form in ("erf", "tanh")
    ),
    *(
        Meaning("align-corners", f"{words} corners", holders, _with_option("align_corners", words == "aligning"))
        for words in ("not aligning", "aligning")
        for holders in (((_F, "grid_sample"), (_F, "affine_grid")), ((_F, "interpolate"),))
    ),
    *(
        Meaning(
            "avgpool-padding",
            f"{words} padding in averages",
            ((_F, "avg_pool2d"),),
            _with_option("exclusive", exclusive),
        )
        for words, exclusive in (("counting", False), ("not counting", True))
    ),
)

# Containers that only differ in name.
CONTAINERS = {"LayerList": "ModuleList", "LayerDict": "ModuleDict"}


class ExactCrossEntropyLoss(paddle.nn.CrossEntropyLoss):
    """Cross entropy of logits [n, C]; on a CPU Paddle's own takes no probability to be below exp(-64)."""

    def forward(self, logits: Any, targets: Any) -> Any:
        shifted = logits - logits.max(-1, keepdim=True).detach()  # or the loss of a confident prediction cancels
        losses = shifted.exp().sum(-1).log() - shifted.take_along_axis(targets[:, None], 1)[:, 0]
        return losses if self.reduction == "none" else getattr(losses, self.reduction)()


def versions() -> dict[str, str]:
    """Version of paddle."""
    return {"paddle": str(paddle.__version__)}


def set_threads(count: int) -> None:
    """Use `count` CPU threads within an operation."""
    paddle.base.core.set_num_threads(count)


def build(target: str, settings: Mapping[str, Any], seed: int = 0, criterion: bool = False) -> Any:
    """A new float32 model in evaluation mode; see `alignment.frameworks.Framework`."""
    module, _, attribute = target.partition(":")
    factory = getattr(importlib.import_module(module), attribute)
    paddle.seed(seed)
    model = factory(**settings)
    if not isinstance(model, nn.Layer):
        raise AlignmentError(f"{target} built a {type(model).__name__}, not a paddle.nn.Layer")
    if criterion and not hasattr(model, "criterion"):
        model.criterion = ExactCrossEntropyLoss()
    model.eval()
    return model


def slots(model: Any) -> tuple[Slot, ...]:
    """Every name of the state dict; a further name of one tensor is tied to the first."""
    first: dict[int, str] = {}
    found = []
    for full, tensor in model.state_dict().items():
        path, _, local = full.rpartition(".")
        tied_to = first.setdefault(id(tensor), full)
        found.append(
            Slot(
                full,
                layer_kind(_sublayer(model, path)),
                local,
                tuple(tensor.shape),
                _dtype(tensor),
                "buffer" if _is_buffer(_sublayer(model, path), local) else "parameter",
                None if tied_to == full else tied_to,
            )
        )
    return tuple(found)


def layer_kind(layer: Any) -> str:
    """Class name of the nearest base that the layout table knows, else of the nearest Paddle layer, else its own."""
    bases = _bases(layer)
    return next((base for base in bases if base in KINDS[name]), bases[0] if bases else type(layer).__name__)


def _bases(layer: Any) -> list[str]:
    """The Paddle layers a layer derives from, nearest first."""
    bases = [
        f"compat.{base.__name__}" if base.__module__.startswith("paddle.compat") else base.__name__
        for base in type(layer).__mro__
        if base.__module__.startswith(("paddle.nn", "paddle.compat"))
    ]
    return [base for base in bases if base != "Layer"]


def modules(model: Any) -> tuple[ModuleInfo, ...]:
    """The layer tree; a shared layer once, under its first path."""
    layers = model.named_sublayers(include_self=True)
    kinds = ((path, layer_kind(layer), not _bases(layer)) for path, layer in layers)
    return tuple(ModuleInfo(path, CONTAINERS.get(kind, kind), own) for path, kind, own in kinds)


def read_state(model: Any) -> dict[str, NDArray]:
    """Copies of all tensors of the state dict."""
    return {full: to_numpy(tensor) for full, tensor in model.state_dict().items()}


def load_state(model: Any, tensors: Mapping[str, NDArray]) -> None:
    """Strict load, which `set_state_dict` is not; floating-point values take the dtype of the model."""
    own = model.state_dict()
    problems = [f"missing {full}" for full in own if full not in tensors]
    problems += [f"unexpected {full}" for full in tensors if full not in own]
    problems += [
        f"{full}: shape {list(tensors[full].shape)} given, {list(tensor.shape)} needed"
        for full, tensor in own.items()
        if full in tensors and tuple(tensors[full].shape) != tuple(tensor.shape)
    ]
    if problems:
        raise AlignmentError("paddle refuses the weights: " + "; ".join(problems))
    for full, tensor in own.items():
        value = _tensor(tensors[full])
        tensor.set_value(value if value.dtype == tensor.dtype else value.astype(tensor.dtype))


def cast(model: Any, dtype: str) -> Any:
    """All floating-point parameters and buffers in `dtype`; see `alignment.frameworks.Framework.cast`."""
    for layer in model.sublayers(include_self=True):
        if isinstance(getattr(layer, "_epsilon", None), float):
            layer._epsilon = float(np.float32(layer._epsilon))
        if "BatchNorm" in layer_kind(layer) and isinstance(getattr(layer, "_momentum", None), float):
            layer._momentum = float(np.float32(layer._momentum))
    model.to(dtype=dtype)
    return model


def run(
    model: Any,
    inputs: Mapping[str, NDArray],
    targets: NDArray | None,
    *,
    loss: Literal["model", "criterion"],
    backward: bool = False,
    learning_rate: float | None = None,
    brief: bool = False,
    detail: bool = False,
    forced: Trace | None = None,
    sink: Callable[[Record], None] | None = None,
) -> Trace:
    """One recorded run; see `alignment.frameworks.Framework`."""
    parameters = dict(model.named_parameters())
    _clear_gradients(parameters)
    dtype = _dtype(next(iter(parameters.values())))
    recorder = _Recorder(model, detail, forced, sink)
    array = recorder.array
    with recorder, contextlib.nullcontext() if backward else paddle.no_grad():
        logits, value = _forward(model, [_tensor(array) for array in inputs.values()], targets, loss)
    recorder.keep(Record("logits", "logits", array(logits)))
    if value is not None:
        recorder.keep(Record("loss", "loss", array(value)))
        if loss == "model" and not brief:
            recorder.keep(Record("logits", "logits without targets", _without_targets(model, inputs)))
    if backward and value is not None:
        logits.retain_grads()
        recorder.backward(value)
        for full, tensor in {"logits": logits, **parameters}.items():
            recorder.keep(Record("gradient", full, None if tensor.grad is None else array(tensor.grad)))
        steps = [] if learning_rate is None else _adam_step(parameters, learning_rate)
        if not (brief or detail or forced):
            steps += _statistics_step(model, inputs)
        for record in steps:
            recorder.keep(record)
        _clear_gradients(parameters)
    return Trace(name, dtype, tuple(recorder.records), recorder.sites)


def train(
    model: Any,
    batches: Sequence[tuple[Mapping[str, NDArray], NDArray]],
    *,
    loss: Literal["model", "criterion"],
    learning_rate: float,
) -> list[float]:
    """Losses of successive Adam steps; see `alignment.frameworks.Framework`."""
    before = {full: tensor.clone() for full, tensor in model.state_dict().items()}
    optimizer = paddle.optimizer.Adam(learning_rate=learning_rate, parameters=model.parameters())
    losses = []
    for inputs, targets in batches:
        optimizer.clear_grad(set_to_zero=False)
        _, value = _forward(model, [_tensor(array) for array in inputs.values()], targets, loss)
        assert value is not None
        losses.append(value.sum().item())
        value.sum().backward()
        optimizer.step()
    for full, tensor in model.state_dict().items():
        tensor.set_value(before[full])
    _clear_gradients(dict(model.named_parameters()))
    return losses


def _clear_gradients(parameters: Mapping[str, Any]) -> None:
    """Gone, not zero: Paddle's `clear_grad` leaves zeros, which could not be told from an unused parameter's."""
    for parameter in parameters.values():
        parameter.clear_gradient(set_to_zero=False)


def _forward(model: Any, inputs: list[Any], targets: NDArray | None, loss: str) -> tuple[Any, Any | None]:
    if targets is None:
        return model(*inputs), None
    labels = _tensor(targets)
    if loss == "model":
        value, logits = model(*inputs, labels)
        return logits, value
    logits = model(*inputs)
    if tuple(logits.shape[:-1]) != tuple(labels.shape):
        return logits, None  # no loss: the logits' shape is the finding
    return logits, model.criterion(logits.flatten(0, -2), labels.flatten())


@paddle.no_grad()  # type: ignore[untyped-decorator]
def _without_targets(model: Any, inputs: Mapping[str, NDArray]) -> NDArray:
    """The logits of the call that predicts, which is another path through forward than the call that trains."""
    return to_numpy(model(*(_tensor(array) for array in inputs.values())))


Sink = Callable[[Record], None] | None


class _Recorder:
    """Hooks on every layer: they record what comes out, in detail also what goes in, and may put given values there."""

    def __init__(self, model: Any, detail: bool, forced: Trace | None, sink: Sink) -> None:
        self.records: list[Record] = []
        self.sites: dict[str, str] = {}
        self._detail, self._forced = detail or forced is not None, forced
        self.keep, self._share = sink or self.records.append, sink is not None
        self._calls: dict[str, int] = {}
        self._handles: list[Any] = []
        # Forced runs: what was computed, with the gradient it is given; and the tensors that took its place.
        self._seeds: list[tuple[Any, Any]] = []
        self._leaves: list[tuple[Kind, str, Any]] = []
        for path, layer in model.named_sublayers():
            if self._detail or path != "criterion":
                if self._detail:
                    self._handles.append(layer.register_forward_pre_hook(partial(self._enter, path)))
                self._handles.append(layer.register_forward_post_hook(partial(self._leave, path)))

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def backward(self, value: Any) -> None:
        """The backward pass: from the loss or, where values were forced, of each piece by itself."""
        # Paddle takes a tensor once; what several layers are given comes several times.
        ends: dict[int, tuple[Any, Any]] = {}
        for tensor, gradient in self._seeds:
            _, known = ends.get(id(tensor), (tensor, None))
            ends[id(tensor)] = (tensor, gradient if known is None else known + gradient)
        tensors, gradients = [end for end, _ in ends.values()], [gradient for _, gradient in ends.values()]
        paddle.autograd.backward([value.sum(), *tensors], [None, *gradients])
        for kind, label, leaf in reversed(self._leaves):
            self.keep(Record(kind, label, None if leaf.grad is None else to_numpy(leaf.grad)))

    def array(self, tensor: Any) -> NDArray:
        """The tensor's values: a copy, or its own memory where they are not kept."""
        shared = self._share and tensor.place.is_cpu_place() and tensor.dtype != paddle.bfloat16
        if not shared or not hasattr(tensor, "__dlpack_device__"):  # which it has from Paddle 3.0 on
            return to_numpy(tensor)
        return np.from_dlpack(tensor.detach())

    def _enter(self, path: str, _layer: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        label = self._label(path, self._calls.get(path, 0) + 1)
        self.sites[label] = call_site(LIBRARY)
        return tuple(self._pass_all("input", label, str(i) if i else "", value) for i, value in enumerate(arguments))

    def _leave(self, path: str, _layer: Any, _arguments: Any, output: Any) -> Any:
        self._calls[path] = self._calls.get(path, 0) + 1
        label = self._label(path, self._calls[path])
        return self._pass_all("activation", label, "", output)

    def _pass_all(self, kind: Kind, label: str, index: str, value: Any) -> Any:
        """Pass a tensor, or every tensor of nested tuples and lists: ``"…[1]"``, ``"…[1.0]"``."""
        if type(value) not in (tuple, list):
            return self._pass(kind, f"{label}[{index}]" if index else label, value)
        prefix = f"{index}." if index else ""
        return type(value)(self._pass_all(kind, label, f"{prefix}{i}", part) for i, part in enumerate(value))

    @staticmethod
    def _label(path: str, call: int) -> str:
        return path if call == 1 else f"{path}#{call}"

    def _pass(self, kind: Kind, label: str, tensor: Any) -> Any:
        if not isinstance(tensor, paddle.Tensor):
            return tensor
        self.keep(Record(kind, label, self.array(tensor)))
        if not self._detail:
            return tensor
        if self._forced is not None:
            return self._replaced(kind, label, tensor, self._forced)
        if not tensor.stop_gradient:
            # So that the gradient is of what uses it from here on, alone. Not a view: it may be written into.
            tensor = paddle.assign(tensor)

            def record(gradient: Any) -> None:
                self.keep(Record(GRADIENT_OF[kind], label, to_numpy(gradient)))

            tensor.register_hook(record)
        return tensor

    def _replaced(self, kind: Kind, label: str, tensor: Any, forced: Trace) -> Any:
        given = forced.get(kind, label)
        floating = tensor.is_floating_point()
        if given is None or given.shape != tuple(tensor.shape) or (given.dtype.kind == "f") != floating:
            return tensor
        gradient = forced.get(GRADIENT_OF[kind], label)
        if not tensor.stop_gradient and gradient is not None:
            self._seeds.append((tensor, _tensor(gradient).astype(tensor.dtype)))
        leaf = _tensor(given).astype(tensor.dtype)
        if gradient is None or not paddle.is_grad_enabled():
            return leaf
        leaf.stop_gradient = False
        self._leaves.append((GRADIENT_OF[kind], label, leaf))
        return paddle.assign(leaf)  # a layer may write into what it is given, and a leaf must not be written into


def _adam_step(parameters: dict[str, Any], learning_rate: float) -> list[Record]:
    kind: Kind = "update"
    before = {full: parameter.detach().clone() for full, parameter in parameters.items()}
    # The optimizer keeps its learning rate in the default dtype: as float32 it would be wrong by 5e-8 in a float64 run.
    default = paddle.get_default_dtype()
    paddle.set_default_dtype(_dtype(next(iter(parameters.values()))))
    try:
        paddle.optimizer.Adam(learning_rate=learning_rate, parameters=list(parameters.values())).step()
    finally:
        paddle.set_default_dtype(default)
    records = []
    with paddle.no_grad():
        for full, parameter in parameters.items():
            # In float64, so that the difference of two float32 numbers is exact.
            change = parameter.astype("float64") - before[full].astype("float64")
            records.append(Record(kind, full, to_numpy(change)))
            parameter.set_value(before[full])
    return records


@paddle.no_grad()  # type: ignore[untyped-decorator]
def _statistics_step(model: Any, inputs: Mapping[str, NDArray]) -> list[Record]:
    """What one forward pass in training mode does to running statistics; everything but their layers stays as it is."""
    layers = [layer for layer in model.sublayers() if "BatchNorm" in layer_kind(layer) and not layer.training]
    if not layers:
        return []
    own = {slot.name for slot in slots(model) if slot.role == "buffer"}
    before = {full: tensor.clone() for full, tensor in model.state_dict().items() if full in own}
    try:
        for layer in layers:
            layer.train()
        model(*(_tensor(array) for array in inputs.values()))
    except ValueError:  # a batch of one value a channel has no variance
        return []
    finally:
        after = {full: tensor.clone() for full, tensor in model.state_dict().items() if full in own}
        for full, tensor in model.state_dict().items():
            if full in own:
                tensor.set_value(before[full])
        for layer in layers:
            layer.eval()
    return [
        Record("update", full, to_numpy(after[full].astype("float64") - value.astype("float64")))
        for full, value in before.items()
        if value.is_floating_point() and not bool((after[full] == value).all())
    ]


def cross_entropy(
    logits: NDArray, targets: NDArray, *, reduction: str = "mean", ignore_index: int | None = None
) -> NDArray:
    """paddle.nn.functional.cross_entropy."""
    options: dict[str, Any] = {} if ignore_index is None else {"ignore_index": ignore_index}
    flat = _tensor(logits).flatten(0, -2)
    return to_numpy(nn.functional.cross_entropy(flat, _tensor(targets).flatten(), reduction=reduction, **options))


def set_option(model: Any, kind: str, option: str, value: Any) -> list[str]:
    """Set an option of every layer of a kind; returns the paths it changed."""
    attribute, ours, _ = OPTIONS[kind, option]
    changed = []
    for path, layer in model.named_sublayers(include_self=True):
        if layer_kind(layer) == kind:
            setattr(layer, attribute, ours(value))
            changed.append(path)
    return changed


def get_option(model: Any, kind: str, option: str) -> dict[str, Any]:
    """Path -> value of an option of every layer of a kind."""
    attribute, _, theirs = OPTIONS[kind, option]
    found = ((path, layer) for path, layer in model.named_sublayers(include_self=True) if layer_kind(layer) == kind)
    return {path: theirs(getattr(layer, attribute)) for path, layer in found}


def module(model: Any, path: str) -> Any:
    """The layer at `path`."""
    return _sublayer(model, path)


def options(model: Any, path: str) -> dict[str, Any]:
    """Options of one layer."""
    layer = _sublayer(model, path)
    known = ((option, rule) for (kind, option), rule in OPTIONS.items() if kind == layer_kind(layer))
    return {option: theirs(getattr(layer, own)) for option, (own, _, theirs) in known if hasattr(layer, own)}


def set_options(model: Any, path: str, options: Mapping[str, Any]) -> None:
    """Set options of one layer."""
    layer = _sublayer(model, path)
    for option, value in options.items():
        attribute, ours, _ = OPTIONS[layer_kind(layer), option]
        setattr(layer, attribute, ours(value))


def replace_gradient(model: Any, parameter: str, replace: Callable[[NDArray], NDArray]) -> None:
    """Replace one parameter's gradient in every backward pass to come."""

    def swap(tensor: Any) -> Any:
        return _tensor(replace(to_numpy(tensor))).astype(tensor.dtype)

    dict(model.named_parameters())[parameter].register_hook(swap)


def replace_input(model: Any, path: str, position: int, replace: Callable[[NDArray], NDArray]) -> None:
    """Replace one positional input of a layer in every call to come."""

    def swap(_layer: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        given = to_numpy(arguments[position])
        value = replace(given)
        changed = arguments[position] if value is given else _tensor(value).astype(arguments[position].dtype)
        return (*arguments[:position], changed, *arguments[position + 1 :])

    _sublayer(model, path).register_forward_pre_hook(swap)


def to_numpy(tensor: Any) -> NDArray:
    """A copy on the host; bfloat16 stays bfloat16, bit for bit (as ml_dtypes.bfloat16)."""
    array = np.asarray(tensor.detach().numpy())  # which is a copy
    if tensor.dtype == paddle.bfloat16:
        return array.view(ml_dtypes.bfloat16)
    return array


def _tensor(array: NDArray) -> Any:
    array = np.array(array)
    if array.dtype == ml_dtypes.bfloat16:
        return paddle.to_tensor(array.view(np.uint16), dtype="bfloat16")
    return paddle.to_tensor(array)


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).rpartition(".")[2]


def _is_buffer(layer: Any, local: str) -> bool:
    # BatchNorm's running statistics are Parameters to Paddle: by role they are buffers.
    return local in layer._buffers or ("BatchNorm" in layer_kind(layer) and local in ("_mean", "_variance"))


def _sublayer(model: Any, path: str) -> Any:
    layer = model
    for part in path.split(".") if path else []:
        layer = getattr(layer, part) if hasattr(layer, part) else layer[int(part)]
    return layer


set_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
