"""What one side did with one batch: a `Trace` of named tensors, in the order they came to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Kind = Literal[
    "activation", "logits", "output", "loss", "gradient", "update", "input", "input gradient", "activation gradient"
]

# Tensors that flow between modules, and the kind of the loss's gradient with respect to them.
GRADIENT_OF: dict[Kind, Kind] = {"input": "input gradient", "activation": "activation gradient"}


@dataclass(frozen=True)
class Record:
    """One named tensor.

    kind:  what it is: a module's output (activation), the logits or what else the model returns (output), the loss, a
           parameter's gradient, the change of a parameter by an optimizer step or of a running statistic by a forward
           pass in training mode (update). In a detailed trace besides: what a module was given (input), and the loss's
           gradient with respect to an output (activation gradient: of all that is made of it) or an input (input
           gradient: through this module alone).
    name:  module path (``"layers.0.norm"``; a second call is ``"layers.0.norm#2"``, a second output or argument
           ``"…[1]"``, one in a nested tuple or of a name ``"…[1.0]"``, ``"…[mask]"``), or the tensor's state-dict name for
           gradients and updates; in this side's own words.
    value: the array in this side's own layout; None where the framework gave no gradient.
    """

    kind: Kind
    name: str
    value: NDArray | None


@dataclass(frozen=True)
class Trace:
    """All records of one run.

    framework: its name; dtype: ``"float32"`` or ``"float64"``. sites: in a detailed trace, call of a module ->
    ``"file:line"`` of the user's code that made it; calls: -> what it was called with (`alignment.expressions.call_text`),
    in the order in which the calls began.
    """

    framework: str
    dtype: str
    records: tuple[Record, ...]
    sites: Mapping[str, str] = field(default_factory=dict)
    calls: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def _index(self) -> dict[tuple[Kind, str], NDArray | None]:
        return {(record.kind, record.name): record.value for record in self.records}

    def get(self, kind: Kind, name: str) -> NDArray | None:
        """The value of one record, or None when there is none."""
        return self._index.get((kind, name))

    def names(self, kind: Kind) -> list[str]:
        """Names of one kind, in order."""
        return [record.name for record in self.records if record.kind == kind]


class Terms(NamedTuple):
    """The terms that gradients of a module's parameters sum, about. Over its outputs y in all calls: summed, Σ|∂y|, their number
    times their RMS; squared, Σ∂y². inputs: the largest RMS of what it is given, 0 where that is no number.
    """

    summed: float
    squared: float
    inputs: float


def widest(values: list[NDArray | None]) -> float:
    """Largest finite magnitude in `values`; 0 when there is none."""
    sizes = [float(np.abs(v[np.isfinite(v)]).max(initial=0.0)) for v in values if v is not None]
    return max(sizes, default=0.0)
