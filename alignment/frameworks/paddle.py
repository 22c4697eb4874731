"""The Paddle adapter: the toolkit's only door to paddle."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
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
from alignment.frameworks import ModuleInfo
from alignment.trace import Kind, Record, Trace
from checkpoints.layouts import KINDS
from checkpoints.structure import Slot

nn = paddle.nn
name = "paddle"

# (layer kind, option by torch's name) -> (attribute here, torch's value -> ours, ours -> torch's).
OPTIONS: dict[tuple[str, str], tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    ("LayerNorm", "eps"): ("_epsilon", float, float),
    ("GELU", "approximate"): ("_approximate", lambda value: value == "tanh", lambda on: "tanh" if on else "none"),
    ("Dropout", "p"): ("p", float, float),
    ("Dropout", "training"): ("training", bool, bool),
    ("CrossEntropyLoss", "reduction"): ("reduction", str, str),
}

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
) -> Trace:
    """One recorded run; see `alignment.frameworks.Framework`."""
    records: list[Record] = []
    parameters = dict(model.named_parameters())
    _clear_gradients(parameters)
    dtype = _dtype(next(iter(parameters.values())))
    handles = [*_record_outputs(model, records)]
    try:
        with contextlib.nullcontext() if backward else paddle.no_grad():
            logits, value = _forward(model, [_tensor(array) for array in inputs.values()], targets, loss)
    finally:
        for handle in handles:
            handle.remove()
    records.append(Record("logits", "logits", to_numpy(logits)))
    if value is not None:
        records.append(Record("loss", "loss", to_numpy(value)))
        if loss == "model":
            records.append(Record("logits", "logits without targets", _without_targets(model, inputs)))
    if backward and value is not None:
        logits.retain_grads()
        value.sum().backward()
        records.append(_gradient("logits", logits))
        records += [_gradient(full, parameter) for full, parameter in parameters.items()]
        if learning_rate is not None:
            records += _adam_step(parameters, learning_rate)
        _clear_gradients(parameters)
    return Trace(name, dtype, tuple(records))


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


def _record_outputs(model: Any, records: list[Record]) -> Iterator[Any]:
    calls: dict[str, int] = {}

    def recorder(path: str) -> Callable[[Any, Any, Any], None]:
        def record(_layer: Any, _inputs: Any, output: Any) -> None:
            calls[path] = calls.get(path, 0) + 1
            label = path if calls[path] == 1 else f"{path}#{calls[path]}"
            several = isinstance(output, (tuple, list))
            for index, tensor in enumerate(output if several else [output]):
                if isinstance(tensor, paddle.Tensor):
                    records.append(Record("activation", f"{label}[{index}]" if several else label, to_numpy(tensor)))

        return record

    for path, layer in model.named_sublayers():
        if path != "criterion":
            yield layer.register_forward_post_hook(recorder(path))


def _gradient(label: str, tensor: Any) -> Record:
    return Record("gradient", label, None if tensor.grad is None else to_numpy(tensor.grad))


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


def replace_gradient(model: Any, parameter: str, replace: Callable[[NDArray], NDArray]) -> None:
    """Replace one parameter's gradient in every backward pass to come."""

    def swap(tensor: Any) -> Any:
        return _tensor(replace(to_numpy(tensor))).astype(tensor.dtype)

    dict(model.named_parameters())[parameter].register_hook(swap)


def replace_input(model: Any, path: str, position: int, replace: Callable[[NDArray], NDArray]) -> None:
    """Replace one positional input of a layer in every call to come."""

    def swap(_layer: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        changed = list(arguments)
        changed[position] = _tensor(replace(to_numpy(arguments[position]))).astype(arguments[position].dtype)
        return tuple(changed)

    _sublayer(model, path).register_forward_pre_hook(swap)


def to_numpy(tensor: Any) -> NDArray:
    """A copy on the host; bfloat16 stays bfloat16, bit for bit (as ml_dtypes.bfloat16)."""
    array = np.array(tensor.detach().numpy())
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
