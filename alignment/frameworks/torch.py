"""The torch adapter: the toolkit's only door to torch."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from alignment.errors import AlignmentError
from alignment.frameworks import ModuleInfo
from alignment.trace import Kind, Record, Trace
from checkpoints.layouts import KINDS
from checkpoints.structure import Slot

name = "torch"

# (layer kind, option by torch's name) -> attribute here. torch is the one that names them, so values need no translation.
OPTIONS = {
    ("LayerNorm", "eps"): "eps",
    ("GELU", "approximate"): "approximate",
    ("Dropout", "p"): "p",
    ("Dropout", "training"): "training",
    ("CrossEntropyLoss", "reduction"): "reduction",
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
    return model.to(getattr(torch, dtype))


def run(
    model: nn.Module,
    inputs: Mapping[str, NDArray],
    targets: NDArray | None,
    *,
    loss: Literal["model", "criterion"],
    backward: bool = False,
    learning_rate: float | None = None,
) -> Trace:
    """One recorded run; see `alignment.frameworks.Framework`."""
    records: list[Record] = []
    model.zero_grad(set_to_none=True)
    parameters = dict(model.named_parameters())
    dtype = str(next(iter(parameters.values())).dtype).removeprefix("torch.")
    handles = [*_record_outputs(model, records)]
    try:
        with torch.set_grad_enabled(backward):
            device = next(iter(parameters.values())).device
            labels = None if targets is None else _tensor(targets).to(device)
            logits, value = _forward(model, [_tensor(array).to(device) for array in inputs.values()], labels, loss)
    finally:
        for handle in handles:
            handle.remove()
    records.append(Record("logits", "logits", to_numpy(logits)))
    if value is not None:
        records.append(Record("loss", "loss", to_numpy(value)))
        if loss == "model":
            records.append(Record("logits", "logits without targets", _without_targets(model, inputs)))
    if backward and value is not None:
        logits.retain_grad()
        torch.autograd.backward(value.sum())
        records.append(_gradient("logits", logits))
        records += [_gradient(full, parameter) for full, parameter in parameters.items()]
        if learning_rate is not None:
            records += _adam_step(parameters, learning_rate)
        model.zero_grad(set_to_none=True)
    return Trace(name, dtype, tuple(records))


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
    device = next(model.parameters()).device
    return to_numpy(model(*(_tensor(array).to(device) for array in inputs.values())))


def _record_outputs(model: nn.Module, records: list[Record]) -> Iterator[Any]:
    calls: dict[str, int] = {}

    def recorder(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            calls[path] = calls.get(path, 0) + 1
            label = path if calls[path] == 1 else f"{path}#{calls[path]}"
            several = isinstance(output, (tuple, list))
            for index, tensor in enumerate(output if several else [output]):
                if isinstance(tensor, torch.Tensor):
                    records.append(Record("activation", f"{label}[{index}]" if several else label, to_numpy(tensor)))

        return record

    for path, module in model.named_modules():
        if path and path != "criterion":
            yield module.register_forward_hook(recorder(path))


def _gradient(label: str, tensor: torch.Tensor) -> Record:
    return Record("gradient", label, None if tensor.grad is None else to_numpy(tensor.grad))


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


def replace_gradient(model: nn.Module, parameter: str, replace: Callable[[NDArray], NDArray]) -> None:
    """Replace one parameter's gradient in every backward pass to come."""

    def swap(tensor: torch.Tensor) -> torch.Tensor:
        return _tensor(replace(to_numpy(tensor))).to(tensor)

    model.get_parameter(parameter).register_hook(swap)  # type: ignore[no-untyped-call]


def replace_input(model: nn.Module, path: str, position: int, replace: Callable[[NDArray], NDArray]) -> None:
    """Replace one positional input of a module in every call to come."""

    def swap(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        changed = list(arguments)
        changed[position] = _tensor(replace(to_numpy(arguments[position]))).to(arguments[position])
        return tuple(changed)

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
