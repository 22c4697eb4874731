"""The torch adapter: the toolkit's only door to torch."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from alignment.errors import AlignmentError
from alignment.frameworks import Meaning, ModuleInfo, call_site
from alignment.trace import GRADIENT_OF, Kind, Record, Trace
from checkpoints.layouts import KINDS
from checkpoints.structure import Slot

name = "torch"
LIBRARY = str(Path(torch.__file__).parent)

meanings: tuple[Meaning, ...] = ()  # torch's names mean what torch means by them

# (layer kind, option by torch's name) -> attribute here. torch is the one that names them, so values need no translation.
OPTIONS = {
    ("LayerNorm", "eps"): "eps",
    ("GroupNorm", "eps"): "eps",
    ("BatchNorm1d", "eps"): "eps",
    ("BatchNorm1d", "momentum"): "momentum",
    ("BatchNorm2d", "eps"): "eps",
    ("BatchNorm2d", "momentum"): "momentum",
    ("GELU", "approximate"): "approximate",
    ("LeakyReLU", "negative_slope"): "negative_slope",
    ("Softmax", "dim"): "dim",
    ("Dropout", "p"): "p",
    ("Dropout", "training"): "training",
    ("AvgPool2d", "count_include_pad"): "count_include_pad",
    ("Upsample", "align_corners"): "align_corners",
    ("CrossEntropyLoss", "reduction"): "reduction",
    ("CrossEntropyLoss", "ignore_index"): "ignore_index",
    ("CrossEntropyLoss", "label_smoothing"): "label_smoothing",
    ("LSTM", "batch_first"): "batch_first",
}


def versions() -> dict[str, str]:
    """Version of torch."""
    return {"torch": str(torch.__version__)}


def set_threads(count: int) -> None:
    """Use `count` CPU threads within an operation."""
    torch.set_num_threads(count)


def build(target: str, settings: Mapping[str, Any], seed: int = 0, criterion: bool = False) -> nn.Module:
    """A new float32 model in evaluation mode; see `alignment.frameworks.Framework`."""
    module, _, attribute = target.partition(":")
    factory = getattr(importlib.import_module(module), attribute)
    torch.manual_seed(seed)
    model = factory(**settings)
    if not isinstance(model, nn.Module):
        raise AlignmentError(f"{target} built a {type(model).__name__}, not a torch.nn.Module")
    if criterion and not hasattr(model, "criterion"):
        model.criterion = nn.CrossEntropyLoss()
    return model.eval()


def slots(model: nn.Module) -> tuple[Slot, ...]:
    """Every name of the state dict; a further name of one tensor is tied to the first."""
    owners = dict(model.named_modules(remove_duplicate=False))
    first: dict[int, str] = {}
    found = []
    for full, tensor in model.state_dict(keep_vars=True).items():
        path, _, local = full.rpartition(".")
        tied_to = first.setdefault(id(tensor), full)
        found.append(
            Slot(
                full,
                layer_kind(owners[path]) if path in owners else "",
                local,
                tuple(tensor.shape),
                str(tensor.dtype).removeprefix("torch."),
                "parameter" if isinstance(tensor, nn.Parameter) else "buffer",
                None if tied_to == full else tied_to,
            )
        )
    return tuple(found)


def layer_kind(module: nn.Module) -> str:
    """Class name of the nearest base that the layout table knows, else of the nearest torch layer, else its own."""
    bases = _bases(module)
    return next((base for base in bases if base in KINDS[name]), bases[0] if bases else type(module).__name__)


def _bases(module: nn.Module) -> list[str]:
    """The torch layers a module derives from, nearest first."""
    bases = [base.__name__ for base in type(module).__mro__ if base.__module__.startswith("torch.nn")]
    return [base for base in bases if base != "Module"]


def modules(model: nn.Module) -> tuple[ModuleInfo, ...]:
    """The module tree; a shared module once, under its first path."""
    return tuple(ModuleInfo(path, layer_kind(module), not _bases(module)) for path, module in model.named_modules())


def read_state(model: nn.Module) -> dict[str, NDArray]:
    """Copies of all tensors of the state dict."""
    return {full: to_numpy(tensor) for full, tensor in model.state_dict().items()}


def load_state(model: nn.Module, tensors: Mapping[str, NDArray]) -> None:
    """Strict load; floating-point values take the dtype of the model."""
    try:
        model.load_state_dict({full: _tensor(value) for full, value in tensors.items()}, strict=True)
    except RuntimeError as error:
        raise AlignmentError(f"torch refuses the weights: {error}") from error


def cast(model: nn.Module, dtype: str) -> nn.Module:
    """All floating-point parameters and buffers in `dtype`; see `alignment.frameworks.Framework.cast`."""
    for module in model.modules():
        eps = getattr(module, "eps", None)
        if isinstance(eps, float):
            setattr(module, "eps", float(np.float32(eps)))  # noqa: B010 (attributes of a Module are typed as modules)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum is not None:
            module.momentum = 1 - float(np.float32(1 - module.momentum))  # the share that is kept, as Paddle holds it
    return model.to(getattr(torch, dtype))


def run(
    model: nn.Module,
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
    model.zero_grad(set_to_none=True)
    parameters = dict(model.named_parameters())
    dtype = str(next(iter(parameters.values())).dtype).removeprefix("torch.")
    recorder = _Recorder(model, detail, forced, sink)
    array = recorder.array
    with recorder, torch.set_grad_enabled(backward):
        logits, value = _forward(model, _on_device(model, inputs.values()), _labels(model, targets), loss)
    recorder.keep(Record("logits", "logits", array(logits)))
    if value is not None:
        recorder.keep(Record("loss", "loss", array(value)))
        if loss == "model" and not brief:
            recorder.keep(Record("logits", "logits without targets", _without_targets(model, inputs)))
    if backward and value is not None:
        logits.retain_grad()
        recorder.backward(value)
        for full, tensor in {"logits": logits, **parameters}.items():
            recorder.keep(Record("gradient", full, None if tensor.grad is None else array(tensor.grad)))
        steps = [] if learning_rate is None else _adam_step(parameters, learning_rate)
        if not (brief or detail or forced):
            steps += _statistics_step(model, inputs)
        for record in steps:
            recorder.keep(record)
        model.zero_grad(set_to_none=True)
    return Trace(name, dtype, tuple(recorder.records), recorder.sites)


def train(
    model: nn.Module,
    batches: Sequence[tuple[Mapping[str, NDArray], NDArray]],
    *,
    loss: Literal["model", "criterion"],
    learning_rate: float,
) -> list[float]:
    """Losses of successive Adam steps; see `alignment.frameworks.Framework`."""
    before = {full: tensor.clone() for full, tensor in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    losses = []
    for inputs, targets in batches:
        optimizer.zero_grad()
        _, value = _forward(model, _on_device(model, inputs.values()), _labels(model, targets), loss)
        assert value is not None
        losses.append(value.sum().item())
        torch.autograd.backward(value.sum())
        optimizer.step()
    model.load_state_dict(before)
    model.zero_grad(set_to_none=True)
    return losses


def _on_device(model: nn.Module, arrays: Iterable[NDArray]) -> list[torch.Tensor]:
    device = next(model.parameters()).device
    return [_tensor(array).to(device) for array in arrays]


def _labels(model: nn.Module, targets: NDArray | None) -> torch.Tensor | None:
    return None if targets is None else _on_device(model, [targets])[0]


def _forward(
    model: nn.Module, inputs: list[torch.Tensor], labels: torch.Tensor | None, loss: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    if labels is None:
        return model(*inputs), None
    if loss == "model":
        value, logits = model(*inputs, labels)
        return logits, value
    logits = model(*inputs)
    if tuple(logits.shape[:-1]) != tuple(labels.shape):
        return logits, None  # no loss: the logits' shape is the finding
    criterion: Any = model.criterion
    return logits, criterion(logits.flatten(0, -2), labels.flatten())


@torch.no_grad()
def _without_targets(model: nn.Module, inputs: Mapping[str, NDArray]) -> NDArray:
    """The logits of the call that predicts, which is another path through forward than the call that trains."""
    return to_numpy(model(*_on_device(model, inputs.values())))


Sink = Callable[[Record], None] | None


class _Recorder:
    """Hooks on every module: they record what comes out, in detail also what goes in, and may put given values there."""

    def __init__(self, model: nn.Module, detail: bool, forced: Trace | None, sink: Sink) -> None:
        self.records: list[Record] = []
        self.sites: dict[str, str] = {}
        self._detail, self._forced = detail or forced is not None, forced
        self.keep, self._share = sink or self.records.append, sink is not None
        self._calls: dict[str, int] = {}
        self._handles: list[Any] = []
        # Forced runs: what was computed, with the gradient it is given; and the tensors that took its place.
        self._seeds: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        self._leaves: list[tuple[Kind, str, torch.Tensor]] = []
        for path, module in model.named_modules():
            if path and (self._detail or path != "criterion"):
                if self._detail:
                    self._handles.append(module.register_forward_pre_hook(partial(self._enter, path)))
                self._handles.append(module.register_forward_hook(partial(self._leave, path)))

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def backward(self, value: torch.Tensor) -> None:
        """The backward pass: from the loss or, where values were forced, of each piece by itself."""
        ends: list[torch.Tensor] = [value.sum()]
        gradients: list[torch.Tensor | None] = [None]
        for tensor, gradient in self._seeds:
            ends.append(tensor)
            gradients.append(gradient)
        torch.autograd.backward(ends, gradients)
        for kind, label, leaf in reversed(self._leaves):
            self.keep(Record(kind, label, None if leaf.grad is None else to_numpy(leaf.grad)))

    def array(self, tensor: torch.Tensor) -> NDArray:
        """The tensor's values: a copy, or its own memory where they are not kept."""
        if not self._share or tensor.device.type != "cpu" or tensor.dtype == torch.bfloat16:
            return to_numpy(tensor)
        return tensor.detach().numpy()

    def _enter(self, path: str, _module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        label = self._label(path, self._calls.get(path, 0) + 1)
        self.sites[label] = call_site(LIBRARY)
        return tuple(self._pass_all("input", label, str(i) if i else "", value) for i, value in enumerate(arguments))

    def _leave(self, path: str, _module: nn.Module, _arguments: Any, output: Any) -> Any:
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
        if not isinstance(tensor, torch.Tensor):
            return tensor
        self.keep(Record(kind, label, self.array(tensor)))
        if not self._detail:
            return tensor
        if self._forced is not None:
            return self._replaced(kind, label, tensor, self._forced)
        if tensor.requires_grad:
            # So that the gradient is of what uses it from here on, alone. Not a view: it may be written into.
            tensor = tensor.clone()

            def record(gradient: torch.Tensor) -> None:
                self.keep(Record(GRADIENT_OF[kind], label, to_numpy(gradient)))

            tensor.register_hook(record)  # type: ignore[no-untyped-call, unused-ignore]
        return tensor

    def _replaced(self, kind: Kind, label: str, tensor: torch.Tensor, forced: Trace) -> torch.Tensor:
        given = forced.get(kind, label)
        floating = tensor.dtype.is_floating_point
        if given is None or given.shape != tuple(tensor.shape) or (given.dtype.kind == "f") != floating:
            return tensor
        gradient = forced.get(GRADIENT_OF[kind], label)
        if tensor.requires_grad and gradient is not None:
            self._seeds.append((tensor, _tensor(gradient).to(tensor)))
        leaf = _tensor(given).to(tensor)
        if gradient is None or not torch.is_grad_enabled():
            return leaf
        self._leaves.append((GRADIENT_OF[kind], label, leaf.requires_grad_()))
        return leaf.clone()  # a module may write into what it is given, and a leaf must not be written into


def _adam_step(parameters: dict[str, nn.Parameter], learning_rate: float) -> list[Record]:
    kind: Kind = "update"
    before = {full: parameter.detach().clone() for full, parameter in parameters.items()}
    torch.optim.Adam(parameters.values(), lr=learning_rate).step()
    records = []
    with torch.no_grad():
        for full, parameter in parameters.items():
            # In float64, so that the difference of two float32 numbers is exact.
            records.append(Record(kind, full, to_numpy(parameter.double() - before[full].double())))
            parameter.copy_(before[full])
    return records


@torch.no_grad()
def _statistics_step(model: nn.Module, inputs: Mapping[str, NDArray]) -> list[Record]:
    """What one forward pass in training mode does to running statistics; everything but their layers stays as it is."""
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and not m.training]
    if not layers:
        return []
    before = {full: buffer.clone() for full, buffer in model.named_buffers()}
    try:
        for layer in layers:
            layer.train()
        model(*_on_device(model, inputs.values()))
    except ValueError:  # a batch of one value a channel has no variance
        return []
    finally:
        after = {full: buffer.clone() for full, buffer in model.named_buffers()}
        for full, buffer in model.named_buffers():
            buffer.copy_(before[full])
        for layer in layers:
            layer.eval()
    return [
        Record("update", full, to_numpy(after[full].double() - value.double()))
        for full, value in before.items()
        if value.dtype.is_floating_point and not torch.equal(after[full], value)
    ]


def cross_entropy(
    logits: NDArray, targets: NDArray, *, reduction: str = "mean", ignore_index: int | None = None
) -> NDArray:
    """torch.nn.functional.cross_entropy."""
    options: dict[str, Any] = {} if ignore_index is None else {"ignore_index": ignore_index}
    flat = _tensor(logits).flatten(0, -2)
    return to_numpy(nn.functional.cross_entropy(flat, _tensor(targets).flatten(), reduction=reduction, **options))


def set_option(model: nn.Module, kind: str, option: str, value: Any) -> list[str]:
    """Set an option of every layer of a kind; returns the paths it changed."""
    changed = []
    for path, module in model.named_modules():
        if layer_kind(module) == kind:
            setattr(module, OPTIONS[kind, option], value)
            changed.append(path)
    return changed


def get_option(model: nn.Module, kind: str, option: str) -> dict[str, Any]:
    """Path -> value of an option of every layer of a kind."""
    found = ((path, module) for path, module in model.named_modules() if layer_kind(module) == kind)
    return {path: getattr(module, OPTIONS[kind, option]) for path, module in found}


def module(model: nn.Module, path: str) -> nn.Module:
    """The module at `path`."""
    return model.get_submodule(path)


def options(model: nn.Module, path: str) -> dict[str, Any]:
    """Options of one module."""
    layer = model.get_submodule(path)
    known = ((option, attribute) for (kind, option), attribute in OPTIONS.items() if kind == layer_kind(layer))
    return {option: getattr(layer, attribute) for option, attribute in known if hasattr(layer, attribute)}


def set_options(model: nn.Module, path: str, options: Mapping[str, Any]) -> None:
    """Set options of one module."""
    layer = model.get_submodule(path)
    for option, value in options.items():
        setattr(layer, OPTIONS[layer_kind(layer), option], value)


def replace_gradient(model: nn.Module, parameter: str, replace: Callable[[NDArray], NDArray]) -> None:
    """Replace one parameter's gradient in every backward pass to come."""

    def swap(tensor: torch.Tensor) -> torch.Tensor:
        return _tensor(replace(to_numpy(tensor))).to(tensor)

    model.get_parameter(parameter).register_hook(swap)  # type: ignore[no-untyped-call]


def replace_input(model: nn.Module, path: str, position: int, replace: Callable[[NDArray], NDArray]) -> None:
    """Replace one positional input of a module in every call to come."""

    def swap(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        given = to_numpy(arguments[position])
        value = replace(given)
        changed = arguments[position] if value is given else _tensor(value).to(arguments[position])
        return (*arguments[:position], changed, *arguments[position + 1 :])

    model.get_submodule(path).register_forward_pre_hook(swap)


def to_numpy(tensor: torch.Tensor) -> NDArray:
    """A copy on the host; bfloat16 stays bfloat16, bit for bit (as ml_dtypes.bfloat16)."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return np.array(tensor.view(torch.int16).numpy()).view(ml_dtypes.bfloat16)
    return np.array(tensor.numpy())


def _tensor(array: NDArray) -> torch.Tensor:
    array = np.ascontiguousarray(array).reshape(array.shape)
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


set_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
