"""The door to each framework: one adapter file per framework, imported only when asked for.

An adapter holds all that differs between frameworks: build, load, run, record, gradients, optimizer step, seeds, threads.
The toolkit never asks which framework it has. A third framework costs one file here and one table in
`checkpoints.layouts`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

from numpy.typing import NDArray

from alignment.conditions import Condition
from alignment.errors import AlignmentError, FrameworkMissingError
from alignment.trace import Record, Trace
from alignment.training.recipe import Recipe
from alignment.training.trainer import Trainer
from checkpoints.structure import Slot
from fake_data import Batch

# framework -> (adapter module, package to look for, how to get it)
FRAMEWORKS = {
    "torch": ("alignment.frameworks.torch", "torch", "pip install torch"),
    "paddle": (
        "alignment.frameworks.paddle",
        "paddle",
        "pip install paddlepaddle (or paddlepaddle-gpu on a machine with CUDA)",
    ),
}

# A class or function that builds a model, ``"package.module:Class"`` which names one, or a model to copy.
Target = Any
# Where the loss comes from; see `alignment.twins.Twin`. Anything else than these is a function, or names one.
Loss = Any
OWN_LOSS = ("model", "criterion")
# Dropout in training: None lets everything pass, a number is the seed of masks that are the same in every framework and
# others in every step, "own" leaves it to the framework and its random numbers, ("own", seed) seeds these anew in each step.
Dropout = int | Literal["own"] | tuple[Literal["own"], int] | None

# Attributes of a model that was cast to a dtype or put on a device, for one that has no tensor to tell it.
CAST_TO = "_alignment_cast_to"
PLACED_ON = "_alignment_placed_on"
# Attribute of a module of the user's own whose counterpart is an attention layer: of what it gives the first is compared.
ATTENTION = "_alignment_attention"


def own_loss(loss: Loss) -> bool:
    """Is the loss a cross entropy of logits, by the model itself or by a criterion?"""
    return isinstance(loss, str) and loss in OWN_LOSS


def scalar(loss: Any, tensor: type[Any]) -> Any:
    """A loss that its function returned, if it is one.

    Raises:
        AlignmentError: it is no tensor of the framework's, or not of one element.
    """
    if not isinstance(loss, tensor):
        found = f"a {type(loss).__name__}"
    elif math.prod(loss.shape) != 1:
        found = f"a tensor of shape {list(loss.shape)}"
    else:
        return loss
    raise AlignmentError(
        f"a loss must be a tensor of one element, such as a mean or a sum; its function returned {found}"
    )


def load_target(target: Target) -> Callable[..., Any]:
    """The function or class itself, or the one that ``"package.module:name"`` names."""
    if not isinstance(target, str):
        return cast("Callable[..., Any]", target)
    module, _, attribute = target.partition(":")
    return cast("Callable[..., Any]", getattr(importlib.import_module(module), attribute))


@dataclass(frozen=True)
class ModuleInfo:
    """One module of a model's tree.

    path: ``""`` is the root. kind: its layer kind, or the name of the user's own class where `own`, which is only a name.
    """

    path: str
    kind: str
    own: bool


@dataclass(frozen=True)
class Meaning:
    """A function of a framework by a name that means something else in torch, and one with torch's meaning.

    cause: what it is called when the two are taken for each other. change: taking torch's meaning, in words.
    holders: (object, attribute) where the function is found. instead: function -> the function with the other meaning.
    """

    cause: str
    change: str
    holders: tuple[tuple[Any, str], ...]
    instead: Callable[[Callable[..., Any]], Callable[..., Any]]


@contextlib.contextmanager
def exchanged(meaning: Meaning) -> Iterator[list[str]]:
    """Let the functions have their other meaning for a while; gives a list that names those which are called."""
    calls: list[str] = []
    kept = [(holder, name, getattr(holder, name)) for holder, name in meaning.holders if hasattr(holder, name)]

    def counted(holder: Any, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(f"{holder.__name__}.{name}")
            return function(*arguments, **options)

        return call

    try:
        for holder, name, function in kept:
            setattr(holder, name, counted(holder, name, meaning.instead(function)))
        yield calls
    finally:
        for holder, name, function in reversed(kept):
            setattr(holder, name, function)


class Framework(Protocol):
    """What an adapter offers. `model` is the framework's own module, opaque to the toolkit.

    meanings: functions whose name means something else in torch; a port may have taken one for the other.
    """

    name: str
    meanings: tuple[Meaning, ...]

    def versions(self) -> dict[str, str]:
        """Versions of the framework and of what it computes with, for the report."""

    def conditions(self) -> tuple[Condition, ...]:
        """How the framework is built and set, as it is now, as far as it bears on a check."""

    def set_threads(self, count: int) -> None:
        """Use `count` CPU threads."""

    def device(self, model: Any) -> str:
        """Where the model's parameters are, in the framework's word."""

    def devices(self) -> tuple[str, ...]:
        """Where this installation can run a model on this machine: ``"cpu"``, and ``"gpu:0"`` … for each GPU."""

    def build(
        self,
        target: Target,
        settings: Mapping[str, Any],
        seed: int = 0,
        criterion: bool = False,
        mode: str = "eval",
        dropout: int | None = None,
        device: str | None = None,
    ) -> Any:
        """A new model: what `target` builds with keywords `settings` under `seed`, or a copy of the model that it is.

        criterion: give the model a mean cross entropy module named ``criterion`` if it has none of its own.
        mode: ``"eval"`` or ``"train"``. Dropout lets everything pass in either, unless it is seeded.
        dropout: in training mode, let dropout layers of the framework's own apply the masks that this seed gives, the same in
            every pass and every framework (`alignment.frameworks.masks`). Dropout that is no layer can't be told apart from
            other random numbers, and draws its own.
        device: one of `devices`; None: where the framework, or the model that is copied, has it.
        """

    def slots(self, model: Any) -> tuple[Slot, ...]:
        """Every name of the state dict, in its order; `within` for the kinds in `checkpoints.layouts.CONTAINING`."""

    def modules(self, model: Any) -> tuple[ModuleInfo, ...]:
        """The module tree in definition order; a shared module appears once, under its first path.

        What is inside attention and recurrent layers is left out, and not recorded either: one framework makes of several
        layers what the other computes in one.
        """

    def read_state(self, model: Any) -> dict[str, NDArray]:
        """Copies of all tensors of the state dict."""

    def load_state(self, model: Any, tensors: Mapping[str, NDArray]) -> None:
        """Fill every tensor of the state dict, in the model's own dtype. Names and shapes must fit exactly."""

    def cast(self, model: Any, dtype: str) -> Any:
        """The model with all floating-point parameters and buffers in `dtype` (in place where the framework does so).

        The eps of the framework's own norm layers is rounded to float32, whatever `dtype`: like weights and inputs, it should
        be what the float32 model computes with. Paddle's layers hold it as float32 always, so that 1e-5 is off by 2.5e-13
        in a float64 run: a million times float64's rounding where the variance is small.
        """

    def run(
        self,
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
        """Run the model in its mode and record each module's output, the logits (with and, where the model computes its own
        loss, without targets) or whatever else it returns, and the loss; on request the gradients of these and of every
        parameter, and the change of every running statistic by a forward pass in training mode (all are restored).

        Floating-point inputs are given in the model's dtype. Inside layers of the framework's own that are built of other
        parts elsewhere (recurrent ones, multi-head attention) nothing is recorded.

        learning_rate: record the change of every parameter by one Adam step, too.
        brief: without the further forward passes, the one without targets and the one in training mode. The latter is not
            made in detailed runs either.
        detail: record what each module is given, too, and the gradients of inputs and outputs.
        forced: a detailed trace in this model's names. Each module then gets its values in place of what it was given,
            and whatever follows gets them in place of what the module computed; in the backward pass likewise. So every
            piece of code between two records is judged by itself, and no divergence is handed on (teacher forcing).
            What is recorded is what was computed before it was replaced.
        sink: is given each record as it is made, in place of keeping it: large runs need no memory for them. The array shares
            memory with the framework's tensor where it can, and is good during the call only.
        """

    def train(
        self,
        model: Any,
        batches: Sequence[Batch],
        *,
        loss: Loss,
        learning_rate: float,
        sink: Callable[[int, Record], None] | None = None,
    ) -> list[float]:
        """The loss of each batch in turn, with a step of Adam after each; weights are restored.

        sink: is given the number of each step, from 1, and the change of each parameter by it.
        """

    def cross_entropy(
        self, logits: NDArray, targets: NDArray, *, reduction: str = "mean", ignore_index: int | None = None
    ) -> NDArray:
        """The framework's own cross entropy of logits [..., C] and int64 targets [...], in the logits' dtype."""

    def set_option(self, model: Any, kind: str, option: str, value: Any) -> list[str]:
        """Set an option (by torch's name) of every layer of a kind; returns the paths it changed."""

    def get_option(self, model: Any, kind: str, option: str) -> dict[str, Any]:
        """Path -> value of an option (by torch's name) of every layer of a kind."""

    def module(self, model: Any, path: str) -> Any:
        """The module at `path`; ``""`` is the model itself."""

    def options(self, model: Any, path: str) -> dict[str, Any]:
        """Option (by torch's name) -> value of the module at `path`, as far as the adapter's table knows its kind."""

    def set_options(self, model: Any, path: str, options: Mapping[str, Any]) -> None:
        """Set options (by torch's names) of the module at `path`."""

    def replace_gradient(self, model: Any, parameter: str, replace: Callable[[NDArray], NDArray]) -> None:
        """Replace the gradient of one parameter by a function of it in every backward pass to come."""

    def replace_input(self, model: Any, path: str, position: int, replace: Callable[[NDArray], NDArray]) -> None:
        """Replace one positional input of the module at `path` by a function of it, in every call to come.

        A function that returns the array it was given only looks: the tensor stays, and its gradient.
        """


class Absent:
    """In the place of the adapter of a side that is not at hand, and not asked for."""

    meanings = ()

    def __init__(self, name: str) -> None:
        self.name = name

    def versions(self) -> dict[str, str]:
        """None are known."""
        return {}

    def conditions(self) -> tuple[Condition, ...]:
        """None are known."""
        return ()

    def set_threads(self, count: int) -> None:
        """There is nothing to run."""

    def slots(self, _model: Any) -> tuple[Slot, ...]:
        """No tensors."""
        return ()

    def modules(self, _model: Any) -> tuple[ModuleInfo, ...]:
        """No modules."""
        return ()


def call_site(library: str) -> str:
    """``"file:line"`` of the nearest calling code that is neither below the folder `library` nor an adapter's."""
    frame = sys._getframe(1)
    here = os.path.dirname(__file__)  # noqa: PTH120 (once for every call of a module)
    while frame.f_back is not None:
        frame = frame.f_back
        if not frame.f_code.co_filename.startswith((library, here, "<")):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
    return ""


def get_framework(name: str) -> Framework:
    """The adapter of a framework.

    Raises:
        AlignmentError: no adapter of that name.
        FrameworkMissingError: the framework is not installed, or does not import.
    """
    if name not in FRAMEWORKS:
        raise AlignmentError(f"unknown framework {name!r}; known: {', '.join(FRAMEWORKS)}")
    module, package, remedy = FRAMEWORKS[name]
    if importlib.util.find_spec(package) is None:
        raise FrameworkMissingError(f"{name} is not installed, and one side of this twin needs it; {remedy}")
    reserve_threads()
    try:
        return cast(Framework, importlib.import_module(module))
    except (Exception, SystemExit) as error:  # a broken installation may fail in any way
        raise FrameworkMissingError(
            f"{name} is installed but does not import: {type(error).__name__}: {error}; {remedy}"
        ) from error


def get_trainer(
    name: str,
    model: Any,
    recipe: Recipe | None,
    *,
    loss: Loss,
    dropout: Dropout = None,
    names: Mapping[str, str] | None = None,
    optimizer: Callable[[Any], Any] | None = None,
) -> Trainer:
    """What trains a model of a framework by a recipe. It trains the model itself, not a copy.

    In a float64 run momentum and weight decay are rounded to float32 (`Recipe.as_held`), as both sides then have them. What a
    parameter's ParamAttr says of its learning rate and its decay gives way to the recipe.

    Args:
        model: what `Framework.build` gives, in evaluation mode; the trainer sets its mode. loss: as in `Framework.run`.
        names: this side's parameters -> the reference's, for which the groups of the recipe are said; None: they are the same.
        optimizer: what makes an optimizer of the user's own, in place of the recipe's: model -> optimizer, or (optimizer,
            scheduler). A scheduler that is not given is not stepped. Of the recipe, where there is one, clipping is still
            done, unless the optimizer clips itself (Paddle's grad_clip), and `Schedule.by` still says when to step.

    Raises:
        AlignmentError: no adapter of that name, neither recipe nor optimizer.
        FrameworkMissingError: the framework is not installed, or does not import.
    """
    get_framework(name)
    made = importlib.import_module(f"alignment.frameworks.{name}_training").trainer(
        model, recipe, loss=loss, dropout=dropout, names=names, optimizer=optimizer
    )
    return cast(Trainer, made)


def paddle_names(target: Target, settings: Mapping[str, Any]) -> dict[str, str]:
    """Parameter -> what Paddle calls it in a process that builds this model first: the names of its optimizers' files."""
    get_framework("paddle")
    found = importlib.import_module("alignment.frameworks.paddle_training").names_of_its_own(target, settings)
    return cast("dict[str, str]", found)


def reserve_threads(count: int | None = None) -> int:
    """Settle the number of CPU threads before any framework is imported, and return it: `count`, or all there are.

    Importing paddle sets OMP_NUM_THREADS to 1 when it is unset, which would slow a torch imported later, and both sides
    must run with the same number to be compared. Each framework brings an OpenMP runtime of its own; told to wait
    passively, the one that has nothing to do does not take the cores from the other.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if count is not None:
        os.environ["OMP_NUM_THREADS"] = str(count)
    elif not re.fullmatch("[1-9][0-9]{0,3}", os.environ.get("OMP_NUM_THREADS", "")):
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        os.environ["OMP_NUM_THREADS"] = str(available)
    return int(os.environ["OMP_NUM_THREADS"])
