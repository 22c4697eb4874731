"""The torch adapter: the toolkit's only door to torch."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from alignment.conditions import Condition, expect, tried
from alignment.errors import AlignmentError
from alignment.frameworks import (
    CAST_TO,
    PLACED_ON,
    Loss,
    Meaning,
    ModuleInfo,
    Target,
    load_target,
    own_loss,
    scalar,
)
from alignment.frameworks.masks import Masks, scaled, self_normalizing
from alignment.frameworks.recording import Recorder, directions
from alignment.structures import leaves, restore
from alignment.trace import Kind, Record, Trace
from checkpoints.layouts import KINDS
from checkpoints.structure import Slot
from fake_data import Batch

name = "torch"
LIBRARY = str(Path(torch.__file__).parent)

# Layers of torch's own whose inner parts are built and called in another way by other frameworks.
OPAQUE = frozenset(("MultiheadAttention", "LSTM", "GRU", "RNN"))

meanings: tuple[Meaning, ...] = ()  # torch's names mean what torch means by them

_CONVOLUTIONS = ("Conv", "ConvTranspose")
# (layer kind, option by torch's name) -> attribute here. torch is the one that names them, so values need no translation.
OPTIONS = {
    ("LayerNorm", "eps"): "eps",
    ("GroupNorm", "eps"): "eps",
    ("GroupNorm", "num_groups"): "num_groups",
    **{(f"InstanceNorm{n}d", "eps"): "eps" for n in (1, 2, 3)},
    **{(f"{kind}{n}d", name): name for n in (1, 2, 3) for kind in _CONVOLUTIONS for name in ("stride", "dilation")},
    **{(f"ConvTranspose{n}d", "output_padding"): "output_padding" for n in (1, 2, 3)},
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
    ("GRU", "batch_first"): "batch_first",
    ("RNN", "batch_first"): "batch_first",
}


def versions() -> dict[str, str]:
    """Version of torch."""
    return {"torch": str(torch.__version__)}


def conditions() -> tuple[Condition, ...]:
    """How torch is built and set, as it is now; see `alignment.frameworks.Framework`."""
    found = [
        Condition(name, "version", str(torch.__version__)),
        Condition(name, "device", str(tried(torch.get_default_device))),
        Condition(name, "threads", str(torch.get_num_threads())),
        Condition(name, "vector instructions", str(tried(torch.backends.cpu.get_cpu_capability))),
        Condition(name, "BLAS", "MKL" if tried(torch.backends.mkl.is_available) else "another than MKL"),
        Condition(name, "deterministic algorithms", str(torch.are_deterministic_algorithms_enabled())),
        expect(
            name,
            "default dtype",
            str(torch.get_default_dtype()).removeprefix("torch."),
            "float32",
            "warning",
            "models built without a dtype are not float32",
            "torch.set_default_dtype(torch.float32)",
        ),
        expect(
            name,
            "float32 matmul precision",
            tried(torch.get_float32_matmul_precision),
            "highest",
            "warning",
            "float32 products are computed in TF32 or bfloat16: the reference's own error, by which the candidate's is "
            "judged, is a thousand times larger",
            'torch.set_float32_matmul_precision("highest")',
        ),
        expect(
            name,
            "gradients",
            torch.is_grad_enabled() and not torch.is_inference_mode_enabled(),
            True,
            "error",
            "nothing can go backward: step 5 has nothing to compare",
            "leave torch.no_grad and inference_mode; torch.set_grad_enabled(True)",
        ),
        expect(
            name,
            "autocast",
            tried(torch.is_autocast_enabled) or tried(lambda: torch.is_autocast_enabled("cpu")),
            False,
            "error",
            "float32 and float64 runs are computed in half precision",
            "leave torch.autocast",
        ),
    ]
    if torch.cuda.is_available():
        found.append(
            Condition(name, "GPUs", ", ".join(map(torch.cuda.get_device_name, range(torch.cuda.device_count()))))
        )
        why = "on a GPU {} float32 are computed in TF32, whose error is a thousand times larger"
        for what, read, remedy in (
            (
                "products in",
                lambda: torch.backends.cuda.matmul.allow_tf32,
                "torch.backends.cuda.matmul.allow_tf32 = False",
            ),
            ("convolutions in", lambda: torch.backends.cudnn.allow_tf32, "torch.backends.cudnn.allow_tf32 = False"),
        ):
            found.append(expect(name, f"TF32 for {what}", tried(read), False, "warning", why.format(what), remedy))
        found.append(
            expect(
                name,
                "cudnn.benchmark",
                torch.backends.cudnn.benchmark,
                False,
                "note",
                "kernels are chosen by their speed, so that two runs may differ",
                "torch.backends.cudnn.benchmark = False",
            )
        )
    return tuple(found)


def set_threads(count: int) -> None:
    """Use `count` CPU threads within an operation."""
    torch.set_num_threads(count)


def device(model: nn.Module) -> str:
    """``"cpu"``, ``"cuda:0"`` …"""
    return str(next((tensor.device for tensor in (*model.parameters(), *model.buffers())), "cpu"))


def devices() -> tuple[str, ...]:
    """``"cpu"``, and each CUDA device as ``"gpu:N"``."""
    return ("cpu", *(f"gpu:{number}" for number in range(torch.cuda.device_count())))


def build(
    target: Target,
    settings: Mapping[str, Any],
    seed: int = 0,
    criterion: bool = False,
    mode: str = "eval",
    dropout: int | None = None,
    device: str | None = None,
) -> nn.Module:
    """A new model; see `alignment.frameworks.Framework`."""
    torch.manual_seed(seed)
    model = copy.deepcopy(target) if isinstance(target, nn.Module) else load_target(target)(**settings)
    if not isinstance(model, nn.Module):
        raise AlignmentError(f"built a {type(model).__name__}, not a torch.nn.Module")
    if criterion and not hasattr(model, "criterion"):
        if isinstance(model, nn.Sequential):
            raise AlignmentError(
                "loss='criterion' hangs a cross entropy into the model, which a Sequential would call as its last layer: "
                "give loss=(torch.nn.functional.cross_entropy, paddle.nn.functional.cross_entropy), or wrap it in a class"
            )
        model.criterion = nn.CrossEntropyLoss()
    masks = None if dropout is None else Masks(dropout)
    set_mode(model, mode, masks)
    if masks is not None:
        model.register_forward_pre_hook(lambda *_: masks.restart())
    if device is not None:
        setattr(model, PLACED_ON, device.replace("gpu", "cuda"))
        model.to(getattr(model, PLACED_ON))
    return model


def set_mode(model: nn.Module, mode: str, masks: Masks | None = None) -> None:
    """Training or evaluation mode. In the former, too, dropout layers let everything pass, or apply the masks given."""
    model.train(mode == "train")
    for module in model.modules() if mode == "train" else ():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            if masks is None or not type(module).forward.__module__.startswith("torch.nn"):
                module.eval()
            else:
                module.forward = partial(_dropped, module, masks)
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0  # type: ignore[assignment]


def _dropped(layer: Any, masks: Masks, x: torch.Tensor) -> torch.Tensor:
    """What a dropout layer makes of its input [any shape] with the next mask, in training mode."""
    if not layer.training:
        return x
    shape = tuple(x.shape)
    if isinstance(layer, (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout)):  # whole channels
        unbatched = {nn.Dropout1d: 2, nn.Dropout3d: 4}.get(type(layer)) == x.ndim
        kept = 1 if unbatched else 2
        shape = (*shape[:kept], *(1 for _ in shape[kept:]))
    keep = masks.keep(shape, layer.p)
    if isinstance(layer, (nn.AlphaDropout, nn.FeatureAlphaDropout)):
        factor, summand = (to_tensor(part).to(x) for part in self_normalizing(keep, layer.p))
        return x.mul_(factor).add_(summand) if layer.inplace else x * factor + summand
    factor = to_tensor(scaled(keep, layer.p, x.dtype == torch.float32)).to(x)
    return x.mul_(factor) if layer.inplace else x * factor


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
    return tuple(ModuleInfo(path, layer_kind(module), not _bases(module)) for path, module in _watched(model))


def read_state(model: nn.Module) -> dict[str, NDArray]:
    """Copies of all tensors of the state dict."""
    return {full: to_numpy(tensor) for full, tensor in model.state_dict().items()}


def load_state(model: nn.Module, tensors: Mapping[str, NDArray]) -> None:
    """Strict load; floating-point values take the dtype of the model."""
    try:
        model.load_state_dict({full: to_tensor(value) for full, value in tensors.items()}, strict=True)
    except RuntimeError as error:
        raise AlignmentError(f"torch refuses the weights: {error}") from error


def cast(model: nn.Module, dtype: str) -> nn.Module:
    """All floating-point parameters and buffers in `dtype`; see `alignment.frameworks.Framework.cast`."""
    for module in model.modules():
        eps = getattr(module, "eps", None)
        if isinstance(eps, float) and any("Norm" in base for base in _bases(module)):
            setattr(module, "eps", float(np.float32(eps)))  # noqa: B010 (by a name that torch's own type does not have)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum is not None:
            module.momentum = 1 - float(np.float32(1 - module.momentum))  # the share that is kept, as Paddle holds it
    setattr(model, CAST_TO, dtype)
    return model.to(getattr(torch, dtype))


def run(
    model: nn.Module,
    batch: Batch,
    *,
    loss: Loss,
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
    before = _buffers(model) if model.training else {}
    recorder = _Recorder(_watched(model), detail, forced, sink)
    with recorder, torch.set_grad_enabled(backward):
        outputs, value = forward(model, batch, loss)
    after = _buffers(model) if model.training else {}
    if own_loss(loss):
        ends = [("logits", outputs)]
        recorder.keep(Record("logits", "logits", recorder.array(outputs)))
    else:
        ends = recorder.outputs(outputs)
    if value is not None:
        recorder.keep(Record("loss", "loss", recorder.array(value)))
        if loss == "model" and not brief:
            recorder.keep(Record("logits", "logits without targets", without_targets(model, batch)))
    if backward and value is not None and value.requires_grad:
        given = {full: tensor for full, tensor in ends if tensor.requires_grad}
        for tensor in given.values():
            tensor.retain_grad()
        recorder.backward(value)
        for full, tensor in {**given, **parameters}.items():
            recorder.keep(Record("gradient", full, None if tensor.grad is None else recorder.array(tensor.grad)))
        steps = [] if learning_rate is None else _adam_step(parameters, learning_rate)
        if not (brief or detail or forced):
            steps += _changes(before, after) if model.training else _statistics_step(model, batch)
        for record in steps:
            recorder.keep(record)
        model.zero_grad(set_to_none=True)
    _restore_buffers(model, before)
    return Trace(name, dtype_of(model), tuple(recorder.records), recorder.sites, recorder.calls)


def train(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    loss: Loss,
    learning_rate: float,
    sink: Callable[[int, Record], None] | None = None,
) -> list[float]:
    """Losses of successive Adam steps; see `alignment.frameworks.Framework`."""
    before = {full: tensor.clone() for full, tensor in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    losses: list[float] = []
    for batch in batches:
        held = {full: parameter.detach().double().clone() for full, parameter in model.named_parameters() if sink}
        optimizer.zero_grad()
        _, value = forward(model, batch, loss)
        assert value is not None
        losses.append(value.sum().item())
        torch.autograd.backward(value.sum())
        optimizer.step()
        for full, start in held.items():
            assert sink is not None
            sink(len(losses), Record("update", full, to_numpy(model.get_parameter(full).double() - start)))
    model.load_state_dict(before)
    model.zero_grad(set_to_none=True)
    return losses


def dtype_of(model: nn.Module) -> str:
    """The floating-point dtype a model computes in: its tensors', or what it was cast to where it has none."""
    tensors = (*model.parameters(), *model.buffers())
    floating = (str(tensor.dtype) for tensor in tensors if tensor.is_floating_point())
    return next(floating, f"torch.{getattr(model, CAST_TO, 'float32')}").removeprefix("torch.")


def _given(model: nn.Module, batch: Batch) -> tuple[list[Any], dict[str, Any], Any]:
    """Arguments, keywords and targets as tensors, floating-point ones in the model's dtype."""
    own = (tensor.device for tensor in (*model.parameters(), *model.buffers()))
    device = next(own, torch.device(getattr(model, PLACED_ON, "cpu")))
    dtype = getattr(torch, dtype_of(model))

    def tensor(array: NDArray) -> torch.Tensor:
        made = to_tensor(array).to(device)
        return made.to(dtype) if made.is_floating_point() else made

    inputs = {full: tensor(array) for full, array in batch.inputs.items()}
    targets = None if batch.targets is None else tensor(batch.targets)
    if batch.structure is None:
        return list(inputs.values()), {}, targets
    arguments, keywords, nested = restore(batch.structure, inputs)
    return arguments, keywords, nested if targets is None else targets


def forward(model: nn.Module, batch: Batch, loss: Loss) -> tuple[Any, torch.Tensor | None]:
    arguments, keywords, targets = _given(model, batch)
    if not own_loss(loss):
        outputs = model(*arguments, **keywords)
        if loss == "outputs":
            return outputs, _directed(outputs)
        return outputs, scalar(load_target(loss)(outputs, targets), torch.Tensor)
    if targets is None:
        return model(*arguments, **keywords), None
    if loss == "model":
        value, logits = model(*arguments, targets, **keywords)
        return logits, value
    logits = model(*arguments, **keywords)
    if tuple(logits.shape[:-1]) != tuple(targets.shape):
        return logits, None  # no loss: the logits' shape is the finding
    criterion: Any = model.criterion
    return logits, criterion(logits.flatten(0, -2), targets.flatten())


def _directed(outputs: Any) -> torch.Tensor | None:
    """The sum of all outputs with a gradient, each element times a fixed number of its own."""
    found = [leaf for _, leaf in leaves(outputs) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
    parts = [(leaf * to_tensor(directions(leaf.shape, i)).to(leaf)).sum() for i, leaf in enumerate(found)]
    return torch.stack([part.to(parts[0].dtype) for part in parts]).sum() if parts else None


@torch.no_grad()
def without_targets(model: nn.Module, batch: Batch) -> NDArray:
    """The logits of the call that predicts, which is another path through forward than the call that trains."""
    arguments, keywords, _ = _given(model, batch)
    return to_numpy(model(*arguments, **keywords))


def _watched(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module but those inside a layer of torch's own that the frameworks build of different parts."""
    inside: tuple[str, ...] = ()
    for path, module in model.named_modules():
        if inside and path.startswith(inside):
            continue
        yield path, module
        if layer_kind(module) in OPAQUE:
            inside = (*inside, f"{path}." if path else "")


class _Recorder(Recorder):
    """torch's tensors and hooks."""

    library = LIBRARY

    def hook(self, module: nn.Module, enter: Callable[..., Any] | None, leave: Callable[[Any], Any]) -> list[Any]:
        handles: list[Any] = []
        if enter is not None:
            handles.append(module.register_forward_pre_hook(lambda _, a, k: enter(a, k), with_kwargs=True))
        return [*handles, module.register_forward_hook(lambda _module, _arguments, output: leave(output))]

    def is_attention(self, module: nn.Module) -> bool:
        return isinstance(module, nn.MultiheadAttention)

    def is_tensor(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor)

    def to_array(self, tensor: torch.Tensor) -> NDArray:
        return to_numpy(tensor)

    def own_memory(self, tensor: torch.Tensor) -> NDArray | None:
        return None if tensor.device.type != "cpu" or tensor.dtype == torch.bfloat16 else tensor.detach().numpy()

    def has_gradient(self, tensor: torch.Tensor) -> bool:
        return tensor.requires_grad

    def watched(self, tensor: torch.Tensor, tell: Callable[[Any], None]) -> torch.Tensor:
        copied = tensor.clone()
        copied.register_hook(tell)  # type: ignore[no-untyped-call, unused-ignore]
        return copied

    def like(self, value: NDArray, tensor: torch.Tensor) -> torch.Tensor:
        return to_tensor(value).to(tensor)

    def leaf(self, tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return tensor.requires_grad_(), tensor.clone()

    def gradients_enabled(self) -> bool:
        return torch.is_grad_enabled()

    def go_back(self, ends: list[Any], gradients: list[Any]) -> None:
        torch.autograd.backward(ends, gradients)


def _adam_step(parameters: dict[str, nn.Parameter], learning_rate: float) -> list[Record]:
    if not parameters:
        return []
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
def _statistics_step(model: nn.Module, batch: Batch) -> list[Record]:
    """What one forward pass in training mode does to running statistics; everything but their layers stays as it is."""
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and not m.training]
    if not layers:
        return []
    before = _buffers(model)
    try:
        for layer in layers:
            layer.train()
        arguments, keywords, _ = _given(model, batch)
        model(*arguments, **keywords)
    except ValueError:  # a batch of one value a channel has no variance
        return []
    finally:
        after = _buffers(model)
        _restore_buffers(model, before)
        for layer in layers:
            layer.eval()
    return _changes(before, after)


def _buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    return {full: buffer.detach().clone() for full, buffer in model.named_buffers()}


@torch.no_grad()
def _restore_buffers(model: nn.Module, before: Mapping[str, torch.Tensor]) -> None:
    for full, buffer in model.named_buffers():
        if full in before:
            buffer.copy_(before[full])


def _changes(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> list[Record]:
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
    flat = to_tensor(logits).flatten(0, -2)
    return to_numpy(nn.functional.cross_entropy(flat, to_tensor(targets).flatten(), reduction=reduction, **options))


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
        return to_tensor(replace(to_numpy(tensor))).to(tensor)

    model.get_parameter(parameter).register_hook(swap)  # type: ignore[no-untyped-call]


def replace_input(model: nn.Module, path: str, position: int, replace: Callable[[NDArray], NDArray]) -> None:
    """Replace one positional input of a module in every call to come."""

    def swap(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        given = to_numpy(arguments[position])
        value = replace(given)
        changed = arguments[position] if value is given else to_tensor(value).to(arguments[position])
        return (*arguments[:position], changed, *arguments[position + 1 :])

    model.get_submodule(path).register_forward_pre_hook(swap)


def to_numpy(tensor: torch.Tensor) -> NDArray:
    """A copy on the host; bfloat16 stays bfloat16, bit for bit (as ml_dtypes.bfloat16)."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return np.array(tensor.view(torch.int16).numpy()).view(ml_dtypes.bfloat16)
    return np.array(tensor.numpy())


def to_tensor(array: NDArray) -> torch.Tensor:
    array = np.ascontiguousarray(array).reshape(array.shape)
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


set_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
