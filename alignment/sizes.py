"""The sizes of a built-in twin, read off the shapes in a checkpoint.

Each rule reads the shapes of embeddings and biases and the number of elements, which are the same in every framework.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from alignment.twins import Twin


def read_sizes(twin: Twin, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Any], dict[str, str]]:
    """What `shapes` (tensor name -> shape) tell of the twin's settings.

    Returns:
        setting -> its value; and, for each setting that could be told but for a tensor that is not there, the tensor.
    """
    told: dict[str, Any] = {}
    lacking: dict[str, str] = {}
    for setting, rule in SIZES.get(twin.name, {}).items():
        try:
            size = rule(Shapes(shapes))
        except (LookupError, ZeroDivisionError) as error:
            lacking[setting] = str(error).strip("'")
            continue
        if size is not None:
            told[setting] = size
    return told, lacking


class Shapes:
    """Shapes by tensor name; a name that isn't there is remembered for the message."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = shapes

    def size(self, name: str, axis: int = 0) -> int:
        if name not in self.shapes or axis >= len(self.shapes[name]):
            raise LookupError(name)
        return self.shapes[name][axis]

    def count(self, prefix: str) -> int:
        """How many numbered children `prefix` has."""
        found = {name.removeprefix(prefix).partition(".")[0] for name in self.shapes if name.startswith(prefix)}
        return sum(child.isdigit() for child in found)


Sizes = dict[str, Callable[[Shapes], Any]]


def _fast_transformer(prefix: str) -> Sizes:
    attention, feed_forward = f"{prefix}layers.0.0.fn.", f"{prefix}layers.0.1.fn."

    def heads(s: Shapes) -> int:
        width = math.prod(s.shapes.get(attention + "to_qkv.weight", (0,))) // s.size(f"{prefix}token_emb.weight", 1)
        if not width:
            raise LookupError(attention + "to_qkv.weight")
        return width // (3 * s.size(attention + "to_r.bias"))

    sizes: Sizes = {
        "num_tokens": lambda s: s.size(f"{prefix}token_emb.weight"),
        "dim": lambda s: s.size(f"{prefix}token_emb.weight", 1),
        "depth": lambda s: s.count(f"{prefix}layers."),
        "heads": heads,
        "dim_head": lambda s: s.size(attention + "to_r.bias"),
        "ff_mult": lambda s: s.size(feed_forward + "0.bias") // s.size(f"{prefix}token_emb.weight", 1),
        "absolute_pos_emb": lambda s: f"{prefix}abs_pos_emb.weight" in s.shapes,
        # Rotary positions keep nothing of this length: the file can't tell it, and any will do.
        "max_seq_len": lambda s: s.shapes.get(f"{prefix}abs_pos_emb.weight", (None,))[0],
    }
    return sizes


SIZES: dict[str, Sizes] = {
    "fastformer-classifier": {
        "vocab_size": lambda s: s.size("word_embedding.weight"),
        "hidden_size": lambda s: s.size("word_embedding.weight", 1),
        "num_classes": lambda s: s.size("dense_linear.bias"),
        "max_position_embeddings": lambda s: s.size("fastformer_model.position_embeddings.weight"),
        "num_hidden_layers": lambda s: s.count("fastformer_model.encoders."),
        "num_attention_heads": lambda s: s.size("fastformer_model.encoders.0.attention.self.query_att.bias"),
        "intermediate_size": lambda s: s.size("fastformer_model.encoders.0.intermediate.dense.bias"),
        "pooler_count": lambda s: s.count("fastformer_model.poolers."),
    },
    "fast-transformer": _fast_transformer(""),
    "fast-transformer-classifier": _fast_transformer("fastformer_model.")
    | {"num_classes": lambda s: s.size("dense_linear.bias")},
    "fastformer-text-classifier": {
        "vocab_size": lambda s: s.size("embedding.weight"),
        "embed": lambda s: s.size("embedding.weight", 1),
        "num_classes": lambda s: s.size("fc.bias"),
        "num_attention_heads": lambda s: s.size("query_att.bias"),
    },
}
