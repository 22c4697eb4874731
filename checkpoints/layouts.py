"""How each framework names and stores the tensors of each layer kind: one table per framework.

The canonical layout is torch's, so torch's table holds kinds and nothing else. A rule goes by layer kind and never by
shape: a square weight gives no hint. A kind that is in no table has bare tensors: same name, same shape, no operation.
Facts read off torch 2.13 and paddle 3.3.1, whose class names the kinds are. A third framework costs one table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Operation = Literal["copy", "transpose", "reshape"]
OPERATIONS: tuple[Operation, ...] = ("copy", "transpose", "reshape")


@dataclass(frozen=True)
class Layer:
    """How one framework stores one layer kind.

    kind:       the canonical kind, so that the two sides can be told to be the same layer.
    names:      this framework's local tensor name -> the canonical one, where they differ.
    operations: this framework's local tensor name -> the operation that makes the canonical tensor of it, where one is
                needed. Each is its own inverse: a transpose swaps the two axes; a reshape (row major) applies only
                where the two shapes differ.
    """

    kind: str
    names: Mapping[str, str] = field(default_factory=dict)
    operations: Mapping[str, Operation] = field(default_factory=dict)


_CONVOLUTIONS = ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")
_PADDLE_BATCH_NORM = Layer("BatchNorm", {"_mean": "running_mean", "_variance": "running_var"})
_PADDLE_INSTANCE_NORM = Layer("InstanceNorm", {"scale": "weight"})

TABLES: dict[str, dict[str, Layer]] = {
    "torch": {kind: Layer(kind) for kind in ("Linear", "Embedding", "LayerNorm", "GroupNorm", "PReLU", "Bilinear")}
    | {kind: Layer(kind) for kind in _CONVOLUTIONS}
    | {kind: Layer("BatchNorm") for kind in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm")}
    | {f"InstanceNorm{n}d": Layer("InstanceNorm") for n in (1, 2, 3)},
    "paddle": {
        "Linear": Layer("Linear", operations={"weight": "transpose"}),
        "compat.Linear": Layer("Linear"),  # paddle.compat.nn.Linear keeps torch's [out, in]
        "Embedding": Layer("Embedding"),
        "GroupNorm": Layer("GroupNorm"),
        # Paddle flattens a normalised shape of several axes.
        "LayerNorm": Layer("LayerNorm", operations={"weight": "reshape", "bias": "reshape"}),
        "PReLU": Layer("PReLU", {"_weight": "weight"}),
        "Bilinear": Layer("Bilinear", operations={"bias": "reshape"}),  # [1, out] beside torch's [out]
    }
    | {f"Conv{n}D": Layer(f"Conv{n}d") for n in (1, 2, 3)}
    | {f"Conv{n}DTranspose": Layer(f"ConvTranspose{n}d") for n in (1, 2, 3)}
    | dict.fromkeys(("BatchNorm", "BatchNorm1D", "BatchNorm2D", "BatchNorm3D", "SyncBatchNorm"), _PADDLE_BATCH_NORM)
    | {f"InstanceNorm{n}D": _PADDLE_INSTANCE_NORM for n in (1, 2, 3)},
}

# The kinds an adapter may report: for a subclass, the nearest of these among its bases.
KINDS: dict[str, frozenset[str]] = {framework: frozenset(table) for framework, table in TABLES.items()}

# Canonical (kind, name) that a framework may lack: dropped on the way there, filled with zeros on the way back.
OPTIONAL: dict[tuple[str, str], str] = {
    ("BatchNorm", "num_batches_tracked"): "counts training steps; one framework keeps it, the other has no counterpart",
}


def compose(first: Operation, second: Operation) -> Operation | None:
    """One operation that does `first` then `second`; None where no single one does."""
    if first == second:
        return "reshape" if first == "reshape" else "copy"
    if "copy" in (first, second):
        return second if first == "copy" else first
    return None


def shape_after(operation: Operation, shape: tuple[int, ...], target: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape `operation` gives a tensor of `shape` (`target` is where a reshape goes); None where it can't apply."""
    if operation == "transpose":
        return shape[::-1] if len(shape) == 2 else None
    if operation == "reshape":
        return target if math.prod(shape) == math.prod(target) else None
    return shape
