"""What the layout rules need to know of a live model: one `Slot` for each name of its state dict.

Framework adapters produce slots; this room never sees a live module, so it imports without any framework.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Slot:
    """One entry of a model's state dict.

    name:   full state-dict name, e.g. ``"layers.0.1.fn.0.weight"``.
    kind:   layer kind of the owning module in the framework's own word, e.g. ``"Linear"``; the model's own classes
            give their class name.
    local:  the name inside that module, e.g. ``"weight"``.
    shape:  shape as this framework stores it.
    dtype:  NumPy-style name: ``"float32"``, ``"bfloat16"``, ``"int64"`` …
    role:   ``"parameter"`` (trained) or ``"buffer"``.
    tied_to: the first name that shares this storage, when this is a further name of one tensor; else None.
    within: (layer kind, name inside it) of the layers around the owner that have rules for what is inside them
            (`checkpoints.layouts.CONTAINING`), nearest first, e.g. ``(("MultiHeadAttention", "q_proj.weight"),)``.
    """

    name: str
    kind: str
    local: str
    shape: tuple[int, ...]
    dtype: str
    role: Literal["parameter", "buffer"] = "parameter"
    tied_to: str | None = None
    within: tuple[tuple[str, str], ...] = ()
