"""The Paddle adapter: the toolkit's only door to paddle."""

from __future__ import annotations

import contextlib
import copy
import faulthandler
import functools
import inspect
import io
import operator
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar
from typing import cast as typed

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
    # Importing paddle warns that ccache is missing and that more than one OpenMP thread is asked for: neither concerns us.
    warnings.simplefilter("ignore")
    import paddle

    # Its handlers print a C++ stack for signals that Python and the command line deal with themselves.
    paddle.disable_signal_handler()
    if faulthandler.is_enabled():  # asked for, and gone with them
        faulthandler.disable()
        faulthandler.enable(2, all_threads=False)

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
    separable,
)
from alignment.frameworks.masks import Masks, scaled, self_normalizing
from alignment.frameworks.recording import Recorder, directions
from alignment.structures import leaves, restore
from alignment.trace import Kind, Record, Trace
from checkpoints.layouts import CONTAINING, KINDS
from checkpoints.structure import Slot
from fake_data import Batch

nn = paddle.nn
name = "paddle"
LIBRARY = str(Path(paddle.__file__).parent)

# Do hooks see keywords? From Paddle 3.0 on.
KEYWORDS = "with_kwargs" in inspect.signature(nn.Layer.register_forward_pre_hook).parameters

# Layers of Paddle's own whose inner parts are built and called in another way by other frameworks.
OPAQUE = frozenset(("MultiHeadAttention", "compat.MultiheadAttention", "LSTM", "GRU", "SimpleRNN", "RNN", "BiRNN"))


def _of_each_axis(axes: int, value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,) * axes


# (layer kind, option by torch's name) -> (attribute here, torch's value -> ours, ours -> torch's).
OPTIONS: dict[tuple[str, str], tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    ("LayerNorm", "eps"): ("_epsilon", float, float),
    ("GroupNorm", "eps"): ("_epsilon", float, float),
    ("GroupNorm", "num_groups"): ("_num_groups", int, int),
    **{(f"InstanceNorm{n}D", "eps"): ("_epsilon", float, float) for n in (1, 2, 3)},
    **{
        (f"Conv{n}D{kind}", name): (f"_{name}", list, tuple)
        for n in (1, 2, 3)
        for kind in ("", "Transpose")
        for name in ("stride", "dilation")
    },
    # One number for all axes, or a list.
    **{
        (f"Conv{n}DTranspose", "output_padding"): ("output_padding", list, partial(_of_each_axis, n)) for n in (1, 2, 3)
    },
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
    ("GRU", "batch_first"): ("time_major", operator.not_, operator.not_),
    ("SimpleRNN", "batch_first"): ("time_major", operator.not_, operator.not_),
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

# Kinds that torch has another word for, beyond upper and lower case.
WORDS = {
    "LayerList": "ModuleList",
    "LayerDict": "ModuleDict",
    "SimpleRNN": "RNN",
    "SimpleRNNCell": "RNNCell",
    **{f"Conv{n}DTranspose": f"ConvTranspose{n}d" for n in (1, 2, 3)},
}


class ExactCrossEntropyLoss(paddle.nn.CrossEntropyLoss):
    """Cross entropy of logits [n, C]; on a CPU Paddle's own takes no probability to be below exp(-64)."""

    def forward(self, logits: Any, targets: Any) -> Any:
        shifted = logits - logits.max(-1, keepdim=True).detach()  # or the loss of a confident prediction cancels
        losses = shifted.exp().sum(-1).log() - shifted.take_along_axis(targets[:, None], 1)[:, 0]
        return losses if self.reduction == "none" else getattr(losses, self.reduction)()


def versions() -> dict[str, str]:
    """Version of paddle."""
    return {"paddle": str(paddle.__version__)}


def conditions() -> tuple[Condition, ...]:
    """How Paddle is built and set, as it is now; see `alignment.frameworks.Framework`."""
    device = str(tried(paddle.get_device))
    found = [
        Condition(name, "version", str(paddle.__version__)),
        Condition(name, "device", device),
        Condition(name, "BLAS", "MKL" if tried(paddle.version.mkl) == "ON" else "another than MKL"),
        expect(
            name,
            "mode",
            "dynamic" if paddle.in_dynamic_mode() else "static",
            "dynamic",
            "error",
            "models can't be run layer by layer",
            "paddle.disable_static()",
        ),
        expect(
            name,
            "default dtype",
            paddle.get_default_dtype(),
            "float32",
            "warning",
            "models built without a dtype are not float32",
            'paddle.set_default_dtype("float32")',
        ),
        expect(
            name,
            "gradients",
            tried(paddle.is_grad_enabled),
            True,
            "error",
            "nothing can go backward: step 5 has nothing to compare",
            "leave paddle.no_grad; paddle.set_grad_enabled(True)",
        ),
        expect(
            name,
            "autocast",
            tried(lambda: paddle.base.framework._dygraph_tracer()._amp_level.name),
            "O0",
            "error",
            "float32 and float64 runs are computed in half precision",
            "leave paddle.amp.auto_cast",
        ),
        expect(
            name,
            "FLAGS_check_nan_inf",
            tried(lambda: paddle.get_flags("FLAGS_check_nan_inf")["FLAGS_check_nan_inf"]),
            False,
            "warning",
            "Paddle ends a run at the first NaN, where a check would say on which sides it is",
            'paddle.set_flags({"FLAGS_check_nan_inf": False})',
        ),
    ]
    if device.startswith("gpu"):
        why = "on a GPU {} float32 are computed in TF32, whose error is a thousand times larger"
        core = paddle.base.core
        for what, read, remedy in (
            ("products in", lambda: core.get_cublas_switch(), "paddle.base.core.set_cublas_switch(False)"),
            ("convolutions in", lambda: core.get_cudnn_switch(), "paddle.base.core.set_cudnn_switch(False)"),
        ):
            found.append(expect(name, f"TF32 for {what}", tried(read), False, "warning", why.format(what), remedy))
    else:
        found += [
            Condition(
                name,
                "kernels that crash",
                "LSTM, GRU and SimpleRNN without biases",
                "note",
                "on a CPU they end the process (seen with 3.3.1); a check refuses them with a message",
                "keep the biases at zero, or make the layer of cells: nn.RNN(nn.LSTMCell(…))",
            ),
            Condition(
                name,
                "kernels that corrupt memory",
                "nll_loss, mean or sum, with many ignored labels",
                "note",
                "on a CPU the process may abort or hang (seen with 3.3.1)",
                "align check --isolate --timeout 600: a crash then costs one inconclusive result",
            ),
        ]
    return tuple(found)


def set_threads(count: int) -> None:
    """Use `count` CPU threads within an operation."""
    paddle.base.core.set_num_threads(count)


def device(model: Any) -> str:
    """``"cpu"``, ``"gpu:0"`` …"""
    place = next((str(tensor.place) for tensor in (*model.parameters(), *model.buffers())), "cpu")
    return place.removeprefix("Place(").removesuffix(")")


def devices() -> tuple[str, ...]:
    """``"cpu"``, and each GPU as ``"gpu:N"`` where this is a build for GPUs."""
    count = paddle.device.cuda.device_count() if paddle.device.is_compiled_with_cuda() else 0
    return ("cpu", *(f"gpu:{number}" for number in range(count)))


Function = TypeVar("Function", bound=Callable[..., Any])


@contextlib.contextmanager
def on(device: str | None) -> Iterator[None]:
    """Have Paddle make its tensors on a device: it has one at a time for all that is made."""
    if device is None:
        yield
        return
    before = paddle.get_device()
    paddle.set_device(device)
    try:
        yield
    finally:
        paddle.set_device(before)


def where_it_is(function: Function) -> Function:
    """The same function of a model, run on the device that the model was put on."""

    @functools.wraps(function)
    def call(model: Any, *arguments: Any, **options: Any) -> Any:
        with on(getattr(model, PLACED_ON, None)):
            return function(model, *arguments, **options)

    return typed("Function", call)


def build(
    target: Target,
    settings: Mapping[str, Any],
    seed: int = 0,
    criterion: bool = False,
    mode: str = "eval",
    dropout: int | None = None,
    device: str | None = None,
) -> Any:
    """A new model; see `alignment.frameworks.Framework`."""
    with on(device):
        model = _build(target, settings, seed, criterion, mode, dropout)
        if device is not None:
            model.to(device=device)
            setattr(model, PLACED_ON, device)
    return model


def _build(
    target: Target, settings: Mapping[str, Any], seed: int, criterion: bool, mode: str, dropout: int | None
) -> Any:
    paddle.seed(seed)
    model = copy.deepcopy(target) if isinstance(target, nn.Layer) else load_target(target)(**settings)
    if not isinstance(model, nn.Layer):
        raise AlignmentError(f"built a {type(model).__name__}, not a paddle.nn.Layer")
    if criterion and not hasattr(model, "criterion"):
        if isinstance(model, nn.Sequential):
            raise AlignmentError(
                "loss='criterion' hangs a cross entropy into the model, which a Sequential would call as its last layer: "
                "give loss=(torch.nn.functional.cross_entropy, paddle.nn.functional.cross_entropy), or wrap it in a class"
            )
        model.criterion = ExactCrossEntropyLoss()
    masks = None if dropout is None else Masks(dropout)
    set_mode(model, mode, masks)
    if masks is not None:
        model.register_forward_pre_hook(lambda *_: masks.restart())
    return model


def set_mode(model: Any, mode: str, masks: Masks | None = None) -> None:
    """Training or evaluation mode. In the former, too, dropout layers let everything pass, or apply the masks given."""
    if mode == "train":
        model.train()
    else:
        model.eval()
    for layer in model.sublayers(include_self=True) if mode == "train" else ():
        if "Dropout" in layer_kind(layer):
            if masks is None or not type(layer).forward.__module__.startswith("paddle.nn"):
                layer.eval()
            else:
                layer.forward = partial(_dropped, layer, masks)
        elif isinstance(getattr(layer, "dropout", None), float):
            layer.dropout = 0.0


def _dropped(layer: Any, masks: Masks, x: Any) -> Any:
    """What a dropout layer makes of its input [any shape] with the next mask, in training mode."""
    if not layer.training:
        return x
    kind, rate = layer_kind(layer), float(layer.p)
    axes = getattr(layer, "axis", None)
    if kind in ("Dropout2D", "Dropout3D"):  # whole channels
        axes = (0, 1 if layer.data_format.startswith("NC") else x.ndim - 1)
    elif kind == "FeatureAlphaDropout":
        axes = (0, 1)
    axes = range(x.ndim) if axes is None else {axis % x.ndim for axis in ((axes,) if isinstance(axes, int) else axes)}
    keep = masks.keep(tuple(size if i in axes else 1 for i, size in enumerate(x.shape)), rate)
    if "AlphaDropout" in kind:
        factor, summand = (to_tensor(part).astype(x.dtype) for part in self_normalizing(keep, rate))
        return x * factor + summand
    # By its mode "downscale_in_infer" Paddle makes up for what is dropped in evaluation mode, and not here.
    downscaled = getattr(layer, "mode", "") == "downscale_in_infer"
    return x * to_tensor(keep if downscaled else scaled(keep, rate, x.dtype == paddle.float32)).astype(x.dtype)


def slots(model: Any) -> tuple[Slot, ...]:
    """Every name of the state dict; a further name of one tensor is tied to the first."""
    first: dict[int, str] = {}
    found = []
    kind_at = cache(lambda path: layer_kind(_sublayer(model, path)))
    for full, tensor in model.state_dict().items():
        path, _, local = full.rpartition(".")
        tied_to = first.setdefault(id(tensor), full)
        found.append(
            Slot(
                full,
                kind_at(path),
                local,
                tuple(tensor.shape),
                _named(tensor.dtype),
                "buffer" if _is_buffer(_sublayer(model, path), local) else "parameter",
                None if tied_to == full else tied_to,
                _within(full, kind_at),
            )
        )
    return tuple(found)


def _within(full: str, kind_at: Callable[[str], str]) -> tuple[tuple[str, str], ...]:
    """The layers around the one that holds a tensor, nearest first, that have rules for what is inside them."""
    parts = full.split(".")
    around = ((".".join(parts[:depth]), ".".join(parts[depth:])) for depth in range(len(parts) - 2, -1, -1))
    return tuple((kind_at(path), inside) for path, inside in around if kind_at(path) in CONTAINING[name])


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
    kinds = ((path, layer_kind(layer), not _bases(layer)) for path, layer in _watched(model))
    return tuple(ModuleInfo(path, WORDS.get(kind, kind), own) for path, kind, own in kinds)


def read_state(model: Any) -> dict[str, NDArray]:
    """Copies of all tensors of the state dict."""
    return {full: to_numpy(tensor) for full, tensor in model.state_dict().items()}


@where_it_is
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
        value = to_tensor(tensors[full])
        tensor.set_value(value if value.dtype == tensor.dtype else value.astype(tensor.dtype))


@where_it_is
def cast(model: Any, dtype: str) -> Any:
    """All floating-point parameters and buffers in `dtype`; see `alignment.frameworks.Framework.cast`."""
    for layer in model.sublayers(include_self=True):
        if isinstance(getattr(layer, "_epsilon", None), float) and any("Norm" in base for base in _bases(layer)):
            layer._epsilon = float(np.float32(layer._epsilon))
        if "BatchNorm" in layer_kind(layer) and isinstance(getattr(layer, "_momentum", None), float):
            layer._momentum = float(np.float32(layer._momentum))
        if isinstance(layer, nn.RNNCellBase):  # its zero state is of the default dtype, whatever the cell's
            layer.get_initial_states = partial(layer.get_initial_states, dtype=dtype)
    # A recurrent layer's state of dropout is bytes, and none of them: cast, it keeps the kernel from running.
    kept = [(layer, layer._buffers.pop("_dropout_state", None)) for layer in model.sublayers(include_self=True)]
    model.to(dtype=dtype)
    for layer, state in kept:
        if state is not None:
            layer._buffers["_dropout_state"] = state
    setattr(model, CAST_TO, dtype)
    return model


@where_it_is
def run(
    model: Any,
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
    refuse_what_crashes(model)
    parameters = dict(model.named_parameters())
    clear_gradients(parameters)
    before = _buffers(model) if model.training else {}
    recorder = _Recorder(_watched(model), detail, forced, sink)
    with recorder, to_the_last_digit(dtype_of(model)), _differentiable(model) if backward else paddle.no_grad():
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
    if backward and value is not None and not value.stop_gradient:
        given = {full: tensor for full, tensor in ends if not tensor.stop_gradient}
        for tensor in given.values():
            tensor.retain_grads()
        recorder.backward(value)
        for full, tensor in {**given, **parameters}.items():
            recorder.keep(Record("gradient", full, None if tensor.grad is None else recorder.array(tensor.grad)))
        steps = [] if learning_rate is None else _adam_step(parameters, learning_rate)
        if not (brief or detail or forced):
            steps += _changes(before, after) if model.training else _statistics_step(model, batch)
        for record in steps:
            recorder.keep(record)
        clear_gradients(parameters)
    _restore_buffers(model, before)
    return Trace(name, dtype_of(model), tuple(recorder.records), recorder.sites, recorder.calls)


@where_it_is
def train(
    model: Any,
    batches: Sequence[Batch],
    *,
    loss: Loss,
    learning_rate: float,
    sink: Callable[[int, Record], None] | None = None,
) -> list[float]:
    """Losses of successive Adam steps; see `alignment.frameworks.Framework`."""
    before = {full: tensor.clone() for full, tensor in model.state_dict().items()}
    optimizer = paddle.optimizer.Adam(learning_rate=learning_rate, parameters=model.parameters())
    losses: list[float] = []
    for batch in batches:
        held = {full: parameter.detach().astype("float64") for full, parameter in model.named_parameters() if sink}
        optimizer.clear_grad(set_to_zero=False)
        with _differentiable(model):
            _, value = forward(model, batch, loss)
        assert value is not None
        losses.append(value.sum().item())
        value.sum().backward()
        optimizer.step()
        parameters = dict(model.named_parameters())
        for full, start in held.items():
            assert sink is not None
            change = parameters[full].detach().astype("float64") - start
            sink(len(losses), Record("update", full, to_numpy(change)))
    for full, tensor in model.state_dict().items():
        tensor.set_value(before[full])
    clear_gradients(dict(model.named_parameters()))
    return losses


def refuse_what_crashes(model: Any) -> None:
    """A kernel that takes the process with it can't be run to see what it does."""
    for path, layer in model.named_sublayers(include_self=True):
        if isinstance(layer, nn.layer.rnn.RNNBase) and layer.could_use_cudnn:
            wanted = 4 * layer.num_layers * layer.num_directions
            if len(layer.parameters(include_sublayers=False)) != wanted:
                raise AlignmentError(
                    f"{path or 'the model'}: Paddle's kernel of an {layer_kind(layer)} without biases ends the process; "
                    "keep the biases at zero, or make it of cells, nn.RNN(nn.LSTMCell(...))"
                )


@contextlib.contextmanager
def _differentiable(model: Any) -> Iterator[None]:
    """Recurrent layers in training mode without dropout: the same function, where their kernel has a gradient."""
    layers = [layer for layer in model.sublayers(include_self=True) if isinstance(layer, nn.layer.rnn.RNNBase)]
    held = [(layer, layer.dropout) for layer in layers if not layer.training]
    try:
        for layer, _ in held:
            layer.training, layer.dropout = True, 0.0
        yield
    finally:
        for layer, rate in held:
            layer.training, layer.dropout = False, rate


def clear_gradients(parameters: Mapping[str, Any]) -> None:
    """Gone, not zero: Paddle's `clear_grad` leaves zeros, which could not be told from an unused parameter's."""
    for parameter in parameters.values():
        parameter.clear_gradient(False)  # set_to_zero, which it does not heed as a keyword


def dtype_of(model: Any) -> str:
    """The floating-point dtype a model computes in: its tensors', or what it was cast to where it has none."""
    floating = (
        _named(tensor.dtype) for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()
    )
    return str(next(floating, getattr(model, CAST_TO, "float32")))


def _given(model: Any, batch: Batch) -> tuple[list[Any], dict[str, Any], Any]:
    """Arguments, keywords and targets as tensors, floating-point ones in the model's dtype."""
    dtype = dtype_of(model)

    def tensor(array: NDArray) -> Any:
        made = to_tensor(array)
        return made.astype(dtype) if made.is_floating_point() else made

    inputs = {full: tensor(array) for full, array in batch.inputs.items()}
    targets = None if batch.targets is None else tensor(batch.targets)
    if batch.structure is None:
        return list(inputs.values()), {}, targets
    arguments, keywords, nested = restore(batch.structure, inputs)
    return arguments, keywords, nested if targets is None else targets


def forward(model: Any, batch: Batch, loss: Loss) -> tuple[Any, Any | None]:
    arguments, keywords, targets = _given(model, batch)
    if not own_loss(loss):
        outputs = model(*arguments, **keywords)
        if loss == "outputs":
            return outputs, _directed(outputs)
        return outputs, scalar(load_target(loss)(outputs, targets), paddle.Tensor)
    if targets is None:
        return model(*arguments, **keywords), None
    if loss == "model":
        value, logits = model(*arguments, targets, **keywords)
        return logits, value
    logits = model(*arguments, **keywords)
    if tuple(logits.shape[:-1]) != tuple(targets.shape):
        return logits, None  # no loss: the logits' shape is the finding
    return logits, model.criterion(logits.flatten(0, -2), targets.flatten())


def _directed(outputs: Any) -> Any | None:
    """The sum of all outputs with a gradient, each element times a fixed number of its own."""
    found = [leaf for _, leaf in leaves(outputs) if isinstance(leaf, paddle.Tensor) and leaf.is_floating_point()]
    parts = [(leaf * to_tensor(directions(leaf.shape, i)).astype(leaf.dtype)).sum() for i, leaf in enumerate(found)]
    return paddle.stack([part.astype(parts[0].dtype) for part in parts]).sum() if parts else None


@paddle.no_grad()  # type: ignore[untyped-decorator]
def without_targets(model: Any, batch: Batch) -> NDArray:
    """The logits of the call that predicts, which is another path through forward than the call that trains."""
    arguments, keywords, _ = _given(model, batch)
    with to_the_last_digit(dtype_of(model)):
        return to_numpy(model(*arguments, **keywords))


def _watched(model: Any) -> Iterator[tuple[str, Any]]:
    """Every layer but those inside a layer of Paddle's own that the frameworks build of different parts."""
    inside: tuple[str, ...] = ()
    for path, layer in model.named_sublayers(include_self=True):
        if inside and path.startswith(inside):
            continue
        yield path, layer
        if layer_kind(layer) in OPAQUE:
            inside = (*inside, f"{path}." if path else "")


class _Recorder(Recorder):
    """Paddle's tensors and hooks."""

    library = LIBRARY

    def hook(self, module: Any, enter: Callable[..., Any] | None, leave: Callable[[Any], Any]) -> list[Any]:
        handles: list[Any] = []
        if enter is not None and KEYWORDS:
            handles.append(module.register_forward_pre_hook(lambda _, a, k: enter(a, k), with_kwargs=True))
        elif enter is not None:
            handles.append(module.register_forward_pre_hook(lambda _, arguments: enter(arguments, {})[0]))
        return [*handles, module.register_forward_post_hook(lambda _layer, _arguments, output: leave(output))]

    def is_attention(self, module: Any) -> bool:
        return layer_kind(module) in ("MultiHeadAttention", "compat.MultiheadAttention")

    def is_tensor(self, value: Any) -> bool:
        return isinstance(value, paddle.Tensor)

    def to_array(self, tensor: Any) -> NDArray:
        return to_numpy(tensor)

    def own_memory(self, tensor: Any) -> NDArray | None:
        shared = tensor.place.is_cpu_place() and tensor.dtype != paddle.bfloat16
        if not shared or not hasattr(tensor, "__dlpack_device__"):  # which it has from Paddle 3.0 on
            return None
        return np.from_dlpack(tensor.detach())

    def has_gradient(self, tensor: Any) -> bool:
        return not tensor.stop_gradient

    def watched(self, tensor: Any, tell: Callable[[Any], None]) -> Any:
        copied = paddle.assign(tensor)
        # What a hook returns takes the gradient's place.
        copied.register_hook(lambda gradient: tell(gradient))
        return copied

    def like(self, value: NDArray, tensor: Any) -> Any:
        return to_tensor(value).astype(tensor.dtype)

    def leaf(self, tensor: Any) -> tuple[Any, Any]:
        tensor.stop_gradient = False
        return tensor, paddle.assign(tensor)

    def gradients_enabled(self) -> bool:
        return bool(paddle.is_grad_enabled())

    def go_back(self, ends: list[Any], gradients: list[Any]) -> None:
        paddle.autograd.backward(ends, gradients)


def _adam_step(parameters: dict[str, Any], learning_rate: float) -> list[Record]:
    if not parameters:
        return []
    kind: Kind = "update"
    before = {full: parameter.detach().clone() for full, parameter in parameters.items()}
    # The optimizer keeps its learning rate in the default dtype: as float32 it would be wrong by 5e-8 in a float64 run.
    default = paddle.get_default_dtype()
    paddle.set_default_dtype(_named(next(iter(parameters.values())).dtype))
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
def _statistics_step(model: Any, batch: Batch) -> list[Record]:
    """What one forward pass in training mode does to running statistics; everything but their layers stays as it is."""
    layers = [layer for layer in model.sublayers() if "BatchNorm" in layer_kind(layer) and not layer.training]
    if not layers:
        return []
    before = _buffers(model)
    try:
        for layer in layers:
            layer.train()
        arguments, keywords, _ = _given(model, batch)
        with to_the_last_digit(dtype_of(model)):
            model(*arguments, **keywords)
    except ValueError:  # a batch of one value a channel has no variance
        return []
    finally:
        after = _buffers(model)
        _restore_buffers(model, before)
        for layer in layers:
            layer.eval()
    return _changes(before, after)


def _buffers(model: Any) -> dict[str, Any]:
    own = {slot.name for slot in slots(model) if slot.role == "buffer"}
    return {full: tensor.detach().clone() for full, tensor in model.state_dict().items() if full in own}


def _restore_buffers(model: Any, before: Mapping[str, Any]) -> None:
    for full, tensor in model.state_dict().items() if before else ():
        if full in before:
            tensor.set_value(before[full])


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Record]:
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
    flat = to_tensor(logits).flatten(0, -2)
    return to_numpy(nn.functional.cross_entropy(flat, to_tensor(targets).flatten(), reduction=reduction, **options))


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
        return to_tensor(replace(to_numpy(tensor))).astype(tensor.dtype)

    dict(model.named_parameters())[parameter].register_hook(swap)


def replace_input(model: Any, path: str, position: int, replace: Callable[[NDArray], NDArray]) -> None:
    """Replace one positional input of a layer in every call to come."""

    def swap(_layer: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        given = to_numpy(arguments[position])
        value = replace(given)
        changed = arguments[position] if value is given else to_tensor(value).astype(arguments[position].dtype)
        return (*arguments[:position], changed, *arguments[position + 1 :])

    _sublayer(model, path).register_forward_pre_hook(swap)


def to_numpy(tensor: Any) -> NDArray:
    """A copy on the host; bfloat16 stays bfloat16, bit for bit (as ml_dtypes.bfloat16)."""
    array = np.asarray(tensor.detach().numpy())  # which is a copy
    if tensor.dtype == paddle.bfloat16:
        return array.view(ml_dtypes.bfloat16)
    return array


def to_tensor(array: NDArray) -> Any:
    array = np.array(array)
    if array.dtype == ml_dtypes.bfloat16:
        return paddle.to_tensor(array.view(np.uint16), dtype="bfloat16")
    return paddle.to_tensor(array)


def _named(dtype: Any) -> str:
    return str(dtype).rpartition(".")[2]


def _is_buffer(layer: Any, local: str) -> bool:
    # BatchNorm's running statistics are Parameters to Paddle, and so are the zeros of a cell without biases: by role they are
    # buffers.
    kind = layer_kind(layer)
    frozen = kind.endswith("Cell") and local in ("bias_ih", "bias_hh") and getattr(layer, local).stop_gradient
    return local in layer._buffers or frozen or ("BatchNorm" in kind and local in ("_mean", "_variance"))


def _sublayer(model: Any, path: str) -> Any:
    layer = model
    for part in path.split(".") if path else []:
        layer = getattr(layer, part) if hasattr(layer, part) else layer[int(part)]
    return layer


# --------------------------------------------------------------------------------------------- float64 to the last digit
#
# What Paddle's kernels are told as a number (an epsilon, a slope, an exponent, a share of smoothing) they hold as float32
# whatever they compute in, and some hold factors of their own so: average pooling's gradient is off by 1e-8, interpolation by
# 1e-6, hard sigmoid by 1e-7, x ** 0.3 by 1e-8. That would be taken for a mistake of the port, so in a float64 run the same is
# computed by other kernels. The float32 run has Paddle's own.

_exact = False


@contextlib.contextmanager
def to_the_last_digit(dtype: str) -> Iterator[None]:
    global _exact
    before, _exact = _exact, dtype == "float64"
    try:
        yield
    finally:
        _exact = before


def _along_axes(x: Any, matrices: Sequence[NDArray]) -> Any:
    """Each of the last axes multiplied with a matrix [size after, size before]."""
    for axis, matrix in enumerate(matrices, start=x.ndim - len(matrices)):
        x = paddle.matmul(x.moveaxis(axis, -1), paddle.to_tensor(matrix.T.copy())).moveaxis(-1, axis)
    return x


def _pooled(dimensions: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Average pooling over the last axes; what is told otherwise than by numbers is left to Paddle."""

    def exact(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)

        def pool(*arguments: Any, **options: Any) -> Any:
            own = function(*arguments, **options)
            given = signature.bind(*arguments, **options)
            given.apply_defaults()
            told = given.arguments
            kernel, padding = (_each(told[name], dimensions) for name in ("kernel_size", "padding"))
            stride = kernel if told["stride"] is None else _each(told["stride"], dimensions)
            channels_first = str(told.get("data_format", "NC")).startswith("NC")
            if (
                kernel is None
                or padding is None
                or stride is None
                or told.get("divisor_override")
                or not channels_first
            ):
                return own
            sizes = zip(told["x"].shape[2:], own.shape[2:], kernel, stride, padding, strict=True)
            return _along_axes(told["x"], [separable.windows(*size, not told["exclusive"]) for size in sizes])

        return pool

    return exact


def _pooled_adaptively(function: Callable[..., Any]) -> Callable[..., Any]:
    def pool(x: Any, output_size: Any, *more: Any) -> Any:
        own = function(x, output_size, *more)
        if more[0] in ("NHWC", "NDHWC"):
            return own
        sizes = zip(x.shape[2:], own.shape[2:], strict=True)
        return _along_axes(x, [separable.adaptive_windows(*size) for size in sizes])

    return pool


def _interpolated(function: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(function)

    def interpolate(*arguments: Any, **options: Any) -> Any:
        own = function(*arguments, **options)
        given = signature.bind(*arguments, **options)
        given.apply_defaults()
        told = given.arguments
        x, mode = told["x"], told["mode"].lower()
        weights = separable.cubic if mode == "bicubic" else separable.linear
        sizes = list(zip(x.shape[2:], own.shape[2:], strict=True))
        scales = _each(told["scale_factor"], len(sizes)) if told["scale_factor"] is not None else (None,) * len(sizes)
        plain = mode in ("linear", "bilinear", "trilinear", "bicubic") and not told.get("antialias")
        channels_first = told["data_format"] is None or told["data_format"].startswith("NC")
        if scales is None or not (plain and channels_first) or (told["align_mode"] and not told["align_corners"]):
            return own
        steps = zip(sizes, scales, strict=True)
        return _along_axes(x, [weights(*size, told["align_corners"], scale) for size, scale in steps])

    return interpolate


def _each(value: Any, count: int) -> tuple[Any, ...] | None:
    """A number for each axis; None where it is told in another form."""
    if isinstance(value, (int, float)):
        return (value,) * count
    listed = isinstance(value, (list, tuple)) and len(value) == count
    return tuple(value) if listed and all(isinstance(one, (int, float)) for one in value) else None


def _hard_sigmoid(function: Callable[..., Any]) -> Callable[..., Any]:
    def hard_sigmoid(x: Any, slope: float, offset: float, *_more: Any) -> Any:
        if slope != 0.1666667:
            return function(x, slope, offset)
        # Paddle's default stands for a sixth. torch takes the exact one forward, and float32's in the gradient.
        sixth = float(np.float32(1 / 6))
        return (x * sixth + (x * (1 / 6 - sixth)).detach() + offset).clip(0.0, 1.0)

    return hard_sigmoid


def _selu(function: Callable[..., Any]) -> Callable[..., Any]:
    def selu(x: Any, scale: float, alpha: float, *_more: Any) -> Any:
        return scale * paddle.where(x > 0, x, alpha * paddle.expm1(x.clip(max=0.0)))

    return selu


def _elu(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, alpha, *_more: _chosen(x > 0, x, alpha * paddle.expm1(x.clip(max=0.0)))


def _celu(function: Callable[..., Any]) -> Callable[..., Any]:
    def celu(x: Any, alpha: float, *_more: Any) -> Any:
        below = x.clip(max=0.0)
        # torch takes α as it is forward, and one over float32's in the gradient.
        by_float32 = alpha * paddle.expm1(below / float(np.float32(alpha)))
        return _chosen(x > 0, x, by_float32 + (alpha * paddle.expm1(below / alpha) - by_float32).detach())

    return celu


def _hardtanh(function: Callable[..., Any]) -> Callable[..., Any]:
    def hardtanh(x: Any, low: float, high: float, *_more: Any) -> Any:
        return _chosen(x <= low, low, _chosen(x >= high, high, x))

    return hardtanh


def _softshrink(function: Callable[..., Any]) -> Callable[..., Any]:
    def softshrink(x: Any, threshold: float, *_more: Any) -> Any:
        return _chosen(x > threshold, x - threshold, _chosen(x < -threshold, x + threshold, 0.0 * x))

    return softshrink


def _thresholded(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, threshold, value, *_more: _chosen(x > threshold, x, value)


def _rrelu(function: Callable[..., Any]) -> Callable[..., Any]:
    def rrelu(x: Any, lower: float, upper: float, training: bool, *_more: Any) -> Any:
        return function(x, lower, upper, training) if training else _chosen(x >= 0, x, x * ((lower + upper) / 2))

    return rrelu


def _stanh(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, scale_a, scale_b, *_more: scale_b * paddle.tanh(scale_a * x)


def _number(value: float, like: Any) -> Any:
    """A number as a tensor of another's dtype: what stands for it otherwise is float32."""
    return paddle.full([], value, like.dtype)


def _chosen(condition: Any, one: Any, two: Any) -> Any:
    """One where the condition holds, else two; tensors, one of them perhaps a number."""
    one, two = (
        _number(one, two) if isinstance(one, (int, float)) else one,
        _number(two, one) if isinstance(two, (int, float)) else two,
    )
    return _own_where(condition, one, two)


def _where(function: Callable[..., Any]) -> Callable[..., Any]:
    def where(condition: Any, x: Any, y: Any, *more: Any) -> Any:
        wide = any(isinstance(one, paddle.Tensor) and one.dtype == paddle.float64 for one in (x, y))
        return _chosen(condition, x, y) if wide else function(condition, x, y, *more)

    return where


def _short(value: Any) -> bool:
    """Is it a number that float32 holds as it is, or none?"""
    return not isinstance(value, float) or float(np.float32(value)) == value


def _power(function: Callable[..., Any]) -> Callable[..., Any]:
    def power(x: Any, y: Any, *more: Any) -> Any:
        wide = x.dtype == paddle.float64 and not _short(y)
        return function(x, _number(y, x) if wide else y, *more)

    return power


def _added_product(function: Callable[..., Any]) -> Callable[..., Any]:
    def added(to: Any, x: Any, y: Any, beta: float, alpha: float, *more: Any) -> Any:
        if _short(beta) and _short(alpha):
            return function(to, x, y, beta, alpha, *more)
        return beta * to + alpha * (x @ y)

    return added


def _normalised(epsilon: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A norm that adds `epsilon` to a variance v. The kernel adds e, the float32 next to it: given s·x with s² = e / ε it
    divides s·(x − μ) by √(s²v + e), which is what is asked for."""

    def exact(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)

        def normalise(*arguments: Any, **options: Any) -> Any:
            given = signature.bind(*arguments, **options)
            given.apply_defaults()
            told = given.arguments
            ours = float(told[epsilon])
            stored = told.get("running_mean") is not None
            # Statistics that are updated, or of which one is left to the kernel, are left to it altogether.
            moving = stored and (
                (told.get("training") and not told.get("use_global_stats")) or "use_input_stats" in told
            )
            if _short(ours) or moving:
                return function(*arguments, **options)
            scale = float(np.sqrt(np.float64(np.float32(ours)) / ours))
            told["x"] = told["x"] * scale
            if stored:
                told["running_mean"], told["running_var"] = told["running_mean"] * scale, told["running_var"] * scale**2
            return function(*given.args, **given.kwargs)

        return normalise

    return exact


def _length(x: Any, p: float, axis: int | list[int] | None, keepdim: bool) -> Any:
    """(Σ|x|^p)^(1/p), its gradient zero where it is zero."""
    if p == 1:
        return x.abs().sum(axis, keepdim=keepdim)
    total = (x * x if p == 2 else _own_power(x.abs(), _number(p, x))).sum(axis, keepdim=keepdim)
    zero = total == 0
    total = _chosen(zero, 1.0, total)
    return _chosen(zero, 0.0, paddle.sqrt(total) if p == 2 else _own_power(total, _number(1 / p, x)))


def _vector_norm(p: Any, axis: Any) -> float | None:
    """The p of a norm of vectors; None where it is another, or infinite, or counts."""
    if p in (None, "fro"):
        p = 2.0
    elif isinstance(axis, (list, tuple)) and len(axis) > 1:
        return None
    return float(p) if isinstance(p, (int, float)) and 0 < p < float("inf") else None


def _norm(function: Callable[..., Any]) -> Callable[..., Any]:
    def norm(x: Any, p: Any, axis: Any, keepdim: bool, *more: Any) -> Any:
        known = _vector_norm(p, axis)
        if known is None or any(one is not None for one in more) or x.dtype != paddle.float64:
            return function(x, p, axis, keepdim, *more)
        return _length(x, known, list(axis) if isinstance(axis, (list, tuple)) else axis, keepdim)

    return norm


def _vectors(function: Callable[..., Any]) -> Callable[..., Any]:
    def vector_norm(x: Any, p: float, axis: Any, keepdim: bool, *more: Any) -> Any:
        if not 0 < p < float("inf") or any(one is not None for one in more) or x.dtype != paddle.float64:
            return function(x, p, axis, keepdim, *more)
        return _length(x, p, list(axis) if isinstance(axis, (list, tuple)) else axis, keepdim)

    return vector_norm


def _normalize(function: Callable[..., Any]) -> Callable[..., Any]:
    def normalize(x: Any, p: float, axis: int, epsilon: float, *more: Any) -> Any:
        known = _vector_norm(p, axis)
        if known is None:
            return function(x, p, axis, epsilon, *more)
        length = _length(x, known, axis, keepdim=True)
        return x / _chosen(length < epsilon, epsilon, length)

    return normalize


def _distance(function: Callable[..., Any]) -> Callable[..., Any]:
    def dist(x: Any, y: Any, p: float, *more: Any) -> Any:
        known = _vector_norm(p, None)
        return function(x, y, p, *more) if known is None else _length(x - y, known, None, keepdim=False)

    return dist


def _smooth_l1(function: Callable[..., Any]) -> Callable[..., Any]:
    def smooth_l1_loss(x: Any, label: Any, reduction: str, delta: float, is_huber: bool, *_more: Any) -> Any:
        far = (x - label).abs()
        losses = _chosen(far < delta, 0.5 * far * far, delta * (far - 0.5 * delta)) / (1.0 if is_huber else delta)
        return losses if reduction == "none" else getattr(losses, reduction)()

    return smooth_l1_loss


def _label_smooth(function: Callable[..., Any]) -> Callable[..., Any]:
    def label_smooth(label: Any, prior_dist: Any, epsilon: float, *_more: Any) -> Any:
        label = label.astype("float64")  # cross_entropy's are float32, which 0 and 1 fit into and 0.9 does not
        return label * (1 - epsilon) + (epsilon / label.shape[-1] if prior_dist is None else epsilon * prior_dist)

    return label_smooth


def _offer(exact: Callable[[Callable[..., Any]], Callable[..., Any]], *holders: tuple[Any, str]) -> None:
    """Have one of Paddle's functions compute to the last digit while a float64 run is recorded, wherever it is found."""
    for holder, name in holders:
        if hasattr(holder, name):
            setattr(holder, name, _switched(getattr(holder, name), exact))


def _switched(own: Callable[..., Any], exact: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[..., Any]:
    """One function or the other; the exact one is given all arguments by position, those left out as well."""
    instead, signature = exact(own), _signature(own)

    @functools.wraps(own)
    def function(*arguments: Any, **options: Any) -> Any:
        if not _exact:
            return own(*arguments, **options)
        try:
            given = signature.bind(*arguments, **options)
        except TypeError:  # by names that are no longer, or not yet, its own
            return own(*arguments, **options)
        given.apply_defaults()
        if any(value is not None for value in given.kwargs.values()):  # `out` and the like
            return own(*arguments, **options)
        return instead(*given.args)

    return function


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except ValueError:  # an operator that is no Python
        return inspect.signature(lambda x, y: None)


_own_where, _own_power = paddle.where, paddle.pow

for _dimensions in (1, 2, 3):
    _offer(_pooled(_dimensions), (_F, f"avg_pool{_dimensions}d"))
    _offer(_pooled_adaptively, (_F, f"adaptive_avg_pool{_dimensions}d"))
for _name, _instead in {
    "interpolate": _interpolated,
    "hardsigmoid": _hard_sigmoid,
    "selu": _selu,
    "elu": _elu,
    "celu": _celu,
    "hardtanh": _hardtanh,
    "softshrink": _softshrink,
    "thresholded_relu": _thresholded,
    "rrelu": _rrelu,
    "layer_norm": _normalised("epsilon"),
    "batch_norm": _normalised("epsilon"),
    "instance_norm": _normalised("eps"),
    "normalize": _normalize,
    "smooth_l1_loss": _smooth_l1,
    "label_smooth": _label_smooth,
}.items():
    _offer(_instead, (_F, _name))
_offer(_stanh, (paddle, "stanh"), (_T, "stanh"))
_offer(_where, (paddle, "where"))
_offer(_power, (paddle, "pow"), (_T, "pow"), (_T, "__pow__"))
_offer(_added_product, (paddle, "addmm"), (_T, "addmm"), (paddle, "baddbmm"), (_T, "baddbmm"))
_offer(_norm, (paddle, "norm"), (_T, "norm"), (paddle.linalg, "norm"))
_offer(_vectors, (paddle.linalg, "vector_norm"))
_offer(_distance, (paddle, "dist"), (_T, "dist"))

set_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
