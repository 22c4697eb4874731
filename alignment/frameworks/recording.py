"""What the recorders of both adapters share: which modules are watched, what a record is called, what a forced run does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from alignment.expressions import call_text
from alignment.frameworks import ATTENTION, call_site
from alignment.structures import transform
from alignment.trace import GRADIENT_OF, Kind, Record, Trace

Sink = Callable[[Record], None] | None


def directions(shape: Iterable[int], position: int) -> NDArray[np.float64]:
    """What output number `position` of a model without a loss is multiplied with, to be summed up to one.

    Standard normal values over √size: every element matters to the sum, and none of its gradients is alike.
    """
    shape = tuple(shape)
    values = np.random.default_rng(position).standard_normal(shape)
    return np.asarray(values / np.sqrt(max(1, values.size)))


class Recorder(ABC):
    """Hooks on every module: they record what comes out, in detail also what goes in, and may put given values there.

    A subclass says what a tensor of its framework is and how to make one. library: the folder of its framework's own code.
    """

    library: str

    def __init__(self, modules: Iterable[tuple[str, Any]], detail: bool, forced: Trace | None, sink: Sink) -> None:
        self.records: list[Record] = []
        self.sites: dict[str, str] = {}
        self.calls: dict[str, str] = {}
        self._detail, self._forced = detail or forced is not None, forced
        self.keep, self._share = sink or self.records.append, sink is not None
        self._calls: dict[str, int] = {}
        # Forced runs: what was computed, with the gradient it is given; and the tensors that took its place.
        self._seeds: list[tuple[Any, Any]] = []
        self._leaves: list[tuple[Kind, str, Any]] = []
        self._handles: list[Any] = []
        self._attention: set[str] = set()
        for path, module in modules:
            if self.is_attention(module) or getattr(module, ATTENTION, False):
                self._attention.add(path)
            if path and (self._detail or path != "criterion"):
                enter = partial(self._enter, path) if self._detail else None
                self._handles += self.hook(module, enter, partial(self._leave, path))

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_error: object) -> None:
        for handle in self._handles:
            handle.remove()

    # ------------------------------------------------------------------------------------------- what a framework says

    @abstractmethod
    def hook(self, module: Any, enter: Callable[..., Any] | None, leave: Callable[[Any], Any]) -> list[Any]:
        """Have ``enter(arguments, keywords)`` give what the module is called with, ``leave(output)`` what it returns."""

    @abstractmethod
    def is_attention(self, module: Any) -> bool:
        """Does the module give its weights beside what it computes: averaged over heads, or not, or left out?"""

    @abstractmethod
    def is_tensor(self, value: Any) -> bool:
        """Is it a tensor of this framework?"""

    @abstractmethod
    def to_array(self, tensor: Any) -> NDArray:
        """A copy on the host."""

    @abstractmethod
    def own_memory(self, tensor: Any) -> NDArray | None:
        """The tensor's memory as an array; None where it can't be shared."""

    @abstractmethod
    def has_gradient(self, tensor: Any) -> bool:
        """Does the backward pass reach it?"""

    @abstractmethod
    def watched(self, tensor: Any, tell: Callable[[Any], None]) -> Any:
        """A copy of a tensor whose gradient `tell` is given."""

    @abstractmethod
    def like(self, value: NDArray, tensor: Any) -> Any:
        """A tensor of these values, of the dtype and on the device of another."""

    @abstractmethod
    def leaf(self, tensor: Any) -> tuple[Any, Any]:
        """A tensor that gathers its gradient, and a copy of it to compute with, which may be written into."""

    @abstractmethod
    def gradients_enabled(self) -> bool:
        """Is the run one that goes backward?"""

    @abstractmethod
    def go_back(self, ends: list[Any], gradients: list[Any]) -> None:
        """The backward pass from all ends together; the gradient None stands for 1."""

    # --------------------------------------------------------------------------------------------------------- the rest

    def array(self, tensor: Any) -> NDArray:
        """The tensor's values: a copy, or its own memory where they are not kept. bfloat16 becomes float32, exactly."""
        own = self.own_memory(tensor) if self._share else None
        value = self.to_array(tensor) if own is None else own
        return value.astype(np.float32) if value.dtype == ml_dtypes.bfloat16 else value

    def backward(self, value: Any) -> None:
        """The backward pass: from the loss or, where values were forced, of each piece by itself."""
        # A tensor that several modules were given comes several times.
        ends: dict[int, tuple[Any, Any]] = {}
        for tensor, gradient in self._seeds:
            _, known = ends.get(id(tensor), (tensor, None))
            ends[id(tensor)] = (tensor, gradient if known is None else known + gradient)
        self.go_back([value.sum(), *(end for end, _ in ends.values())], [None, *(g for _, g in ends.values())])
        for kind, label, leaf in reversed(self._leaves):
            self.keep(Record(kind, label, None if leaf.grad is None else self.array(leaf.grad)))

    def outputs(self, value: Any) -> list[tuple[str, Any]]:
        """Record every tensor the model returned; (name, tensor) of each."""
        found: list[tuple[str, Any]] = []

        def record(path: str, leaf: Any) -> Any:
            if self.is_tensor(leaf):
                found.append((f"output[{path}]" if path else "output", leaf))
                self.keep(Record("output", found[-1][0], self.array(leaf)))
            return leaf

        transform(value, record)
        return found

    def _enter(self, path: str, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> tuple[Any, Any]:
        label = self._label(path, self._calls.get(path, 0) + 1)
        self.sites[label] = call_site(self.library)
        self.calls[label] = call_text(arguments, keywords, self.is_tensor)

        def change(at: str, leaf: Any) -> Any:
            return self._pass("input", label if at == "0" else f"{label}[{at}]", leaf)

        return transform(arguments, change), transform(dict(keywords), change)

    def _leave(self, path: str, output: Any) -> Any:
        self._calls[path] = self._calls.get(path, 0) + 1
        label = self._label(path, self._calls[path])
        if path in self._attention and isinstance(output, tuple):
            return (self._pass("activation", label, output[0]), *output[1:])
        return transform(output, lambda at, leaf: self._pass("activation", f"{label}[{at}]" if at else label, leaf))

    @staticmethod
    def _label(path: str, call: int) -> str:
        return path if call == 1 else f"{path}#{call}"

    def _pass(self, kind: Kind, label: str, tensor: Any) -> Any:
        if not self.is_tensor(tensor):
            return tensor
        self.keep(Record(kind, label, self.array(tensor)))
        if not self._detail:
            return tensor
        if self._forced is not None:
            return self._replaced(kind, label, tensor, self._forced)
        if self.has_gradient(tensor):
            # So that the gradient is of what uses it from here on, alone. Not a view: it may be written into.
            return self.watched(tensor, lambda g: self.keep(Record(GRADIENT_OF[kind], label, self.array(g))))
        return tensor

    def _replaced(self, kind: Kind, label: str, tensor: Any, forced: Trace) -> Any:
        given = forced.get(kind, label)
        floating = tensor.is_floating_point()
        if given is None or given.shape != tuple(tensor.shape) or (given.dtype.kind == "f") != floating:
            return tensor
        gradient = forced.get(GRADIENT_OF[kind], label)
        if self.has_gradient(tensor) and gradient is not None:
            self._seeds.append((tensor, self.like(gradient, tensor)))
        instead = self.like(given, tensor)
        if gradient is None or not self.gradients_enabled():
            return instead
        leaf, instead = self.leaf(instead)
        self._leaves.append((GRADIENT_OF[kind], label, leaf))
        return instead
