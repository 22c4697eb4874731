"""What one side did with one batch: a `Trace` of named tensors, in the order they came to be."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["activation", "logits", "loss", "gradient", "update"]


@dataclass(frozen=True)
class Record:
    """One named tensor.

    kind:  what it is: a module's output, the logits, the loss, a gradient, or an optimizer step's change of a parameter.
    name:  module path (``"layers.0.norm"``; a second call is ``"layers.0.norm#2"``, a second output ``"…[1]"``), or the
           parameter's state-dict name for gradients and updates, in this side's own words.
    value: the array in this side's own layout; None where the framework gave no gradient.
    """

    kind: Kind
    name: str
    value: NDArray | None


@dataclass(frozen=True)
class Trace:
    """All records of one run. framework: its name; dtype: ``"float32"`` or ``"float64"``."""

    framework: str
    dtype: str
    records: tuple[Record, ...]

    @cached_property
    def _index(self) -> dict[tuple[Kind, str], NDArray | None]:
        return {(record.kind, record.name): record.value for record in self.records}

    def get(self, kind: Kind, name: str) -> NDArray | None:
        """The value of one record, or None when there is none."""
        return self._index.get((kind, name))

    def names(self, kind: Kind) -> list[str]:
        """Names of one kind, in order."""
        return [record.name for record in self.records if record.kind == kind]


def widest(values: list[NDArray | None]) -> float:
    """Largest finite magnitude in `values`; 0 when there is none."""
    sizes = [float(np.abs(v[np.isfinite(v)]).max(initial=0.0)) for v in values if v is not None]
    return max(sizes, default=0.0)
