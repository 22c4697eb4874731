"""How each framework names and stores the tensors of each layer kind: one table per framework.

The canonical layout is torch's, so torch's table holds kinds and nothing else. A rule goes by layer kind and never by
shape: a square weight gives no hint. A kind that is in no table has bare tensors: same name, same shape, no operation.
Facts read off torch 2.13 and paddle 3.3.1, whose class names the kinds are. A third framework costs one table.
"""

from __future__ import annotations

import math
import re
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
    packed:     this framework's local tensor name -> the canonical tensors it holds one after another along its first
                axis, in equal parts: word for the part -> canonical name.
    inside:     pattern of the name of a tensor in a layer within this one -> its canonical name in this layer. Its
                operation is that of the layer that holds it.
    made_of:    layers that this one is made of, by their canonical names -> their kinds in this framework's word. A
                canonical tensor name such as ``"q_proj.weight"`` is that of a tensor of one of them.
    """

    kind: str
    names: Mapping[str, str] = field(default_factory=dict)
    operations: Mapping[str, Operation] = field(default_factory=dict)
    packed: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    inside: Mapping[str, str] = field(default_factory=dict)
    made_of: Mapping[str, str] = field(default_factory=dict)

    def canonical_inside(self, name: str) -> str | None:
        """The canonical name of a tensor in a layer within this one; None where no pattern fits."""
        matches = ((re.fullmatch(pattern, name), canonical) for pattern, canonical in self.inside.items())
        return next((match.expand(canonical) for match, canonical in matches if match), None)


_CONVOLUTIONS = ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")
_PADDLE_BATCH_NORM = Layer("BatchNorm", {"_mean": "running_mean", "_variance": "running_var"})
_PADDLE_INSTANCE_NORM = Layer("InstanceNorm", {"scale": "weight"})

# A projection for all of queries, keys and values; with other widths of keys and values, of the biases alone.
_PACKED = {f"in_proj_{what}": {part: f"{part}_proj.{what}" for part in "qkv"} for what in ("weight", "bias")}
_APART = {f"{part}_proj_{what}": f"{part}_proj.{what}" for part in "qkv" for what in ("weight", "bias")}
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")

# Paddle's recurrent layers are made of cells, and name each cell's tensors a second time as torch does. The cells are
# believed: with a projection the second names of 3.3.1 are shifted by one from the second cell on.
_CELLS = {
    r"(\d+)\.cell(?:_fw)?\.((?:weight|bias)_[ih]h)": r"\2_l\1",
    r"(\d+)\.cell_bw\.((?:weight|bias)_[ih]h)": r"\2_l\1_reverse",
    r"(\d+)\.cell(?:_fw)?\.weight_ho": r"weight_hr_l\1",
    r"(\d+)\.cell_bw\.weight_ho": r"weight_hr_l\1_reverse",
}

TABLES: dict[str, dict[str, Layer]] = {
    "torch": {kind: Layer(kind) for kind in ("Linear", "Embedding", "LayerNorm", "GroupNorm", "PReLU", "Bilinear")}
    | {kind: Layer(kind) for kind in _CONVOLUTIONS}
    | {kind: Layer("BatchNorm") for kind in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm")}
    | {f"InstanceNorm{n}d": Layer("InstanceNorm") for n in (1, 2, 3)}
    | {
        kind: Layer(kind)
        for kind in ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell", "TransformerDecoderLayer")
    }
    | {
        "MultiheadAttention": Layer(
            "MultiheadAttention", _APART, packed=_PACKED, made_of=dict.fromkeys(_PROJECTIONS, "Linear")
        )
    },
    "paddle": {
        "Linear": Layer("Linear", operations={"weight": "transpose"}),
        "compat.Linear": Layer("Linear"),  # paddle.compat.nn.Linear keeps torch's [out, in]
        "Embedding": Layer("Embedding"),
        "GroupNorm": Layer("GroupNorm"),
        # Paddle flattens a normalised shape of several axes.
        "LayerNorm": Layer("LayerNorm", operations={"weight": "reshape", "bias": "reshape"}),
        "PReLU": Layer("PReLU", {"_weight": "weight"}),
        "Bilinear": Layer("Bilinear", operations={"bias": "reshape"}),  # [1, out] beside torch's [out]
        "LSTM": Layer("LSTM", inside=_CELLS),
        "GRU": Layer("GRU", inside=_CELLS),
        "SimpleRNN": Layer("RNN", inside=_CELLS),
        "LSTMCell": Layer("LSTMCell", operations={"weight_ho": "transpose"}),
        "GRUCell": Layer("GRUCell"),
        "SimpleRNNCell": Layer("RNNCell"),
        "MultiHeadAttention": Layer("MultiheadAttention", made_of=dict.fromkeys(_PROJECTIONS, "Linear")),
        "compat.MultiheadAttention": Layer(
            "MultiheadAttention", _APART, packed=_PACKED, made_of=dict.fromkeys(_PROJECTIONS, "compat.Linear")
        ),
        "TransformerDecoderLayer": Layer("TransformerDecoderLayer", inside={r"cross_attn\.(.*)": r"multihead_attn.\1"}),
    }
    | {f"Conv{n}D": Layer(f"Conv{n}d") for n in (1, 2, 3)}
    | {f"Conv{n}DTranspose": Layer(f"ConvTranspose{n}d") for n in (1, 2, 3)}
    | dict.fromkeys(("BatchNorm", "BatchNorm1D", "BatchNorm2D", "BatchNorm3D", "SyncBatchNorm"), _PADDLE_BATCH_NORM)
    | {f"InstanceNorm{n}D": _PADDLE_INSTANCE_NORM for n in (1, 2, 3)},
}

# The kinds an adapter may report: for a subclass, the nearest of these among its bases.
KINDS: dict[str, frozenset[str]] = {framework: frozenset(table) for framework, table in TABLES.items()}

# The kinds that hold tensors of layers within them as their own.
CONTAINING: dict[str, frozenset[str]] = {
    framework: frozenset(kind for kind, layer in table.items() if layer.inside) for framework, table in TABLES.items()
}

# Canonical kind and pattern of the name of a tensor that a framework may lack, and why. It is dropped on the way there and
# filled with zeros on the way back.
OPTIONAL: tuple[tuple[str, str, str], ...] = (
    ("BatchNorm", "num_batches_tracked", "counts training steps; one framework keeps it, the other has no counterpart"),
)
# The same, of a buffer whose values are zero, or it could not be dropped.
FROZEN: tuple[tuple[str, str, str], ...] = tuple(
    (kind, r"bias_[ih]h(_l\d+(_reverse)?)?", "without biases one framework has none, the other zeros that don't train")
    for kind in ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")
)


def reason_to_lack(rules: tuple[tuple[str, str, str], ...], kind: str | None, local: str) -> str | None:
    """Why one of the frameworks may lack this tensor, by OPTIONAL or FROZEN; None where it may not."""
    return next((why for of, pattern, why in rules if of == kind and re.fullmatch(pattern, local)), None)


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
